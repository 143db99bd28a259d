"""Models for classification and regression: built for a task, adapted by LoRA, saved, loaded to predict."""

import inspect
import json
import shutil
from argparse import Namespace
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import torch
from accelerate import Accelerator
from peft import LoraConfig, PeftModel, TaskType, get_peft_model
from safetensors import safe_open
from torch import nn
from transformers import (
    AutoConfig,
    AutoModelForSequenceClassification,
    PreTrainedConfig,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)
from transformers.utils import logging

from dnabert2 import checkpoints
from dnabert2.encoding import position_limit
from dnabert2.errors import UsageError
from dnabert2.labelled import TaskData
from dnabert2.loading import errors_name, fastest_attention, is_trusted, new_model, refuse_misfits, set_attention


HEADS = ("pooler", "classifier", "score")  # as models name what stands on top of their encoder
ADAPTER_CONFIG, ADAPTER_WEIGHTS = "adapter_config.json", "adapter_model.safetensors"


@contextmanager
def _quiet(is_quiet: bool) -> Iterator[None]:
    """Without what transformers says of a pretrained model's fresh head, and without its bars: once is enough."""
    verbosity = logging.get_verbosity()
    if is_quiet:
        logging.set_verbosity_error()
        logging.disable_progress_bar()
    try:
        yield
    finally:
        logging.set_verbosity(verbosity)


def is_adapter(name_or_path: str | Path) -> bool:
    return (Path(name_or_path) / ADAPTER_CONFIG).is_file()


def label_config(data: TaskData) -> dict:
    """A task as a model's configuration holds it."""
    return {
        "id2label": dict(enumerate(data.label_names)),
        "label2id": {name: index for index, name in enumerate(data.label_names)},
        "problem_type": data.problem_type,
    }


def write_reading(config: PreTrainedConfig, args: Namespace):
    """Notes how sequences are read, for predictions to come."""
    config.kmer, config.reverse_complement = args.kmer, args.reverse_complement


def read_reading(config: PreTrainedConfig, args: Namespace) -> tuple[int | None, bool]:
    """k and whether both strands are read: as the arguments say, or as the model was fine-tuned."""
    kmer = args.kmer or getattr(config, "kmer", None)
    return kmer, args.reverse_complement or getattr(config, "reverse_complement", False)


def new_classifier(
    args: Namespace, tokenizer: PreTrainedTokenizerBase, labels: dict, is_quiet: bool = False
) -> PreTrainedModel:
    """
    A model of the arguments' name or sizes for a task, in float32; what it has no weights for (a head, the pooler of
    a model of masked language modelling) is drawn from torch's generator.

    Args:
        labels: as of `label_config`.

    Raises:
        UsageError: if there is none, it lacks other weights, it is an adapter or a classifier of other labels, or the
            tokenizer has more tokens than it.
    """
    if args.config_name:
        values = (args.config_name, tokenizer, args.config_overrides, args.trust_remote_code)
        return new_model(*values, auto_class=AutoModelForSequenceClassification, **labels)
    name = args.model_name_or_path
    if is_adapter(name):
        raise UsageError(f"{name} is an adapter: train on its base, or on what --merge_adapter has saved")
    model, info = _load(name, args.trust_remote_code, is_quiet, ignore_mismatched_sizes=True, **labels)
    of_heads = {key for key in info["mismatched_keys"] if set(HEADS) & set(key[0].split("."))}
    refuse_misfits(name, info["mismatched_keys"] - of_heads, info["unexpected_keys"])
    if of_heads:
        raise UsageError(f"{name} is a classifier of other labels than the task's: give the model that it came from")
    prefix = f"{model.base_model_prefix}."
    if missing := [key for key in info["missing_keys"] if key.startswith(prefix) and "pooler" not in key.split(".")]:
        raise UsageError(
            f"{name} lacks {len(missing)} of this model's weights, as {min(missing)}: they would be drawn at random"
        )
    if len(tokenizer) > model.config.vocab_size:
        raise UsageError(
            f"the tokenizer has {len(tokenizer)} tokens and {name} only {model.config.vocab_size}: give the model's "
            "own tokenizer by --tokenizer_name"
        )
    return model


def _load(
    name: str | Path, trust_remote_code: bool, is_quiet: bool = False, **options
) -> tuple[PreTrainedModel, dict]:
    with errors_name(name), _quiet(is_quiet):
        return AutoModelForSequenceClassification.from_pretrained(
            name,
            trust_remote_code=is_trusted(name, trust_remote_code),
            dtype="float32",
            output_loading_info=True,
            **options,
        )


def load_finetuned(name: str, trust_remote_code: bool = False) -> PreTrainedModel:
    """
    A fine-tuned model, or an adapter's folder on the base that it names.

    Raises UsageError for what has no trained head, as of masked language modelling, and for files that are missing.
    """
    if not is_adapter(name):
        model, info = _load(name, trust_remote_code)
        if info["missing_keys"]:
            raise UsageError(f"{name} is not fine-tuned: it has no {min(info['missing_keys'])}; train it first")
        return model
    folder = Path(name)
    if not (folder / ADAPTER_WEIGHTS).is_file():
        raise UsageError(f"{name}: {ADAPTER_WEIGHTS} is missing, and no other format is read")
    with errors_name(folder / ADAPTER_CONFIG):
        base = json.loads((folder / ADAPTER_CONFIG).read_text())["base_model_name_or_path"]
    with errors_name(name):
        config = AutoConfig.from_pretrained(name, trust_remote_code=True)  # its labels; a folder, so the user's choice
    model, info = _load(base, trust_remote_code, is_quiet=True, config=config)
    with errors_name(folder / ADAPTER_WEIGHTS), safe_open(folder / ADAPTER_WEIGHTS, "pt") as file:
        held = {key.removeprefix("base_model.model.") for key in file.keys()}
    if missing := {*info["missing_keys"]} - held:  # its head is the adapter's
        raise UsageError(f"{name}: neither the adapter nor its base {base} has {min(missing)}: train it again")
    return PeftModel.from_pretrained(model, name)


def use_attention(args: Namespace, model: PreTrainedModel, accelerator: Accelerator) -> str:
    """Sets the attention back end: what was asked for, and of DNABERT-2 the fastest. Other models keep their own."""
    base = model.get_base_model() if isinstance(model, PeftModel) else model
    fastest = fastest_attention(accelerator.device.type, accelerator.mixed_precision)
    wanted = args.attn_implementation or (fastest if base.config.model_type == "dnabert2" else None)
    if wanted:
        set_attention(base, wanted, accelerator.device.type, accelerator.mixed_precision)
    return base.config._attn_implementation


def takes_token_types(model: PreTrainedModel) -> bool:
    base = model.get_base_model() if isinstance(model, PeftModel) else model
    return "token_type_ids" in inspect.signature(base.forward).parameters


def max_positions(args: Namespace, tokenizer: PreTrainedTokenizerBase) -> int | None:
    """`position_limit` of the model that the arguments name, without its weights."""
    with torch.device("meta"):
        if args.config_name:
            values = (args.config_name, tokenizer, args.config_overrides, args.trust_remote_code)
            model = new_model(*values, auto_class=AutoModelForSequenceClassification)
        else:
            name, trusted = args.model_name_or_path, is_trusted(args.model_name_or_path, args.trust_remote_code)
            with errors_name(name):
                config = AutoConfig.from_pretrained(name, trust_remote_code=trusted)
                model = AutoModelForSequenceClassification.from_config(config, trust_remote_code=trusted)
    return position_limit(model)


def add_adapter(model: PreTrainedModel, args: Namespace) -> PeftModel:
    """
    The model with LoRA's matrices (arXiv 2106.09685) on the layers of --lora_target_modules; the rest is frozen.

    Pooler, classifier and all else beside the base model (XLNet's `logits_proj`) are trained and saved whole: they can
    be fresh, and frozen they would be other random numbers where the adapter is loaded. And they are no targets,
    although DNABERT-2's pooler is named `dense`, as layers of the encoder.

    Raises UsageError for a target that the model has not.
    """
    linear = [name for name, module in model.named_modules() if isinstance(module, nn.Linear)]
    present = {part for name, _ in model.named_modules() for part in name.split(".")}
    whole = [head for head in HEADS if head in present]
    if hasattr(model, model.base_model_prefix):
        beside = {name.split(".")[0] for name, _ in model.named_parameters()} - {model.base_model_prefix}
        whole += sorted(beside - {*whole})
    heads = [name for name in linear if set(whole) & set(name.split("."))]
    targets = [target.strip() for target in args.lora_target_modules.split(",") if target.strip()]
    ends = {name.split(".")[-1] for name in linear if name not in heads}
    if not targets or (unknown := [target for target in targets if target not in ends]):
        raise UsageError(
            f"--lora_target_modules: the model has no {unknown[0] if targets else 'layer of no name'}; "
            f"its layers are {','.join(sorted(ends))}"
        )
    name = args.model_name_or_path
    model = get_peft_model(
        model,
        LoraConfig(
            task_type=TaskType.SEQ_CLS,
            r=args.lora_r,
            lora_alpha=args.lora_alpha,
            lora_dropout=args.lora_dropout,
            target_modules=targets,
            exclude_modules=heads or None,
            modules_to_save=whole,
        ),
    )
    # the adapter will be loaded from elsewhere
    model.peft_config["default"].base_model_name_or_path = str(Path(name).resolve()) if Path(name).is_dir() else name
    return model


def count_parameters(model: nn.Module) -> dict[str, int]:
    """
    All parameters; those trained; of these, LoRA's own matrices. The difference of the latter two is of the modules
    that are trained whole. What an adapter keeps frozen beside a module trained whole is not counted.
    """
    of_model = [(name, p) for name, p in model.named_parameters() if "original_module" not in name]
    adapters = sum(p.numel() for name, p in of_model if ".lora_" in name)
    return {
        "parameters": sum(p.numel() for _, p in of_model) - adapters,
        "trained_parameters": sum(p.numel() for _, p in of_model if p.requires_grad),
        "adapter_parameters": adapters,
    }


def save_classifier(accelerator: Accelerator, model: nn.Module, tokenizer: PreTrainedTokenizerBase, folder: Path):
    """Saves a model, or an adapter with the configuration that holds its labels. Call it on the main process."""
    model = checkpoints.unwrap(accelerator, model)
    temporary = folder / "model.tmp"
    shutil.rmtree(temporary, ignore_errors=True)  # of a run killed right here
    if isinstance(model, PeftModel):
        model.save_pretrained(temporary, save_embedding_layers=False)
        model.get_base_model().config.save_pretrained(temporary)
    else:
        model.save_pretrained(temporary)
    checkpoints.save_tokenizer(tokenizer, temporary)
    for path in temporary.iterdir():
        path.replace(folder / path.name)
    temporary.rmdir()


def save_merged(accelerator: Accelerator, model: nn.Module, tokenizer: PreTrainedTokenizerBase, folder: Path):
    """Adds the adapters into their layers, for good, and saves the plain model. Call it on the main process."""
    folder.mkdir(exist_ok=True)
    save_classifier(accelerator, checkpoints.unwrap(accelerator, model).merge_and_unload(), tokenizer, folder)

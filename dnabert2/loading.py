"""Models and tokenizers for the scripts, always through the `Auto*` classes: the remote code is never imported."""

import json
import pickle
import re
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path

import torch
from huggingface_hub.errors import StrictDataclassError
from safetensors import SafetensorError
from transformers import AutoConfig, AutoModelForMaskedLM, AutoTokenizer, PreTrainedModel, PreTrainedTokenizerBase
from transformers.utils import is_flash_attn_2_available

from dnabert2.errors import UsageError


ATTENTION = ["eager", "sdpa", "flash_attention_2", "flex_attention"]
ROOT = Path(__file__).resolve().parent.parent  # the repository, which is a model folder itself


def is_trusted(name_or_path: str | Path, trust_remote_code: bool) -> bool:
    """A folder on this machine is the user's own choice of code; a name on the Hub needs their word."""
    return trust_remote_code or Path(name_or_path).is_dir()


@contextmanager
def errors_name(source: str | Path) -> Iterator[None]:
    """Turns what transformers raises for a missing or broken file, or an impossible value, into a UsageError."""
    try:
        yield
    except (OSError, ValueError) as error:  # their first line says what, the others how the Hub works
        raise UsageError(f"{source}: {str(error).strip().splitlines()[0]}") from error
    except SafetensorError as error:
        raise UsageError(f"{source}: its safetensors are damaged ({error}): get them again") from error
    except pickle.UnpicklingError as error:  # transformers too reads with weights_only
        raise UsageError(
            f"{source}: its weights are a pickle of more than tensors, which could be code: refused, and not run. Get "
            "model.safetensors"
        ) from error
    except (TypeError, AttributeError, StrictDataclassError) as error:  # of what JSON holds
        raise UsageError(f"{source}: has a value of a wrong type: {' '.join(str(error).split())}") from error


def load_tokenizer(name_or_path: str | Path, trust_remote_code: bool = False) -> PreTrainedTokenizerBase:
    trust_remote_code = is_trusted(name_or_path, trust_remote_code)
    with errors_name(name_or_path):
        return AutoTokenizer.from_pretrained(name_or_path, trust_remote_code=trust_remote_code)


def new_model(
    config_name: str | Path,
    tokenizer: PreTrainedTokenizerBase,
    overrides: str | None = None,
    trust_remote_code: bool = False,
    auto_class: type = AutoModelForMaskedLM,
    **values,
) -> PreTrainedModel:
    """
    A model with fresh weights.

    Args:
        config_name: a model's folder or Hub name, or a JSON file of sizes as in `configs/`, laid over the root
            `config.json`. The root's code and full `auto_map` travel with what such a model saves.
        tokenizer: decides `vocab_size` and `pad_token_id`.
        overrides: single values on top, as "hidden_size=256,num_hidden_layers=4".
        auto_class: what it is for.
        values: of the configuration, as id2label: those of the task.

    Raises:
        UsageError: for a file that is missing or broken, and for names and values that a configuration has not.
    """
    with errors_name(config_name):
        if str(config_name).endswith(".json"):
            config = AutoConfig.from_pretrained(ROOT, trust_remote_code=True)
            sizes = json.loads(Path(config_name).read_text())
            if not isinstance(sizes, dict):
                raise UsageError("not a JSON object of sizes, as in configs/")
            if unknown := sorted(sizes.keys() - config.to_dict().keys()):
                raise UsageError(f"a configuration has no {unknown[0]}")  # transformers would drop it in silence
            config.update(sizes)
            trust_remote_code = True
        else:
            trust_remote_code = is_trusted(config_name, trust_remote_code)
            config = AutoConfig.from_pretrained(config_name, trust_remote_code=trust_remote_code)
    with errors_name(f"--config_overrides {overrides}" if overrides else config_name):
        if overrides:
            config.update_from_string(overrides)
        config.vocab_size, config.pad_token_id = len(tokenizer), tokenizer.pad_token_id
        config = type(config)(**config.to_dict() | values)  # checks the sizes that were laid over
        return auto_class.from_config(config, trust_remote_code=trust_remote_code)


def refuse_misfits(name_or_path: str | Path, mismatched: Iterable[tuple], unexpected: Iterable[str]):
    """
    Raises UsageError where weights and config.json are not of one model.

    Args:
        mismatched: (name, shape in the file, shape in the model) of what was left out of the model for its shape.
        unexpected: names in the file that the model has not. A head may be, or a pooler, but no layer.
    """
    for name in sorted(unexpected):
        if re.search(r"\blayers?\.\d+\.", name):
            raise UsageError(
                f"{name_or_path}: config.json wants fewer layers than its weights have, which hold {name}"
            )
    for name, stored, wanted in sorted(mismatched):
        raise UsageError(
            f"{name_or_path}: {len(mismatched)} of its weights have another shape than its config.json wants, as "
            f"{name} {list(stored)}, not {list(wanted)}: these files are not of one model"
        )


def load_model(
    name_or_path: str | Path, tokenizer: PreTrainedTokenizerBase, trust_remote_code: bool = False
) -> PreTrainedModel:
    """
    A pretrained model for masked language modelling, in float32 whatever it is stored in: training needs it.

    Raises:
        UsageError: if there is none, weights are missing or of other shapes, or the tokenizer has more tokens than the
            model.
    """
    with errors_name(name_or_path):
        model, loading = AutoModelForMaskedLM.from_pretrained(
            name_or_path,
            trust_remote_code=is_trusted(name_or_path, trust_remote_code),
            dtype="float32",
            output_loading_info=True,
            ignore_mismatched_sizes=True,  # named here: transformers refers to a report
        )
    refuse_misfits(name_or_path, loading["mismatched_keys"], loading["unexpected_keys"])
    if missing := sorted(loading["missing_keys"]):
        raise UsageError(
            f"{name_or_path} lacks {len(missing)} of this model's weights, as {missing[0]}: they would be drawn at "
            "random. Give a checkpoint of masked language modelling"
        )
    if len(tokenizer) > model.config.vocab_size:
        raise UsageError(
            f"the tokenizer has {len(tokenizer)} tokens and {name_or_path} only {model.config.vocab_size}: "
            "give the model's own tokenizer by --tokenizer_name"
        )
    return model


def fastest_attention(device_type: str, mixed_precision: str) -> str:
    """The fastest attention back end that can run here: flash-attn wants an Ampere GPU or later, in half precision."""
    is_half = mixed_precision in ("bf16", "fp16")
    is_fitting = device_type == "cuda" and is_half and torch.cuda.get_device_capability() >= (8, 0)
    return "flash_attention_2" if is_fitting and is_flash_attn_2_available() else "sdpa"


def set_attention(model: PreTrainedModel, attn_implementation: str, device_type: str, mixed_precision: str):
    """For training. Raises UsageError, saying what is missing, where this back end cannot run."""
    if attn_implementation == "flex_attention" and device_type == "cpu":
        raise UsageError("--attn_implementation flex_attention has no backward pass on a CPU: use sdpa")
    if attn_implementation == "flex_attention" and model.config.attention_probs_dropout_prob:
        raise UsageError("--attn_implementation flex_attention has no dropout: set attention_probs_dropout_prob=0")
    if attn_implementation == "flash_attention_2" and mixed_precision == "no":
        raise UsageError("--attn_implementation flash_attention_2 needs accelerate launch --mixed_precision bf16")
    try:
        model.set_attn_implementation(attn_implementation)
    except ImportError as error:
        raise UsageError(f"--attn_implementation {attn_implementation}: {error}") from error

"""The released checkpoint, or another of its code, as a model folder of this package:

    python -m dnabert2.convert zhihan1996/DNABERT-2-117M output/released

Reads `config.json`, `tokenizer.json`, and `model.safetensors` or else `pytorch_model.bin`, from the Hub or a folder,
and runs none of its code. Every tensor comes into the result as it is, or the conversion fails. Other checkpoints of
that architecture are converted too: an encoder alone, as DNABERT-S, and classifiers fine-tuned with the released code.
"""

import argparse
import json
import re
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import torch
from huggingface_hub import ModelCardData
from safetensors import SafetensorError
from transformers import (
    AutoConfig,
    AutoModel,
    AutoModelForMaskedLM,
    AutoModelForSequenceClassification,
    PreTrainedConfig,
    PreTrainedModel,
)

from dnabert2.checkpoints import RESULTS_FILE
from dnabert2.errors import UsageError, add_debug, run_script
from dnabert2.files import whole_folder
from dnabert2.loading import ROOT, errors_name
from dnabert2.released_files import fetch, read_json, read_pad_token_id, read_weights
from dnabert2.releases import SERVING
from dnabert2.tokenization import tokenizer_config


EMBEDDINGS = "embeddings.word_embeddings.weight"
DECODER = "cls.predictions.decoder.weight"  # tied to the embeddings
POOLER = "pooler.dense."
LARGEST = 2**20  # of any number in config.json
HEADS = {  # by how their tensors' names begin; without one it is an encoder
    "cls.": (AutoModelForMaskedLM, "fill-mask"),
    "classifier.": (AutoModelForSequenceClassification, "text-classification"),
    "": (AutoModel, "feature-extraction"),
}
# Keys of config.json that this package writes itself
OURS = {"architectures", "auto_map", "model_type", "dtype", "torch_dtype", "transformers_version", "_name_or_path"}
CARD = """---
{data}
---

# {title}

The weights and the tokenizer of {title}, unchanged, with another implementation of
[DNABERT-2](https://arxiv.org/abs/2306.15006) in place of the released code.

{pooler}.

```python
from transformers import {auto_class}, AutoTokenizer

checkpoint = "."  # this folder, or its name on the Hub
tokenizer = AutoTokenizer.from_pretrained(checkpoint, trust_remote_code=True)
model = {auto_class}.from_pretrained(checkpoint, trust_remote_code=True)
```
"""


def read_config(file: Path) -> tuple[PreTrainedConfig, list[str]]:
    """
    This package's configuration with the release's values, and the release's keys that have no meaning here.

    Raises:
        UsageError: for another model's configuration, and values that cannot be.
    """
    released = read_json(file)
    model_type = released.get("model_type", "bert")  # the release's is BERT's, where there is one
    if model_type == "dnabert2":
        raise UsageError(f"{file}: this is a model of this package already: load it as it is")
    if model_type != "bert":
        raise UsageError(f"{file}: model_type is {model_type!r}, and the released code's is 'bert'")
    root = AutoConfig.from_pretrained(ROOT, trust_remote_code=True)
    known = (type(root)().to_dict().keys() | {"num_labels"}) - OURS
    values = {key: value for key, value in released.items() if key in known}
    for key, value in values.items():
        if isinstance(value, int) and abs(value) > LARGEST:
            raise UsageError(f"{file}: {key} is {value}: no model of this kind has such a size")
    values |= {"auto_map": root.auto_map, "name_or_path": str(ROOT)}
    with errors_name(file):
        config = type(root)(**{"pad_token_id": 0} | values)  # BERT's default, which the release goes by
    return config, sorted(released.keys() - known - OURS)


def check_sizes(weights: dict[str, torch.Tensor], config: PreTrainedConfig, file: Path):
    """Before a model is built, which config.json may want to be of any size. Raises UsageError for other weights."""
    embeddings = weights.get(f"bert.{EMBEDDINGS}", weights.get(EMBEDDINGS))
    if embeddings is None or embeddings.ndim != 2:
        raise UsageError(f"{file}: has no {EMBEDDINGS}: these are not DNABERT-2's weights")
    layers = {found[1] for name in weights if (found := re.search(r"encoder\.layer\.(\d+)\.", name))}
    sizes = {"vocab_size": len(embeddings), "hidden_size": embeddings.shape[1], "num_hidden_layers": len(layers)}
    for name, size in sizes.items():
        if getattr(config, name) != size:
            raise UsageError(f"{file}: the weights' {name} is {size}, but config.json says {getattr(config, name)}")


def head_of(weights: dict[str, torch.Tensor], file: Path) -> str:
    """The key of HEADS. Raises UsageError for weights of two heads."""
    found = [head for head in HEADS if head and any(name.startswith(head) for name in weights)]
    if len(found) > 1:
        raise UsageError(f"{file}: has two heads, cls and classifier: save a model with one of them")
    return found[0] if found else ""


def is_tied(model: PreTrainedModel) -> bool:
    return model.get_output_embeddings() is not None and model.config.tie_word_embeddings


def new_names(weights: dict[str, torch.Tensor], model: PreTrainedModel, file: Path) -> dict[str, str]:
    """
    The model's name for every tensor: its own, or that with the prefix `bert.` added or taken off.

    A pooler may be missing, because pretraining has none, though not from under a classifier; where it stands beside
    an MLM head it is kept for `AutoModel`. The decoder may be missing, because it is tied.

    Raises:
        UsageError: for tensors that have no place, are missing, have another shape, or are tied and differ, by name.
    """
    shapes = {name: list(tensor.shape) for name, tensor in model.state_dict().items()}
    optional = {DECODER} if is_tied(model) else set()
    if "classifier.weight" not in shapes:
        prefix, size = "bert." if DECODER in shapes else "", model.config.hidden_size
        shapes |= {f"{prefix}{POOLER}weight": [size, size], f"{prefix}{POOLER}bias": [size]}
        if not any(POOLER in name for name in weights):
            optional |= {name for name in shapes if POOLER in name}
    names, unexpected = {}, []
    for name in weights:
        new = next((new for new in (name, f"bert.{name}", name.removeprefix("bert.")) if new in shapes), None)
        if new is None or new in names.values():
            unexpected.append(name)
        else:
            names[name] = new
    problems = {
        "have no place in it": unexpected,
        "are missing": sorted(shapes.keys() - names.values() - optional),
        "have another shape than config.json wants": [
            f"{name} {list(weights[name].shape)}, not {shapes[new]}"
            for name, new in names.items()
            if list(weights[name].shape) != shapes[new]
        ],
    }
    told = [
        f"{len(some)} {what}: {', '.join(some[:4] + ['…'] * (len(some) > 4))}"
        for what, some in problems.items()
        if some
    ]
    if told:
        raise UsageError(f"{file}: these are not the tensors of a {type(model).__name__}. {'; '.join(told)}")
    tied = [weights[name] for name, new in names.items() if new == DECODER or new.endswith(EMBEDDINGS)]
    if is_tied(model) and not torch.equal(tied[0], tied[-1]):
        raise UsageError(f"{file}: {DECODER} is tied to {EMBEDDINGS} by config.json, and differs from it")
    return names


def convert(source: str, output: Path, revision: str | None = None) -> str:
    """
    Writes the model folder, whole or not at all, and returns what became of the release, in words.

    Args:
        source: a folder, or a name on the Hub.
        output: the new folder; it may be there if it is empty.
        revision: of the Hub: a branch, tag or commit.

    Raises:
        UsageError: for a source of other code, damaged or unsafe, a revision of a folder, and for an output that
            cannot be, or is in use.
    """
    is_folder = Path(source).is_dir()
    if is_folder and revision:
        raise UsageError(
            f"--revision {revision} is of a repository on the Hub, and {source} is a folder: leave it out"
        )
    with errors_name(output):
        if output.exists() and (not output.is_dir() or any(output.iterdir())):
            raise UsageError("is there, and not an empty folder: name another")
    config_file = fetch(source, "config.json", revision=revision)
    if (
        not is_folder
    ):  # the others of the same commit: it lies in the cache under that, and a branch may move meanwhile
        revision = config_file.parent.name
    config, unused = read_config(config_file)
    tokenizer = fetch(source, "tokenizer.json", revision=revision)
    released_pad, config.pad_token_id = config.pad_token_id, read_pad_token_id(tokenizer, config.vocab_size)
    file = fetch(source, "model.safetensors", "pytorch_model.bin", revision=revision)
    weights = read_weights(file)
    check_sizes(weights, config, file)
    auto_class, task = HEADS[head_of(weights, file)]
    dtype = next(iter(weights.values())).dtype
    with torch.device("meta"):
        model = auto_class.from_config(config, trust_remote_code=True, dtype=dtype)
    names = new_names(weights, model, file)
    # copies: tensors that share memory, as those of a .bin may, would not be written
    tensors = {new: weights[name].clone(memory_format=torch.contiguous_format) for name, new in names.items()}
    if is_tied(model):
        tensors.pop(DECODER, None)
    pooler = "It has a pooler"
    if not any(POOLER in name for name in tensors):
        pooler = "It has no pooler, as pretraining makes none: AutoModel and classifiers begin with a random one"

    with written(output) as folder:
        model.save_pretrained(folder, state_dict=tensors)
        shutil.copyfile(tokenizer, folder / "tokenizer.json")
        (folder / "tokenizer_config.json").write_text(json.dumps(tokenizer_config(), indent=2) + "\n")
        for name in SERVING:
            shutil.copyfile(ROOT / name, folder / name)
        (folder / "README.md").write_text(card(source, auto_class.__name__, task, pooler))
        # for the card of a push
        results = {"converted_from": Path(source).resolve().name if is_folder else source, "is_on_hub": not is_folder}
        (folder / RESULTS_FILE).write_text(json.dumps(results, indent=2) + "\n")
    renamed = sum(name != new for name, new in names.items())
    stated = (
        f"{source}: all {len(names)} tensors of {file.name} are in {output}, a {type(model).__name__} of "
        f"{model.num_parameters() / 1e6:.1f} million parameters",
        f"{len(names) - renamed} have their names, {renamed} another: with or without the prefix bert.",
        "the decoder is the word embeddings, and stored with them" if is_tied(model) else "",
        pooler,
        f"pad_token_id is {config.pad_token_id}, as in tokenizer.json; it was {released_pad}",
        unused and f"without a meaning here, and left out of config.json: {', '.join(unused)}",
    )
    return "\n  ".join(filter(None, stated))


@contextmanager
def written(output: Path) -> Iterator[Path]:
    """`whole_folder`, with a UsageError where it cannot be written, as on a full disk."""
    try:
        with whole_folder(output) as folder:
            yield folder
            if output.exists():
                output.rmdir()  # it was empty, and is not if this fails
    except (OSError, SafetensorError) as error:
        raise UsageError(f"{output}: {error}") from error


def card(source: str, auto_class: str, task: str, pooler: str) -> str:
    is_folder = Path(source).is_dir()
    data = ModelCardData(
        license="apache-2.0",
        library_name="transformers",
        pipeline_tag=task,
        base_model=None if is_folder else source,
        tags=["biology", "genomics", "dna", "dnabert2"],
        mask_token="[MASK]" if task == "fill-mask" else None,
    )
    title = Path(source).resolve().name if is_folder else source
    return CARD.format(data=data.to_yaml(), title=title, auto_class=auto_class, pooler=pooler)


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0], prog="python -m dnabert2.convert")
    parser.add_argument("source", help="a folder, or a name on the Hub")
    parser.add_argument("output", type=Path, help="the new folder")
    parser.add_argument("--revision", help="of the Hub: a branch, tag or commit")
    add_debug(parser)
    args = parser.parse_args()
    print(convert(args.source, args.output, args.revision))


if __name__ == "__main__":
    run_script(main)

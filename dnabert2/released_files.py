"""The files of a checkpoint of the released code, found in a folder or on the Hub and read without running any of it.

python -c 'from dnabert2.released_files import *; print(read_weights(fetch("folder", "pytorch_model.bin")).keys())'
"""

import json
import pickle
import re
import struct
import warnings
from pathlib import Path

import torch
from huggingface_hub import hf_hub_download
from huggingface_hub.errors import RemoteEntryNotFoundError
from safetensors import SafetensorError
from safetensors.torch import load_file

from dnabert2.errors import UsageError
from dnabert2.loading import errors_name
from dnabert2.tokenization import SPECIAL_TOKENS


DTYPES = (torch.float64, torch.float32, torch.float16, torch.bfloat16)
# All but UnpicklingError that reading was seen to raise for files that were cut or had wrong bytes in them
READING_ERRORS = (OSError, EOFError, RuntimeError, ValueError, LookupError, TypeError, AttributeError, AssertionError)
READING_ERRORS += (ArithmeticError, MemoryError, struct.error, SafetensorError)


def fetch(source: str, *names: str, revision: str | None = None) -> Path:
    """
    The first of these files that a folder, or a repository on the Hub, has.

    Raises:
        UsageError: for none of them, and for what is neither a folder nor a repository that can be reached.
    """
    folder = Path(source)
    is_folder = source != "" and folder.is_dir()
    if not is_folder and (folder.exists() or not re.fullmatch(r"\w[\w.-]*/\w[\w.-]*", source)):
        raise UsageError(f"{source}: neither a folder nor a name on the Hub, which is user/name")
    for name in names:
        if is_folder:
            if (folder / name).is_file():
                return folder / name
            continue
        with errors_name(f"{source}: not a folder here, and on the Hub"):
            try:
                return Path(hf_hub_download(source, name, revision=revision))
            except RemoteEntryNotFoundError:
                continue
    raise UsageError(f"{source}: has no {' and no '.join(names)}, which a checkpoint of the released code has")


def read_json(file: Path) -> dict:
    """Raises UsageError for a file that is damaged, or holds anything but an object."""
    try:
        value = json.loads(file.read_text())
    except (OSError, ValueError, RecursionError) as error:  # JSON's, Unicode's, and of lists in lists without end
        raise UsageError(f"{file}: damaged: {error}") from error
    if not isinstance(value, dict):
        raise UsageError(f"{file}: not a JSON object")
    return value


def read_weights(file: Path) -> dict[str, torch.Tensor]:
    """
    The tensors of a `.bin` or `.safetensors`.

    Raises:
        UsageError: for a file that is damaged, or holds anything but finite floating point tensors by name. What would
            run code when it is unpickled is refused before it does.
    """
    damaged = f"{file}: damaged, or not a file of weights: get it again"
    try:
        if file.suffix == ".safetensors":
            weights = load_file(file)
        else:
            with warnings.catch_warnings(action="ignore"):  # of the pickle's age
                weights = torch.load(file, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        if (found := re.search(r"GLOBAL ([\w.]+)", str(error))) is None:
            raise UsageError(damaged) from error
        raise UsageError(
            f"{file}: refused, and not run: besides tensors it holds {found[1]}, which could be code. Get the weights "
            "as model.safetensors, or save the model's state_dict() alone"
        ) from error
    except PermissionError as error:
        raise UsageError(f"{file}: {error.strerror}") from error
    except READING_ERRORS as error:
        raise UsageError(damaged) from error
    if not isinstance(weights, dict) or not all(isinstance(tensor, torch.Tensor) for tensor in weights.values()):
        raise UsageError(f"{file}: is not tensors by name: save the model's state_dict() alone")
    for name, tensor in weights.items():
        if tensor.dtype not in DTYPES or tensor.layout != torch.strided or tensor.is_meta:
            raise UsageError(f"{file}: {name} is not a dense tensor of floating point, as weights are")
        if not tensor.isfinite().all():
            raise UsageError(f"{file}: {name} has NaN or infinite values: get it again")
    return weights


def read_pad_token_id(file: Path, vocab_size: int) -> int:
    """[PAD]'s id in a tokenizer.json. Raises UsageError for one of other special tokens, or larger than the model."""
    tokenizer = read_json(file)
    try:
        ids = tokenizer["model"]["vocab"] | {token["content"]: token["id"] for token in tokenizer["added_tokens"]}
        largest = max(ids.values(), default=-1)
    except (LookupError, TypeError) as error:
        raise UsageError(f"{file}: holds no vocabulary: get it again") from error
    if missing := [token for token in SPECIAL_TOKENS if token not in ids]:
        raise UsageError(f"{file}: has no {', '.join(missing)}: it is not DNABERT-2's")
    if largest >= vocab_size:
        raise UsageError(f"{file}: has ids up to {largest}, too many for the vocab_size {vocab_size} of config.json")
    return ids["[PAD]"]

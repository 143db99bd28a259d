"""A release: a folder with a model's files as they are to lie on the Hub, linked from where a run has left them."""

import json
import re
import shutil
from argparse import ArgumentParser
from pathlib import Path

from safetensors import safe_open

from dnabert2.errors import UsageError
from dnabert2.loading import ROOT, errors_name
from dnabert2.released_files import read_json


WEIGHTS = re.compile(r"(adapter_|pytorch_)?model(-\d+-of-\d+)?\.(safetensors|bin)|model\.safetensors\.index\.json")
ADAPTER_CONFIG = "adapter_config.json"
TOKENIZER = (
    "tokenizer.json tokenizer_config.json special_tokens_map.json added_tokens.json vocab.txt vocab.json merges.txt "
    "spiece.model"
).split()
OF_THIS_MACHINE = ("is_local", "local_files_only", "name_or_path")  # transformers': where a tokenizer was read
MODEL_TYPE = "dnabert2"
SERVING = ("handler.py", "requirements.txt")  # of an Inference Endpoint, which needs both; not of adapters and k-mers


def is_of_model(name: str) -> bool:
    """Whether a file is one that `assemble` lays out of a model of this package."""
    names = ("config.json", ADAPTER_CONFIG, *TOKENIZER, *SERVING)
    return bool(WEIGHTS.fullmatch(name)) or name in names or ("/" not in name and name.endswith(f"_{MODEL_TYPE}.py"))


def model_files(folder: Path) -> list[Path]:
    """What there is of a model in a run's folder: weights, configurations, code and tokenizer."""
    if not (folder / "config.json").is_file():
        return []
    is_ours = read_json(folder / "config.json").get("model_type") == MODEL_TYPE
    code = f"*_{MODEL_TYPE}.py" if is_ours else "*.py"
    names = ("config.json", ADAPTER_CONFIG, *TOKENIZER)
    return [
        path
        for path in sorted(folder.iterdir())
        if WEIGHTS.fullmatch(path.name) or path.name in names or path.match(code)
    ]


def link(path: Path, target: Path):
    """Without the bytes, where the system can."""
    try:
        target.symlink_to(path.resolve())
    except OSError:
        shutil.copy2(path, target)


def assemble(folder: Path, release: Path, base_model: str | None = None):
    """
    Lays a model's files into an empty folder, as they are to lie on the Hub: the code beside them and what an endpoint
    needs, a full `auto_map`, no path of this machine.

    Args:
        base_model: the Hub name that an adapter is to give for its base.

    Raises:
        UsageError: for a folder without a model or with a damaged one, and for an adapter whose base is a folder of
            this machine.
    """
    files = {path.name: path for path in model_files(folder)}
    has_weights = any(name.endswith(".safetensors") for name in files)
    if not has_weights or "config.json" not in files or not set(TOKENIZER) & files.keys():
        raise UsageError(f"{folder} is no model to push: it lacks safetensors, config.json or a tokenizer")
    check_files(files)
    written = {}
    config = read_json(files.pop("config.json"))
    if config["model_type"] == MODEL_TYPE:
        # A model from the Hub names its repository in front of each class; code that is copied is named without.
        config["auto_map"] = read_json(ROOT / "config.json")["auto_map"]
        code = folder if (folder / f"modeling_{MODEL_TYPE}.py").is_file() else ROOT
        files |= {path.name: path for path in code.glob(f"*_{MODEL_TYPE}.py")}
        if ADAPTER_CONFIG not in files and not config.get("kmer"):
            files |= {name: (folder if (folder / name).is_file() else ROOT) / name for name in SERVING}
    config.pop("_name_or_path", None)
    written["config.json"] = config
    if "tokenizer_config.json" in files:
        values = read_json(files.pop("tokenizer_config.json"))
        written["tokenizer_config.json"] = {key: value for key, value in values.items() if key not in OF_THIS_MACHINE}
    if ADAPTER_CONFIG in files:
        values = read_json(files.pop(ADAPTER_CONFIG))
        values["base_model_name_or_path"] = base_model or values["base_model_name_or_path"]
        refuse_local_base(values["base_model_name_or_path"], folder)
        written[ADAPTER_CONFIG] = values
    for name, values in written.items():
        (release / name).write_text(json.dumps(values, indent=2) + "\n")
    for name, path in files.items():
        if not name.endswith(".bin"):
            link(path, release / name)


def check_files(files: dict[str, Path]):
    """Raises UsageError for damaged ones, as of a copy that was cut short: before a repository is made for them."""
    required = {"config.json": "model_type", ADAPTER_CONFIG: "base_model_name_or_path"}
    for name, path in files.items():
        if name.endswith(".json"):
            values = read_json(path)
            if name in required and not isinstance(values.get(required[name]), str):
                raise UsageError(f"{path}: has no {required[name]}")
        elif name.endswith(".safetensors"):
            with errors_name(path):
                safe_open(path, "pt")  # reads where tensors lie, and whether that is within the file


def refuse_local_base(base: str, folder: Path | None = None):
    """Raises UsageError for an adapter on a folder: who loads it has no such folder."""
    if Path(base).is_absolute() or Path(base).is_dir():
        adapter = f"{folder} is" if folder else "--use_lora would push"
        raise UsageError(
            f"{adapter} an adapter of the folder {base}, which nobody else has: push that first (python -m "
            f"dnabert2.publish {base} REPO), then "
            + (
                "name it by --base_model REPO --trust_remote_code"
                if folder
                else "adapt it by its name, --model_name_or_path REPO"
            )
        )


def add_trust(parser: ArgumentParser):
    """The flag of `refuse_untrusted_base`."""
    parser.add_argument(
        "--trust_remote_code", action="store_true", help="for an adapter's card: run the code of its base on the Hub"
    )


def refuse_untrusted_base(release: Path, trust_remote_code: bool):
    """Raises UsageError for an adapter of a base with code of its own, which the card's examples would run unasked."""
    if trust_remote_code or not (release / ADAPTER_CONFIG).is_file():
        return
    if "auto_map" in read_json(release / "config.json"):
        base = read_json(release / ADAPTER_CONFIG)["base_model_name_or_path"]
        raise UsageError(
            f"an adapter's card shows what it answers, which runs the code of its base {base} on the Hub: if you "
            "trust that, add --trust_remote_code"
        )

"""Checkpoints that are whole or absent, and what a run needs to go on from one exactly."""

import json
import os
import re
import shutil
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import torch
from accelerate import Accelerator
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch.distributed.fsdp import FSDPModule
from torch.distributed.tensor import DTensor, distribute_tensor
from torch.optim.lr_scheduler import LRScheduler
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from dnabert2.errors import UsageError
from dnabert2.files import PRUNED, publish, sync


STATE_FILE = "run_state.json"  # not the name that transformers' Trainer gives its own
OPTIMIZER_FILE = "optimizer.safetensors"
METRICS_FILE = "metrics.jsonl"
RESULTS_FILE = "all_results.json"  # a run that has it is finished


def whole_checkpoints(output_dir: Path) -> list[Path]:
    """The `checkpoint-STEP` folders that are whole, in the order of their steps."""
    folders = [path.parent for path in output_dir.glob(f"checkpoint-*/{STATE_FILE}")]
    checkpoints = [path for path in folders if re.fullmatch(r"checkpoint-\d+", path.name)]
    return sorted(checkpoints, key=lambda path: int(path.name.split("-")[-1]))


def latest_checkpoint(output_dir: Path) -> Path | None:
    """The `checkpoint-STEP` folder of the highest step, or None."""
    checkpoints = whole_checkpoints(output_dir)
    return checkpoints[-1] if checkpoints else None


def prune_checkpoints(newest: Path, save_total_limit: int | None):
    """
    Removes whole checkpoints, those of the lowest steps first, until `save_total_limit` are left; None keeps all.

    Call it on the main process when `newest` is whole: that one stays, whatever its step. A process that dies on the
    way leaves a `checkpoint-STEP.pruned.tmp-…`, never mistaken for a checkpoint, and the next call removes it.
    """
    if save_total_limit is None:
        return
    output_dir = newest.parent
    # one that the user has moved elsewhere and linked to is left to the user
    others = [folder for folder in whole_checkpoints(output_dir) if folder != newest and not folder.is_symlink()]
    for folder in others[: max(0, len(others) + 1 - save_total_limit)]:
        folder.rename(folder.with_name(f"{folder.name}{PRUNED}{uuid.uuid4().hex}"))
    for folder in output_dir.glob(f"checkpoint-*{PRUNED}*"):
        (folder / STATE_FILE).unlink(missing_ok=True)  # first: half removed, it is no checkpoint by its name either
        shutil.rmtree(folder, ignore_errors=True)


def save_tokenizer(tokenizer: PreTrainedTokenizerBase, folder: Path):
    """Saves a tokenizer under the class name that every version of transformers knows; version 5 writes its own."""
    tokenizer.save_pretrained(folder)
    config_file = folder / "tokenizer_config.json"
    config = json.loads(config_file.read_text()) | {"tokenizer_class": "PreTrainedTokenizerFast"}
    config_file.write_text(json.dumps(config, indent=2) + "\n")


def unwrap(accelerator: Accelerator, model: torch.nn.Module) -> PreTrainedModel:
    """The model under what `accelerator.prepare` put around it, with its own names for weights that may be sharded."""
    return accelerator.unwrap_model(model, keep_torch_compile=False)  # a compiled model's names begin with _orig_mod.


def unsharded(model: PreTrainedModel, state_dict: dict[str, torch.Tensor]) -> PreTrainedModel:
    """
    A plain model with the whole weights of a sharded one, for `save_pretrained`.

    FSDP2 gives a model a class of torch's: the sharded one would be saved with torch's code in place of its own, and
    with its tied weights twice.
    """
    plain_class = next(base for base in type(model).__mro__ if not issubclass(base, FSDPModule))
    with torch.device("meta"):
        plain = plain_class(model.config)
    plain.load_state_dict(state_dict, assign=True)
    plain.tie_weights()
    return plain


def save_model(accelerator: Accelerator, model: torch.nn.Module, tokenizer: PreTrainedTokenizerBase, folder: Path):
    """Saves what `from_pretrained` needs: weights, configuration, code and tokenizer. Call it on every process."""
    model = unwrap(accelerator, model)
    state_dict = accelerator.get_state_dict(model)  # of FSDP2's shards: whole on the main process, empty on others
    if accelerator.is_main_process:
        model = unsharded(model, state_dict) if accelerator.is_fsdp2 else model
        model.save_pretrained(folder)
        save_tokenizer(tokenizer, folder)


def save_final_model(accelerator: Accelerator, model, tokenizer: PreTrainedTokenizerBase, output_dir: Path):
    """`save_model` into a folder that holds other things: all files are whole before the first is named."""
    temporary = output_dir / "model.tmp"
    if accelerator.is_main_process:
        shutil.rmtree(temporary, ignore_errors=True)  # of a run killed right here
    with writing(output_dir):
        save_model(accelerator, model, tokenizer, temporary)
        if accelerator.is_main_process:
            sync(temporary)
            for path in temporary.iterdir():
                path.replace(output_dir / path.name)
            temporary.rmdir()


def save_optimizer(accelerator: Accelerator, model: torch.nn.Module, optimizer: torch.optim.Optimizer, folder: Path):
    """Saves the optimiser's tensors, every one whole, as PARAMETER.KEY. Call it on every process."""
    tensors = {}
    for name, parameter in unwrap(accelerator, model).named_parameters():
        for key, value in optimizer.state[parameter].items():
            value = value.full_tensor() if isinstance(value, DTensor) else value
            if accelerator.is_main_process:
                tensors[f"{name}.{key}"] = value.cpu()
    if accelerator.is_main_process:
        save_file(tensors, folder / OPTIMIZER_FILE)


def load_optimizer(accelerator: Accelerator, model: torch.nn.Module, optimizer: torch.optim.Optimizer, folder: Path):
    """Reads what `save_optimizer` wrote, whatever number of processes wrote it; each takes its shards."""
    parameters = dict(unwrap(accelerator, model).named_parameters())
    for name, value in read_tensors(folder / OPTIMIZER_FILE).items():
        name, key = name.rsplit(".", 1)
        value = value.to(accelerator.device)  # the count of steps too: a fused AdamW, which a GPU has, wants it there
        if value.ndim and isinstance(parameters[name], DTensor):
            mesh, placements = parameters[name].device_mesh, parameters[name].placements
            value = distribute_tensor(value, mesh, placements, src_data_rank=None)  # everyone has read the file
        optimizer.state[parameters[name]][key] = value


def save_checkpoint(
    accelerator: Accelerator,
    folder: Path,
    model: torch.nn.Module,
    tokenizer: PreTrainedTokenizerBase,
    optimizer: torch.optim.Optimizer,
    scheduler: LRScheduler,
    state: dict,
):
    """
    Writes a loadable model, all that `load_checkpoint` reads, and `state` (what JSON can hold) to `folder`, whole.
    Call it on every process.

    `accelerator.save_state` would pickle the optimiser, and under FSDP2 write the model a second time.
    """
    temporary = folder.with_name(f"{folder.name}.tmp")
    if accelerator.is_main_process:
        shutil.rmtree(temporary, ignore_errors=True)
    with writing(folder.parent):
        save_model(accelerator, model, tokenizer, temporary)
        save_optimizer(accelerator, model, optimizer, temporary)
        if accelerator.is_main_process:
            scaler = accelerator.scaler.state_dict() if accelerator.scaler else None  # fp16 alone has one
            state = state | {"scheduler": scheduler.state_dict(), "scaler": scaler}
            (temporary / STATE_FILE).write_text(json.dumps(state, indent=2))
            publish(temporary, folder)
    accelerator.wait_for_everyone()


def load_checkpoint(
    accelerator: Accelerator,
    folder: Path,
    model: torch.nn.Module,
    optimizer: torch.optim.Optimizer,
    scheduler: LRScheduler,
):
    """Restores all but the weights: a resumed run builds its model by `from_pretrained(folder)`."""
    state = read_state(folder)
    load_optimizer(accelerator, model, optimizer, folder)
    scheduler.load_state_dict(state["scheduler"])
    for group, learning_rate in zip(optimizer.param_groups, scheduler.get_last_lr(), strict=True):
        group["lr"] = learning_rate
    if accelerator.scaler:
        accelerator.scaler.load_state_dict(state["scaler"])


ANOTHER = "remove this checkpoint, and the run goes on from the one before"


def read_json(file: Path, remedy: str) -> dict:
    """Raises UsageError, with what to do, for a file that is damaged or holds no object."""
    try:
        value = json.loads(file.read_text())
        if isinstance(value, dict):
            return value
        error = "no object"
    except (OSError, ValueError) as reason:  # JSON's or Unicode's
        error = reason
    raise UsageError(f"{file} is damaged ({error}): {remedy}")


def read_state(checkpoint: Path) -> dict:
    return read_json(checkpoint / STATE_FILE, ANOTHER)


def read_tensors(file: Path) -> dict[str, torch.Tensor]:
    """Of a checkpoint. Raises UsageError for a file that is missing or damaged."""
    try:
        return load_file(file)
    except (OSError, SafetensorError) as error:
        raise UsageError(f"{file} is missing or damaged ({error}): {ANOTHER}") from error


@contextmanager
def writing(output_dir: Path) -> Iterator[None]:
    """Turns what a full or failing disk raises into a UsageError that says what a run can go on from."""
    try:
        yield
    except (OSError, SafetensorError) as error:
        for folder in output_dir.glob("*.tmp"):  # half written; on a full disk the room is wanted
            shutil.rmtree(folder, ignore_errors=True)
        last = latest_checkpoint(output_dir)
        state = f"the last whole checkpoint is {last}" if last else "there is no checkpoint yet"
        raise UsageError(
            f"{output_dir} cannot be written: {error}; {state}: make room there and give the command again"
        ) from error


class MetricsFile:
    """
    `metrics.jsonl`: one JSON object a line and step, flushed line by line; `last` holds the newest value of each key.

    Resuming at a step keeps the lines up to it and drops a torn last one: no step is lost and none is doubled. At step
    0 a run begins anew and nothing is kept. The main process alone writes.
    """

    def __init__(self, path: Path, last_step: int, accelerator: Accelerator):
        self.last, self.file, self.folder = {}, None, path.parent
        if not accelerator.is_main_process:
            return
        text = path.read_text() if last_step and path.exists() else ""
        temporary = path.with_suffix(".tmp")
        self.file = temporary.open("w")
        for line in text.splitlines():
            if line.endswith("}") and json.loads(line)["step"] <= last_step:
                self.write(**json.loads(line))
        os.replace(temporary, path)

    def write(self, **values):
        self.last |= values
        if self.file:
            with writing(self.folder):
                self.file.write(json.dumps(values) + "\n")
                self.file.flush()

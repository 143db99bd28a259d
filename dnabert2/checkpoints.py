"""Checkpoints that are whole or absent, and what a run needs to go on from one exactly."""

import json
import os
import re
import shutil
from argparse import Namespace
from pathlib import Path

from accelerate import Accelerator
from transformers import PreTrainedTokenizerBase

from dnabert2.errors import UsageError
from dnabert2.files import publish


STATE_FILE = "run_state.json"  # not the name that transformers' Trainer gives its own
METRICS_FILE = "metrics.jsonl"
RESULTS_FILE = "all_results.json"  # written last: a run that has it is finished


def latest_checkpoint(output_dir: Path) -> Path | None:
    """The `checkpoint-STEP` folder of the highest step, or None."""
    folders = [path.parent for path in output_dir.glob(f"checkpoint-*/{STATE_FILE}")]
    checkpoints = [path for path in folders if re.fullmatch(r"checkpoint-\d+", path.name)]
    return max(checkpoints, key=lambda path: int(path.name.split("-")[-1]), default=None)


def save_tokenizer(tokenizer: PreTrainedTokenizerBase, folder: Path):
    """Saves a tokenizer under the class name that every version of transformers knows; version 5 writes its own."""
    tokenizer.save_pretrained(folder)
    config_file = folder / "tokenizer_config.json"
    config = json.loads(config_file.read_text()) | {"tokenizer_class": "PreTrainedTokenizerFast"}
    config_file.write_text(json.dumps(config, indent=2) + "\n")


def save_model(accelerator: Accelerator, model, tokenizer: PreTrainedTokenizerBase, folder: Path):
    """Saves what `from_pretrained` needs: weights, configuration, code and tokenizer. Call it on every process."""
    model = accelerator.unwrap_model(model, keep_torch_compile=False)  # a compiled model's names begin with _orig_mod.
    state_dict = accelerator.get_state_dict(model)
    if accelerator.is_main_process:
        model.save_pretrained(folder, state_dict=state_dict)
        save_tokenizer(tokenizer, folder)


def save_final_model(accelerator: Accelerator, model, tokenizer: PreTrainedTokenizerBase, output_dir: Path):
    """`save_model` into a folder that holds other things: all files are whole before the first is named."""
    temporary = output_dir / "model.tmp"
    if accelerator.is_main_process:
        shutil.rmtree(temporary, ignore_errors=True)  # of a run killed right here
    save_model(accelerator, model, tokenizer, temporary)
    if accelerator.is_main_process:
        for path in temporary.iterdir():
            path.replace(output_dir / path.name)
        temporary.rmdir()


def register_model_saving(accelerator: Accelerator, tokenizer: PreTrainedTokenizerBase):
    """
    Makes `accelerator.save_state` write the model as `save_model` does, so that every checkpoint is a loadable model.

    The model of a resumed run is therefore built by `from_pretrained(checkpoint)`; `load_state` reads the optimiser.
    """

    def save(models, weights, output_dir):
        for model in models:
            save_model(accelerator, model, tokenizer, Path(output_dir))
        weights.clear()

    def load(models, input_dir):
        models.clear()

    accelerator.register_save_state_pre_hook(save)
    accelerator.register_load_state_pre_hook(load)


def save_checkpoint(accelerator: Accelerator, folder: Path, state: dict):
    """Writes model, optimiser and `state` (what JSON can hold) to `folder`, whole. Call it on every process."""
    temporary = folder.with_name(f"{folder.name}.tmp")
    if accelerator.is_main_process:
        shutil.rmtree(temporary, ignore_errors=True)
    accelerator.wait_for_everyone()
    accelerator.save_state(temporary)
    accelerator.wait_for_everyone()
    if accelerator.is_main_process:
        (temporary / STATE_FILE).write_text(json.dumps(state, indent=2))
        publish(temporary, folder)
    accelerator.wait_for_everyone()


# Arguments that may differ when a run is resumed: they change neither the weights nor the losses.
FREE_ON_RESUME = {
    "output_dir",
    "resume_from_checkpoint",
    "checkpointing_steps",
    "logging_steps",
    "eval_steps",
    "per_device_eval_batch_size",
    "dataloader_num_workers",
    "cache_dir",
}


def find_checkpoint(output_dir: Path, resume_from_checkpoint: str | None) -> Path | None:
    """
    The checkpoint to go on from, or None for a new run; makes the output folder.

    Raises:
        UsageError: for something else than a checkpoint, for an output folder with a run nobody asked to resume, and
            for one that cannot be made.
    """
    try:
        output_dir.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UsageError(f"--output_dir {output_dir} is no folder and cannot become one: {error.strerror}") from error
    if resume_from_checkpoint is None:
        if (output_dir / METRICS_FILE).exists():
            raise UsageError(
                f"{output_dir} holds a run already: add --resume_from_checkpoint latest, or name another --output_dir"
            )
        return None
    if resume_from_checkpoint == "latest":
        checkpoint = latest_checkpoint(output_dir)
        if checkpoint is None and (output_dir / RESULTS_FILE).exists():
            raise UsageError(f"{output_dir} holds a finished run without checkpoints: name another --output_dir")
        return checkpoint
    checkpoint = Path(resume_from_checkpoint)
    if not (checkpoint / STATE_FILE).is_file():
        raise UsageError(f"--resume_from_checkpoint {checkpoint}: no checkpoint, {STATE_FILE} is missing there")
    return checkpoint


def arguments_of_run(arguments: Namespace) -> dict:
    """The arguments that decide a run's result, as JSON holds them."""
    values = {key: value for key, value in vars(arguments).items() if key not in FREE_ON_RESUME}
    return json.loads(json.dumps(values, default=str))


def refuse_other_arguments(checkpoint: Path, saved: dict, given: dict):
    """Raises UsageError if a checkpoint's run had other arguments than this one; names the differences."""
    changed = sorted(key for key in saved.keys() | given.keys() if saved.get(key) != given.get(key))
    if changed:
        differences = "; ".join(f"--{key} was {saved.get(key)}, is {given.get(key)}" for key in changed)
        raise UsageError(f"{checkpoint} is of another run ({differences}): give its arguments, or start a new run")


def read_state(checkpoint: Path) -> dict:
    return json.loads((checkpoint / STATE_FILE).read_text())


class MetricsFile:
    """
    `metrics.jsonl`: one JSON object a line and step, flushed line by line; `last` holds the newest value of each key.

    Resuming at a step keeps the lines up to it and drops a torn last one: no step is lost and none is doubled. At step
    0 a run begins anew and nothing is kept. The main process alone writes.
    """

    def __init__(self, path: Path, last_step: int, accelerator: Accelerator):
        self.last, self.file = {}, None
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
            self.file.write(json.dumps(values) + "\n")
            self.file.flush()

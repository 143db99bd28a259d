"""Which run of run_mlm.py an output folder holds, whether it is the one that is asked for, and what it goes on from.

python -c 'from pathlib import Path; from dnabert2.resuming import *; print(saved_arguments(Path("output/run")))'
"""

import json
from argparse import Namespace
from pathlib import Path

from dnabert2.checkpoints import METRICS_FILE, RESULTS_FILE, STATE_FILE, latest_checkpoint, read_json, read_state
from dnabert2.errors import UsageError
from dnabert2.files import write_whole


LATEST = "latest"
MOST_NAMED = 8  # differences in a message
ARGUMENTS_FILE = "arguments.json"  # of the run in a folder, from its first step on

# Arguments that may differ when a run is resumed: they change neither the weights nor the losses.
FREE_ON_RESUME = {
    "output_dir",
    "resume_from_checkpoint",
    "checkpointing_steps",
    "save_total_limit",
    "logging_steps",
    "eval_steps",
    "per_device_eval_batch_size",
    "dataloader_num_workers",
    "cache_dir",
    "with_tracking",
    "report_to",
    "push_to_hub",
    "hub_model_id",
    "hub_token",  # of no file at all
    "hub_private_repo",
    "hub_strategy",
    "debug",
}


def arguments_of_run(arguments: Namespace) -> dict:
    """The arguments that decide a run's result, as JSON holds them."""
    values = {key: value for key, value in vars(arguments).items() if key not in FREE_ON_RESUME}
    return json.loads(json.dumps(values, default=str))


def refuse_other_arguments(where: Path, saved: dict, given: dict):
    """Raises UsageError if the run of a folder or checkpoint had other arguments than this one; names them."""
    changed = sorted(key for key in saved.keys() | given.keys() if saved.get(key) != given.get(key))
    if changed:
        differences = "; ".join(f"--{key} was {saved.get(key)}, is {given.get(key)}" for key in changed[:MOST_NAMED])
        differences += f"; and {len(changed) - MOST_NAMED} more" if len(changed) > MOST_NAMED else ""
        raise UsageError(
            f"{where} is of another run ({differences}): give its arguments, or name another --output_dir"
        )


def saved_arguments(output_dir: Path) -> dict | None:
    """Those of the run in a folder, finished or not; None if nothing tells them."""
    if not (output_dir / ARGUMENTS_FILE).exists():  # of a version that wrote them into checkpoints alone
        checkpoint = latest_checkpoint(output_dir)
        return read_state(checkpoint)["arguments"] if checkpoint else None
    return read_json(output_dir / ARGUMENTS_FILE, "name another --output_dir")


def begin(output_dir: Path, arguments: dict):
    """Notes whose folder this is; a run that begins again is no longer finished. Call it on the main process."""
    (output_dir / RESULTS_FILE).unlink(missing_ok=True)
    write_whole(output_dir / ARGUMENTS_FILE, json.dumps(arguments, indent=2) + "\n")


def find_run(output_dir: Path, resume_from_checkpoint: str, arguments: dict) -> tuple[Path | None, bool]:
    """
    The checkpoint to go on from, None for a run that begins, and whether the run is finished; makes the folder.

    Args:
        resume_from_checkpoint: LATEST, or a folder, which may be of a run elsewhere with the same arguments.
        arguments: of `arguments_of_run`.

    Raises:
        UsageError: for something else than a checkpoint, for an output folder that holds another run, or a model that
            would be overwritten, and for one that cannot be made.
    """
    try:
        output_dir.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UsageError(f"--output_dir {output_dir} is no folder and cannot become one: {error.strerror}") from error
    saved = saved_arguments(output_dir)
    if saved is not None:
        refuse_other_arguments(output_dir, saved, arguments)
    for name in (METRICS_FILE, RESULTS_FILE, "config.json"):
        if saved is None and (output_dir / name).exists():
            raise UsageError(
                f"{output_dir} holds another run or a model already ({name}), and no {ARGUMENTS_FILE} of a run that "
                "could go on: name another --output_dir"
            )
    if resume_from_checkpoint == LATEST:
        return latest_checkpoint(output_dir), (output_dir / RESULTS_FILE).exists()
    checkpoint = Path(resume_from_checkpoint)
    if not (checkpoint / STATE_FILE).is_file():
        raise UsageError(f"--resume_from_checkpoint {checkpoint}: no checkpoint, {STATE_FILE} is missing there")
    refuse_other_arguments(checkpoint, read_state(checkpoint)["arguments"], arguments)
    return checkpoint, False

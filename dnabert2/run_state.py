"""What an interrupted fine-tuning goes on from: `run_gue.py --checkpointing_steps`.

Order, strands and dropout are functions of (seed, step). So the state is the weights that are trained, those of the
best step so far, the optimiser's and the scheduler's: `checkpoint-STEP/` in the run's folder, until it is finished.
"""

import json
import shutil
from pathlib import Path

import torch
from accelerate import Accelerator
from safetensors.torch import save_file
from torch.optim.lr_scheduler import LRScheduler

from dnabert2.checkpoints import (
    STATE_FILE,
    latest_checkpoint,
    load_checkpoint,
    prune_checkpoints,
    read_state,
    read_tensors,
    save_optimizer,
    writing,
)
from dnabert2.files import publish
from dnabert2.finite_steps import FiniteSteps
from dnabert2.stopping import STATUS, Sigterm


WEIGHTS_FILE, BEST_FILE = "weights.safetensors", "best.safetensors"

Weights = dict[str, torch.Tensor]


def arguments_of_state(folder: Path) -> dict | None:
    """Those of the run that was interrupted in this folder; None if there is no state of one."""
    checkpoint = latest_checkpoint(folder)
    return read_state(checkpoint)["arguments"] if checkpoint else None


def remove_state(folder: Path):
    """Of a run that is finished; what is half removed or half written goes as well."""
    for checkpoint in folder.glob("checkpoint-*"):
        shutil.rmtree(checkpoint, ignore_errors=True)


class RunState:
    """
    The state of one run; it is whole or absent, and the newest alone is kept.

    Args:
        folder: the run's.
        arguments: that decide its result, as JSON holds them.
        every: steps from one state to the next; None: one is written only on SIGTERM.
        sigterm: the script's.
    """

    def __init__(self, accelerator: Accelerator, folder: Path, arguments: dict, every: int | None, sigterm: Sigterm):
        self.sigterm = sigterm
        self.accelerator, self.folder, self.arguments, self.every = accelerator, folder, arguments, every
        self.checkpoint = latest_checkpoint(folder)
        saved = read_state(self.checkpoint) if self.checkpoint else {"step": 0}
        self.first_step = saved["step"]  # to be done, from 0
        self.skipped_steps = saved.get("skipped_steps", 0)

    def load(
        self, model: torch.nn.Module, trained: Weights, optimizer: torch.optim.Optimizer, scheduler: LRScheduler
    ) -> tuple[dict | None, Weights]:
        """Restores all of them where there is a state, and returns dev's scores and the weights of the best step."""
        if self.checkpoint is None:
            return None, {}
        load_checkpoint(self.accelerator, self.checkpoint, model, optimizer, scheduler)
        weights = read_tensors(self.checkpoint / WEIGHTS_FILE)
        with torch.no_grad():
            for name, parameter in trained.items():
                parameter.copy_(weights[name])
        return read_state(self.checkpoint)["best"], read_tensors(self.checkpoint / BEST_FILE)

    def save(
        self,
        step: int,
        model: torch.nn.Module,
        trained: Weights,
        optimizer: torch.optim.Optimizer,
        scheduler: LRScheduler,
        best: dict | None,
        best_weights: Weights,
        finite_steps: FiniteSteps,
    ):
        """
        Writes the state after `step` steps, if it is due; and if SIGTERM has come, which then ends the script. None is
        written after a step that was skipped. Call it on every process.
        """
        is_stopping = self.sigterm.is_stopping(self.accelerator, step)
        if not is_stopping and (self.every is None or step % self.every):
            return
        skipped, is_skipped = finite_steps.look(step, False, self.folder)
        if is_skipped:
            return
        folder = self.folder / f"checkpoint-{step}"
        temporary = folder.with_name(f"{folder.name}.tmp")
        is_main = self.accelerator.is_main_process
        with writing(self.folder):
            if is_main:
                shutil.rmtree(temporary, ignore_errors=True)  # of a run killed right here
                temporary.mkdir()
                save_file({name: parameter.detach() for name, parameter in trained.items()}, temporary / WEIGHTS_FILE)
                save_file(best_weights, temporary / BEST_FILE)
            save_optimizer(self.accelerator, model, optimizer, temporary)
            if is_main:
                scaler = (
                    self.accelerator.scaler.state_dict() if self.accelerator.scaler else None
                )  # fp16 alone has one
                state = {"step": step, "arguments": self.arguments, "best": best}
                state |= {"scheduler": scheduler.state_dict(), "scaler": scaler}
                state |= {"skipped_steps": skipped} if skipped else {}
                (temporary / STATE_FILE).write_text(json.dumps(state, indent=2))
                publish(temporary, folder)
        if is_main:
            prune_checkpoints(folder, 1)
        self.accelerator.wait_for_everyone()
        if is_stopping:
            self.accelerator.print(f"Stopped by SIGTERM: {folder} is where the same command goes on")
            self.accelerator.end_training()
            raise SystemExit(STATUS)

"""Optimiser steps of finite loss and gradients alone; the others are skipped, and counted where they are computed.

A skipped step leaves weights and the optimiser's state as they were. It counts as a step all the same: its data is
used up, and the learning rate goes on. Nothing here waits for a GPU until the counts are looked at.
"""

from pathlib import Path

import torch
from accelerate import Accelerator

from dnabert2.checkpoints import latest_checkpoint
from dnabert2.errors import UsageError


MOST_IN_A_ROW = 4  # one more, and the weights are taken to be broken


def refuse_broken_weights(what: str, output_dir: Path | None):
    """Raises a UsageError that says what happened and what there is to go on from."""
    last = output_dir and latest_checkpoint(output_dir)
    remains = f"the last good checkpoint is {last}" if last else "there is no checkpoint"
    raise UsageError(f"{what}: lower --learning_rate; {remains}")


class FiniteSteps:
    """
    Steps of an optimiser. What it is given must be the same on all processes, so that all skip the same steps.

    fp16's gradients, which its scaler makes infinite every now and then and skips itself, are not counted: losses are.

    Args:
        optimizer: a torch optimiser, or Accelerate's around one.
        skipped: steps before this run was resumed.
    """

    def __init__(self, accelerator: Accelerator, optimizer: torch.optim.Optimizer, skipped: int = 0):
        self.optimizer, self.inner = optimizer, getattr(optimizer, "optimizer", optimizer)
        self.has_scaler, self.is_fused = accelerator.scaler is not None, self.inner.defaults.get("fused")
        # in all, in a row up to now, the most in a row since the last look; and whether the last loss was finite
        self.skipped, self.in_a_row, self.longest, self.is_loss_finite = torch.tensor(
            [skipped, 0, 0, 1], device=accelerator.device
        )

    def step(self, loss: torch.Tensor, grad_norm: torch.Tensor):
        """A step, if the step's loss and the norm of its gradients are finite; both are of one element."""
        is_loss_finite = loss.isfinite()
        is_skipped = ~(is_loss_finite if self.has_scaler else is_loss_finite & grad_norm.isfinite())
        self.skipped = self.skipped + is_skipped
        self.in_a_row = (self.in_a_row + 1) * is_skipped
        self.longest = torch.maximum(self.longest, self.in_a_row)
        self.is_loss_finite = is_loss_finite.long()
        if self.is_fused and not self.has_scaler:
            self.inner.found_inf = is_skipped.float()  # as a scaler tells it: the kernel then changes nothing
        elif not self.has_scaler and is_skipped:
            return
        self.optimizer.step()

    def look(self, step: int, must_be_good: bool, output_dir: Path | None) -> tuple[int, int]:
        """
        How many steps were skipped in all, and how many of the last ones in a row. This waits for a GPU.

        Args:
            must_be_good: the weights are to be kept, and the last step's loss alone tells whether they are broken.

        Raises:
            UsageError: for more than MOST_IN_A_ROW since the last look; with `must_be_good` for a loss that was not
                finite.
        """
        counts = torch.stack([self.skipped, self.in_a_row, self.longest, self.is_loss_finite])
        skipped, in_a_row, longest, is_loss_finite = counts.tolist()
        self.longest = self.in_a_row
        if longest > MOST_IN_A_ROW or (must_be_good and not is_loss_finite):
            refuse_broken_weights(
                f"loss or gradients were not finite at {longest} step(s) in a row, up to step {step}",
                output_dir,
            )
        return skipped, in_a_row

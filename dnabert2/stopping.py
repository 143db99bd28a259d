"""SIGTERM, which clusters send some time before they kill: a run saves its state at the end of a step and stops.

The exit status is then 143, 128 + SIGTERM, as of a process that the signal has ended: the job is not done. A launcher
has a status of its own. torchrun passes the signal on and waits half a minute before it kills; `accelerate launch` of
one process passes nothing on: signal its process group, as Slurm does, or start the script itself.
"""

import gc
import os
import signal
from collections.abc import Iterator
from contextlib import contextmanager

import torch
from accelerate import Accelerator

from dnabert2.errors import at_end


STATUS = 128 + signal.SIGTERM
AGREE_STEPS = 10  # several processes must stop at one step: so often they ask each other, which waits for a GPU


class Sigterm:
    """
    Takes note of the signal, from when it is made to when the script ends (`errors.run_script`).

    Args:
        is_noted: leave the script's end to who asks `is_stopping`. Else it ends at once, but within `noted`: what it
            has saved is whole at any time.
    """

    def __init__(self, is_noted: bool = True):
        self.has_come, self.is_noted = False, is_noted
        signal.signal(signal.SIGTERM, self._note)

    def _note(self, *_):
        self.has_come = True
        if not self.is_noted:
            os.write(2, b"Stopped by SIGTERM: the same command goes on\n")  # print can be what was interrupted
            raise SystemExit(STATUS)

    @contextmanager
    def noted(self) -> Iterator[None]:
        """A run, which asks `is_stopping` at each step; a signal that comes after its last ends the script with it."""
        self.is_noted = True
        yield
        self.is_noted = False
        if self.has_come:
            self._note()

    def is_stopping(self, accelerator: Accelerator, step: int) -> bool:
        """Whether to stop after this step; the same on every process. Call it on all."""
        if accelerator.num_processes == 1:
            return self.has_come
        if step % AGREE_STEPS:
            return False
        has_come = torch.tensor(float(self.has_come), device=accelerator.device)
        return accelerator.reduce(has_come, reduction="sum").item() > 0


def end_training(accelerator: Accelerator):
    """
    `accelerator.end_training()`, but once the script has let go of its model: at its end, after `main` (`run_script`).

    DDP that outlives the processes' group is the last to hold it, and ends it without letting go of the GIL. It waits
    for gloo's threads, and one of these may want the GIL to free what it has just reduced: a run that has saved
    everything never ends.
    """

    def end():
        accelerator.free_memory()
        gc.collect()  # a model under autocast is a cycle
        accelerator.end_training()

    at_end.callback(end)


def ignore_sigterm(worker: int):
    """For a DataLoader's workers: a cluster signals them too, and the process that they work for is not done."""
    signal.signal(signal.SIGTERM, signal.SIG_IGN)

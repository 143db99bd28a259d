"""SIGTERM, which clusters send some time before they kill: a run saves its state at the end of a step and stops.

The exit status is then 143, 128 + SIGTERM, as of a process that the signal has ended: the job is not done. A launcher
has a status of its own. torchrun passes the signal on and waits half a minute before it kills; `accelerate launch` of
one process passes nothing on: signal its process group, as Slurm does, or start the script itself.
"""

import signal

import torch
from accelerate import Accelerator


STATUS = 128 + signal.SIGTERM
AGREE_STEPS = 10  # several processes must stop at one step: so often they ask each other, which waits for a GPU


class Sigterm:
    """Takes note of the signal, from when it is made to when the script ends (`errors.run_script`)."""

    def __init__(self):
        self.has_come = False
        signal.signal(signal.SIGTERM, self._note)

    def _note(self, *_):
        self.has_come = True

    def is_stopping(self, accelerator: Accelerator, step: int) -> bool:
        """Whether to stop after this step; the same on every process. Call it on all."""
        if accelerator.num_processes == 1:
            return self.has_come
        if step % AGREE_STEPS:
            return False
        has_come = torch.tensor(float(self.has_come), device=accelerator.device)
        return accelerator.reduce(has_come, reduction="sum").item() > 0


def ignore_sigterm(worker: int):
    """For a DataLoader's workers: a cluster signals them too, and the process that they work for is not done."""
    signal.signal(signal.SIGTERM, signal.SIG_IGN)

"""Scripts that other scripts start, with what they say in a file: a signal to the one is a signal to the other.

end_by_signals()
status = run_to_end([sys.executable, "-m", "accelerate.commands.launch", "run_mlm.py"], Path("run.log"))
"""

import os
import select
import signal
import subprocess
import sys
from pathlib import Path
from typing import BinaryIO


def end_by_signals() -> None:
    """The first SIGTERM or Ctrl-C ends this script by SystemExit, which `run_to_end` passes on; others do nothing."""

    def end(number: int, _) -> None:
        for other in (signal.SIGTERM, signal.SIGINT):
            signal.signal(other, signal.SIG_IGN)
        sys.exit(128 + number)

    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, end)


def run_to_end(command: list[str], log: Path) -> int:
    """
    The command's exit status; what it says is added to a file. If a signal ends this script, it is passed on, and the
    end of all that the command has started is waited for: the launcher goes at once, the script saves its state.
    """
    piped = {"stdout": subprocess.PIPE, "stderr": subprocess.STDOUT, "bufsize": 0, "start_new_session": True}
    with log.open("ab", buffering=0) as file, subprocess.Popen(command, **piped) as process:
        try:
            copy_output(process, file)
        except SystemExit:
            os.killpg(process.pid, signal.SIGTERM)
            copy_output(process, file)
            raise
    return process.returncode


def copy_output(process: subprocess.Popen, file: BinaryIO) -> None:
    """Up to the end of the last process that holds the pipe."""
    while True:
        # A read that waits sleeps through a signal that comes just before it: so it is not asked to wait.
        is_ready, _, _ = select.select([process.stdout], [], [], 1)
        if is_ready:
            said = process.stdout.read(2**16)
            if not said:
                return
            file.write(said)

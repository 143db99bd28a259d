"""What run_mlm.py and run_gue.py push to the Hub: their flags, and pushes beside training that do not hold it up.

A checkpoint is pushed by `python -m dnabert2.publish`, in a process of its own on the CPU: for its card's examples the
model is loaded, which in this process could touch torch's defaults and random numbers. Its files are linked aside
first, so that they may be pruned meanwhile.
"""

import os
import shlex
import shutil
import subprocess
import sys
from argparse import ArgumentParser, Namespace
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor, wait
from contextlib import contextmanager
from pathlib import Path

from dnabert2 import publish, releases
from dnabert2.checkpoints import METRICS_FILE, STATE_FILE
from dnabert2.errors import UsageError, at_end
from dnabert2.loading import ROOT


STRATEGIES = ("end", "checkpoint")
SNAPSHOT = "push.tmp-"  # in the name of a folder that is being pushed
LAST_WAIT = 60  # s that a run which was broken off waits for the push under way


def add_arguments(parser: ArgumentParser):
    """The flags, named as transformers' `TrainingArguments`."""
    hub = parser.add_argument_group("Hub")
    hub.add_argument(
        "--push_to_hub",
        action="store_true",
        help="push the model when it is trained: each push is one commit of a whole model with its card. Of "
        "run_gue.py that is one task with one seed (with --use_lora its adapter); others: python -m dnabert2.publish",
    )
    hub.add_argument("--hub_model_id", help="user/name or name (default: that of --output_dir); made if it is missing")
    hub.add_argument(
        "--hub_token",
        help="a token that may write (default, and better, as others can read a command line, and `accelerate launch` "
        "without --quiet prints it when a run fails: HF_TOKEN, or that of `hf auth login`)",
    )
    hub.add_argument("--hub_private_repo", action="store_true", help="make the repository a private one")
    hub.add_argument(
        "--hub_strategy",
        choices=STRATEGIES,
        default="end",
        help="checkpoint: push every checkpoint too, beside training; of several that wait the newest (default: end)",
    )


def take_token(args: Namespace) -> str | None:
    """The token, which is no longer among the arguments then: trackers write down both, parsed or not."""
    token, args.hub_token = args.hub_token, None
    if token:
        sys.argv = [part.replace(token, "...") for part in sys.argv]
    return token


class Pusher:
    """
    Pushes of one run; without --push_to_hub, and on all processes but the main one, it does nothing.

    The Hub is asked first thing whether the repository can be written, so that hours of training do not end in a
    refusal. Raises UsageError if not.
    """

    def __init__(self, args: Namespace, is_main_process: bool):
        token = take_token(args)
        given = [name for name in ("hub_model_id", "hub_private_repo") if getattr(args, name)]
        given += ["hub_token"] if token else []
        given += ["hub_strategy"] if args.hub_strategy != "end" else []
        if given and not args.push_to_hub:
            raise UsageError(f"--{given[0]} is of --push_to_hub: give that too")
        self.repo: str | None = None
        self.has_checkpoints = args.hub_strategy == "checkpoint" and is_main_process
        if not args.push_to_hub or not is_main_process:
            return
        self.output_dir, self.token, self.trust_remote_code = args.output_dir, token, args.trust_remote_code
        self.repo = publish.open_repository(
            args.hub_model_id or args.output_dir.resolve().name, token, args.hub_private_repo, waits=()
        )
        print(f"Hub         {self.repo} gets {'checkpoints and ' * self.has_checkpoints}the model at the end")
        # Of a run that was killed. Should a push of its be alive, that fails, and commits nothing.
        for folder in self.output_dir.glob(f"{SNAPSHOT}*"):
            shutil.rmtree(folder)
        self.executor = ThreadPoolExecutor(max_workers=1, thread_name_prefix="push")
        self.pushes: list[tuple[Future, Path]] = []  # with their snapshots; one runs, and none but the last waits
        self.process: subprocess.Popen | None = None  # the last that pushes or has pushed
        at_end.callback(self._leave)

    @contextmanager
    def snapshot(self, step: int) -> Iterator[Path]:
        """
        Gives a folder for a model and what its card is written from, and has that pushed some time: at once, or after
        the push that is under way, unless a newer one comes. For `has_checkpoints`.
        """
        self._drop_waiting()
        folder = self.output_dir / f"{SNAPSHOT}{step}"
        folder.mkdir()
        yield folder
        self.pushes.append((self.executor.submit(self._push_snapshot, folder), folder))

    def push_checkpoint(self, checkpoint: Path):
        """Has a checkpoint-STEP of run_mlm.py pushed as a snapshot; it may be pruned at once."""
        if not self.has_checkpoints:
            return
        with self.snapshot(int(checkpoint.name.rpartition("-")[2])) as snapshot:
            for path in [*releases.model_files(checkpoint), checkpoint / STATE_FILE]:
                try:
                    os.link(path, snapshot / path.name)
                except OSError:  # a file system without links
                    shutil.copyfile(path, snapshot / path.name)
            shutil.copyfile(self.output_dir / METRICS_FILE, snapshot / METRICS_FILE)

    def _drop_waiting(self):
        if self.pushes and self.pushes[-1][0].cancel():
            shutil.rmtree(self.pushes.pop()[1])

    def _is_pushing(self) -> bool:
        return bool(self.pushes) and not self.pushes[-1][0].done()

    def _push_snapshot(self, snapshot: Path):
        """In the thread, which waits for the process that does it. A failure is told, and training goes on."""
        environment = {**os.environ, "CUDA_VISIBLE_DEVICES": "", "OMP_NUM_THREADS": "1"}
        environment["PYTHONPATH"] = os.pathsep.join(filter(None, [str(ROOT), os.environ.get("PYTHONPATH")]))
        if self.token:
            environment["HF_TOKEN"] = self.token
        try:
            with subprocess.Popen(
                self._command(snapshot),
                env=environment,
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                stderr=subprocess.PIPE,
                text=True,
            ) as self.process:
                errors = self.process.communicate()[1].strip().splitlines() or ["it was killed"]
            failure = errors[-1] if self.process.returncode else None
        except OSError as error:  # no memory for a process
            failure = str(error)
        finally:
            shutil.rmtree(snapshot, ignore_errors=True)
        if failure:
            step = snapshot.name.removeprefix(SNAPSHOT)
            print(f"The checkpoint of step {step} was not pushed: {failure}", file=sys.stderr)

    def _command(self, folder: Path, python: str = sys.executable) -> list[str]:
        trust = ["--trust_remote_code"] if self.trust_remote_code else []
        return [python, "-m", "dnabert2.publish", str(folder), self.repo, *trust]

    def _leave(self):
        """At the end of the script. If that is not `finish`'s, a push under way has some time left, and none waits."""
        self._drop_waiting()
        if self._is_pushing():
            future, snapshot = self.pushes[-1]
            step = snapshot.name.removeprefix(SNAPSHOT)
            print(f"Waiting for the push of step {step}, {LAST_WAIT} s at most; Ctrl-C ends it", file=sys.stderr)
            try:
                wait([future], timeout=LAST_WAIT)
            finally:
                if self.process and self.process.poll() is None:
                    self.process.kill()
        self.executor.shutdown()

    def finish(self, folder: Path):
        """
        Pushes the trained model of a folder, after a push that is under way.

        Raises UsageError if that fails, with the command that pushes it later, which is told of any other error too.
        """
        if self.repo is None:
            return
        login = ", with the token in HF_TOKEN" if self.token else ""
        later = (
            f"The model is whole in {folder}. To push it later{login}: {shlex.join(self._command(folder, 'python'))}"
        )
        try:
            self._drop_waiting()
            if self._is_pushing():
                print("Waiting for the push of a checkpoint")
            self.executor.shutdown()
            options = {"token": self.token, "trust_remote_code": self.trust_remote_code}
            print(f"Pushed to {publish.publish(folder, self.repo, **options)}")
        except (UsageError, OSError) as error:
            raise UsageError(f"{error}. {later}") from error
        except BaseException:  # Ctrl-C, or a fault of ours
            print(later, file=sys.stderr)
            raise

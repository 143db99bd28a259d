"""A Python with all imports done, which runs each command in a fork of itself: the imports take longest.

    with WarmPython(folder, environment) as python:
        subprocess.run("accelerate launch run_mlm.py --help", shell=True, env=python.environment)

Within that environment's PATH `python`, `accelerate launch` and `torchrun` are commands that have it run what they are
told to: with their own arguments, working folder and environment, and the launchers' own reading of command lines
and files. It is read at the start where the Hub is.
"""

import gc
import importlib
import json
import os
import runpy
import signal
import socket
import struct
import subprocess
import sys
from pathlib import Path


ROOT = Path(__file__).resolve().parent.parent
IMPORTS = (  # beside what the package imports
    "scipy.stats",
    "sklearn.metrics",
    "transformers.models.auto.modeling_auto",
    "transformers.pipelines",
)
COMMANDS = ("python", "accelerate", "torchrun")
CLIENT = """#!{python} -IS
import json, os, socket, sys
with socket.socket(socket.AF_UNIX) as client:
    client.connect({address!r})
    told = json.dumps([sys.argv, os.getcwd(), dict(os.environ)]).encode()
    socket.send_fds(client, [len(told).to_bytes(4)], [0, 1, 2])
    client.sendall(told)
    sys.exit(int(client.makefile().read() or 1))
"""


class WarmPython:
    """The commands as a context manager; `environment` is the one to run them in."""

    def __init__(self, folder: Path, environment: dict[str, str]):
        folder.mkdir(parents=True)
        address = str(folder / "socket")
        for name in COMMANDS:
            (folder / name).write_text(CLIENT.format(python=sys.executable, address=address))
            (folder / name).chmod(0o755)
        paths = [str(ROOT), *filter(None, [environment.get("PYTHONPATH")])]
        self.environment = environment | {
            "PATH": os.pathsep.join([str(folder), environment["PATH"]]),
            "PYTHONPATH": os.pathsep.join(paths),
            "PYTHONUNBUFFERED": "1",
            "OMP_NUM_THREADS": "1",
        }
        self.command = [sys.executable, __file__, address]

    def __enter__(self) -> "WarmPython":
        self.server = subprocess.Popen(
            self.command, env=self.environment, stdout=subprocess.PIPE, start_new_session=True
        )
        assert self.server.stdout.readline() == b"ready\n"
        return self

    def __exit__(self, *_) -> None:
        os.killpg(self.server.pid, signal.SIGKILL)  # with what it has started
        self.server.wait()
        self.server.stdout.close()


# --- in the process that is kept warm --------------------------------------------------------------------------------


def run(name: str, *arguments: str) -> None:
    """As a command of a fresh process; does not always return."""
    if name == "accelerate":
        from accelerate.commands import accelerate_cli, launch

        launch.simple_launcher = run_launched
        sys.argv[:] = [name, *arguments]
        accelerate_cli.main()
    elif name == "torchrun":
        from torch.distributed.run import parse_args

        args = parse_args(arguments)
        run_ranks(int(args.nproc_per_node), args.training_script, *args.training_script_args)
    elif arguments[0] == "-m":
        sys.argv[:] = arguments[1:]
        sys.path.insert(0, os.getcwd())
        sys.modules.pop(arguments[1], None)  # as if it had not been imported
        runpy.run_module(arguments[1], run_name="__main__", alter_sys=True)
    else:
        sys.argv[:] = arguments
        sys.path.insert(0, str(Path(arguments[0]).resolve().parent))
        runpy.run_path(arguments[0], run_name="__main__")


def run_launched(args) -> None:
    """In place of `accelerate launch`'s start of another process: this one in its environment."""
    from accelerate.utils.launch import prepare_simple_launcher_cmd_env

    command, environment = prepare_simple_launcher_cmd_env(args)
    os.environ.update(environment)
    run("python", *command[1:])


def run_ranks(processes: int, *command: str) -> None:
    """What torchrun does for its processes, in forks. Exits with the first status that is not 0."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    os.environ.update(MASTER_ADDR="127.0.0.1", MASTER_PORT=str(port), WORLD_SIZE=str(processes))
    os.environ.update(LOCAL_WORLD_SIZE=str(processes), TORCHELASTIC_RUN_ID="none")
    children = []
    for rank in range(processes):
        children.append(os.fork())
        if children[-1] == 0:
            os.environ.update(RANK=str(rank), LOCAL_RANK=str(rank))
            run("python", *command)
            return
    codes = [os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) for child in children]
    sys.exit(next(filter(None, codes), 0))


def accept(server: socket.socket) -> tuple[socket.socket, list[int], list]:
    connection, _ = server.accept()
    size, descriptors, _, _ = socket.recv_fds(connection, 4, 3)
    with connection.makefile("rb") as file:
        return connection, descriptors, json.loads(file.read(struct.unpack(">I", size)[0]))


def serve(address: str) -> None:
    """Forks for each command: one process that waits to tell its status, and one that returns from here to run it."""
    with socket.socket(socket.AF_UNIX) as server:
        server.bind(address)
        server.listen()
        print("ready", flush=True)
        while True:
            connection, descriptors, told = accept(server)
            if os.fork() == 0:
                server.close()
                break
            connection.close()
            for descriptor in descriptors:
                os.close(descriptor)
    signal.signal(signal.SIGCHLD, signal.SIG_DFL)
    child = os.fork()
    if child:
        code = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
        connection.sendall(str(code if code >= 0 else 1).encode())
        os._exit(0)
    connection.close()
    for number, descriptor in enumerate(descriptors):
        os.dup2(descriptor, number)
        os.close(descriptor)
    (command, *arguments), folder, environment = told
    os.chdir(folder)
    os.environ.clear()
    os.environ.update(environment)
    sys.executable = str(Path(address).with_name("python"))  # what it starts is run here too
    run(Path(command).name, *arguments)


if __name__ == "__main__":
    for name in [*IMPORTS, *(f"dnabert2.{path.stem}" for path in (ROOT / "dnabert2").glob("*.py"))]:
        importlib.import_module(name)
    gc.freeze()  # what a fork does not write to it does not copy
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)  # no one waits for those that have told their status
    serve(sys.argv[1])

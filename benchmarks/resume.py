"""Runs that are killed 20 times at random moments, and what they end in beside a run that nobody killed.

    python benchmarks/resume.py --folder output/resume           # all kinds of runs; results: resume.md
    python benchmarks/resume.py --folder output/resume --disk 8  # as root: on a tmpfs of 8 MB that fills up

Each start is a process of its own, forked from this one, which has imported everything: that saves seconds.
It is killed with its loader workers when a step, drawn at random, is done and some milliseconds more have gone by;
every fourth time while a checkpoint is being written, and after each of these a second time while it starts again.
"""

import argparse
import json
import os
import random
import shutil
import signal
import socket
import subprocess
import sys
import threading
import time
from dataclasses import dataclass, field
from pathlib import Path

import torch
from safetensors.torch import load_file
from tqdm import tqdm

import run_gue
import run_mlm
from dnabert2.checkpoints import OPTIMIZER_FILE, STATE_FILE, latest_checkpoint, save_tokenizer, whole_checkpoints
from dnabert2.errors import run_script
from dnabert2.loading import ROOT, load_tokenizer, new_model
from dnabert2.run_state import BEST_FILE, WEIGHTS_FILE
from dnabert2.streaming import StreamingLoader
from dnabert2.synthetic import write_corpus


STEPS, CHECKPOINT, PROGRESS = 120, 4, 9  # of a run; from checkpoint to checkpoint; the most between two kills
SIZES = "hidden_size=64,num_attention_heads=2,intermediate_size=128,hidden_dropout_prob=0.1"
OF_THE_CLOCK = ("tokens_per_second", "memory_gib")
STREAM_BLOCK = 2**13  # tokens, so that a run goes through several


@dataclass
class Kind:
    """A kind of run: its script, its options beside those that all have, processes, and the signal it is sent."""

    name: str
    script: object = run_mlm
    options: dict = field(default_factory=dict)
    processes: int = 1
    killed_by: int = signal.SIGKILL


KINDS = [
    Kind("cached, 2 loader workers", options={"dataloader_num_workers": 2}),
    Kind("streamed, 2 loader workers", options={"dataloader_num_workers": 2, "streaming": True}),
    Kind("two processes", options={"per_device_train_batch_size": 16, "dataloader_num_workers": 1}, processes=2),
    Kind("accumulation of 4", options={"per_device_train_batch_size": 8, "dataloader_num_workers": 0}),
    Kind("cached, SIGTERM", options={"dataloader_num_workers": 2}, killed_by=signal.SIGTERM),
    Kind("fine-tuning", script=run_gue),
]


def command(kind: Kind, folder: Path, output_dir: Path) -> list[str]:
    options = {"output_dir": output_dir, "max_train_steps": STEPS, "checkpointing_steps": CHECKPOINT}
    options |= {"logging_steps": 1, "num_warmup_steps": 5, "learning_rate": 1e-3}
    if kind.script is run_gue:
        options |= {"model_name_or_path": folder / "base", "data_dir": folder / "task", "seeds": 1, "eval_steps": 10}
        options |= {"total_train_batch_size": 16, "save_model": True, "reverse_complement": True}
    else:
        options |= {"train_file": folder / "corpus", "cache_dir": folder / "cache", "save_total_limit": 2}
        options |= {"config_name": ROOT / "configs" / "tiny.json", "config_overrides": SIZES, "max_seq_length": 32}
        options |= {"total_train_batch_size": 32, "per_device_train_batch_size": 32}
    options |= kind.options
    return [str(part) for name, value in options.items() for part in (f"--{name}", value)[: 1 if value is True else 2]]


def start(kind: Kind, arguments: list[str], log: Path) -> list[int]:
    """Forks the run's processes, in a group of their own, and returns their numbers."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    processes = []
    for rank in range(kind.processes):
        if child := os.fork():
            processes.append(child)
            os.setpgid(child, processes[0])  # before it can be killed; and by itself before it has children
            continue
        os.setpgid(0, processes[0] if processes else 0)
        with log.open("a") as file:
            os.dup2(file.fileno(), 1)
            os.dup2(file.fileno(), 2)
        os.environ |= {"ACCELERATE_USE_CPU": "true"}
        if kind.processes > 1:
            os.environ |= {"RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": str(kind.processes)}
            os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
        sys.argv = [f"{kind.script.__name__}.py", *arguments]
        status = 1
        try:
            run_script(kind.script.main)
            status = 0
        except SystemExit as error:
            print(error)
            status = error.code if isinstance(error.code, int) else 1
        finally:
            sys.stdout.flush()
            os._exit(status)
    return processes


def wait(processes: list[int]) -> list[int]:
    """Their exit statuses; of those that a signal ended its number, negative."""
    return [os.waitstatus_to_exitcode(os.waitpid(process, 0)[1]) for process in processes]


def is_over(process: int) -> bool:
    """Whether it has ended; it stays to be waited for."""
    return os.waitid(os.P_PID, process, os.WEXITED | os.WNOHANG | os.WNOWAIT) is not None


def steps_done(run: Path, before: int | None) -> int:
    """Lines of its metrics; none while these are still those of the run before, the file of that number."""
    return 0 if metrics_file(run) in (None, before) else (run / "metrics.jsonl").read_text().count("\n")


def metrics_file(run: Path) -> int | None:
    return (run / "metrics.jsonl").stat().st_ino if (run / "metrics.jsonl").exists() else None


def last_step(run: Path) -> int:
    checkpoint = latest_checkpoint(run)
    return int(checkpoint.name.split("-")[1]) if checkpoint else 0


def check_checkpoints(run: Path):
    """Whatever moment it was killed at: what is named a checkpoint is one."""
    for checkpoint in whole_checkpoints(run):
        json.loads((checkpoint / STATE_FILE).read_text())
        is_mlm = (checkpoint / "config.json").exists()
        for name in (OPTIMIZER_FILE, *(["model.safetensors"] if is_mlm else [WEIGHTS_FILE, BEST_FILE])):
            load_file(checkpoint / name)


def kill_often(kind: Kind, arguments: list[str], run: Path, log: Path, kills: int, draw: random.Random) -> dict:
    """Starts a run and kills it until it has been killed so often; then it may end. Counts what happened."""
    seen = {"kills": 0, "while a checkpoint was written": 0, "while it started": 0}
    is_second = False
    while seen["kills"] < kills:
        begun, before = time.monotonic(), metrics_file(run)
        target, in_writing = last_step(run) + draw.randint(1, PROGRESS), seen["kills"] % 4 == 3
        until = begun + draw.uniform(0, 1) if is_second else None
        processes = start(kind, arguments, log)
        while not any(map(is_over, processes)):
            if until is not None and time.monotonic() > until:
                break
            if in_writing and until is None and list(run.glob("checkpoint-*.tmp")):
                time.sleep(draw.uniform(0, 0.02))
                break
            if not in_writing and until is None and steps_done(run, before) >= target:
                time.sleep(draw.uniform(0, 0.03))
                break
            time.sleep(0.002)
        else:
            raise SystemExit(f"{kind.name}: it ended after {seen['kills']} kills; see {log}")
        os.killpg(processes[0], kind.killed_by)
        statuses = wait(processes)
        expected = {signal.SIGKILL: {-9}, signal.SIGTERM: {143, -15}}[kind.killed_by]  # -15: it had not yet begun
        if not set(statuses) <= expected:
            raise SystemExit(f"{kind.name}: ended with {statuses}; see {log}")
        check_checkpoints(run)
        seen["kills"] += 1
        seen["while a checkpoint was written"] += bool(list(run.glob("checkpoint-*.tmp")))
        seen["while it started"] += is_second
        is_second = in_writing and not is_second
    if any(wait(start(kind, arguments, log))):
        raise SystemExit(f"{kind.name}: it did not end well; see {log}")
    return seen


def lines(run: Path) -> list[dict]:
    found = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    return [{key: value for key, value in line.items() if key not in OF_THE_CLOCK} for line in found]


def differences(one: Path, other: Path) -> list[str]:
    """What two runs do not have in common, bit for bit."""
    found = [] if lines(one) == lines(other) else ["metrics"]
    last = latest_checkpoint(one).name
    files = ["model.safetensors", f"{last}/{OPTIMIZER_FILE}"]
    files += [f"{last}/{WEIGHTS_FILE}", "predictions.csv"] if (one / "predictions.csv").exists() else []
    return found + [name for name in files if (one / name).read_bytes() != (other / name).read_bytes()]


def prepare(folder: Path):
    """A corpus, a task whose label is the share of A and T, and a base to fine-tune."""
    write_corpus(folder / "corpus", 15_000, seed=1)
    draw = random.Random(1)
    (folder / "task").mkdir()
    for split, rows in (("train", 101), ("dev", 30), ("test", 30)):
        text = ["sequence,label"]
        for row in range(rows):
            weights = [9, 1, 1, 9] if row % 2 else [1, 9, 9, 1]
            text.append("".join(draw.choices("ACGT", weights, k=draw.randint(30, 60))) + f",{row % 2}")
        (folder / "task" / f"{split}.csv").write_text("\n".join(text) + "\n")
    tokenizer = load_tokenizer(ROOT / "bpe_tokenizer")
    torch.manual_seed(0)
    new_model(ROOT / "configs" / "tiny.json", tokenizer, SIZES).save_pretrained(folder / "base")
    save_tokenizer(tokenizer, folder / "base")


def fill_a_disk(folder: Path, megabytes: int):
    """A run on a tmpfs that fills up, and goes on when it has grown."""
    kind, disk, log = KINDS[0], folder / "disk", folder / "disk.log"
    disk.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", f"size={megabytes}m", "tmpfs", str(disk)], check=True)
    try:
        run, arguments = disk / "run", command(kind, folder, disk / "run")
        statuses = wait(start(kind, arguments, log))
        print(f"exit status {statuses[0]}: error:{log.read_text().partition('error:')[2].splitlines()[0]}")
        check_checkpoints(run)
        print(f"whole checkpoints: {', '.join(path.name for path in whole_checkpoints(run))}")
        subprocess.run(["mount", "-o", "remount,size=100m", str(disk)], check=True)
        print(f"grown, the same command: exit status {wait(start(kind, arguments, log))[0]}")
        whole = folder / "whole"
        wait(start(kind, command(kind, folder, whole), log))
        print(f"differs from a run with room: {', '.join(differences(whole, run)) or 'in nothing'}")
    finally:
        subprocess.run(["umount", str(disk)], check=True)


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--folder", type=Path, required=True, help="a new one, removed at the end if all is equal")
    parser.add_argument("--kills", type=int, default=20)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--kinds", type=int, nargs="+", default=range(len(KINDS)), help="numbers, from 0")
    parser.add_argument("--disk", type=int, metavar="MB", help="fill a disk of this size, and kill nothing")
    args = parser.parse_args()
    args.folder = args.folder.absolute()
    args.folder.mkdir(parents=True)
    torch.set_num_threads(1)
    tqdm.set_lock(threading.RLock())  # its own is shared with all that are forked, and dies with who holds it
    tqdm.monitor_interval = 0
    run_gue.remove_state = lambda folder: None  # the last optimiser's state is to be compared
    StreamingLoader.__init__.__kwdefaults__["block_tokens"] = STREAM_BLOCK
    prepare(args.folder)
    if args.disk:
        fill_a_disk(args.folder, args.disk)
    else:
        print("| run | kills | while writing a checkpoint | while starting | differs in | minutes |")
        print("|---|--:|--:|--:|---|--:|", flush=True)
        for number in args.kinds:
            kind, began = KINDS[number], time.monotonic()
            whole, killed = (args.folder / f"{number}-{name}" for name in ("whole", "killed"))
            inner = Path("task/seed-1" if kind.script is run_gue else "")
            wait(start(kind, command(kind, args.folder, whole), args.folder / f"{number}-whole.log"))
            arguments, log = command(kind, args.folder, killed), args.folder / f"{number}-killed.log"
            draw = random.Random(args.seed + number)
            seen = kill_often(kind, arguments, killed / inner, log, args.kills, draw)
            wrong = ", ".join(differences(whole / inner, killed / inner)) or "nothing"
            counts = " | ".join(str(seen[name]) for name in list(seen)[:3])
            print(f"| {kind.name} | {counts} | {wrong} | {(time.monotonic() - began) / 60:.1f} |", flush=True)
    shutil.rmtree(args.folder)


if __name__ == "__main__":
    main()

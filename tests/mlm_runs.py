"""Runs of run_mlm.py for tests: a small synthetic corpus, a tiny model, in this process or through a launcher."""

import json
import os
import signal
import subprocess
import sys
from pathlib import Path

from accelerate.state import AcceleratorState
from models import ROOT

import run_mlm
from dnabert2.errors import run_script
from dnabert2.synthetic import write_corpus


SIZES = "hidden_size=64,num_attention_heads=2,intermediate_size=128"
NO_DROPOUT = f"{SIZES},hidden_dropout_prob=0,attention_probs_dropout_prob=0"
DROPOUT = f"{SIZES},hidden_dropout_prob=0.1,attention_probs_dropout_prob=0.1"


def small_corpus(folder: Path) -> Path:
    write_corpus(folder / "corpus", 15_000, seed=1)
    return folder / "corpus"


def arguments(corpus: Path, output_dir: Path, **options) -> list[str]:
    """A command line of small sizes; an option's value None leaves it out, True makes it a flag."""
    options = {
        "train_file": corpus,
        "output_dir": output_dir,
        "cache_dir": corpus.parent / "cache",
        "config_name": ROOT / "configs" / "tiny.json",
        "config_overrides": NO_DROPOUT,
        "max_seq_length": 32,
        "total_train_batch_size": 32,
        "per_device_train_batch_size": 32,
        "max_train_steps": 6,
        "num_warmup_steps": 1,
        "learning_rate": 5e-3,
        "logging_steps": 1,
        "validation_split_percentage": 10,
        "dataloader_num_workers": 0,
    } | options
    given = {name: value for name, value in options.items() if value is not None}
    return [part for name, value in given.items() for part in (f"--{name}", str(value))[: 1 if value is True else 2]]


def run_here(monkeypatch, *command: str, **environment: str):
    """Runs the script in this process on its CPU, under what a launcher would set in the environment."""
    AcceleratorState._reset_state(reset_partial_state=True)
    try:
        with monkeypatch.context() as patch:
            patch.setattr(sys, "argv", ["run_mlm.py", *command])
            for name, value in {"ACCELERATE_USE_CPU": "true", **environment}.items():
                patch.setenv(name, value)
            run_script(run_mlm.main)
    finally:
        AcceleratorState._reset_state(reset_partial_state=True)


def start(*command: str, processes: int = 1) -> subprocess.Popen:
    """
    Starts the script through `accelerate launch`, in a process group of its own.

    Several processes on one CPU need torchrun: of `accelerate launch --cpu --num_processes 2` only one starts.
    """
    launcher = ["accelerate.commands.accelerate_cli", "launch", "--quiet", "--cpu", "--num_processes", "1"]
    launcher += ["--num_machines", "1", "--mixed_precision", "no", "--dynamo_backend", "no"]
    if processes > 1:
        launcher = ["torch.distributed.run", "--standalone", "--nproc_per_node", str(processes)]
    return subprocess.Popen(
        [sys.executable, "-m", *launcher, str(ROOT / "run_mlm.py"), *command],
        env=os.environ | {"OMP_NUM_THREADS": "1", "ACCELERATE_USE_CPU": "true"},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )


def finish(process: subprocess.Popen) -> str:
    """Waits for a run to end well and gives what it printed."""
    try:
        output, errors = process.communicate(timeout=120)
    except subprocess.TimeoutExpired:
        os.killpg(process.pid, signal.SIGTERM)  # torchrun ends its processes, which have groups of their own
        output, errors = process.communicate()
        raise AssertionError(f"the run did not end: {output[-1000:]} {errors[-3000:]}") from None
    assert process.returncode == 0, errors[-4000:]
    return output


def unfinish(output_dir: Path):
    """Leaves a run as if it had been killed at the very end."""
    (output_dir / "all_results.json").unlink()


def metrics(output_dir: Path, leave_out: tuple[str, ...] = ("tokens_per_second", "memory_gib")) -> list[dict]:
    """The lines of metrics.jsonl without what no two runs share."""
    lines = [json.loads(line) for line in (output_dir / "metrics.jsonl").read_text().splitlines()]
    return [{key: value for key, value in line.items() if key not in leave_out} for line in lines]


def column(output_dir: Path, name: str) -> list[float]:
    return [line[name] for line in metrics(output_dir) if name in line]


def results(output_dir: Path) -> dict:
    return json.loads((output_dir / "all_results.json").read_text())

r"""The same small model, pretrained with each of several tokenizers on the same bases, and fine-tuned on GUE.

    python benchmarks/tokenizer_runs.py --tokenizers output/vocabularies/{256,4096,32768} --train_file genomes/ \
        --validation_file held_out/ --data_dir GUE --output_dir output/vocabulary_runs

Every tokenizer gets sequences of the same bases, up to what rounds their tokens to a multiple of 8, as many of them a
step, and steps until it has seen --bases, so that a model with longer tokens sees the same with less computing. With
--same_flops_as each gets the steps that cost what those of this tokenizer do; these runs are named NAME-same-flops. Of
overlapping k-mers k tokens in a row are masked. Neither pretraining nor fine-tuning has dropout.

A run is a tokenizer and a seed, which decides pretraining and fine-tuning: a folder NAME/seed-SEED with pretrained/,
masked_bases.json and gue/. Finished parts are kept; the scripts refuse models of other arguments. Stop this one, by
Ctrl-C or SIGTERM, which save what runs, or give it a part of the tokenizers and seeds, as often as you like. All of it
is work for a GPU; a try on a CPU takes minutes a tokenizer with

    --config_name configs/tiny.json --bases 2e6 --finetuning_steps 20 --tasks mouse/0

Several may write into one --output_dir at once if no two have a run in common; best each has tokenizers of its own,
as two that prepare a tokenizer's corpus do the same. Left there are runs.json, which vocabulary_size.py draws, runs.md
and runs.png, of all finished runs.

Models are compared by bases that masked_bases.py asks for, of --validation_file. Beside it stand the bits a base of
masked tokens, nats a token / ln 2 / bases a token: no scale for overlapping k-mers, whose neighbours tell most.
"""

import argparse
import json
import math
import re
import sys
from io import BytesIO
from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np
import torch
from filelock import FileLock
from kmers import ROOT, tokenizer_file
from launching import end_by_signals, run_to_end
from masked_bases import cut_sequences, judge_folder, overlap_of
from transformers import AutoConfig

from dnabert2.checkpoints import RESULTS_FILE
from dnabert2.errors import UsageError, run_script
from dnabert2.files import write_whole
from dnabert2.gue import select_tasks
from dnabert2.loading import load_tokenizer
from dnabert2.sequences import expand_files
from dnabert2.throughput import training_flops_per_token
from dnabert2.tokenization import bases_per_token


TASKS = ["tf/0", "mouse/0", "mouse/4", "prom/prom_300_tata"]
MLM_PROBABILITY = 0.15
SEQUENCES = 500  # of each held-out file, for bases a token and masked bases
FORWARD_TOKENS = 2**16  # at most, so that several runs fit a GPU of 80 GB
BASES_FILE = "masked_bases.json"


def measure_ratio(folder: Path, sequences: list[str]) -> float:
    """Bases a token."""
    bases, tokens = bases_per_token(load_tokenizer(folder).backend_tokenizer, sequences)
    return bases / tokens


def schedule(ratio: float, args: argparse.Namespace) -> tuple[int, int]:
    """Tokens a sequence, a multiple of 8, and steps that see --bases in all."""
    length = 8 * math.ceil((args.bases_a_sequence / ratio + 2) / 8)
    return length, max(1, round(args.bases / (args.batch * (length - 2) * ratio)))


def flops_of_run(folder: Path, ratio: float, args: argparse.Namespace) -> float:
    """Of pretraining, for --bases."""
    config = AutoConfig.from_pretrained(ROOT, trust_remote_code=True)
    config.update(json.loads(args.config_name.read_text()))
    config.vocab_size = len(load_tokenizer(folder))
    length, steps = schedule(ratio, args)
    return training_flops_per_token(config, length, MLM_PROBABILITY) * length * steps * args.batch


def launch(script: str, options: dict, folder: Path) -> None:
    """Runs a script of this package, on a GPU in bf16, pretraining compiled; what it says is in FOLDER.log."""
    on_gpu = torch.cuda.is_available()
    launcher = "-m accelerate.commands.launch --quiet --num_processes 1 --num_machines 1".split()
    launcher += ["--mixed_precision", "bf16"] if on_gpu else ["--mixed_precision", "no", "--cpu"]
    launcher += ["--dynamo_backend", "inductor" if on_gpu and script == "run_mlm.py" else "no"]
    named = [word for name, value in options.items() for word in (f"--{name}", *np.atleast_1d(value).astype(str))]
    folder.parent.mkdir(parents=True, exist_ok=True)
    log = folder.with_suffix(".log")
    command = [sys.executable, *launcher, str(ROOT / script), *named, "--output_dir", str(folder)]
    if run_to_end(command, log):
        *_, last = re.split(r"[\r\n]+", log.read_text(errors="replace").strip())
        raise UsageError(f"{script}: {last.removeprefix('error: ')} (all that it said: {log})")


def run(tokenizer: Path, name: str, seed: int, sequences: list[str], args: argparse.Namespace) -> None:
    """Pretrains, judges and fine-tunes one model that sees --bases, as far as that is not done."""
    folder = args.output_dir / name / f"seed-{seed}"
    pretrained = folder / "pretrained"
    ratio, overlap = measure_ratio(tokenizer, sequences), overlap_of(load_tokenizer(tokenizer))
    length, steps = schedule(ratio, args)
    micro_batch = args.batch
    while micro_batch * length > FORWARD_TOKENS and micro_batch % 2 == 0:
        micro_batch //= 2
    options = {"tokenizer_name": tokenizer, "train_file": args.train_file, "config_name": args.config_name}
    options |= {"validation_file": args.validation_file, "cache_dir": args.cache_dir, "seed": seed}
    options |= {"config_overrides": "hidden_dropout_prob=0", "sampling_temperature": 2, "mlm_span": overlap}
    options |= {"max_seq_length": length, "max_train_steps": steps, "learning_rate": args.learning_rate}
    options |= {"total_train_batch_size": args.batch, "per_device_train_batch_size": micro_batch}
    launch("run_mlm.py", options, pretrained)
    if not (folder / BASES_FILE).exists():
        found = judge_folder(pretrained, sequences) | {"bases_a_token": ratio, "overlap": overlap}
        found |= {
            "bases_seen": steps * args.batch * (length - 2) * ratio,
            "flops": flops_of_run(tokenizer, ratio, args),
        }
        write_whole(folder / BASES_FILE, json.dumps(found, indent=2) + "\n")
    options = {"model_name_or_path": pretrained, "data_dir": args.data_dir, "tasks": args.tasks, "seeds": seed}
    options |= {"learning_rate": args.finetuning_rate}
    if args.finetuning_steps is not None:
        options |= {"max_train_steps": args.finetuning_steps, "num_warmup_steps": 0}
    launch("run_gue.py", options, folder / "gue")


def read_runs(args: argparse.Namespace) -> dict[str, dict]:
    """
    Of every tokenizer that has finished runs the numbers of each seed, as lists: `accuracy`, `bits` and
    `calibrated_bits` of masked bases, `token_bits`, `score` and, by task, `tasks`; and what all share,
    `bases_a_token`, `bases_seen` and `flops`.
    """
    runs = {}
    for bases_file in sorted(args.output_dir.glob(f"*/seed-*/{BASES_FILE}")):
        folder = bases_file.parent
        files = [folder / "gue" / task / folder.name / RESULTS_FILE for task in args.tasks]
        if not all(file.exists() for file in files):
            continue
        pretraining = json.loads((folder / "pretrained" / RESULTS_FILE).read_text())
        found = json.loads(bases_file.read_text())
        scores = [100 * json.loads(file.read_text())["test"]["mcc"] for file in files]
        lists = {"seeds": [], "accuracy": [], "bits": [], "calibrated_bits": [], "token_bits": [], "score": []}
        shared = {key: found[key] for key in ("bases_a_token", "bases_seen", "flops")}
        of = runs.setdefault(folder.parent.name, shared | lists | {"tasks": {task: [] for task in args.tasks}})
        of["seeds"].append(folder.name)
        of["accuracy"].append(100 * found["accuracy"])
        of["bits"].append(found["bits"])
        of["calibrated_bits"].append(found["calibrated_bits"])
        if found["overlap"] == 1:
            of["token_bits"].append(pretraining["validation_loss"] / math.log(2) / found["bases_a_token"])
        of["score"].append(float(np.mean(scores)))
        for task, score in zip(args.tasks, scores, strict=True):
            of["tasks"][task].append(score)
    return runs


def write_runs(args: argparse.Namespace) -> None:
    """runs.json, .md and .png of finished runs. Who reads while another finishes would write an older state last."""
    with FileLock(args.output_dir / ".runs.lock"):
        runs = read_runs(args)
        write_whole(args.output_dir / "runs.json", json.dumps(runs, indent=2) + "\n")
        write_whole(args.output_dir / "runs.md", markdown(runs, args.tasks))
        draw(runs, args.tasks, args.output_dir / "runs.png")


def spread(values: list[float], digits: int) -> str:
    """Mean and standard deviation over seeds."""
    if not values:
        return "–"
    deviation = f" ± {np.std(values, ddof=1):.{digits}f}" if len(values) > 1 else ""
    return f"{np.mean(values):.{digits}f}{deviation}"


def three_digits(value: float) -> str:
    """Three of them, or all before the point."""
    return f"{value:,.0f}" if value >= 100 else f"{value:.3g}"


def markdown(runs: dict[str, dict], tasks: list[str]) -> str:
    names = "seeds, Mbases seen, PFLOPs, bases a token, accuracy of a base (%), bits a base, calibrated, "
    columns = [*f"{names}by masked tokens, mean".split(", "), *tasks]
    lines = [f"| tokenizer | {' | '.join(columns)} |", f"|---|{'--:|' * len(columns)}"]
    for name, of in runs.items():
        cells = [name, str(len(of["seeds"])), three_digits(of["bases_seen"] / 1e6), three_digits(of["flops"] / 1e15)]
        cells += [f"{of['bases_a_token']:.2f}", spread(of["accuracy"], 2)]
        cells += [spread(of[key], 4) for key in ("bits", "calibrated_bits", "token_bits")] + [spread(of["score"], 2)]
        lines.append(f"| {' | '.join([*cells, *(spread(of['tasks'][task], 1) for task in tasks)])} |")
    return "\n".join(lines) + "\n"


def draw(runs: dict[str, dict], tasks: list[str], path: Path) -> None:
    """A row a tokenizer, those with the shortest tokens above; a dot a seed, a bar the mean."""
    names = sorted(runs, key=lambda name: runs[name]["bases_a_token"], reverse=True)
    columns = {"GUE, mean (MCC, %)": [runs[name]["score"] for name in names]}
    columns |= {task: [runs[name]["tasks"][task] for name in names] for task in tasks}
    columns |= {"masked bases told (%)": [runs[name]["accuracy"] for name in names]}
    size = (2 + 2 * len(columns), 2 + 0.3 * len(names))
    figure, panels = plt.subplots(1, len(columns), sharey=True, figsize=size, layout="constrained")
    for axes, (title, rows) in zip(panels, columns.items(), strict=True):
        for place, values in enumerate(rows):
            axes.plot(np.mean(values), place, "|", markersize=14, markeredgewidth=2, color="tab:blue")
            axes.plot(values, [place] * len(values), "o", markersize=4, color="tab:blue", alpha=0.6)
        axes.set_title(title, fontsize=10)
        axes.grid(color="0.9")
    panels[0].set_yticks(range(len(names)), [f"{name}: {runs[name]['bases_a_token']:.2f}" for name in names])
    panels[0].set_ylabel("tokenizer: bases a token")
    picture = BytesIO()
    figure.savefig(picture, dpi=110)
    plt.close(figure)
    write_whole(path, picture.getvalue())


def parse_args() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tokenizers", nargs="+", type=Path, required=True, help="folders; their names name the runs")
    parser.add_argument("--train_file", nargs="+", required=True, help="as run_mlm.py's")
    parser.add_argument("--validation_file", nargs="+", required=True, help="genomes that are none of --train_file")
    parser.add_argument("--data_dir", required=True, help="GUE's folder")
    parser.add_argument("--output_dir", type=Path, required=True, help="a folder a run")
    parser.add_argument(
        "--tasks", nargs="+", default=TASKS, help=f"of GUE, scored by MCC (default: {' '.join(TASKS)})"
    )
    parser.add_argument("--seeds", nargs="+", type=int, default=[42, 43], help="default: 42 43")
    parser.add_argument("--config_name", type=Path, default=ROOT / "configs" / "mini.json", help="default: mini")
    parser.add_argument("--cache_dir", default="~/.cache/dnabert2", help="as run_mlm.py's (default: %(default)s)")
    parser.add_argument("--bases", type=float, default=3e8, help="seen in pretraining (default: 3e8)")
    parser.add_argument(
        "--same_flops_as", type=Path, help="a tokenizer's folder: it would see --bases, and all cost what it does"
    )
    parser.add_argument("--bases_a_sequence", type=int, default=640, help="default: 640, about 128 tokens of BPE")
    parser.add_argument("--batch", type=int, default=256, help="sequences a step of pretraining (default: 256)")
    parser.add_argument("--learning_rate", type=float, default=1e-3, help="of pretraining (default: 1e-3)")
    parser.add_argument("--finetuning_rate", type=float, default=1e-4, help="default: 1e-4")
    parser.add_argument("--finetuning_steps", type=int, help="for a try (default: the recipes of the tasks)")
    args = parser.parse_args()
    args.tasks = [task.name for task in select_tasks(args.tasks)]
    args.output_dir.mkdir(parents=True, exist_ok=True)
    return args


def check_files(args: argparse.Namespace) -> None:
    """Raises UsageError for what would be missed only after hours of pretraining."""
    for folder in filter(None, [*args.tokenizers, args.same_flops_as]):
        tokenizer_file(folder)
    if not args.config_name.is_file():
        raise UsageError(f"--config_name {args.config_name}: no such file")
    for task in args.tasks:
        if not (Path(args.data_dir) / task).is_dir():
            raise UsageError(f"--data_dir {args.data_dir}: there is no folder {task} in it")
    expand_files(args.train_file)


def main() -> None:
    end_by_signals()
    args = parse_args()
    check_files(args)
    sequences = cut_sequences(args.validation_file, SEQUENCES, args.bases_a_sequence)
    for seed in args.seeds:
        for folder in args.tokenizers:
            name, of_run = folder.name, argparse.Namespace(**vars(args))
            if args.same_flops_as:
                name += "-same-flops"
                flops = [flops_of_run(of, measure_ratio(of, sequences), args) for of in (args.same_flops_as, folder)]
                of_run.bases *= flops[0] / flops[1]
            print(f"{name}, seed {seed}: {of_run.bases / 1e6:,.1f} Mbases", flush=True)
            run(folder, name, seed, sequences, of_run)
            write_runs(args)
    print((args.output_dir / "runs.md").read_text())


if __name__ == "__main__":
    run_script(main)

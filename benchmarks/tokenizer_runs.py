"""The same small model, pretrained with each of several tokenizers on the same bases, and fine-tuned on GUE.

    python benchmarks/tokenizer_runs.py --tokenizers output/vocabularies/{256,4096,32768} --train_file genomes/ \
        --data_dir GUE --output_dir output/vocabulary_runs

Every tokenizer gets sequences of the same bases, as many of them in a step and as many steps, so that a model with
longer tokens sees the same with less computing. --same_flops gives all the steps that cost what the first tokenizer's
do. A run is a tokenizer and a seed, which decides pretraining and fine-tuning: a folder NAME/seed-SEED with the
pretrained model and gue/. Finished runs are kept: stop the script, or give it a part of the tokenizers and seeds, as
often as you like. Left in --output_dir: runs.json, which vocabulary_size.py draws, and runs.md, both of all runs.

Masked tokens of other lengths are compared in bits a base: nats a masked token / ln 2 / bases a token. Of overlapping
k-mers that says nothing, as their neighbours tell what is masked (leakage.py).
"""

import argparse
import json
import math
import subprocess
import sys
from pathlib import Path

import numpy as np
import torch
from kmers import ROOT, sample_pieces
from transformers import AutoConfig

from dnabert2.checkpoints import RESULTS_FILE
from dnabert2.errors import UsageError, run_script
from dnabert2.files import write_whole
from dnabert2.gue import select_tasks
from dnabert2.loading import load_tokenizer
from dnabert2.sequences import expand_files
from dnabert2.throughput import training_flops_per_token
from dnabert2.tokenization import bases_per_token


TASKS = ["tf/0", "mouse/0", "mouse/4", "prom/prom_300_tata", "prom/prom_core_tata"]
MLM_PROBABILITY = 0.15
SAMPLE = {"count": 10, "bases": 1000}  # held-out pieces of each file, for bases a token


def measure_ratios(args: argparse.Namespace) -> dict[str, float]:
    """Bases a token of each tokenizer, by its name, on the training files; kept, as reading these takes a while."""
    kept = args.output_dir / "bases_a_token.json"
    ratios = json.loads(kept.read_text()) if kept.exists() else {}
    if missing := [folder for folder in args.tokenizers if folder.name not in ratios]:
        pieces = [piece for path in expand_files(args.train_file) for piece in sample_pieces(path, **SAMPLE)]
        if not pieces:
            raise UsageError(f"no held-out piece of {SAMPLE['bases']} bases in --train_file: give larger files")
        for folder in missing:
            bases, tokens = bases_per_token(load_tokenizer(folder).backend_tokenizer, pieces)
            ratios[folder.name] = bases / tokens
        write_whole(kept, json.dumps(ratios, indent=2) + "\n")
    return ratios


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


def launch(script: str, options: dict, folder: Path, script_args: list[str]) -> None:
    """Runs a script of this package, on a GPU in bf16, unless its folder is finished."""
    on_gpu = torch.cuda.is_available()
    launcher = [sys.executable, *"-m accelerate.commands.launch --num_processes 1 --num_machines 1".split()]
    launcher += ["--mixed_precision", "bf16"] if on_gpu else ["--mixed_precision", "no", "--cpu"]
    named = [word for name, value in options.items() for word in (f"--{name}", *np.atleast_1d(value).astype(str))]
    folder.parent.mkdir(parents=True, exist_ok=True)
    log = folder.with_suffix(".log")
    command = [*launcher, str(ROOT / script), *named, "--output_dir", str(folder), *script_args]
    with log.open("w") as file:
        done = subprocess.run(command, stdout=file, stderr=subprocess.STDOUT, check=False)
    if done.returncode:
        raise UsageError(f"{script} ended with an error: see {log}")


def run(tokenizer: Path, seed: int, ratio: float, bases: float, args: argparse.Namespace) -> None:
    """Pretrains and fine-tunes one model, as far as that is not done."""
    folder = args.output_dir / tokenizer.name / f"seed-{seed}"
    pretrained = folder / "pretrained"
    length, steps = schedule(ratio, argparse.Namespace(**vars(args) | {"bases": bases}))
    if not (pretrained / RESULTS_FILE).exists():
        options = {"tokenizer_name": tokenizer, "train_file": args.train_file, "config_name": args.config_name}
        options |= {"config_overrides": "hidden_dropout_prob=0", "cache_dir": args.cache_dir, "seed": seed}
        options |= {"max_seq_length": length, "max_train_steps": steps, "learning_rate": args.learning_rate}
        options |= {
            "total_train_batch_size": args.batch,
            "per_device_train_batch_size": args.micro_batch or args.batch,
        }
        launch("run_mlm.py", options, pretrained, ["--sampling_temperature", "2"])
    options = {"model_name_or_path": pretrained, "data_dir": args.data_dir, "tasks": args.tasks, "seeds": seed}
    options |= {"learning_rate": args.finetuning_rate}
    if args.finetuning_steps:
        options |= {"max_train_steps": args.finetuning_steps, "num_warmup_steps": 0}
    launch("run_gue.py", options, folder / "gue", [])


def read_runs(args: argparse.Namespace, ratios: dict[str, float]) -> dict[str, dict]:
    """Of every tokenizer that has finished runs the numbers of each: bits_a_base, accuracy, score, and tasks."""
    found = {}
    for results_file in sorted(args.output_dir.glob(f"*/seed-*/pretrained/{RESULTS_FILE}")):
        folder = results_file.parent.parent
        files = [folder / "gue" / task / folder.name / RESULTS_FILE for task in args.tasks]
        if not all(file.exists() for file in files):
            continue
        pretraining = json.loads(results_file.read_text())
        scores = {
            task: 100 * json.loads(file.read_text())["test"]["mcc"]
            for task, file in zip(args.tasks, files, strict=True)
        }
        of = found.setdefault(
            folder.parent.name, {"seeds": [], "bits_a_base": [], "accuracy": [], "score": [], "tasks": {}}
        )
        of["seeds"].append(folder.name)
        of["bits_a_base"].append(pretraining["validation_loss"] / math.log(2) / ratios[folder.parent.name])
        of["accuracy"].append(pretraining["validation_accuracy"])
        of["score"].append(float(np.mean([*scores.values()])))
        for task, score in scores.items():
            of["tasks"].setdefault(task, []).append(score)
    return found


def spread(values: list[float], digits: int) -> str:
    """Mean and standard deviation over seeds."""
    deviation = f" ± {np.std(values, ddof=1):.{digits}f}" if len(values) > 1 else ""
    return f"{np.mean(values):.{digits}f}{deviation}"


def markdown(found: dict[str, dict], ratios: dict[str, float], args: argparse.Namespace) -> str:
    tasks = args.tasks
    lines = [
        f"| tokenizer | seeds | bases a token | bits a base | accuracy of a token, % | mean | {' | '.join(tasks)} |"
    ]
    lines += [f"|---|--:|--:|--:|--:|--:|{'--:|' * len(tasks)}"]
    for name, of in found.items():
        cells = [name, str(len(of["seeds"])), f"{ratios[name]:.2f}", spread(of["bits_a_base"], 3)]
        cells += [spread([100 * value for value in of["accuracy"]], 1), spread(of["score"], 2)]
        lines.append(f"| {' | '.join([*cells, *(spread(of['tasks'][task], 1) for task in tasks)])} |")
    return "\n".join(lines) + "\n"


def parse_args() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tokenizers", nargs="+", type=Path, required=True, help="folders; their names name the runs")
    parser.add_argument("--train_file", nargs="+", required=True, help="as run_mlm.py's")
    parser.add_argument("--data_dir", required=True, help="GUE's folder")
    parser.add_argument("--output_dir", type=Path, required=True, help="a folder a run")
    parser.add_argument(
        "--tasks", nargs="+", default=TASKS, help=f"of GUE, scored by MCC (default: {' '.join(TASKS)})"
    )
    parser.add_argument("--seeds", nargs="+", type=int, default=[42, 43], help="default: 42 43")
    parser.add_argument("--config_name", type=Path, default=ROOT / "configs" / "mini.json", help="default: mini")
    parser.add_argument("--cache_dir", default="~/.cache/dnabert2", help="as run_mlm.py's")
    parser.add_argument("--bases", type=float, default=5e8, help="seen in pretraining (default: 5e8)")
    parser.add_argument(
        "--same_flops", action="store_true", help="the first tokenizer sees --bases, all cost the same"
    )
    parser.add_argument("--bases_a_sequence", type=int, default=640, help="default: 640, about 128 tokens of BPE")
    parser.add_argument("--batch", type=int, default=256, help="sequences a step of pretraining (default: 256)")
    parser.add_argument("--micro_batch", type=int, help="sequences a forward (default: all)")
    parser.add_argument("--learning_rate", type=float, default=1e-3, help="of pretraining (default: 1e-3)")
    parser.add_argument("--finetuning_rate", type=float, default=1e-4, help="default: 1e-4")
    parser.add_argument("--finetuning_steps", type=int, help="for a try (default: the recipes of the tasks)")
    args = parser.parse_args()
    args.tasks = [task.name for task in select_tasks(args.tasks)]
    args.output_dir.mkdir(parents=True, exist_ok=True)
    return args


def main() -> None:
    args = parse_args()
    ratios = measure_ratios(args)
    flops = {folder: flops_of_run(folder, ratios[folder.name], args) for folder in args.tokenizers}
    for seed in args.seeds:
        for folder in args.tokenizers:
            bases = args.bases * flops[args.tokenizers[0]] / flops[folder] if args.same_flops else args.bases
            print(f"{folder.name}, seed {seed}: {bases / 1e6:,.1f} Mbases", flush=True)
            run(folder, seed, ratios[folder.name], bases, args)
            found = read_runs(args, ratios)
            write_whole(args.output_dir / "runs.json", json.dumps(found, indent=2) + "\n")
            write_whole(args.output_dir / "runs.md", markdown(found, ratios, args))
    print((args.output_dir / "runs.md").read_text())


if __name__ == "__main__":
    run_script(main)

"""Do the levers of speed change what is learned? The loss curves of run_mlm.py with each, beside plain float32.

    python benchmarks/levers.py --train_file genomes/ --config_name configs/117M.json --output_dir output/levers

Plain is eager attention in float32, not compiled, with three seeds: other weights, order, masks and dropout. Each
lever has the first seed's weights and batches. It passes where it is no further from the first seed's curve than the
three are apart, in validation losses and in means of the training loss over twenty steps. Results: throughput.md.
"""

import argparse
import json
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np
import torch
from tqdm import tqdm


ROOT = Path(__file__).resolve().parent.parent
FP32_LAYERNORM = ["--config_overrides", "low_precision_layernorm=false"]
COMPILED = ["--dynamo_backend", "inductor"]
# transformers' GELU written out is no GELU that the model has a kernel for: on a GPU too, plain is plain torch
NO_KERNEL = ["--config_overrides", "hidden_act=gelu_python"]
PLAIN = {f"eager, float32, seed {seed}": ("no", [], [*NO_KERNEL, "--seed", str(seed)]) for seed in (42, 43, 44)}
# name: mixed precision, arguments of accelerate launch, arguments of run_mlm.py
LEVERS = {
    "sdpa, bf16": ("bf16", [], ["--attn_implementation", "sdpa", *FP32_LAYERNORM]),
    "flash": ("bf16", [], ["--attn_implementation", "flash_attention_2", *FP32_LAYERNORM]),
    "flash, compiled": ("bf16", COMPILED, ["--attn_implementation", "flash_attention_2", *FP32_LAYERNORM]),
    "flash, compiled, bf16 LayerNorm": ("bf16", COMPILED, ["--attn_implementation", "flash_attention_2"]),
    "flex, compiled, bf16 LayerNorm": ("bf16", COMPILED, ["--attn_implementation", "flex_attention"]),
}
CPU_LEVERS = {"sdpa": ("no", [], []), "sdpa, compiled": ("no", COMPILED, []), "sdpa, bf16": ("bf16", [], [])}
WINDOW = 20  # steps


def run(name: str, run_args: tuple, args: argparse.Namespace):
    mixed_precision, launch_args, script_args = run_args
    if mixed_precision == "no" and name in PLAIN:
        script_args = ["--attn_implementation", "eager", *script_args]
    folder = args.output_dir / name.replace(", ", "-").replace(" ", "_")
    log = folder.with_suffix(".log")
    if not (folder / "all_results.json").exists():
        with log.open("w") as file:
            subprocess.run(
                [
                    *f"{sys.executable} -m accelerate.commands.launch --num_processes 1 --num_machines 1".split(),
                    *("--mixed_precision", mixed_precision, *launch_args, str(ROOT / "run_mlm.py")),
                    *("--train_file", *args.train_file, "--config_name", args.config_name),
                    *f"--total_train_batch_size {args.batch} --per_device_train_batch_size {args.batch}".split(),
                    *f"--max_train_steps {args.max_train_steps} --eval_steps {args.max_train_steps // 4}".split(),
                    *("--logging_steps", "1", "--learning_rate", "3e-4", "--output_dir", str(folder), *script_args),
                ],
                stdout=file,
                stderr=subprocess.STDOUT,
                check=False,
            )
    if not (folder / "all_results.json").exists():
        raise RuntimeError(f"{name}: see {log}")
    return [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]


def curves(lines: list[dict]) -> tuple[np.ndarray, np.ndarray]:
    """Training losses, in means over windows of steps, and validation losses."""
    training = np.array([line["loss"] for line in lines if "loss" in line])
    training = training[: len(training) // WINDOW * WINDOW].reshape(-1, WINDOW).mean(axis=1)
    return training, np.array([line["validation_loss"] for line in lines if "validation_loss" in line])


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--train_file", nargs="+", required=True, help="as run_mlm.py's")
    parser.add_argument("--config_name", default=str(ROOT / "configs" / "117M.json"), help="sizes of the model")
    parser.add_argument("--output_dir", type=Path, required=True, help="a run each; finished ones are not run again")
    parser.add_argument("--max_train_steps", type=int, default=200, help="default: 200")
    parser.add_argument("--batch", type=int, default=32, help="sequences of 128 tokens a step (default: 32)")
    parser.add_argument("--jobs", type=int, default=1, help="runs at a time on the one device (default: 1)")
    args = parser.parse_args()
    args.output_dir.mkdir(parents=True, exist_ok=True)

    runs = PLAIN | (LEVERS if torch.cuda.is_available() else CPU_LEVERS)
    with ThreadPoolExecutor(args.jobs) as pool:
        futures = {name: pool.submit(run, name, run_args, args) for name, run_args in runs.items()}
        results = {name: curves(future.result()) for name, future in tqdm(futures.items(), desc="Runs")}

    plain = [np.stack(kind) for kind in zip(*(results[name] for name in PLAIN), strict=True)]
    spreads = [np.ptp(kind, axis=0) for kind in plain]
    print("| run | last validation loss | largest distance: training, validation | over the spread, at worst |")
    print("|---|--:|--:|--:|")
    for name, result in results.items():
        distances = [np.abs(curve - kind[0]) for curve, kind in zip(result, plain, strict=True)]
        worst = max((distance / spread).max() for distance, spread in zip(distances, spreads, strict=True))
        shown = "" if name in PLAIN else f"{worst:.2f}"
        print(f"| {name} | {result[1][-1]:.4f} | {distances[0].max():.4f}, {distances[1].max():.4f} | {shown} |")
    print(f"\nSpread of the seeds: training {spreads[0].min():.4f} to {spreads[0].max():.4f}, ", end="")
    print(f"validation {spreads[1].min():.4f} to {spreads[1].max():.4f}")

    figure, axes = plt.subplots(figsize=(7, 4.5), layout="constrained")
    steps = (np.arange(plain[0].shape[1]) + 0.5) * WINDOW
    axes.fill_between(
        steps, plain[0].min(axis=0), plain[0].max(axis=0), color="0.8", label="eager float32, three seeds"
    )
    for name, (training, _) in results.items():
        if name not in PLAIN:
            axes.plot(steps, training, label=name, linewidth=1)
    axes.set(xlabel="step", ylabel=f"training loss (nats a masked token, mean of {WINDOW} steps)")
    axes.legend()
    figure.savefig(args.output_dir / "levers.png", dpi=120)


if __name__ == "__main__":
    main()

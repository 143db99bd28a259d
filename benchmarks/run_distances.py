"""How far runs of run_mlm.py are from the first one: in bf16 from float32, killed from left alone, repeated.

    python benchmarks/run_distances.py output/bf16 output/fp32 output/bf16_again --picture output/distances.png

Of training losses at the steps that both have logged: as they are, which is the noise of single batches, and in means
of ten in a row; of validation losses; of the last weights, if both folders have them: the norm of their difference
over the first one's. Prints a table in Markdown. Results: pretraining.md, resume.md.
"""

import argparse
import json
from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np
from safetensors.torch import load_file

from dnabert2.checkpoints import METRICS_FILE
from dnabert2.errors import UsageError, run_script


WINDOW = 10  # logged losses


def read_losses(run: Path, key: str) -> dict[int, float]:
    """Values of a key of metrics.jsonl by step."""
    lines = map(json.loads, (run / METRICS_FILE).read_text().splitlines())
    return {line["step"]: line[key] for line in lines if key in line}


def differences(run: Path, first: Path, key: str) -> tuple[np.ndarray, np.ndarray]:
    """Steps that both have, in order, and by how much the run's value is above the first one's."""
    losses = [read_losses(of, key) for of in (run, first)]
    steps = sorted(losses[0].keys() & losses[1].keys())
    return np.array(steps), np.array([losses[0][step] - losses[1][step] for step in steps])


def windows(values: np.ndarray) -> np.ndarray:
    """Means of WINDOW values in a row; what is left over at the end is left out."""
    return values[: len(values) // WINDOW * WINDOW].reshape(-1, WINDOW).mean(axis=1)


def weight_distance(run: Path, first: Path) -> float | None:
    """The norm of the difference of all weights over the first one's; None where a folder has no weights."""
    files = [of / "model.safetensors" for of in (run, first)]
    if not all(file.exists() for file in files):
        return None
    ours, theirs = (load_file(file) for file in files)
    apart = sum((ours[name].double() - theirs[name].double()).square().sum().item() for name in theirs)
    return (apart / sum(tensor.double().square().sum().item() for tensor in theirs.values())) ** 0.5


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "runs", nargs="+", type=Path, help="--output_dir of runs of run_mlm.py, the first compared with"
    )
    parser.add_argument("--picture", type=Path, help="where to draw the curves")
    args = parser.parse_args()
    first, *others = args.runs
    if not others:
        raise UsageError("give two runs or more: the others are compared with the first")
    print(
        f"| beside {first.name} | training loss: largest, mean distance | in means of {WINDOW}: largest | "
        "validation loss: largest distance | at the end | weights |\n|---|--:|--:|--:|--:|--:|"
    )
    figure, (left, right) = plt.subplots(1, 2, figsize=(10, 4), layout="constrained")
    steps, losses = np.array(list(read_losses(first, "loss").items())).T
    left.plot(windows(steps), windows(losses), color="black", label=first.name)
    for run in others:
        steps, training = differences(run, first, "loss")
        _, validation = differences(run, first, "validation_loss")
        if len(steps) < WINDOW or not len(validation):
            raise UsageError(f"{run / METRICS_FILE} shares {len(steps)} steps with the first run's: that is too few")
        weights = weight_distance(run, first)
        print(
            f"| {run.name} | {abs(training).max():.4f}, {abs(training).mean():.4f} | "
            f"{abs(windows(training)).max():.4f} | {abs(validation).max():.4f} | {validation[-1]:+.4f} | "
            f"{'–' if weights is None else f'{weights:.3f}'} |"
        )
        _, losses = np.array([item for item in read_losses(run, "loss").items() if item[0] in steps]).T
        left.plot(windows(steps), windows(losses), linewidth=1, linestyle="--", label=run.name)
        right.plot(windows(steps), windows(training), linewidth=1, label=f"{run.name} - {first.name}")
    left.set(xlabel="step", ylabel=f"training loss (nats a masked token), mean of {WINDOW}")
    right.set(xlabel="step", ylabel="difference of training losses (nats)")
    right.axhline(0, color="black", linewidth=0.5)
    left.legend(frameon=False)
    right.legend(frameon=False)
    if args.picture:
        figure.savefig(args.picture, dpi=120)


if __name__ == "__main__":
    run_script(main)

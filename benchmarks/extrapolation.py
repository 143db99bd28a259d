"""Masked-token loss on long sequences of genomes the model never saw, by how many tokens it may look at (ALiBi).

    python benchmarks/extrapolation.py --model_name_or_path output/117M --sequence_file held_out/ \
        --picture benchmarks/extrapolation.png

Every genome gives stretches of as many tokens as the longest window has. They are masked once and cut into windows of
every length, so that all lengths are judged by the very same masked tokens: what differs is the context alone. Prints
a table in Markdown.
"""

import argparse
from collections.abc import Iterator
from itertools import islice
from pathlib import Path

import numpy as np
import torch
from matplotlib.figure import Figure
from torch.nn.functional import cross_entropy
from tqdm import tqdm
from transformers import AutoModelForMaskedLM, PreTrainedModel, PreTrainedTokenizerBase

from dnabert2.batches import IGNORE_INDEX, MASK, Masking, random_stream
from dnabert2.curves import spread
from dnabert2.loading import fastest_attention, load_tokenizer
from dnabert2.sequences import acgt_runs
from dnabert2.sources import Source, file_sources


BASES_A_TOKEN = 8  # more than any genome has on average, so that a stretch is never too short


def stretches(source: Source, tokenizer: PreTrainedTokenizerBase, num_tokens: int) -> Iterator[np.ndarray]:
    """Pieces of a genome of exactly `num_tokens` tokens, int64 (num_tokens,), spread over its records."""
    for record in source.records():
        for _, run in acgt_runs(record.sequence):
            for start in range(0, len(run) - BASES_A_TOKEN * num_tokens, BASES_A_TOKEN * num_tokens):
                piece = run[start : start + BASES_A_TOKEN * num_tokens]
                ids = tokenizer(piece, add_special_tokens=False)["input_ids"]
                if len(ids) >= num_tokens:
                    yield np.array(ids[:num_tokens])


@torch.no_grad()
def losses_by_length(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    stretch: np.ndarray,
    lengths: list[int],
    draws: np.ndarray,
) -> list[np.ndarray]:
    """For each length the cross entropy of the stretch's masked tokens, those that are in a window of every length."""
    batch = Masking(tokenizer, mlm_probability=0.15)(stretch[None], draws)
    input_ids = batch["input_ids"][0]
    labels = torch.full_like(input_ids, IGNORE_INDEX)
    is_label = batch["labels"] != IGNORE_INDEX
    labels[batch["prediction_positions"][is_label]] = batch["labels"][is_label]
    common = min(len(stretch) // (length - 2) * (length - 2) for length in lengths)
    labels[common:] = IGNORE_INDEX
    losses = []
    for length in lengths:
        inner = length - 2
        rows = len(stretch) // inner
        windows = torch.full((rows, length), tokenizer.sep_token_id)
        windows[:, 0] = tokenizer.cls_token_id
        windows[:, 1:-1] = input_ids[: rows * inner].reshape(rows, inner)
        targets = torch.full((rows, length), IGNORE_INDEX)
        targets[:, 1:-1] = labels[: rows * inner].reshape(rows, inner)
        positions = (targets.flatten() != IGNORE_INDEX).nonzero().flatten()
        logits = model(windows.to(model.device), prediction_positions=positions.to(model.device)).logits
        losses.append(cross_entropy(logits.float().cpu(), targets.flatten()[positions], reduction="none").numpy())
    return losses


def draw(path: Path, lengths: list[int], by_genome: dict[str, list[float]], mean: list[float], trained: int):
    figure = Figure(figsize=(7, 4.5), layout="constrained")
    axes = figure.add_subplot()
    axes.plot(lengths, mean, color="#0072b2", marker="o", linewidth=2.5, label="all")
    axes.axvline(trained, color="#d55e00", linestyle="--", linewidth=1, label=f"trained on {trained:,} tokens")
    for values in by_genome.values():
        axes.plot(lengths, values, color="0.75", linewidth=1, zorder=1)
    low, high = axes.get_ylim()
    names = sorted(by_genome, key=lambda name: by_genome[name][-1])
    heights = spread((np.array([by_genome[name][-1] for name in names]) - low) / (high - low), 0.04)
    for name, height in zip(names, heights, strict=True):
        axes.text(0.79, height, name.split("/")[-1], transform=axes.transAxes, fontsize=6, color="0.3", va="center")
    axes.set_xscale("log", base=2)
    axes.set_xticks(lengths, [f"{length:,}" for length in lengths])
    axes.set_xlim(lengths[0] / 1.3, lengths[-1] * 8)
    axes.set(xlabel="tokens a window", ylabel="loss, nats a masked token", title="Genomes that no training saw")
    axes.legend(frameon=False, loc="upper left", fontsize=8)
    axes.spines[["top", "right"]].set_visible(False)
    figure.savefig(path, dpi=150)


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model_name_or_path", required=True, help="a folder, or a Hub name")
    parser.add_argument("--sequence_file", nargs="+", required=True, help="genomes that were not trained on")
    parser.add_argument("--lengths", nargs="+", type=int, default=[2**i for i in range(7, 14)], help="tokens a window")
    parser.add_argument("--stretches", type=int, default=8, help="of every genome, at most (default: 8)")
    parser.add_argument("--trained_length", type=int, default=128, help="marked in the picture (default: 128)")
    parser.add_argument("--picture", type=Path, help="where to draw it")
    args = parser.parse_args()

    device = "cuda" if torch.cuda.is_available() else "cpu"
    precision = "bf16" if device == "cuda" else "no"
    tokenizer = load_tokenizer(args.model_name_or_path, True)
    model = AutoModelForMaskedLM.from_pretrained(
        args.model_name_or_path,
        trust_remote_code=True,
        attn_implementation=fastest_attention(device, precision),
        dtype=torch.bfloat16 if device == "cuda" else torch.float32,
    )
    model = model.to(device).eval()
    lengths, num_tokens = sorted(args.lengths), max(args.lengths) - 2
    losses = {}
    for source in tqdm(file_sources(args.sequence_file), unit="genome"):
        found = islice(stretches(source, tokenizer, num_tokens), args.stretches)
        results = [
            losses_by_length(
                model, tokenizer, stretch, lengths, random_stream(0, MASK, 0, i).random((3, 1, num_tokens))
            )
            for i, stretch in enumerate(found)
        ]
        if results:
            losses[source.name] = [np.concatenate(of_length) for of_length in zip(*results, strict=True)]
    by_genome = {name: [float(values.mean()) for values in row] for name, row in losses.items()}
    mean = [float(np.concatenate(values).mean()) for values in zip(*losses.values(), strict=True)]
    print("| | masked tokens |", " | ".join(f"{length:,}" for length in lengths), "|")
    print("|---|--:|" + "--:|" * len(lengths))
    for name, values in [*by_genome.items(), ("**all**", mean)]:
        count = sum(len(row[0]) for row in losses.values()) if name == "**all**" else len(losses[name][0])
        print(f"| {name} | {count:,} |", " | ".join(f"{value:.4f}" for value in values), "|")
    if args.picture:
        draw(args.picture, lengths, by_genome, mean, args.trained_length)


if __name__ == "__main__":
    main()

"""Draws what the three tokenizers do to a sequence, and how BPE builds its vocabulary: real tokens of a short example.

    python benchmarks/token_pictures.py --output_dir benchmarks

Writes token_edits.png (a masked token, a deleted base; after figure 1 of arXiv 2306.15006) and token_merges.png (after
its figure 2).
"""

import argparse
from difflib import SequenceMatcher
from pathlib import Path

import matplotlib.pyplot as plt
from kmers import ROOT, tokenizer_file
from matplotlib.axes import Axes
from tokenizers import Tokenizer

from dnabert2.errors import run_script
from dnabert2.kmers import build_kmer_tokenizer
from dnabert2.tokenization import build_tokenizer, train_merges


SEQUENCE = "ATGACCATGATTACGGATTCACTGGCCGTCGTTTTACAA"  # the beginning of lacZ of E. coli
DELETED = 4  # the base that is taken out, from 0
MASKED = 5  # the overlapping k-mer that is masked, from 0
PLAIN, CHANGED, HIDDEN, TELLING = "white", "#f4b183", "0.35", "#a9d18e"


def tokens_of(tokenizer: Tokenizer, sequence: str) -> list[str]:
    return tokenizer.encode(sequence, add_special_tokens=False).tokens


def draw_token(axes: Axes, token: str, x: float, y: float, colour: str) -> None:
    box = {"facecolor": colour, "edgecolor": "black", "linewidth": 0.8}
    axes.add_patch(plt.Rectangle((x + 0.06, y), len(token) - 0.12, 0.8, **box))
    for place, letter in enumerate(token):
        text = {"ha": "center", "va": "center", "fontsize": 8, "family": "monospace"}
        axes.text(x + place + 0.5, y + 0.38, letter, color="white" if colour == HIDDEN else "black", **text)


def draw_row(axes: Axes, tokens: list[str], y: float, colours: list[str], name: str) -> None:
    axes.text(-0.5, y + 0.38, name, ha="right", va="center", fontsize=8)
    x = 0
    for token, colour in zip(tokens, colours, strict=True):
        draw_token(axes, token, x, y, colour)
        x += len(token)


def draw_leak(axes: Axes, k: int) -> None:
    """Overlapping k-mers on steps; bases of the masked one that its neighbours show are coloured in them."""
    hidden = range(MASKED, MASKED + k)
    for start, token in enumerate(tokens_of(build_kmer_tokenizer(k, overlapping=True), SEQUENCE)[: 2 * MASKED + 1]):
        y = -start * 0.95
        draw_token(axes, token, start, y, HIDDEN if start == MASKED else PLAIN)
        for place in sorted(set(hidden) & set(range(start, start + k))):
            if abs(start - MASKED) == 1:
                axes.add_patch(plt.Rectangle((place + 0.1, y + 0.04), 0.8, 0.72, facecolor=TELLING, zorder=1.5))
    axes.set_title(
        f"Overlapping {k}-mers: the tokens before and behind a masked one (dark) show all of its bases (green)",
        fontsize=9,
    )


def draw_deletion(axes: Axes, names: dict[str, Tokenizer]) -> None:
    """Each tokenizer's tokens before and after a base is deleted; those that are not there after it are coloured."""
    edited = SEQUENCE[:DELETED] + SEQUENCE[DELETED + 1 :]
    y = 0.0
    for name, tokenizer in names.items():
        before, after = tokens_of(tokenizer, SEQUENCE), tokens_of(tokenizer, edited)
        blocks = SequenceMatcher(None, before, after, autojunk=False).get_matching_blocks()
        same = [
            {index for block in blocks for index in range(block[side], block[side] + block.size)} for side in (0, 1)
        ]
        for row, tokens, kept in zip((name, "a base deleted"), (before, after), same, strict=True):
            draw_row(axes, tokens, y, [PLAIN if i in kept else CHANGED for i in range(len(tokens))], row)
            y -= 1.0
        y -= 0.5
    axes.axvspan(DELETED, DELETED + 1, color="0.9", zorder=0)
    axes.set_title("A base deleted (grey column): tokens that change (orange)", fontsize=9)


def draw_merges(axes: Axes, steps: int) -> None:
    """The sequence's tokens after each of the first merges of a vocabulary learned from it alone."""
    merges = train_merges([SEQUENCE] * 2, 64)[:steps]
    vocabulary = "A C G T"
    for step in range(steps + 1):
        tokens = tokens_of(build_tokenizer(merges[:step]), SEQUENCE)
        new = "".join(merges[step - 1]) if step else None
        vocabulary += f" {new}" if step else ""
        name = f"+ {new}" if step else "bases"
        draw_row(axes, tokens, -1.1 * step, [CHANGED if token == new else PLAIN for token in tokens], name)
        axes.text(len(SEQUENCE) + 0.5, -1.1 * step + 0.38, f"{len(tokens)} tokens", va="center", fontsize=8)
    axes.set_title(
        f"BPE: the most frequent pair of neighbours becomes a token, again and again: {vocabulary}", fontsize=9
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output_dir", type=Path, required=True)
    parser.add_argument("--tokenizer", type=Path, default=ROOT / "bpe_tokenizer", help="BPE, its folder")
    args = parser.parse_args()
    args.output_dir.mkdir(parents=True, exist_ok=True)
    figure, panels = plt.subplots(2, 1, figsize=(9, 8.5), layout="constrained", height_ratios=[11, 8])
    draw_leak(panels[0], 6)
    bpe = Tokenizer.from_file(tokenizer_file(args.tokenizer))
    draw_deletion(panels[1], {"6-mers": build_kmer_tokenizer(6, False), "BPE": bpe})
    merging, panel = plt.subplots(figsize=(9, 3.6), layout="constrained")
    draw_merges(panel, 6)
    for axes in (*panels, panel):
        axes.set_xlim(-6 if axes is not panels[0] else -1, len(SEQUENCE) + (5 if axes is panel else 1))
        axes.autoscale(axis="y")
        axes.autoscale_view(scalex=False)
        axes.axis("off")
    panels[0].set_xlim(-1, 24)
    figure.savefig(args.output_dir / "token_edits.png", dpi=100)
    merging.savefig(args.output_dir / "token_merges.png", dpi=100)


if __name__ == "__main__":
    run_script(main)

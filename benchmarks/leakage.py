"""How much a masked token's neighbours tell of it by themselves, without anything learned: counted exactly.

    python benchmarks/leakage.py --sequence_file genomes/fungi genomes/plant/oryza.fa.xz --output_dir output/kmers

A tokenizer cuts a sequence in one way only. So not every token can stand between two given ones: overlapping k-mers
share k - 1 bases, and of BPE's tokens some would have been merged or cut otherwise. Which tokens can follow each
other is asked of the tokenizer itself, for all pairs; what can stand in a gap of m masked tokens are the walks of
m + 1 steps between its neighbours, counted by matrix products. What remains open is told in bits, log2 of that number,
a masked token, beside the bits that the vocabulary could hold. Prints the tables of benchmarks/kmers.md and writes
leakage.png. Five minutes of a core, most of them for the pairs of BPE's tokens and of 6-mers.
"""

import argparse
from itertools import product

import matplotlib.pyplot as plt
import numpy as np
from kmers import KMERS, add_arguments, load_tokenizers, sample_species
from tokenizers import Tokenizer
from tqdm import tqdm

from dnabert2.errors import run_script
from dnabert2.tokenization import SPECIAL_TOKENS


MLM_PROBABILITY = 0.15
PAIRS_AT_ONCE = 200_000
LONGEST_GAP = 8


def possible_pairs(tokenizer: Tokenizer, k: int, overlapping: bool) -> np.ndarray:
    """
    Which token can follow which: bool, (vocabulary, vocabulary), the first one in rows.

    Of BPE (k = 0), and of k-mers without overlap, a pair is possible if their bases, encoded, are the pair again; a
    longer sequence of BPE's tokens is then possible if all its pairs are. The pairs of overlapping k-mers are those
    of all sequences of k + 1 bases. N is left out: pretraining never sees it.
    """
    possible = np.zeros((tokenizer.get_vocab_size(),) * 2, dtype=bool)
    if overlapping:
        texts = list(map("".join, product("ACGT", repeat=k + 1)))
        pairs = np.array([encoding.ids for encoding in tokenizer.encode_batch_fast(texts, add_special_tokens=False)])
        possible[pairs[:, 0], pairs[:, 1]] = True
        return possible
    tokens = {token: index for token, index in tokenizer.get_vocab().items() if token not in (*SPECIAL_TOKENS, "N")}
    if k:  # single letters stand at an end alone, and a gap has neighbours on both sides
        tokens = {token: index for token, index in tokens.items() if len(token) == k}
    rows = max(1, PAIRS_AT_ONCE // len(tokens))
    names = list(tokens)
    for start in tqdm(range(0, len(names), rows), desc="Pairs", leave=False):
        pairs = list(product(names[start : start + rows], names))
        encodings = tokenizer.encode_batch_fast([first + second for first, second in pairs], add_special_tokens=False)
        for (first, second), encoding in zip(pairs, encodings, strict=True):
            pair = [tokens[first], tokens[second]]
            possible[pair[0], pair[1]] = encoding.ids == pair
    return possible


def open_bits(possible: np.ndarray, before: np.ndarray, behind: np.ndarray, gap: int) -> np.ndarray:
    """log2 of the number of ways to fill each gap of `gap` tokens between the tokens before and behind it: (gaps,)."""
    steps = possible.astype(np.float64)
    ways = steps[before]  # (gaps, vocabulary): ways to come to each token
    for _ in range(gap - 1):
        ways = ways @ steps
    return np.log2((ways * steps[:, behind].T).sum(axis=1))


def gaps_of(is_masked: np.ndarray) -> dict[int, np.ndarray]:
    """Where gaps of each length begin in a row of tokens; those at an end, which have one neighbour, are left out."""
    edges = np.flatnonzero(np.diff(is_masked.astype(int)))
    starts, stops = edges[:-1] + 1, edges[1:] + 1
    inner = is_masked[starts]
    starts, lengths = starts[inner], (stops - starts)[inner]
    return {int(length): starts[lengths == length] for length in np.unique(lengths)}


def independent_masks(rng: np.random.Generator, count: int, k: int) -> np.ndarray:
    return rng.random(count) < MLM_PROBABILITY


def span_masks(rng: np.random.Generator, count: int, k: int) -> np.ndarray:
    """Spans of k tokens, as DNABERT masks them, so many that 15 % of all tokens are masked."""
    starts = rng.random(count) < 1 - (1 - MLM_PROBABILITY) ** (1 / k)
    return np.convolve(starts, np.ones(k))[:count] > 0


def bits_under_masks(possible: np.ndarray, rows: list[np.ndarray], draw_masks, k: int, seed: int = 0) -> float:
    """Mean of the bits that stay open a masked token, over random masks of real sequences."""
    rng, bits, masked = np.random.default_rng(seed), 0.0, 0
    gaps = {}  # of each length: tokens before and behind
    for ids in rows:
        for length, starts in gaps_of(draw_masks(rng, len(ids), k)).items():
            gaps.setdefault(length, []).append(np.stack([ids[starts - 1], ids[starts + length]]))
    for length, neighbours in gaps.items():
        before, behind = np.concatenate(neighbours, axis=1)
        bits += open_bits(possible, before, behind, length).sum()
        masked += length * len(before)
    return bits / masked


def measure(name: str, tokenizer: Tokenizer, sequences: list[str], samples: int) -> dict:
    """The bits that stay open a token: by the length of a gap, {length: (gaps,)}, and under random masks."""
    k, overlapping = (0 if name == "BPE" else int(name[0])), name.endswith("overlapping")
    possible = possible_pairs(tokenizer, k, overlapping)
    encodings = tokenizer.encode_batch_fast(sequences, add_special_tokens=False)
    last = -1 if overlapping else -k - 1  # what is left over at the end of non-overlapping k-mers is no k-mer
    rows = [np.array(encoding.ids[:last]) for encoding in encodings]
    rng, gaps = np.random.default_rng(0), {}
    for gap in range(1, LONGEST_GAP + 1):
        row_of = rng.integers(len(rows), size=samples)
        starts = [rng.integers(1, len(rows[row]) - gap) for row in row_of]
        neighbours = [
            (rows[row][start - 1], rows[row][start + gap]) for row, start in zip(row_of, starts, strict=True)
        ]
        gaps[gap] = open_bits(possible, *np.array(neighbours).T, gap) / gap
    can_stand = possible.any(axis=0).sum()
    return {
        "most": float(np.log2(can_stand)),
        "gaps": gaps,
        "independent": bits_under_masks(possible, rows, independent_masks, k),
        "spans": bits_under_masks(possible, rows, span_masks, k) if overlapping else None,
    }


def print_tables(results: dict[str, dict]) -> None:
    print("| | bits of the vocabulary | values, one token masked | lowest and highest | open bits a token, 1 masked |")
    print("|---|--:|--:|--:|--:|")
    for name, result in results.items():
        values = 2 ** result["gaps"][1]
        middle, spread = 2 ** result["gaps"][1].mean(), f"{values.min():,.0f} to {values.max():,.0f}"
        print(f"| {name} | {result['most']:.2f} | {middle:,.0f} | {spread} | {result['gaps'][1].mean():.2f} |")
    lengths = range(1, LONGEST_GAP + 1)
    print(f"\n| open bits a token, of m in a row | {' | '.join(map(str, lengths))} |\n|---|{'--:|' * len(lengths)}")
    for name, result in results.items():
        print(f"| {name} |", " | ".join(f"{result['gaps'][gap].mean():.2f}" for gap in lengths), "|")
    print("\n| open bits a masked token | 15 % at random | left open | 15 % in spans of k | left open |")
    print("|---|--:|--:|--:|--:|")
    for name, result in results.items():
        cells = []
        for key in ("independent", "spans"):
            bits = result[key]
            cells += ["–", "–"] if bits is None else [f"{bits:.3f}", f"{100 * bits / result['most']:.1f} %"]
        print(f"| {name} |", " | ".join(cells), "|")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    add_arguments(parser)
    parser.add_argument("--samples", type=int, default=500, help="gaps of each length (default: 500)")
    args = parser.parse_args()
    args.output_dir.mkdir(parents=True, exist_ok=True)
    sequences = [piece for pieces in sample_species(args).values() for piece in pieces]
    tokenizers = tqdm(load_tokenizers(args.tokenizer).items(), desc="Tokenizers")
    results = {name: measure(name, tokenizer, sequences, args.samples) for name, tokenizer in tokenizers}
    print_tables(results)

    figure, axes = plt.subplots(figsize=(8, 4.5), layout="constrained")
    for name in ("BPE", "6-mers", *(f"{k}-mers, overlapping" for k in reversed(KMERS))):
        gaps = results[name]["gaps"]
        open_share = [100 * bits.mean() / results[name]["most"] for bits in gaps.values()]
        axes.plot(list(gaps), open_share, "o-", label=name)
    axes.set(
        xlabel="tokens masked in a row", ylabel="of a token's bits, left open by the neighbours (%)", ylim=(0, 105)
    )
    axes.legend()
    figure.savefig(args.output_dir / "leakage.png", dpi=110)


if __name__ == "__main__":
    run_script(main)

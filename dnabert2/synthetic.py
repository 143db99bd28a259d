"""A small multi-species corpus made on the spot, so that the main job can be tried without a download.

    python -m dnabert2.synthetic output/synthetic

Each species has its own base composition, codon usage and families of diverged repeats; all share the motifs in front
of their genes. The same seed gives the same files.
"""

import argparse
import textwrap
from pathlib import Path

import numpy as np


BASES = np.array(list("ACGT"))
COMPLEMENT = np.array([3, 2, 1, 0])  # of the indices into BASES
STOP_CODONS = np.array([48, 50, 56])  # TAA, TAG, TGA as base-4 numbers
GC_CONTENT = {"alpha": 0.36, "beta": 0.44, "gamma": 0.52, "delta": 0.62}  # by species
REPEAT_FAMILIES, REPEAT_LENGTH, REPEAT_DIVERGENCE = 6, 300, 0.03


def draw_bases(rng: np.random.Generator, length: int, gc: float) -> np.ndarray:
    return rng.choice(4, size=length, p=[(1 - gc) / 2, gc / 2, gc / 2, (1 - gc) / 2])


def draw_gene(rng: np.random.Generator, codon_usage: np.ndarray, motif: np.ndarray) -> np.ndarray:
    """A motif, ATG, codons in the species' usage and a stop codon; either strand."""
    codons = np.concatenate(
        [[14], rng.choice(64, size=rng.integers(60, 200), p=codon_usage), rng.choice(STOP_CODONS, 1)]
    )
    bases = np.stack([codons // 16, codons // 4 % 4, codons % 4], axis=1).ravel()
    gene = np.concatenate([motif, bases])
    return gene if rng.random() < 0.5 else COMPLEMENT[gene[::-1]]


def diverged(rng: np.random.Generator, repeat: np.ndarray) -> np.ndarray:
    """A copy of a repeat with point mutations."""
    is_mutated = rng.random(len(repeat)) < REPEAT_DIVERGENCE
    return np.where(is_mutated, rng.integers(4, size=len(repeat)), repeat)


def draw_genome(rng: np.random.Generator, length: int, gc: float, motifs: list[np.ndarray]) -> str:
    """At least `length` bases: repeats, genes and what lies between them, in random order."""
    repeats = [draw_bases(rng, REPEAT_LENGTH, gc) for _ in range(REPEAT_FAMILIES)]
    gc_of_codon = np.array([sum(base in (1, 2) for base in (c // 16, c // 4 % 4, c % 4)) for c in range(64)])
    codon_usage = rng.dirichlet(np.full(64, 0.5)) * (gc / (1 - gc)) ** gc_of_codon
    codon_usage[STOP_CODONS] = 0
    codon_usage /= codon_usage.sum()
    pieces, total = [], 0
    while total < length:
        kind = rng.choice(3, p=[0.6, 0.2, 0.2])
        if kind == 0:
            piece = diverged(rng, repeats[rng.integers(len(repeats))])
        elif kind == 1:
            piece = draw_gene(rng, codon_usage, motifs[rng.integers(len(motifs))])
        else:
            piece = draw_bases(rng, rng.integers(100, 400), gc)
        pieces.append(piece)
        total += len(piece)
    return "".join(BASES[np.concatenate(pieces)])


def write_corpus(folder: Path, bases_a_species: int, seed: int) -> list[Path]:
    """Writes a FASTA file a species and returns their paths."""
    rng = np.random.default_rng(seed)
    motifs = [draw_bases(rng, 20, 0.5) for _ in range(4)]
    folder.mkdir(parents=True, exist_ok=True)
    paths = []
    for species, gc in GC_CONTENT.items():
        path = folder / f"{species}.fa"
        genome = "\n".join(textwrap.wrap(draw_genome(rng, bases_a_species, gc, motifs), 80))
        path.write_text(f">{species} synthetic, {gc:.0%} GC, seed {seed}\n{genome}\n")
        paths.append(path)
    return paths


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--bases", type=int, default=500_000, help="bases a species (default: 500,000)")
    parser.add_argument("--seed", type=int, default=42)
    arguments = parser.parse_args()
    print(*write_corpus(arguments.folder, arguments.bases, arguments.seed), sep="\n")

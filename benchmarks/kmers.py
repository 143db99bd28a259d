"""BPE beside k-mer tokenizers: how much shorter a sequence becomes, and how many tokens an edit of it changes.

    python benchmarks/kmers.py --sequence_file genomes/fungi genomes/plant/oryza_sativa.fa.xz --output_dir output/kmers

Each file counts as a species, by the name of its folder and its own. The sequence is what train_tokenizer.py held
out with its default --seed and --holdout_percentage, so that the vocabulary of this package never saw it. Prints the
tables of benchmarks/kmers.md and writes kmers.png.
"""

import argparse
import sys
from collections import Counter
from collections.abc import Callable
from difflib import SequenceMatcher
from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np
from tokenizers import Tokenizer
from tqdm import tqdm

from dnabert2.errors import UsageError, run_script
from dnabert2.kmers import build_kmer_tokenizer
from dnabert2.resuming import begin, refuse_other_arguments, saved_arguments
from dnabert2.sequences import expand_files
from dnabert2.sources import file_sources
from dnabert2.tokenization import PIECE_LENGTH, bases_per_token, read_pieces


ROOT = Path(__file__).resolve().parent.parent
KMERS = range(3, 7)
HELD_OUT = {"seed": 42, "high": 0.05}  # the defaults of train_tokenizer.py
SHIFTS = range(1, 6)
EDITS = ["substitution", "deletion", "insertion", *(f"start + {shift}" for shift in SHIFTS), "another sequence"]


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The arguments that leakage.py has too."""
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.add_argument("--sequence_file", nargs="+", required=True, help="files, folders or globs of sequences")
    parser.add_argument("--tokenizer", type=Path, default=ROOT / "bpe_tokenizer", help="BPE, its folder")
    parser.add_argument("--pieces", type=int, default=20, help="held-out pieces of each file, 2 or more (default: 20)")
    parser.add_argument("--bases", type=int, default=1000, help="of each piece, 100 to 2,000 (default: 1,000)")
    parser.add_argument("--output_dir", type=Path, required=True, help="folder for the picture")


def tokenizer_file(folder: Path) -> str:
    """Raises UsageError for a folder without a tokenizer, so that none is looked for on the Hub."""
    file = folder / "tokenizer.json"
    if not file.is_file():
        raise UsageError(f"{file} does not exist: give the folder of a tokenizer")
    return str(file)


def load_tokenizers(bpe_folder: Path) -> dict[str, Tokenizer]:
    """BPE, and non-overlapping and overlapping k-mers, by the names that tables and pictures give them."""
    tokenizers = {"BPE": Tokenizer.from_file(tokenizer_file(bpe_folder))}
    for overlapping, kind in ((False, "-mers"), (True, "-mers, overlapping")):
        tokenizers |= {f"{k}{kind}": build_kmer_tokenizer(k, overlapping) for k in KMERS}
    return tokenizers


def keep_arguments(kept: Path, output_dir: Path, arguments: dict) -> None:
    """
    Notes what a file that a folder keeps will be made of.

    Raises UsageError if it is there and was made of something else: it would be taken for that of these arguments.
    """
    if kept.exists():
        refuse_other_arguments(output_dir, saved_arguments(output_dir) or {}, arguments)
    else:
        begin(output_dir, arguments)


def size_of(files: list[str]) -> str:
    """How many files these are, and how large: what `keep_arguments` notes of sequences."""
    sizes = [Path(file).stat().st_size for file in expand_files(files)]
    return f"{len(sizes)} file(s) of {sum(sizes):,} bytes"


def sample_pieces(path: Path, count: int, bases: int) -> list[str]:
    """At most `count` held-out pieces of a file, cut to `bases`; those of the lowest rank: a random choice."""
    pieces = sorted((rank, piece[:bases]) for rank, piece in read_pieces(path, **HELD_OUT) if len(piece) >= bases)
    return [piece for _, piece in pieces[:count]]


def sample_species(args: argparse.Namespace) -> dict[str, list[str]]:
    """The pieces of each file, by "folder/name"; files with fewer than two are left out, and named."""
    if args.pieces < 2 or not 100 <= args.bases <= PIECE_LENGTH:
        raise UsageError(f"--pieces must be 2 or more, and --bases 100 to {PIECE_LENGTH:,}, the length of a piece")
    species = {}
    for source in tqdm(file_sources(args.sequence_file), desc="Reading", unit="file"):
        if source.name in species:
            raise UsageError(f"two files are {source.name}, and a file counts as a species: rename {source.file}")
        species[source.name] = sample_pieces(source.file, args.pieces, args.bases)
    if few := [name for name, pieces in species.items() if len(pieces) < 2]:
        print(
            f"Fewer than two held-out pieces of {args.bases} A, C, G and T, left out: {', '.join(few)}",
            file=sys.stderr,
        )
    found = {name: pieces for name, pieces in species.items() if name not in few}
    if not found:
        raise UsageError("no file has two held-out pieces: give larger ones, or fewer --bases")
    return found


def edits_of(sequence: str, other: str, rng: np.random.Generator) -> dict[str, str]:
    """The sequence after each of EDITS; one place, anywhere in it, is edited in the first three."""
    place = int(rng.integers(len(sequence)))
    base = sequence[place]
    substitute = str(rng.choice([letter for letter in "ACGT" if letter != base]))
    before, behind = sequence[:place], sequence[place + 1 :]
    edited = [before + substitute + behind, before + behind, before + base + str(rng.choice([*"ACGT"])) + behind]
    return dict(zip(EDITS, [*edited, *(sequence[shift:] for shift in SHIFTS), other], strict=True))


def share_of_multiset(tokens: list, edited: list) -> float:
    """The share of tokens that the edited sequence has too, wherever they stand and as often as it has them."""
    return (Counter(tokens) & Counter(edited)).total() / len(tokens)


def share_aligned(tokens: list, edited: list) -> float:
    """The share of tokens that an alignment keeps: the matching blocks of `difflib`, in the same order in both."""
    blocks = SequenceMatcher(None, tokens, edited, autojunk=False).get_matching_blocks()
    return sum(block.size for block in blocks) / len(tokens)


def unchanged(
    tokenizer: Tokenizer, species: dict[str, list[str]], share: Callable[[list, list], float], seed: int = 0
) -> np.ndarray:
    """Means over each species' pieces of the share of tokens that each edit leaves, (species, EDITS)."""
    rng, means = np.random.default_rng(seed), []  # the same edits for every tokenizer
    for pieces in species.values():
        shares = []
        for number, sequence in enumerate(pieces):
            texts = [sequence, *edits_of(sequence, pieces[number - 1], rng).values()]
            tokens, *edited = (encoding.ids for encoding in tokenizer.encode_batch(texts, add_special_tokens=False))
            shares.append([share(tokens, other) for other in edited])
        means.append(np.mean(shares, axis=0))
    return np.array(means)


def print_lengths(tokenizers: dict[str, Tokenizer], species: dict[str, list[str]]) -> dict[str, np.ndarray]:
    """Prints bases a token by tokenizer and species; returns it by tokenizer, (species,)."""
    ratios = {}
    for name, tokenizer in tokenizers.items():
        counts = np.array([bases_per_token(tokenizer, pieces) for pieces in species.values()])
        ratios[name] = counts[:, 0] / counts[:, 1]
    print("| | vocabulary | bases a token | over species | tokens for 1,000 bases | length against input |")
    print("|---|--:|--:|--:|--:|--:|")
    for name, values in ratios.items():
        mean, spread = values.mean(), f"{values.min():.2f} to {values.max():.2f}"
        size = f"{tokenizers[name].get_vocab_size():,}"
        print(f"| {name} | {size} | {mean:.2f} | {spread} | {1000 / mean:,.0f} | 1 / {mean:.1f} |")
    print("\n| species | pieces | BPE: bases a token |\n|---|--:|--:|")
    for (name, pieces), value in zip(species.items(), ratios["BPE"], strict=True):
        print(f"| {name} | {len(pieces)} | {value:.3f} |")
    return ratios


def print_unchanged(shares: dict[str, np.ndarray], title: str) -> None:
    print(f"\n| {title} | {' | '.join(EDITS)} |\n|---|{'--:|' * len(EDITS)}")
    for name, values in shares.items():
        print(f"| {name} |", " | ".join(f"{100 * value:.1f}" for value in values.mean(axis=0)), "|")


def draw(ratios: dict[str, np.ndarray], aligned: dict[str, np.ndarray], species: list[str], path: Path) -> None:
    figure, (left, right) = plt.subplots(1, 2, figsize=(13, 5), layout="constrained", width_ratios=[2, 3])
    names = ["BPE", *(name for name in aligned if name.endswith("-mers")), "6-mers, overlapping"]
    width = 0.8 / len(names)
    for number, name in enumerate(names):
        left.plot(ratios[name], range(len(species)), "o", color=f"C{number}", zorder=3 if name == "BPE" else 2)
        values = 100 * aligned[name]
        low, mean, high = values.min(axis=0), values.mean(axis=0), values.max(axis=0)
        errors = np.maximum([mean - low, high - mean], 0)  # rounding can leave less
        places = np.arange(len(EDITS)) + (number - (len(names) - 1) / 2) * width
        right.bar(places, mean, width, yerr=errors, error_kw={"linewidth": 0.7}, color=f"C{number}", label=name)
    left.set_yticks(range(len(species)), species, fontsize=8)
    left.set(xlabel="bases a token", xlim=(0, None), title="A token's length, by species")
    right.set_xticks(range(len(EDITS)), EDITS, rotation=30, ha="right")
    right.set(ylabel="tokens unchanged, aligned (%)", title="What an edit leaves; lines: lowest and highest species")
    figure.legend(loc="outside lower center", ncols=len(names))
    figure.savefig(path, dpi=110)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    add_arguments(parser)
    args = parser.parse_args()
    args.output_dir.mkdir(parents=True, exist_ok=True)
    tokenizers, species = load_tokenizers(args.tokenizer), sample_species(args)
    ratios = print_lengths(tokenizers, species)
    results = {}
    for share, title in ((share_of_multiset, "multiset, %"), (share_aligned, "aligned, %")):
        names = tqdm(tokenizers.items(), desc=title)
        results[title] = {name: unchanged(tokenizer, species, share) for name, tokenizer in names}
        print_unchanged(results[title], title)
    draw(ratios, results["aligned, %"], list(species), args.output_dir / "kmers.png")


if __name__ == "__main__":
    run_script(main)

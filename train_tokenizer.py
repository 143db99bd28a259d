"""Trains a BPE vocabulary of DNA on sequence files and writes a tokenizer that `AutoTokenizer` loads.

    python train_tokenizer.py --train_file genomes/ --output_dir my_tokenizer

The output folder gets tokenizer.json, tokenizer_config.json, report.md (what it was
trained on and how well it does on sequence it never saw) and token_lengths.png.
"""

import argparse
import json
import logging
import shlex
import sys
import time
from collections import Counter
from dataclasses import dataclass
from importlib.metadata import version
from io import BytesIO
from pathlib import Path

import numpy as np
import psutil
from matplotlib.figure import Figure
from tokenizers import Tokenizer
from tqdm import tqdm

from dnabert2.errors import UsageError, add_debug, run_script
from dnabert2.files import write_whole
from dnabert2.sequences import expand_files, file_sha256
from dnabert2.tokenization import (
    SMALLEST_VOCABULARY,
    SPECIAL_TOKENS,
    bases_per_token,
    build_tokenizer,
    read_pieces,
    tokenizer_config,
    train_merges,
)


MEMORY_PER_BASE = (46, 65)  # bytes, measured on real genomes; the larger decides what is refused
SECONDS_PER_MEGABASE = (1, 2)  # on two idle cores, and with other work on them


@dataclass
class CorpusFile:
    """One sequence file: `ranks` and `lengths` (bases) of its pieces of A, C, G and T, in the order of the file."""

    path: Path
    sha256: str
    ranks: np.ndarray
    lengths: np.ndarray
    rank_limit: float = 0.0  # pieces below it, and not held out, are trained on

    def bases_ranked(self, low: float, high: float) -> int:
        """Bases of the pieces with low <= rank < high."""
        return int(self.lengths[(self.ranks >= low) & (self.ranks < high)].sum())


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--train_file",
        nargs="+",
        required=True,
        metavar="PATH",
        help="files, folders (searched recursively) or globs: FASTA, FASTQ, GenBank or text with one sequence a "
        "line, plain or .gz .xz .zst .bz2",
    )
    parser.add_argument("--output_dir", type=Path, required=True, help="folder for the tokenizer and its report")
    parser.add_argument(
        "--vocab_size", type=int, default=4096, help="entries in all, special tokens too (default: 4096)"
    )
    parser.add_argument(
        "--max_bases",
        type=int,
        default=100_000_000,
        help="train on at most so many bases (default: 100000000). Each takes 46 to 65 bytes of memory and 1 to 2 "
        "microseconds; what does not fit in memory is refused before it starts",
    )
    parser.add_argument(
        "--sampling_temperature",
        type=float,
        default=2.0,
        metavar="T",
        help="a file's share of --max_bases goes with its bases to the power 1/T: 1 takes the same part of every "
        "file, 2 (default) the square root, so that a genome 100 times larger counts 10 times more; a very large T "
        "takes equally much of each. A file smaller than its share gives all it has, and the others the rest",
    )
    parser.add_argument(
        "--holdout_percentage",
        type=float,
        default=5.0,
        help="per cent of the pieces (2,000 bases or less) never trained on, by which report.md judges the "
        "vocabulary (default: 5)",
    )
    parser.add_argument("--seed", type=int, default=42, help="chooses the pieces; same seed, same bytes (default: 42)")
    add_debug(parser)
    arguments = parser.parse_args()
    if arguments.vocab_size <= SMALLEST_VOCABULARY:
        raise UsageError(
            f"--vocab_size {arguments.vocab_size} is too small: {SMALLEST_VOCABULARY} entries are taken already"
        )
    if arguments.max_bases <= 0:
        raise UsageError(f"--max_bases {arguments.max_bases} must be above 0")
    if not arguments.sampling_temperature > 0:
        raise UsageError(
            f"--sampling_temperature {arguments.sampling_temperature} must be above 0 (1: no evening out)"
        )
    if not 0 <= arguments.holdout_percentage < 100:
        raise UsageError(f"--holdout_percentage {arguments.holdout_percentage} must be at least 0 and below 100")
    return arguments


def count_file(path: Path, seed: int) -> CorpusFile:
    pieces = [(rank, len(piece)) for rank, piece in read_pieces(path, seed)]
    ranks, lengths = np.array(pieces).reshape(-1, 2).T
    return CorpusFile(path, file_sha256(path), ranks, lengths.astype(np.int64))


def share_budget(bases: np.ndarray, max_bases: int, temperature: float) -> np.ndarray:
    """Bases to take of each file: in proportion to bases ** (1/T), never more than it has, max_bases in all."""
    weights = bases ** (1 / temperature)
    shares, unfilled = np.zeros(len(bases)), bases > 0
    while unfilled.any():
        shares[unfilled] = (max_bases - bases[~unfilled].sum()) * weights[unfilled] / weights[unfilled].sum()
        too_small = unfilled & (shares >= bases)
        shares[too_small] = bases[too_small]
        unfilled &= ~too_small
        if not too_small.any():
            break
    return shares


def set_rank_limits(files: list[CorpusFile], holdout: float, max_bases: int, temperature: float) -> None:
    """Finds the rank of each file below which its training pieces just stay within its share."""
    shares = share_budget(np.array([file.bases_ranked(holdout, 1) for file in files]), max_bases, temperature)
    for file, share in zip(files, shares, strict=True):
        order = np.argsort(file.ranks)
        order = order[file.ranks[order] >= holdout]
        excess = order[np.cumsum(file.lengths[order]) > share]
        file.rank_limit = float(file.ranks[excess[0]]) if len(excess) else 1.0


def available_memory() -> int:
    """Bytes that this process can still take: of the machine, or of its control group (containers) if that is less."""
    available = psutil.virtual_memory().available
    limit = Path("/sys/fs/cgroup/memory.max")
    if limit.exists() and (text := limit.read_text().strip()) != "max":
        reclaimable = dict(line.split() for line in limit.with_name("memory.stat").read_text().splitlines())
        used = int(limit.with_name("memory.current").read_text()) - int(reclaimable["inactive_file"])
        available = min(available, int(text) - used)
    return available


def check_memory(bases: int) -> None:
    """Says what the training will take; raises UsageError where that does not fit."""
    available = available_memory()
    gigabytes = " to ".join(f"{bases * size / 1e9:.1f}" for size in MEMORY_PER_BASE)
    seconds = " to ".join(f"{bases / 1e6 * size:,.0f}" for size in SECONDS_PER_MEGABASE)
    print(f"Training on {bases / 1e6:,.1f} Mbases will take {gigabytes} GB of memory and {seconds} s", flush=True)
    if bases * MEMORY_PER_BASE[1] > available:
        raise UsageError(
            f"only {available / 1e9:.1f} GB of memory are free; the largest that fits is --max_bases "
            f"{available // MEMORY_PER_BASE[1]}"
        )


def histogram_of_lengths(lengths: Counter) -> bytes:
    """A PNG of how many tokens there are of each length."""
    figure = Figure(figsize=(8, 4.5), layout="constrained")
    axes = figure.subplots()
    axes.bar_label(axes.bar(list(lengths), list(lengths.values())), fontsize=8)
    axes.set(xlabel="bases in the token", ylabel="tokens", title=f"{lengths.total():,} tokens by length")
    picture = BytesIO()
    figure.savefig(picture, format="png", dpi=120)
    return picture.getvalue()


def token_lengths(tokenizer: Tokenizer) -> Counter:
    """How many tokens there are of each length in bases, in order; special tokens left out."""
    return Counter(sorted(len(token) for token in tokenizer.get_vocab() if token not in SPECIAL_TOKENS))


def report(arguments: argparse.Namespace, files: list[CorpusFile], tokenizer: Tokenizer, seconds: float) -> str:
    """report.md: no folder of this machine in it, only names."""
    holdout = arguments.holdout_percentage / 100
    options = vars(arguments) | {
        "train_file": [Path(path).resolve().name + "/" * Path(path).is_dir() for path in arguments.train_file],
        "output_dir": arguments.output_dir.resolve().name,
    }
    words = [word for key, value in options.items() for word in (f"--{key}", *np.atleast_1d(value).astype(str))]
    rows, total_bases, total_tokens, ratios = [], 0, 0, []
    for file in tqdm(files, desc="Judging on held-out pieces", unit="file"):
        pieces = [piece for _, piece in read_pieces(file.path, arguments.seed, high=holdout)]
        bases, tokens = bases_per_token(tokenizer, pieces)
        total_bases, total_tokens = total_bases + bases, total_tokens + tokens
        ratios += [bases / tokens] if tokens else []
        rows.append(
            f"| {file.path.name} | `{file.sha256}` | {file.lengths.sum():,} "
            f"| {file.bases_ranked(holdout, file.rank_limit):,} | {bases:,} "
            f"| {f'{bases / tokens:.3f}' if tokens else '–'} |"
        )
    used = sum(file.bases_ranked(holdout, file.rank_limit) for file in files)
    mean = (
        f"{total_bases / total_tokens:.3f} bases a token over all held-out bases, {np.mean(ratios):.3f} as the mean "
        f"over files"
        if ratios
        else "No piece was held out"
    )
    lengths = token_lengths(tokenizer)
    longest = sorted(tokenizer.get_vocab().keys() - set(SPECIAL_TOKENS), key=lambda token: (-len(token), token))[:5]
    return "\n".join(
        [
            f"# A BPE vocabulary of {tokenizer.get_vocab_size():,} tokens",
            "",
            f"Trained on {used:,} bases of {len(files)} files in {seconds:,.0f} s. {mean}.",
            "",
            f"```\npython train_tokenizer.py {shlex.join(words)}\n```",
            "",
            "Versions: "
            + ", ".join(f"{name} {version(name)}" for name in ("tokenizers", "datasets", "numpy"))
            + f", Python {sys.version.split()[0]}.",
            "",
            "## Corpus",
            "",
            "Bases are A, C, G and T; held-out ones were never trained on.",
            "",
            "| file | sha256 | bases | trained on | held out | bases a token, held out |",
            "|---|---|--:|--:|--:|--:|",
            *rows,
            "",
            "## Tokens by length",
            "",
            "![Histogram of token lengths](token_lengths.png)",
            "",
            "| bases | tokens |",
            "|--:|--:|",
            *(f"| {length} | {count:,} |" for length, count in lengths.items()),
            "",
            f"The longest: {', '.join(longest)}.",
            "",
        ]
    )


def main() -> None:
    logging.basicConfig(format="%(levelname)s: %(message)s")
    arguments = parse_arguments()
    holdout = arguments.holdout_percentage / 100
    try:
        arguments.output_dir.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UsageError(f"--output_dir {arguments.output_dir} cannot be made: {error.strerror}") from error
    if (arguments.output_dir / "tokenizer.json").exists():
        raise UsageError(f"--output_dir {arguments.output_dir} holds a tokenizer already: name another folder")

    paths = tqdm(expand_files(arguments.train_file), desc="Counting bases", unit="file")
    files = [count_file(path, arguments.seed) for path in paths]
    set_rank_limits(files, holdout, arguments.max_bases, arguments.sampling_temperature)
    bases = sum(file.bases_ranked(holdout, file.rank_limit) for file in files)
    check_memory(bases)

    start = time.perf_counter()
    chosen = (read_pieces(file.path, arguments.seed, holdout, file.rank_limit) for file in files)
    tokenizer = build_tokenizer(
        train_merges((piece for pieces in chosen for _, piece in pieces), arguments.vocab_size)
    )
    seconds = time.perf_counter() - start
    if (size := tokenizer.get_vocab_size()) < arguments.vocab_size:
        raise UsageError(f"{bases:,} bases give only {size} tokens: give more sequence, or a smaller --vocab_size")

    contents = {
        "report.md": report(arguments, files, tokenizer, seconds).encode(),
        "token_lengths.png": histogram_of_lengths(token_lengths(tokenizer)),
        "tokenizer_config.json": (json.dumps(tokenizer_config(), indent=2) + "\n").encode(),
        "tokenizer.json": (tokenizer.to_str(pretty=True) + "\n").encode(),
    }
    for name, content in contents.items():
        write_whole(arguments.output_dir / name, content)
    print(f"{arguments.output_dir}: {arguments.vocab_size} tokens; report.md says how they were made and how they do")


if __name__ == "__main__":
    run_script(main)

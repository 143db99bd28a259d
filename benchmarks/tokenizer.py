"""Bases a token of our vocabulary and of the released one, on the same pieces, held out of our training.

    python benchmarks/tokenizer.py --sequence_file genomes/ --released_tokenizer released_tokenizer.json

Prints the tables of benchmarks/tokenizer.md. `--seed` and `--holdout_percentage` are those of train_tokenizer.py: from
them and the bases alone it follows which pieces were held out. A file's kingdom is the name of its folder.
"""

import argparse
from pathlib import Path

import numpy as np
from tokenizers import Tokenizer
from tqdm import tqdm

from dnabert2.errors import run_script
from dnabert2.sequences import expand_files
from dnabert2.tokenization import bases_per_token, read_pieces


ROOT = Path(__file__).resolve().parent.parent


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sequence_file", nargs="+", required=True, help="files, folders or globs of sequences")
    parser.add_argument("--released_tokenizer", required=True, help="tokenizer.json of zhihan1996/DNABERT-2-117M")
    parser.add_argument("--tokenizer", default=str(ROOT / "bpe_tokenizer" / "tokenizer.json"), help="ours")
    parser.add_argument("--holdout_percentage", type=float, default=5.0)
    parser.add_argument("--seed", type=int, default=42)
    return parser.parse_args()


def table_row(names: list[str], counts: np.ndarray) -> str:
    """A row of the table: counts are [bases, our tokens, released tokens]."""
    bases, ours, released = counts
    difference = 100 * (released / ours - 1)
    return f"| {' | '.join(names)} | {bases:,} | {bases / ours:.3f} | {bases / released:.3f} | {difference:+.1f} % |"


def main() -> None:
    arguments = parse_arguments()
    tokenizers = [Tokenizer.from_file(path) for path in (arguments.tokenizer, arguments.released_tokenizer)]
    names, counts = [], []  # counts: [files, 3] bases, our tokens, released tokens
    for path in tqdm(expand_files(arguments.sequence_file), unit="file"):
        held_out = read_pieces(path, arguments.seed, high=arguments.holdout_percentage / 100)
        pieces = [piece for _, piece in held_out]
        if pieces:
            (bases, ours), (_, released) = (bases_per_token(tokenizer, pieces) for tokenizer in tokenizers)
            names.append((path.parent.name, path.name.split(".fa")[0]))
            counts.append((bases, ours, released))
    counts = np.array(counts)
    kingdoms = np.array([kingdom for kingdom, _ in names])

    ours, released = (counts[:, :1] / counts[:, 1:]).mean(axis=0)
    print("| | held-out bases | ours | released | ours against released |\n|---|--:|--:|--:|--:|")
    print(table_row(["all bases (micro)"], counts.sum(axis=0)))
    difference = 100 * (ours / released - 1)
    print(f"| mean over {len(names)} files (macro) | | {ours:.3f} | {released:.3f} | {difference:+.1f} % |")
    for kingdom in np.unique(kingdoms):
        print(table_row([kingdom], counts[kingdoms == kingdom].sum(axis=0)))
    print("\n| kingdom | file | held-out bases | ours | released | ours against released |\n|---|---|--:|--:|--:|--:|")
    for name, row in zip(names, counts, strict=True):
        print(table_row(list(name), row))


if __name__ == "__main__":
    run_script(main)

"""Which rows of GUE's tests stand in the genomes of pretraining: whole, or with 64 bases in a row, on either strand.

    python benchmarks/overlap.py --data_dir GUE --train_file genomes/

Pretraining sees no labels, but a row that it has seen is not new to the model. Every 64 bases in a row of all test
rows, and of their reverse complements, are kept as a 64-bit hash; those of the genomes are looked up, file by file:
of 10^16 pairs that are compared so, one is equal by chance in one of 2,000 studies. A row counts as whole where it
stands letter by letter. N ends a run of bases; rows shorter than 64 cannot be found. Prints tables in Markdown.
Memory: 16 bytes a base of the tests, and a quarter of a GiB, and what the largest genome takes.
"""

import argparse
from collections import Counter, defaultdict
from collections.abc import Iterable
from pathlib import Path

import numpy as np
from tqdm import tqdm

from dnabert2.errors import run_script
from dnabert2.gue_sources import find_sources
from dnabert2.labelled import SINGLE_LABEL
from dnabert2.labelled_rows import find_table, read_rows
from dnabert2.sources import Source, file_sources
from dnabert2.windows import reverse_complement


LENGTH = 64
CHUNK = 2**22  # positions of a genome at a time
TABLE_BITS = 28  # of a hash, for a table that tells most that are not there
FACTORS = np.array([0x9E3779B97F4A7C15, 0xD6E8FEB86659FD93], dtype=np.uint64)  # odd, their bits as if by chance
_CODES = np.full(256, 4, dtype=np.uint8)
_CODES[list(b"ACGT")] = range(4)


def hashes(text: str) -> tuple[np.ndarray, np.ndarray]:
    """Of every LENGTH bases in a row of a text: their hash, uint64, and whether all are A, C, G or T."""
    codes = _CODES[np.frombuffer(text.encode(), dtype=np.uint8)]
    if len(codes) < LENGTH:
        return np.empty(0, dtype=np.uint64), np.empty(0, dtype=bool)
    others = np.concatenate([[0], np.cumsum(codes == 4)])
    words = (codes & 3).astype(np.uint64)
    for size in (1, 2, 4, 8, 16):  # words of twice as many bases, up to the 32 that fit in 64 bits
        words = words[:-size] << np.uint64(2 * size) | words[size:]
    half = LENGTH // 2
    values = (words[:-half] * FACTORS[0] + words[half:]) * FACTORS[1]
    return values ^ values >> np.uint64(32), others[LENGTH:] == others[:-LENGTH]


class Search:
    """What is looked for, and what has been found of it."""

    def __init__(self, texts: Iterable[str]):
        self.texts = defaultdict(set)  # of each strand: a row's other one may be a row, too
        for text in texts:
            for strand in (text, reverse_complement(text)):
                self.texts[strand].add(text)
        found = []
        self.by_first = defaultdict(list)  # strands by the hash that they begin with
        for strand in tqdm(self.texts, desc="Rows", leave=False):
            values, is_whole = hashes(strand)
            found.append(values[is_whole])
            if len(values) and is_whole.all():
                self.by_first[int(values[0])].append(strand)
        self.hashes = np.unique(np.concatenate(found))
        self.is_found = np.zeros(len(self.hashes), dtype=bool)
        self.is_first = np.isin(self.hashes, np.fromiter(self.by_first, np.uint64, len(self.by_first)))
        self.table = np.zeros(2**TABLE_BITS, dtype=bool)
        self.table[self.hashes >> np.uint64(64 - TABLE_BITS)] = True
        self.whole = defaultdict(set)  # names of the genomes that a text stands in

    def scan(self, name: str, genome: str):
        """Looks through one genome, whose records have an N between them."""
        for start in range(0, len(genome), CHUNK):
            values, is_whole = hashes(genome[start : start + CHUNK + LENGTH - 1])
            places = np.flatnonzero(is_whole & self.table[values >> np.uint64(64 - TABLE_BITS)])
            rows = np.searchsorted(self.hashes, values[places]).clip(max=len(self.hashes) - 1)
            is_it = self.hashes[rows] == values[places]
            places, rows = places[is_it], rows[is_it]
            self.is_found[rows] = True
            for place, row in zip(places[self.is_first[rows]], rows[self.is_first[rows]], strict=True):
                for strand in self.by_first[int(self.hashes[row])]:
                    if genome.startswith(strand, start + int(place)):
                        for text in self.texts[strand]:
                            self.whole[text].add(name)

    def shares(self, text: str) -> bool:
        """Whether LENGTH bases in a row of this text, on either strand, stand in a genome that was looked through."""
        for strand in (text, reverse_complement(text)):
            values, is_whole = hashes(strand)
            rows = np.searchsorted(self.hashes, values[is_whole])
            if self.is_found[rows].any():
                return True
        return False


def genome_of(source: Source) -> str:
    return "N".join(record.sequence for record in source.records())


def tables(rows: dict[str, list[str]], search: Search) -> str:
    """By dataset how many rows are found, and by genome how many different ones stand in it whole."""
    lines = ["| dataset | rows of test | found whole | share 64 bases in a row |", "|---|--:|--:|--:|"]
    sums = np.zeros(3, dtype=int)
    shares = {text: search.shares(text) for text in {text for texts in rows.values() for text in texts}}
    for name, texts in rows.items():
        counted = np.array([len(texts), sum(text in search.whole for text in texts), sum(map(shares.get, texts))])
        sums += counted
        lines.append(_row(name, *counted))
    lines += [_row("**all**", *sums), "", "| genome | rows of test that stand in it whole |", "|---|--:|"]
    genomes = Counter(name for texts in rows.values() for text in texts for name in search.whole.get(text, ()))
    lines += [f"| {name} | {count:,} |" for name, count in genomes.most_common()]
    return "\n".join(lines)


def _row(name: str, rows: int, whole: int, shared: int) -> str:
    return f"| {name} | {rows:,} | {whole:,} ({whole / rows:.1%}) | {shared:,} ({shared / rows:.1%}) |"


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data_dir", type=Path, required=True, help="GUE's folder")
    parser.add_argument("--tasks", nargs="+", default=["all"], help="names, folders or groups (default: all)")
    parser.add_argument("--train_file", nargs="+", required=True, help="genomes: files, folders or globs")
    parser.set_defaults(dataset_name=None, problem_type=SINGLE_LABEL)
    args = parser.parse_args()
    sources, _ = find_sources(args)
    rows = {source.name: read_rows(find_table(source.folder, "test")).sequences for source in sources}
    search = Search({text for texts in rows.values() for text in texts})
    for genome in tqdm(file_sources(args.train_file), unit="genome"):
        search.scan(genome.name, genome_of(genome))
    print(tables(rows, search))


if __name__ == "__main__":
    run_script(main)

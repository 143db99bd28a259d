"""Corpora for tests: small files of random bases, made into windows of 32 tokens."""

from itertools import pairwise

import numpy as np

from dnabert2.corpus import prepare_corpus
from dnabert2.sources import file_sources


LENGTH = 32
SPLITS = ("train", "validation")


def random_bases(length, seed=0):
    return np.random.default_rng(seed).choice(list(b"ACGT"), length).astype(np.uint8).tobytes().decode()


def fasta(path, *sequences):
    path.parent.mkdir(exist_ok=True)
    path.write_text("".join(f">record{i}\n{sequence}\n" for i, sequence in enumerate(sequences)))
    return path


def table(path, *rows):
    """A file of (sequence, species)."""
    path.write_text("sequence,species\n" + "".join(f"{sequence},{species}\n" for sequence, species in rows))
    return path


def sources_of(files, species_column=None):
    return file_sources([str(file) for file in files], species_column=species_column) if files else []


def preparation(tokenizer, cache_dir):
    """`prepare_corpus` of files instead of sources."""

    def prepare(*files, species_column=None, validation_files=(), **options):
        defaults = {"tokenizer": tokenizer, "max_seq_length": LENGTH, "cache_dir": cache_dir}
        sources, held_out = (sources_of(these, species_column) for these in (files, validation_files))
        return prepare_corpus(sources, validation_sources=held_out, **defaults | options)

    return prepare


def all_tokens(windows):
    return windows[range(len(windows))] if len(windows) else np.empty((0, LENGTH), dtype=np.int64)


def pieces_of(row, tokenizer):
    """The ids between the special tokens of a window."""
    places = np.flatnonzero(np.isin(row, tokenizer.all_special_ids))
    return [row[start + 1 : stop] for start, stop in pairwise(places) if stop > start + 1]


def decoded(windows, tokenizer):
    """The bases of every piece of every window."""
    return [tokenizer.decode(piece) for row in all_tokens(windows) for piece in pieces_of(row, tokenizer)]


def entries(tmp_path):
    """Name and time of the last change of every file in the cache."""
    return {path.relative_to(tmp_path): path.stat().st_mtime_ns for path in (tmp_path / "cache").rglob("*.*")}

"""Sequences to windows: rows of exactly `max_seq_length` tokens, without padding.

A record is split at runs of other letters than A, C, G, T, as in the paper, and the runs into regions of about 32
windows. Each region is tokenised by itself and cut into windows [CLS] t … t [SEP]. What is left over at its end is
joined to the next region's with a [SEP] between them, and so are sequences shorter than a window.
"""

import errno
import hashlib
from collections import defaultdict
from collections.abc import Iterable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from transformers import PreTrainedTokenizerBase

from dnabert2.errors import UsageError
from dnabert2.sequences import Record, acgt_runs


try:
    import resource
except ImportError:  # Windows
    resource = None

SPLITS = ("train", "validation")
REGION_WINDOWS = 32
BASES_A_TOKEN = 5  # about what the BPE vocabulary of 4,096 gives; decides the length of regions, nothing else
SPLIT_LENGTH = 128  # windows of this and of any greater length are split alike
_COMPLEMENT = str.maketrans("ACGTRYKMBVDH", "TGCAYRMKVBHD")  # N, S and W are their own


@dataclass
class Windows:
    """
    Rows of token ids, (n, max_seq_length), over uint16 arrays; `of_files` maps those of files into memory.

    `species[i]` is that of all rows of `parts[i]`; several parts may have the same. A pickle of rows of files, as a
    spawned loader worker gets it, holds no rows but `places`, and maps them anew.
    """

    parts: list[np.ndarray]
    species: list[str]
    places: list[tuple[Path, int, int]] | None = None  # of each part its file, first row, and the one after its last
    offsets: np.ndarray = field(init=False)

    def __post_init__(self):
        self.offsets = np.cumsum([0] + [len(part) for part in self.parts])

    @classmethod
    def of_files(cls, places: Sequence[tuple[Path, int, int]], species: Sequence[str]) -> "Windows":
        """Rows of .npy files, each mapped once. Raises UsageError if they are more than the system lets be open."""
        files = dict.fromkeys(path for path, _, _ in places)
        _allow_open_files(len(files))
        for path in files:
            try:
                files[path] = np.load(path, mmap_mode="r")
            except OSError as error:
                if error.errno != errno.EMFILE:
                    raise
                raise UsageError(
                    f"{path}: too many open files, and each of {len(files):,} that hold windows is one: "
                    "raise the limit with `ulimit -n`, or join small files"
                ) from error
        return cls([files[path][start:stop] for path, start, stop in places], list(species), list(places))

    def __reduce__(self) -> tuple:
        if self.places is None:
            return Windows, (self.parts, self.species)
        return Windows.of_files, (self.places, self.species)

    def __len__(self) -> int:
        return int(self.offsets[-1])

    def __getitem__(self, rows: Sequence[int]) -> np.ndarray:
        """The token ids of these rows, int64 of shape (len(rows), max_seq_length)."""
        return np.stack(
            [self.parts[part][row - self.offsets[part]] for part, row in zip(self.part_of(rows), rows, strict=True)]
        ).astype(np.int64)

    def part_of(self, rows: Sequence[int]) -> np.ndarray:
        """The number of the part that each row is in."""
        return np.searchsorted(self.offsets, rows, side="right") - 1

    def rows_by_species(self) -> dict[str, np.ndarray]:
        """The rows of every species that has any."""
        ranges = defaultdict(list)
        for species, start, stop in zip(self.species, self.offsets, self.offsets[1:], strict=False):
            ranges[species].append(np.arange(start, stop))
        return {species: rows for species, parts in ranges.items() if len(rows := np.concatenate(parts))}


def _allow_open_files(count: int):
    """Lets this process, and those it starts, have so many more files open, as far as the system's hard limit goes."""
    if resource:
        soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
        if soft != resource.RLIM_INFINITY:
            wanted = soft + count if hard == resource.RLIM_INFINITY else min(soft + count, hard)
            with suppress(ValueError, OSError):  # macOS has a lower one than it says
                resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, hard))


def kingdom_of(species: str) -> str:
    """What stands before the last slash of a species' name: for a file the name of its folder; "" without one."""
    return species.rpartition("/")[0]


def reverse_complement(sequence: str) -> str:
    """The other strand of an upper-case sequence, in its own direction; IUPAC letters are complemented too."""
    return sequence.translate(_COMPLEMENT)[::-1]


def region_bases(max_seq_length: int) -> int:
    return REGION_WINDOWS * BASES_A_TOKEN * max_seq_length


def regions(records: Iterable[Record], max_seq_length: int) -> Iterator[tuple[str | None, str]]:
    """Species and bases of the records' regions: A, C, G, T, at most `region_bases(max_seq_length)` of them."""
    length = region_bases(max_seq_length)
    for record in records:
        for _, run in acgt_runs(record.sequence):
            for start in range(0, len(run), length):
                yield record.species, run[start : start + length]


def split_regions(
    records: Iterable[Record], max_seq_length: int, split_of: "Splitter"
) -> Iterator[tuple[str, str | None, str]]:
    """
    Split, species and bases of the records' regions.

    What is held out does not depend on the length of windows from `SPLIT_LENGTH` on, so that a model can go on to
    longer ones without being judged by what it was trained on: the split is decided for the regions of `SPLIT_LENGTH`,
    and neighbours of one split make up a longer one. At 1 % no two are held out side by side, so windows of validation
    of more than about 4,000 tokens are joined of several, with a [SEP] between them.
    """
    length, block = (region_bases(tokens) for tokens in (max_seq_length, min(max_seq_length, SPLIT_LENGTH)))
    for record in records:
        for _, run in acgt_runs(record.sequence):
            split, begin = None, 0  # of the region to come
            for start in range(0, len(run), block):
                split_of_block = split_of(record.species, run[start : start + block])
                if split_of_block != split:
                    if start > begin:
                        yield split, record.species, run[begin:start]
                    split, begin = split_of_block, start
                while min(start + block, len(run)) - begin >= length:
                    yield split, record.species, run[begin : begin + length]
                    begin += length
            if begin < len(run):
                yield split, record.species, run[begin:]


class Splitter:
    """
    Which split each region of a source goes to.

    Every (100 / percentage)-th region of a species is for validation: spread over the genome, and starting at a place
    that the sequence itself decides, so that small files have their turn and copies are split alike. Counted for each
    species: those that come in turns would else give all or nothing. A region that has come before, on whatever
    strand and of whatever species, goes where it went, and does not count.

    For this an 8-byte hash of every region is kept, 80 to 100 bytes with all that Python adds: 15 MB for a genome of
    3 billion bases and windows of 128 tokens, but 1 GB for 10 million short sequences. Nothing is kept where nothing
    is to be split.
    """

    def __init__(self, validation_percentage: float):
        self.share = validation_percentage / 100
        self.phases, self.seen = {}, defaultdict(int)  # of each species: where its turns start, and its regions so far
        self.split_of = {}  # by hash

    def __call__(self, species: str | None, region: str) -> str:
        if self.share in (0, 1):
            return SPLITS[int(self.share)]
        either_strand = min(region, reverse_complement(region)).encode()
        key = int.from_bytes(hashlib.blake2b(either_strand, digest_size=8).digest())
        if key not in self.split_of:
            if species not in self.phases:
                self.phases[species] = int(hashlib.sha256(region.encode()).hexdigest()[:8], 16) / 2**32
            held_out = int(self.seen[species] * self.share + self.phases[species])
            self.seen[species] += 1
            is_next = int(self.seen[species] * self.share + self.phases[species]) > held_out
            self.split_of[key] = SPLITS[is_next]
        return self.split_of[key]


class WindowCutter:
    """
    Cuts the tokens of one region after the other into windows [CLS] t … t [SEP].

    Between left-overs of two regions in a window stands a [SEP]. On its last place it stands beside the closing one:
    nothing else can fill that place without a token lost or moved.
    """

    def __init__(self, max_seq_length: int, tokenizer: PreTrainedTokenizerBase):
        self.max_seq_length = max_seq_length
        self.cls_token_id, self.sep_token_id = tokenizer.cls_token_id, tokenizer.sep_token_id
        self.rest = np.empty(0, dtype=np.uint16)  # of former regions, with a [SEP] between two; less than a window

    def __call__(self, tokens: np.ndarray) -> np.ndarray:
        """The windows that these tokens fill, uint16 of shape (n, max_seq_length)."""
        inner = self.max_seq_length - 2
        whole = len(tokens) // inner * inner
        if len(tail := tokens[whole:]):
            self.rest = np.concatenate([self.rest, [self.sep_token_id] * bool(len(self.rest)), tail]).astype(np.uint16)
        full = [tokens[:whole]]
        if len(self.rest) >= inner:
            full.append(self.rest[:inner])
            self.rest = self.rest[inner:]
        rows = np.concatenate(full).reshape(-1, inner)
        windows = np.empty((len(rows), self.max_seq_length), dtype=np.uint16)
        windows[:, 0], windows[:, 1:-1], windows[:, -1] = self.cls_token_id, rows, self.sep_token_id
        return windows


def check_tokenizer(tokenizer: PreTrainedTokenizerBase, max_seq_length: int):
    """Raises UsageError for a tokenizer that windows cannot be made with; truncation and padding are taken from it."""
    if len(tokenizer) > 2**16:
        raise UsageError(f"the tokenizer has {len(tokenizer)} tokens; ids are stored in 16 bits: at most 65,536")
    for name in ("cls_token", "sep_token", "mask_token"):
        if getattr(tokenizer, name) is None:
            raise UsageError(f"the tokenizer has no {name}: masked language modelling needs one")
    if max_seq_length < 3:
        raise UsageError(f"max_seq_length is {max_seq_length}: [CLS], a token and [SEP] need at least 3")
    # What a tokenizer was once called with is saved with it: either would quietly cut or fill the regions.
    tokenizer.backend_tokenizer.no_truncation()
    tokenizer.backend_tokenizer.no_padding()

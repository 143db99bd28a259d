"""Sequences to windows: rows of exactly `max_seq_length` tokens, without padding.

A record is split at runs of other letters than A, C, G, T, as in the paper, and the runs into regions of about 32
windows. Each region is tokenised by itself and cut into windows [CLS] t … t [SEP]. What is left over at its end is
joined to the next region's with a [SEP] between them, and so are sequences shorter than a window.
"""

from collections import defaultdict
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field

import numpy as np
from transformers import PreTrainedTokenizerBase

from dnabert2.errors import UsageError
from dnabert2.sequences import Record, acgt_runs


REGION_WINDOWS = 32
BASES_A_TOKEN = 5  # about what the BPE vocabulary of 4,096 gives; decides the length of regions, nothing else
_COMPLEMENT = str.maketrans("ACGTRYKMBVDH", "TGCAYRMKVBHD")  # N, S and W are their own


@dataclass
class Windows:
    """
    Rows of token ids, (n, max_seq_length), over the memory-mapped uint16 arrays of several files.

    `species[i]` is that of all rows of `parts[i]`; several parts may have the same.
    """

    parts: list[np.ndarray]
    species: list[str]
    offsets: np.ndarray = field(init=False)

    def __post_init__(self):
        self.offsets = np.cumsum([0] + [len(part) for part in self.parts])

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

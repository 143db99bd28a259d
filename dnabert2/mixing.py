"""Which regions of many sources one of several streams reads, and in which order: all exact, and nothing by chance.

A run has K = processes x workers streams. The sources lie end to end on a line from 0 to 1, each as long as its
weight. Region i of a source (dnabert2/windows.py) lies at the fractional part of i times the golden ratio of its
source's stretch, and stream k owns what lies from k/K to (k+1)/K: every region belongs to one stream, a large source
to several in proportion, each reading it from end to end, and a small one to one or two.
"""

import heapq
from collections.abc import Iterator, Sequence
from itertools import islice

import numpy as np

from dnabert2.errors import UsageError
from dnabert2.sources import Source
from dnabert2.windows import region_bases, regions


GOLDEN_RATIO = (5**0.5 - 1) / 2  # the first n of its multiples are spread evenly, whatever n


def source_weights(sources: Sequence[Source], sizes: Sequence[int | None], temperature: float) -> np.ndarray:
    """
    Each source's share of the bases that training sees, (len(sources),), of sum 1; `sizes` are their `num_bytes()`.

    A source of n bytes as stored gets one proportional to n^(1/temperature). If the size of any is unknown, all are
    taken as equally large, and a temperature other than 1 is refused with a UsageError.
    """
    if None in sizes:
        if temperature != 1:
            raise UsageError(
                f"{sources[sizes.index(None)].name}: its size is unknown, which --sampling_temperature {temperature} "
                "needs; with 1 all sources get the same share"
            )
        sizes = [1] * len(sizes)
    weights = np.maximum(np.array(sizes, dtype=float), 1) ** (1 / temperature)
    return weights / weights.sum()


def owned_parts(weights: np.ndarray, stream: int, num_streams: int) -> dict[int, tuple[float, float]]:
    """
    The sources of a stream and the part of each that it owns: {number: (low, high)} with 0 <= low < high <= 1.

    One stream's high is computed just as the next one's low: nothing is owned twice or by nobody. They are rounded, as
    a stream would read a whole source for the few regions in a part that only rounding errors have made.
    """
    edges = np.append(np.arange(num_streams) / num_streams, np.inf)  # the sum of all weights is not quite 1
    starts = np.append(0, np.cumsum(weights)[:-1])
    lows, highs = (np.clip(np.round((edges[k] - starts) / weights, 5), 0, 1).tolist() for k in (stream, stream + 1))
    return {i: part for i, part in enumerate(zip(lows, highs, strict=True)) if part[0] < part[1]}


class Reader:
    """The regions of one source that one stream owns, in order, pass after pass."""

    def __init__(self, source: Source, part: tuple[float, float], max_seq_length: int, index: int, bases: int):
        self.source, self.part, self.max_seq_length = source, part, max_seq_length
        self.index, self.bases = index, bases  # regions read in this pass, bases given in all of them
        self.remaining = islice(self.whole_pass(), index, None)

    def whole_pass(self) -> Iterator[tuple[str | None, str]]:
        return regions(self.source.records(), self.max_seq_length)

    def read(self) -> str | None:
        """The next region's bases; None if it has none for this stream."""
        while True:
            for _, region in self.remaining:
                point = self.index * GOLDEN_RATIO % 1
                self.index += 1
                if self.part[0] <= point < self.part[1]:
                    self.bases += len(region)
                    return region
            if not self.bases:
                return None
            self.index, self.remaining = 0, self.whole_pass()


class Mixer:
    """
    Regions of all of a stream's sources, in shares of bases that follow the weights without chance.

    The next one is of the source whose bases, and half a region, are the fewest for its weight (Webster's method).
    """

    def __init__(
        self, sources: Sequence[Source], weights: np.ndarray, parts: dict, max_seq_length: int, position: list | None
    ):
        self.half_region = region_bases(max_seq_length) / 2
        self.readers, self.weights, self.queue = {}, {}, []
        for number, index, bases in [(i, 0, 0) for i in parts] if position is None else position:
            self.readers[number] = Reader(sources[number], parts[number], max_seq_length, index, bases)
            self.weights[number] = weights[number] * (parts[number][1] - parts[number][0])
            heapq.heappush(self.queue, self.turn(number))

    def turn(self, number: int) -> tuple[float, int]:
        return (self.readers[number].bases + self.half_region) / self.weights[number], number

    def position(self) -> list[tuple[int, int, int]]:
        """Number, regions read in this pass and bases given of every source that this stream still reads."""
        return [(number, reader.index, reader.bases) for number, reader in self.readers.items()]

    def draw(self) -> tuple[int, str]:
        """A source's number and the region; raises UsageError if the stream has none at all."""
        while self.queue:
            number = self.queue[0][1]
            if region := self.readers[number].read():
                heapq.heapreplace(self.queue, self.turn(number))
                return number, region
            heapq.heappop(self.queue)  # so short a source that none of its regions is this stream's
            del self.readers[number]
        raise UsageError(
            "no sequence is left for one of the loader workers: lower --dataloader_num_workers, or give more"
        )

"""Batches from corpora larger than the disk, local or remote: read, tokenised and shuffled on the fly, never stored.

    loader = StreamingLoader(file_sources(["genomes/"]), tokenizer, max_seq_length=128, …)
    for batch in loader: ...  # for ever; another loader goes on from loader.state()

A run has K = processes x workers streams, each an endless sequence of batches. The sources lie end to end on a line
from 0 to 1, each as long as its weight. Region i of a source (dnabert2/windows.py) lies at the fractional part of i
times the golden ratio of its source's stretch, and stream k owns what lies from k/K to (k+1)/K: every region belongs
to one stream, a large source to several in proportion, each reading it from end to end, and a small one to one or two.

A stream shuffles its windows in blocks from all its sources, and fills the next while it emits one. Every batch says
where the sources stood when its block began: whatever workers have read ahead, a resumed run fills that block again
and goes on with the very next batch.
"""

import heapq
import json
import math
import os
from collections import defaultdict
from collections.abc import Iterator, Sequence
from itertools import cycle, islice

import numpy as np
import torch
from accelerate.utils import gather_object
from torch.utils.data import DataLoader, IterableDataset, get_worker_info
from transformers import PreTrainedTokenizerBase

from dnabert2.batches import ORDER, SPECIES_ORDER, STREAM, Masking, random_stream
from dnabert2.errors import UsageError
from dnabert2.sources import Source
from dnabert2.windows import BASES_A_TOKEN, WindowCutter, check_tokenizer, region_bases, regions, reverse_complement


BLOCK_WINDOWS = 16_384  # about 500 regions, 10 million bases; 4 MB, and as much for the next block
GOLDEN_RATIO = (5**0.5 - 1) / 2  # the first n of its multiples are spread evenly, whatever n


def source_weights(sources: Sequence[Source], temperature: float) -> np.ndarray:
    """
    Each source's share of the bases that training sees, (len(sources),), of sum 1.

    A source of n bytes as stored gets one proportional to n^(1/temperature). If the size of any is unknown, all are
    taken as equally large, and a temperature other than 1 is refused with a UsageError.
    """
    sizes = [source.num_bytes() for source in sources]
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


class StreamingLoader:
    """
    Endless micro-batches of one process, without padding. Iterated again, it goes on.

    Args:
        sources: those of all processes, in the same order on each.
        tokenizer: loses a truncation or padding that was saved with it.
        max_seq_length: tokens a window, with [CLS] and [SEP].
        mlm_probability, sampling_temperature: see `Masking` and `source_weights`.
        micro_batch_size: windows a batch.
        both_strands: whether half of the regions, by chance, are read as their reverse complements.
        num_workers: loader workers of each process; 0 reads and tokenises in the process itself, between steps.
        state: what `state()` of a former loader gave: this one goes on with the next batch, exactly.
        block_windows: about so many are shuffled at a time in each stream.

    Raises:
        UsageError: if sizes are needed and unknown, the state is of another number of processes or workers, or the
            tokenizer's ids do not fit in 16 bits; when iterated, if a stream has no sequences at all.
        SequenceFileError: when iterated, for a source that cannot be read.
    """

    def __init__(
        self,
        sources: Sequence[Source],
        tokenizer: PreTrainedTokenizerBase,
        *,
        max_seq_length: int,
        mlm_probability: float,
        micro_batch_size: int,
        sampling_temperature: float = 1.0,
        both_strands: bool = False,
        seed: int,
        process_index: int = 0,
        num_processes: int = 1,
        num_workers: int = 0,
        state: dict | None = None,
        block_windows: int = BLOCK_WINDOWS,
    ):
        check_tokenizer(tokenizer, max_seq_length)
        # Neighbours on the line share a stream, and in a list of files they are akin: in a random order all streams,
        # of which a small step may see a few only, are more like each other.
        self.sources = [sources[i] for i in random_stream(seed, SPECIES_ORDER, 0).permutation(len(sources))]
        self.weights = source_weights(self.sources, sampling_temperature)
        self.tokenizer, self.masking = tokenizer, Masking(tokenizer, mlm_probability)
        self.max_seq_length, self.micro_batch_size = max_seq_length, micro_batch_size
        self.both_strands, self.seed, self.num_workers = both_strands, seed, num_workers
        self.block_batches = math.ceil(block_windows / micro_batch_size)
        share = max(1, num_workers)
        self.counts = {"num_processes": num_processes, "num_workers": share}
        self.num_streams, self.first_stream = num_processes * share, process_index * share
        state = state or self.counts | {"streams": [{"batch": 0, "sources": None}] * self.num_streams}
        if self.counts != {name: state[name] for name in self.counts}:
            raise UsageError(
                f"the checkpoint is of {state['num_processes']} process(es) with --dataloader_num_workers "
                f"{state['num_workers']}, this run has {num_processes} with {num_workers}: --streaming needs the same"
            )
        own = state["streams"][self.first_stream :][:share]
        # of each stream the batches consumed, and as JSON text (pinning memory walks through lists) where its sources
        # stood before the next one's block
        self.positions = [(stream["batch"], json.dumps(stream["sources"])) for stream in own]
        # Said outright, it keeps tokenizers from warning when the data loader forks its workers.
        os.environ.setdefault("TOKENIZERS_PARALLELISM", "true")

    def __iter__(self) -> Iterator[dict[str, torch.Tensor]]:
        """The streams' batches in turn, as `Masking` gives them."""
        consumed = sum(batch for batch, _ in self.positions)
        turns = [(consumed + worker) % len(self.positions) for worker in range(len(self.positions))]
        items = DataLoader(
            _Streams(self, turns),
            batch_size=None,
            collate_fn=_whole,
            num_workers=self.num_workers,
            pin_memory=torch.cuda.is_available(),
            prefetch_factor=8 if self.num_workers else None,
        )
        for turn, item in zip(cycle(turns), items, strict=False):
            if isinstance(item, UsageError):
                raise item
            self.positions[turn] = item.pop("position")
            yield item

    def state(self) -> dict:
        """Where the streams of all processes stand, as JSON can hold it. Call it on every process."""
        own = [{"batch": batch, "sources": json.loads(sources)} for batch, sources in self.positions]
        return self.counts | {"streams": gather_object(own)}

    def stream(self, turn: int) -> Iterator[dict]:
        """The batches of this process's stream `turn` from its position on, each with the "position" after it."""
        stream, size, (batch, start) = self.first_stream + turn, self.micro_batch_size, self.positions[turn]
        block, first = divmod(batch, self.block_batches)
        parts = owned_parts(self.weights, stream, self.num_streams)
        mixer = Mixer(self.sources, self.weights, parts, self.max_seq_length, json.loads(start))
        start = json.dumps(mixer.position())
        *_, windows = self.fill(mixer, stream, block)
        while True:
            next_start, filling = json.dumps(mixer.position()), self.fill(mixer, stream, block + 1)
            for i in range(self.block_batches):
                next(filling)  # as much as is emitted, so that the model need not wait for a whole block
                if i >= first:
                    number = block * self.block_batches + i
                    rows = windows[i * size : (i + 1) * size].astype(np.int64)
                    draws = random_stream(self.seed, STREAM, stream, number).random((3, *rows.shape))
                    is_last = i + 1 == self.block_batches
                    yield self.masking(rows, draws) | {"position": (number + 1, next_start if is_last else start)}
            block, first, start, windows = block + 1, 0, next_start, next(filling)

    def fill(self, mixer: Mixer, stream: int, block: int) -> Iterator[np.ndarray | None]:
        """
        Fills a block, a step for each batch that it will give, and at last yields its windows in random order, uint16
        of shape (block_batches * micro_batch_size, max_seq_length).

        Lost are those windows at the end that are too many, about half a region's, and what is less than a window of
        each source: 0.3 % of 80 genomes; more of thousands, when a block has but a region of each (2 % of 20 kb).
        """
        numbers = random_stream(self.seed, ORDER, stream, block)
        cutters = defaultdict(lambda: WindowCutter(self.max_seq_length, self.tokenizer))  # of each source
        windows, count = [], 0
        for step in range(1, self.block_batches + 1):
            while (missing := step * self.micro_batch_size - count) > 0:
                drawn, bases = [], 0
                while bases < missing * self.max_seq_length * BASES_A_TOKEN:
                    number, region = mixer.draw()
                    bases += len(region)
                    is_turned = self.both_strands and numbers.random() < 0.5
                    drawn.append((number, reverse_complement(region) if is_turned else region))
                encode = self.tokenizer.backend_tokenizer.encode_batch_fast
                encodings = encode([region for _, region in drawn], add_special_tokens=False)
                for (number, _), encoding in zip(drawn, encodings, strict=True):
                    windows.append(cutters[number](np.array(encoding.ids, dtype=np.uint16)))
                    count += len(windows[-1])
            yield None
        yield np.concatenate(windows)[numbers.permutation(count)[: self.block_batches * self.micro_batch_size]]


class _Streams(IterableDataset):
    """In each loader worker, a stream of its own."""

    def __init__(self, loader: StreamingLoader, turns: list[int]):
        self.loader, self.turns = loader, turns

    def __iter__(self) -> Iterator[dict | UsageError]:
        worker = get_worker_info()
        if worker:
            os.environ["TOKENIZERS_PARALLELISM"] = "false"  # the workers share the cores out
        try:
            yield from self.loader.stream(self.turns[worker.id if worker else 0])
        except UsageError as error:
            yield error  # as data: what a worker raises, DataLoader raises with a stack trace for a message


def _whole(item: dict | UsageError) -> dict | UsageError:
    return item

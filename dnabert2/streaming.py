"""Batches from corpora larger than the disk, local or remote: read, tokenised and shuffled on the fly, never stored.

    loader = StreamingLoader(file_sources(["genomes/"]), tokenizer, max_seq_length=128, …)
    for batch in loader: ...  # for ever; another loader goes on from loader.state()

A run has processes x workers streams, each an endless sequence of batches of regions of its own (dnabert2/mixing.py).
A stream shuffles its windows in blocks from all its sources, and fills the next while it emits one. Every batch says
where the sources stood when its block began: whatever workers have read ahead, a resumed run fills that block again
and goes on with the very next batch.
"""

import atexit
import json
import logging
import math
import os
import weakref
from collections import defaultdict
from collections.abc import Iterator, Sequence
from itertools import cycle

import numpy as np
import torch
from accelerate.utils import gather_object
from torch.utils.data import DataLoader, IterableDataset, get_worker_info
from transformers import PreTrainedTokenizerBase

from dnabert2.batches import ORDER, SPECIES_ORDER, STREAM, Masking, random_stream
from dnabert2.errors import UsageError
from dnabert2.mixing import Mixer, owned_parts, source_weights
from dnabert2.sources import Source
from dnabert2.stopping import ignore_sigterm
from dnabert2.windows import BASES_A_TOKEN, WindowCutter, check_tokenizer, reverse_complement


logger = logging.getLogger(__name__)

BLOCK_TOKENS = 2**21  # about 10 million bases; 4 MB, and as much for the next block
_unfinished = weakref.WeakSet()


@atexit.register
def _close_unfinished():
    """Closes iterators that nobody closed: later, the exceptions that their sources catch are no longer there."""
    for iterator in list(_unfinished):
        iterator.close()


class StreamingLoader:
    """
    Endless micro-batches of one process, without padding. Iterated again, it goes on.

    Args:
        sources: those of all processes, in the same order on each.
        tokenizer: loses a truncation or padding that was saved with it.
        max_seq_length: tokens a window, with [CLS] and [SEP].
        masking, sampling_temperature: of the windows and of the sources, see `source_weights`.
        micro_batch_size: windows a batch.
        both_strands: whether half of the regions, by chance, are read as their reverse complements.
        num_workers: loader workers of each process; 0 reads and tokenises in the process itself, between steps.
        state: what `state()` of a former loader gave: this one goes on with the next batch, exactly.
        block_tokens: about so many are shuffled at a time in each stream.

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
        masking: Masking,
        micro_batch_size: int,
        sampling_temperature: float = 1.0,
        both_strands: bool = False,
        seed: int,
        process_index: int = 0,
        num_processes: int = 1,
        num_workers: int = 0,
        state: dict | None = None,
        block_tokens: int = BLOCK_TOKENS,
    ):
        check_tokenizer(tokenizer, max_seq_length)
        # Neighbours on the line share a stream, and in a list of files they are akin: in a random order all streams,
        # of which a small step may see a few only, are more like each other.
        self.sources = [sources[i] for i in random_stream(seed, SPECIES_ORDER, 0).permutation(len(sources))]
        self.sizes = [source.num_bytes() for source in self.sources]  # once: of a URL it is a request
        self.weights = source_weights(self.sources, self.sizes, sampling_temperature)
        self.tokenizer, self.masking = tokenizer, masking
        self.max_seq_length, self.micro_batch_size = max_seq_length, micro_batch_size
        self.both_strands, self.seed, self.num_workers = both_strands, seed, num_workers
        self.block_batches = math.ceil(block_tokens / (micro_batch_size * max_seq_length))
        share = max(1, num_workers)
        self.counts = {"num_processes": num_processes, "num_workers": share}
        self.num_streams, self.first_stream = num_processes * share, process_index * share
        if len(sources) < self.num_streams and not process_index:
            logger.warning(
                "%d source(s) for %d processes x loader workers, and every one of these reads a source that it shares "
                "from end to end: split it into files, so that each reads its own, or lower --dataloader_num_workers",
                len(sources),
                self.num_streams,
            )
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
        iterator = self.batches()
        _unfinished.add(iterator)
        return iterator

    def batches(self) -> Iterator[dict[str, torch.Tensor]]:
        consumed = sum(batch for batch, _ in self.positions)
        turns = [(consumed + worker) % len(self.positions) for worker in range(len(self.positions))]
        items = DataLoader(
            _Streams(self, turns),
            batch_size=None,
            collate_fn=_whole,
            num_workers=self.num_workers,
            pin_memory=torch.cuda.is_available(),
            prefetch_factor=8 if self.num_workers else None,
            worker_init_fn=ignore_sigterm,
            # It draws a number of no use here; from torch's default generator it would shift the first step's dropout.
            generator=torch.Generator(),
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

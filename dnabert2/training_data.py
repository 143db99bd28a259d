"""What a pretraining run reads: windows on disk (corpus.py, batches.py) or a stream of them (streaming.py).

Both give the training loop the same: micro-batches from a step on, windows for validation, and what a checkpoint must
hold to go on exactly.
"""

import hashlib
import json
from argparse import Namespace
from collections.abc import Iterable

import torch
from accelerate import Accelerator
from transformers import PreTrainedTokenizerBase

from dnabert2 import batches, corpus, streaming
from dnabert2.sources import FileSource, Source, dataset_sources, file_sources


def open_sources(args: Namespace) -> list[Source]:
    """What --train_file or --dataset_name stands for."""
    columns = {"sequence_column": args.sequence_column, "species_column": args.species_column}
    if args.train_file:
        return file_sources(args.train_file, **columns)
    return dataset_sources(args.dataset_name, args.dataset_config_name, streaming=args.streaming, **columns)


def prepare_corpus(args: Namespace, sources: list[Source], tokenizer: PreTrainedTokenizerBase) -> corpus.Corpus | None:
    """`corpus.prepare_corpus` as the arguments say."""
    columns = {"sequence_column": args.sequence_column, "species_column": args.species_column}
    return corpus.prepare_corpus(
        sources,
        tokenizer,
        max_seq_length=args.max_seq_length,
        cache_dir=args.cache_dir,
        validation_sources=file_sources(args.validation_file, **columns) if args.validation_file else (),
        validation_percentage=args.validation_split_percentage,
        both_strands=args.reverse_complement,
        shard_index=args.shard_index,
        num_shards=args.num_shards,
    )


class CachedData:
    """Windows on disk, read in epochs."""

    def __init__(self, args: Namespace, accelerator: Accelerator, tokenizer: PreTrainedTokenizerBase):
        self.args, self.accelerator, self.tokenizer = args, accelerator, tokenizer
        sources = open_sources(args)
        with accelerator.local_main_process_first():
            self.corpus = prepare_corpus(args, sources, tokenizer)
        self.validation = self.corpus.validation
        self.fingerprint = self.corpus.fingerprint
        rows = self.corpus.train.rows_by_species().values()
        self.mixture = batches.Mixture(list(rows), args.sampling_temperature, args.seed)
        self.epoch_rows = len(self.mixture)

    def describe(self) -> str:
        """Sizes, and how often each species will be seen; after `set_schedule`."""
        epochs = self.args.max_train_steps * self.args.total_train_batch_size / self.epoch_rows
        passes = epochs * self.mixture.passes_an_epoch
        seen = f"{epochs:.2f} epochs"
        if passes.max() > 1.01 * passes.min():
            seen = f"each species {passes.min():.2f} to {passes.max():.2f} times"
        strands = " on both strands" if self.args.reverse_complement else ""
        return (
            f"{self.corpus.total('bases'):,} bases, {self.corpus.total('tokens'):,} tokens{strands} of "
            f"{len(self.mixture.rows)} species: {len(self.corpus.train):,} sequences of {self.args.max_seq_length} "
            f"to train, {len(self.validation):,} to validate; {seen}"
        )

    def loader(self, step: int, state: None) -> Iterable[dict[str, torch.Tensor]]:
        """This process's micro-batches from a step on. The step alone says where it is; there is no other state."""
        sampler = batches.StepSampler(
            self.mixture,
            total_batch_size=self.args.total_train_batch_size,
            micro_batch_size=self.args.per_device_train_batch_size,
            first_step=step,
            last_step=self.args.max_train_steps,
            process_index=self.accelerator.process_index,
            num_processes=self.accelerator.num_processes,
        )
        windows = batches.MaskedWindows(self.corpus.train, self.tokenizer, self.args.mlm_probability, self.args.seed)
        return batches.training_loader(windows, sampler, self.args.dataloader_num_workers)

    def state(self) -> None:
        return None

    def baseline(self) -> dict[str, float]:
        return corpus.unigram_baseline(self.corpus) if len(self.validation) else {}


class StreamedData:
    """Windows made while training, without end."""

    def __init__(self, args: Namespace, accelerator: Accelerator, tokenizer: PreTrainedTokenizerBase):
        self.args, self.accelerator, self.tokenizer = args, accelerator, tokenizer
        self.sources = open_sources(args)
        with accelerator.local_main_process_first():
            self.validation = prepare_corpus(args, [], tokenizer).validation  # of --validation_file alone
        # files would have to be read whole for more than their size
        keys = [
            source.num_bytes() if isinstance(source, FileSource) else source.content_key() for source in self.sources
        ]
        names = [source.name for source in self.sources]
        self.fingerprint = hashlib.sha256(json.dumps([names, keys]).encode()).hexdigest()
        self.epoch_rows = None

    def describe(self) -> str:
        validation = f"{len(self.validation):,} sequences" if len(self.validation) else "none (give --validation_file)"
        return f"{len(self.sources)} sources, streamed; validation: {validation}"

    def loader(self, step: int, state: list | None) -> Iterable[dict[str, torch.Tensor]]:
        """This process's micro-batches from where `state` was taken on, or from the beginning."""
        self.stream = streaming.StreamingLoader(
            self.sources,
            self.tokenizer,
            max_seq_length=self.args.max_seq_length,
            mlm_probability=self.args.mlm_probability,
            micro_batch_size=self.args.per_device_train_batch_size,
            sampling_temperature=self.args.sampling_temperature,
            both_strands=self.args.reverse_complement,
            seed=self.args.seed,
            process_index=self.accelerator.process_index,
            num_processes=self.accelerator.num_processes,
            num_workers=self.args.dataloader_num_workers,
            state=state,
        )
        return self.stream

    def state(self) -> list:
        """Where all streams of all processes are. Call it on every process."""
        return self.stream.state()

    def baseline(self) -> dict[str, float]:
        return {}  # the tokens of training are not counted


def open_data(
    args: Namespace, accelerator: Accelerator, tokenizer: PreTrainedTokenizerBase
) -> CachedData | StreamedData:
    return (StreamedData if args.streaming else CachedData)(args, accelerator, tokenizer)

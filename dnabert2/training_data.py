"""What a pretraining run reads: windows on disk (corpus.py, batches.py) or a stream of them (streaming.py).

Both give the training loop the same: micro-batches from a step on, windows for validation, and what a checkpoint must
hold to go on exactly.
"""

import hashlib
import json
import os
from argparse import Namespace
from collections import defaultdict
from collections.abc import Iterable, Sequence
from pathlib import Path

import numpy as np
import torch
from accelerate import Accelerator
from transformers import PreTrainedTokenizerBase

from dnabert2 import batches, corpus, streaming
from dnabert2.errors import UsageError
from dnabert2.sequences import check_file, file_sha256
from dnabert2.sources import DatasetSource, FileSource, Source, dataset_sources, file_sources
from dnabert2.windows import BASES_A_TOKEN


PROBE_BYTES = 2**20


def open_sources(args: Namespace) -> list[Source]:
    """What --train_file or --dataset_name stands for. Streamed, each of these is a species, whatever columns say."""
    species_column = None if args.streaming else args.species_column
    columns = {"sequence_column": args.sequence_column, "species_column": species_column}
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


def new_masking(args: Namespace, tokenizer: PreTrainedTokenizerBase) -> batches.Masking:
    """Of training windows, as the arguments say."""
    return batches.Masking(tokenizer, args.mlm_probability, args.mlm_span, args.boundary_dropout)


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
            f"to train, {len(self.validation):,} to validate{self.unvalidated()}, {self.corpus.left_over():,} tokens "
            f"left over; {seen}"
        )

    def unvalidated(self) -> str:
        """Says so where regions are held out, but of some species, as small ones, none."""
        species = {species for windows in (self.corpus.train, self.validation) for species in windows.species}
        without = len(species - set(self.validation.species))
        if not without or self.args.validation_file or not self.args.validation_split_percentage:
            return ""
        return f" (none of {without} species: raise --validation_split_percentage to have some)"

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
        windows = batches.MaskedWindows(self.corpus.train, new_masking(self.args, self.tokenizer), self.args.seed)
        return batches.training_loader(windows, sampler, self.args.dataloader_num_workers)

    def state(self) -> None:
        return None

    def baseline(self) -> dict[str, float]:
        return corpus.unigram_baseline(self.corpus) if len(self.validation) else {}


def local_file(source: FileSource | DatasetSource) -> Path | None:
    """The file on this machine that is all there is of a source, if it is one."""
    return Path(source.file) if source.file and os.path.isfile(source.file) else None


def content_probe(file: Path) -> str:
    """The sha256 of a file's size and of its first and last MiB, in hexadecimal: other contents seldom share it."""
    size = file.stat().st_size
    with open(file, "rb") as opened:
        first = opened.read(PROBE_BYTES)
        opened.seek(max(0, size - PROBE_BYTES))
        return hashlib.sha256(str(size).encode() + first + opened.read(PROBE_BYTES)).hexdigest()


def refuse_leaks(training: Sequence[Source], validation: Sequence[Source]):
    """
    Raises UsageError if a file for validation is one for training too, under whatever name.

    Files are compared as they lie on the disk, and those behind URLs not at all: all else would read them whole.
    """
    files = defaultdict(list)
    for source in training:
        if file := local_file(source):
            files[file.stat().st_size].append(file)
    for source in validation:
        for file in files[source.file.stat().st_size]:
            is_same = file.samefile(source.file) or (
                content_probe(file) == content_probe(source.file) and file_sha256(file) == file_sha256(source.file)
            )
            if is_same:
                raise UsageError(
                    f"{source.file} is for validation, and {file}, the same, for training: leave it out of one of them"
                )


class StreamedData:
    """Windows made while training, without end."""

    def __init__(self, args: Namespace, accelerator: Accelerator, tokenizer: PreTrainedTokenizerBase):
        self.args, self.accelerator, self.tokenizer = args, accelerator, tokenizer
        if args.species_column and (args.sampling_temperature != 1 or not args.validation_file):
            raise UsageError(
                "streamed, the species are the files (or shards): leave out --species_column, or prepare the corpus "
                "(without --streaming)"
            )
        self.sources = open_sources(args)
        if args.validation_file:
            refuse_leaks(self.sources, file_sources(args.validation_file, args.sequence_column, args.species_column))
        with accelerator.local_main_process_first():
            held_out = prepare_corpus(args, [], tokenizer)  # of --validation_file alone
        self.validation = held_out.validation
        # files would have to be read whole for a hash of all their content
        keys = [
            content_probe(file)
            if isinstance(source, FileSource) and (file := local_file(source))
            else source.content_key()
            for source in self.sources
        ]
        content = [held_out.fingerprint, [source.name for source in self.sources], keys]
        self.fingerprint = hashlib.sha256(json.dumps(content).encode()).hexdigest()
        self.epoch_rows = None

    def describe(self) -> str:
        """Sizes, and how often each source will be seen, as far as these are known unread; after `loader`."""
        sizes = self.stream.sizes
        stored = "unknown size" if None in sizes else f"{sum(sizes) / 1e9:.3g} GB as stored"
        validation = f"{len(self.validation):,} sequences" if len(self.validation) else "none (give --validation_file)"
        return f"{len(sizes)} source(s) of {stored}, streamed{self.passes()}; validation: {validation}"

    def passes(self) -> str:
        """How often each source will be seen, where its size as stored is about its bases; else nothing."""
        plain = [("fasta", ""), ("text", "")]
        if not all(isinstance(source, FileSource) and check_file(source.file) in plain for source in self.sources):
            return ""
        if None in self.stream.sizes:
            return ""
        tokens = self.args.max_train_steps * self.args.total_train_batch_size * (self.args.max_seq_length - 2)
        passes = tokens * BASES_A_TOKEN * self.stream.weights / np.maximum(self.stream.sizes, 1)
        if passes.max() > 1.01 * passes.min():
            return f"; each about {passes.min():.2g} to {passes.max():.2g} times"
        return f"; about {passes.mean():.2g} epochs"

    def loader(self, step: int, state: dict | None) -> Iterable[dict[str, torch.Tensor]]:
        """This process's micro-batches from where `state` was taken on, or from the beginning."""
        self.stream = streaming.StreamingLoader(
            self.sources,
            self.tokenizer,
            max_seq_length=self.args.max_seq_length,
            masking=new_masking(self.args, self.tokenizer),
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

    def state(self) -> dict:
        """Where all streams of all processes are. Call it on every process."""
        return self.stream.state()

    def baseline(self) -> dict[str, float]:
        return {}  # the tokens of training are not counted


def open_data(
    args: Namespace, accelerator: Accelerator, tokenizer: PreTrainedTokenizerBase
) -> CachedData | StreamedData:
    return (StreamedData if args.streaming else CachedData)(args, accelerator, tokenizer)

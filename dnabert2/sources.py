"""Where sequences for pretraining come from: files, local or remote, and datasets of the Hub or of a local folder.

for source in file_sources(["genomes/"]) + dataset_sources("user/genomes", streaming=True):
    print(source.name, next(source.records()).species)
"""

import hashlib
import json
import math
from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import datasets
import fsspec
from datasets.exceptions import DatasetsError
from huggingface_hub.utils import httpx

from dnabert2.errors import UsageError
from dnabert2.sequences import (
    Record,
    check_file,
    checked_records,
    errors_name,
    expand_files,
    file_sha256,
    is_url,
    pure_path,
    read_records,
    split_name,
)
from dnabert2.tables import TABLES, check_columns, checked_rows, rows_of, wanted_columns


PART_BYTES = 2**30  # of a dataset on the disk


def _info(url: str) -> dict:
    """What a file system tells of a file without reading it, as its "size"."""
    with errors_name(url):
        filesystem, path = fsspec.url_to_fs(url)
        return filesystem.info(path)


@dataclass(frozen=True)
class Source(ABC):
    """Sequences of one file, or of one split of a dataset; picklable, opened anew by every `records()`."""

    name: str  # of a file: its folder and its name without endings, as "bacteria/escherichia_coli.MG1655"
    sequence_column: str  # of a table
    species_column: str | None

    def __str__(self) -> str:
        return self.name  # for messages

    @abstractmethod
    def records(self) -> Iterator[Record]:
        """The records in order, checked and with the errors of `read_records`."""

    @abstractmethod
    def content_key(self) -> str:
        """Names the content, in hexadecimal: copies of a local file have the same, and all processes agree."""

    @abstractmethod
    def num_bytes(self) -> int | None:
        """Its size as stored, None if that is not known. No more than a weight: files are compressed or not."""


@dataclass(frozen=True)
class FileSource(Source):
    """A file or URL."""

    file: Path | str

    def __str__(self) -> str:
        return str(self.file)

    def records(self) -> Iterator[Record]:
        return read_records(self.file, self.sequence_column, self.species_column)

    def content_key(self) -> str:
        if is_url(self.file):
            info = _info(self.file)
            content = [self.file, *(info.get(key) for key in ("size", "ETag", "blob_id"))]
        else:
            content = [file_sha256(self.file)]
        file_format, _ = check_file(self.file)
        if file_format in TABLES:
            content += [self.sequence_column, self.species_column]
        return content[0] if len(content) == 1 else _sha256(content)

    def num_bytes(self) -> int | None:
        return _info(self.file).get("size") if is_url(self.file) else self.file.stat().st_size


@dataclass(frozen=True)
class DatasetSource(Source):
    """A split of a dataset, or a shard of one that is streamed."""

    dataset: datasets.Dataset | datasets.IterableDataset = field(repr=False, compare=False)
    key: str
    size: int | None
    file: str | None = None  # of which it is all there is

    def records(self) -> Iterator[Record]:
        wanted = wanted_columns(self.sequence_column, self.species_column)
        with errors_name(self.name):
            rows = self.dataset if isinstance(self.dataset, datasets.Dataset) else rows_of(self.dataset)
            yield from checked_records(self.name, checked_rows(self.name, rows, wanted))

    def content_key(self) -> str:
        return self.key

    def num_bytes(self) -> int | None:
        return _info(self.file).get("size") if self.size is None and self.file else self.size


def _sha256(content: list) -> str:
    return hashlib.sha256(json.dumps(content).encode()).hexdigest()


def file_sources(
    patterns: Sequence[str], sequence_column: str = "sequence", species_column: str | None = None
) -> list[Source]:
    """One source for each of the files that `expand_files` finds, in its order.

    Raises SequenceFileError where a pattern gives no file, or a species column is asked of a file without columns.
    """
    sources = []
    for file in expand_files(patterns):
        check_file(file, species_column)
        path = pure_path(file if is_url(file) else file.absolute())
        stem, *_ = split_name(path.name)
        name = "/".join(filter(None, (path.parent.name, stem)))
        sources.append(FileSource(name, sequence_column, species_column, file))
    return sources


def dataset_sources(
    dataset_name: str,
    dataset_config_name: str | None = None,
    split: str = "train",
    sequence_column: str = "sequence",
    species_column: str | None = None,
    streaming: bool = False,
) -> list[Source]:
    """
    A dataset, downloaded, as a source for each GiB; or streamed, as one for each of its shards.

    Args:
        dataset_name: of the Hub, or a local folder.
        split: also a part of one, as "train[:10%]", if it is not streamed.

    Raises:
        UsageError: if there is no such dataset, configuration, split or column, or the Hub does not answer.
    """
    if Path(dataset_name).is_file():
        raise UsageError(f"--dataset_name {dataset_name} is a file, not a dataset; give it with --train_file")
    wanted = wanted_columns(sequence_column, species_column)
    try:
        builder = datasets.load_dataset_builder(dataset_name, dataset_config_name)
        if hasattr(builder.config, "keep_default_na"):  # of CSV: "NA" is two bases
            builder = datasets.load_dataset_builder(dataset_name, dataset_config_name, keep_default_na=False)
        if streaming:
            dataset = builder.as_streaming_dataset(split=split)
            columns = dataset.column_names or list(next(rows_of(dataset), {}))  # CSV tells none before it is read
        else:
            builder.download_and_prepare()
            dataset = builder.as_dataset(split=split)
            columns = dataset.column_names
    # RuntimeError: a dataset that is a script; LookupError: an empty name
    except (OSError, ValueError, LookupError, RuntimeError, DatasetsError, httpx.HTTPError) as error:
        reason = " ".join(str(error.__cause__ or error).split())
        raise UsageError(
            f"--dataset_name {dataset_name}: {reason}; check its name, --dataset_config_name, its split {split!r} and "
            "the connection, or give files with --train_file"
        ) from error
    where = "/".join(filter(None, (dataset_name, dataset_config_name, split)))
    check_columns(where, columns, wanted)
    # The builder's hash is the Hub's commit; of a local folder, the names, sizes and times of its files.
    content = [builder.hash, builder.config.name, split, sequence_column, species_column]
    known = (builder.info.splits or {}).get(split)
    dataset = dataset.select_columns([*dict.fromkeys(wanted.values())])
    columns = (sequence_column, species_column)
    if not streaming:  # in parts, each of which fits in memory, is a cache entry and can be another machine's share
        count = max(1, math.ceil(dataset.data.nbytes / PART_BYTES))
        parts = [dataset.shard(count, index, contiguous=True) for index in range(count)]
        return [
            DatasetSource(where, *columns, part, _sha256([*content, count, index]), part.data.nbytes)
            for index, part in enumerate(parts)
        ]
    shards = dataset.num_shards
    files = (builder.config.data_files or {}).get(split, ())
    files = files if len(files) == shards else [None] * shards
    return [
        DatasetSource(
            f"{where}-{index:05d}-of-{shards:05d}",
            *columns,
            dataset.shard(shards, index),
            _sha256([*content, shards, index]),
            known.num_bytes // shards if known else None,
            file,
        )
        for index, file in enumerate(files)
    ]

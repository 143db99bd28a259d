"""Labelled sequences: the train, dev and test split of one task, from a folder or from a dataset.

    python -c 'from dnabert2.labelled import *; print(load_task("GUE/tf/0").splits["train"].labels[:10])'

A task is a folder of train.csv, dev.csv and test.csv (or .tsv, .parquet; compressed, too). Columns: `sequence`, or
`sequence1` and `sequence2` for pairs, or `id` with a FASTA file of the same name beside it (train.fa); and `label`:

    single_label_classification   any name: 0, 1, promoter
    multi_label_classification    names with ";" between them, nothing for none
                                  (or in place of the column `label` one for each label, of 0 and 1)
    regression                    a number
"""

import math
import os
import re
from collections import defaultdict
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path

import datasets
import numpy as np
from datasets.exceptions import DatasetsError
from huggingface_hub.utils import httpx

from dnabert2.errors import UsageError
from dnabert2.labelled_rows import SEPARATOR, Rows, dataset_rows, find_table, read_rows
from dnabert2.windows import reverse_complement


SINGLE_LABEL, MULTI_LABEL, REGRESSION = "single_label_classification", "multi_label_classification", "regression"
PROBLEM_TYPES = (SINGLE_LABEL, MULTI_LABEL, REGRESSION)  # transformers' names of them
DEV_SHARE = 0.1  # of a dev split that has to give train as well

_INTEGER = re.compile(r"[+-]?\d+")
_FRACTION = re.compile(r"[+-]?(\d+\.\d*|\.\d+)(e[+-]?\d+)?|[+-]?\d+e[+-]?\d+", re.IGNORECASE)


@dataclass(frozen=True)
class Split:
    """
    Rows in the order of their file.

    Args:
        where: file or dataset, for messages.
        ids: of the column `id` or the FASTA file; else the numbers of the rows, from 1.
        sequences: upper case, T for U, IUPAC letters; never empty.
        pairs: the second sequence of each row, or None where there is one only.
        labels: int64 [rows], indices of the task's label_names (single label); float32 [rows, labels] of 0 and 1
            (multi-label); float32 [rows] (regression); None where they are to be predicted.
    """

    where: str
    ids: list[str]
    sequences: list[str]
    pairs: list[str] | None
    labels: np.ndarray | None

    def __len__(self) -> int:
        return len(self.sequences)

    def take(self, rows: np.ndarray) -> "Split":
        """These rows, in this order."""

        def taken(values: list[str]) -> list[str]:
            return [values[row] for row in rows]

        pairs = None if self.pairs is None else taken(self.pairs)
        labels = None if self.labels is None else self.labels[rows]
        return Split(self.where, taken(self.ids), taken(self.sequences), pairs, labels)

    def reverse_complement(self) -> "Split":
        """The same rows read from the other strand; of a pair each sequence for itself."""
        pairs = None if self.pairs is None else [*map(reverse_complement, self.pairs)]
        return replace(self, sequences=[*map(reverse_complement, self.sequences)], pairs=pairs)


@dataclass(frozen=True)
class TaskData:
    """The splits "train", "dev" and "test" of a task, and the names of its labels in the order of their indices."""

    name: str
    problem_type: str
    label_names: list[str]  # of a regression ["label"], its one output
    splits: dict[str, Split]
    train_is_from_dev: bool = False  # there was no train, so both are parts of dev: say so with every result


def load_task(
    folder: str | os.PathLike, problem_type: str = SINGLE_LABEL, name: str | None = None, seed: int = 0
) -> TaskData:
    """
    Reads a task's folder. Other files in it, as train_partial.csv in some of GUE's, are left alone.

    Where there is no train, a tenth of dev stays dev and the rest is train: of each class the same share (single
    label), and equal sequences and reverse complements on one side.

    Args:
        problem_type: one of `PROBLEM_TYPES`.
        name: of the task (default: the folder's).
        seed: decides which tenth that is; keep it for all runs that are to be compared.

    Raises:
        UsageError: for a split that is missing or cannot be used, naming file, record and remedy.
    """
    folder = Path(folder)
    if not folder.is_dir():
        raise UsageError(f"{folder}: no such folder; a task is a folder of train.csv, dev.csv and test.csv")
    files = {split: find_table(folder, split) for split in ("train", "dev", "test")}
    for split in ("dev", "test"):
        if not files[split]:
            raise UsageError(f"{folder}: no {split}.csv in it; a model is chosen on dev and judged on test")
    is_multi_label = problem_type == MULTI_LABEL
    rows = {split: read_rows(file, is_multi_label=is_multi_label) for split, file in files.items() if file}
    return _task(name or folder.resolve().name, problem_type, rows, seed)


def dataset_builder(dataset_name: str, dataset_config_name: str | None = None) -> datasets.DatasetBuilder:
    """What makes a dataset of the Hub, or of a folder, with nothing made yet. UsageError if there is none."""
    with _dataset_errors(dataset_name):
        builder = datasets.load_dataset_builder(dataset_name, dataset_config_name)
        if hasattr(builder.config, "keep_default_na"):  # of CSV: "NA" is two bases
            builder = datasets.load_dataset_builder(dataset_name, dataset_config_name, keep_default_na=False)
    return builder


@contextmanager
def _dataset_errors(dataset_name: str) -> Iterator[None]:
    try:
        yield
    # RuntimeError: a dataset that is a script; LookupError: an empty name
    except (OSError, ValueError, LookupError, RuntimeError, DatasetsError, httpx.HTTPError) as error:
        reason = " ".join(str(error.__cause__ or error).split())
        raise UsageError(
            f"--dataset_name {dataset_name}: {reason}; check its name, --dataset_config_name and the connection"
        ) from error


def load_dataset_task(
    dataset_name: str, dataset_config_name: str | None = None, problem_type: str = SINGLE_LABEL, seed: int = 0
) -> TaskData:
    """
    Reads a task from a dataset of the Hub, with the columns of a task's folder; its dev may be named validation.

    Args:
        problem_type, seed: as of `load_task`.

    Raises:
        UsageError: if the dataset cannot be read, or a split is missing or cannot be used.
    """
    builder = dataset_builder(dataset_name, dataset_config_name)
    with _dataset_errors(dataset_name):
        builder.download_and_prepare()
        found = builder.as_dataset()
    where = "/".join(filter(None, (dataset_name, dataset_config_name)))
    rows = {}
    for split, names in {"train": ["train"], "dev": ["dev", "validation"], "test": ["test"]}.items():
        if name := next((name for name in names if name in found), None):
            rows[split] = dataset_rows(f"{where}/{name}", found[name], problem_type == MULTI_LABEL)
        elif split != "train":
            raise UsageError(
                f"{where}: no split {names[-1]!r}, of {', '.join(found)}; a model is chosen and judged on it"
            )
    return _task(where, problem_type, rows, seed)


def read_unlabelled(file: str | os.PathLike) -> Split:
    """
    Sequences to predict: a table as a task's, labelled or not, or any other file that `read_records` reads.

    Raises UsageError as `read_rows` does. Empty records of files other than tables are left out with a warning.
    """
    rows = read_rows(file, is_labelled=False)
    return Split(rows.where, rows.ids, rows.sequences, rows.pairs, None)


def _task(name: str, problem_type: str, rows: dict[str, Rows], seed: int) -> TaskData:
    learned = rows.get("train", rows["dev"])
    label_names = ["label"] if problem_type == REGRESSION else _label_names(learned, problem_type)
    splits = {}
    for split, its_rows in rows.items():
        if (its_rows.pairs is None) != (learned.pairs is None):
            raise UsageError(f"{its_rows.where} and {learned.where}: one has pairs of sequences and the other has not")
        columns, its_columns = learned.label_columns or ["label"], its_rows.label_columns or ["label"]
        if problem_type == MULTI_LABEL and (differing := sorted({*columns} ^ {*its_columns})):
            raise UsageError(
                f"{its_rows.where} and {learned.where} have other columns of labels: only one of them has "
                f"{', '.join(map(repr, differing[:20]))}; mend the columns, of 0 and 1 in every split"
            )
        labels = _encode_labels(its_rows, problem_type, label_names)
        splits[split] = Split(its_rows.where, its_rows.ids, its_rows.sequences, its_rows.pairs, labels)
    labels = splits["train" if "train" in splits else "dev"].labels
    if problem_type == REGRESSION and (labels == labels[0]).all():
        raise UsageError(f"{learned.where}: all rows have the label {labels[0]}; there is nothing to learn")
    if "train" not in splits:
        train, dev = _halves(splits["dev"], problem_type, seed)
        return TaskData(name, problem_type, label_names, {"train": train, "dev": dev, "test": splits["test"]}, True)
    return TaskData(name, problem_type, label_names, splits)


def _label_names(rows: Rows, problem_type: str) -> list[str]:
    """The labels of train, sorted: integers as numbers, others as text. Columns of labels keep their order."""
    if rows.label_columns:
        return rows.label_columns
    found = {label for text in rows.labels for label in _labels_of(text, problem_type)}
    if problem_type == SINGLE_LABEL:
        for number, label in enumerate(rows.labels, start=1):
            if _FRACTION.fullmatch(label):
                raise UsageError(
                    f"{rows.where}: record {number}: the label {label!r} is no class but a number with a fraction; "
                    f"name classes by integers or words, or give --problem_type {REGRESSION}"
                )
            if not label:
                raise UsageError(f"{rows.where}: record {number}: no label; fill it in or remove the row")
        if len(found) == 1:
            raise UsageError(f"{rows.where}: all rows have the label {min(found)!r}; there is nothing to learn")
    if not found:
        raise UsageError(f"{rows.where}: no row has a label; there is nothing to learn")
    return sorted(found, key=int if all(map(_INTEGER.fullmatch, found)) else None)


def _labels_of(text: str, problem_type: str) -> list[str]:
    if problem_type != MULTI_LABEL:
        return [text]
    return [label.strip() for label in text.split(SEPARATOR) if label.strip()]


def _encode_labels(rows: Rows, problem_type: str, label_names: list[str]) -> np.ndarray:
    """The array of `Split.labels`."""
    if problem_type == REGRESSION:
        return np.array([_number(rows, row, text) for row, text in enumerate(rows.labels)], dtype=np.float32)
    indices = {label: index for index, label in enumerate(label_names)}
    encoded = np.zeros((len(rows.labels), len(label_names)), dtype=np.float32)
    for row, text in enumerate(rows.labels):
        for label in _labels_of(text, problem_type):
            if label not in indices:
                shown = ", ".join(label_names[:20])
                raise UsageError(
                    f"{rows.where}: record {row + 1}: train has no label {label[:40]!r}, only {shown}; mend it, or "
                    "add rows of it to train"
                )
            encoded[row, indices[label]] = 1
    return encoded.argmax(axis=1).astype(np.int64) if problem_type == SINGLE_LABEL else encoded


def _number(rows: Rows, row: int, text: str) -> float:
    try:
        value = float(text)
    except ValueError:
        value = math.nan
    if not math.isfinite(value):
        raise UsageError(
            f"{rows.where}: record {row + 1}: the label {text[:40]!r} is not a number; mend it, or name another "
            "--problem_type"
        )
    return value


def strand_key(sequence: str, pair: str | None = None) -> tuple[str, ...]:
    """The same for a sequence (or pair) and its reverse complement, and for no other."""
    sequences = (sequence,) if pair is None else (sequence, pair)
    return min(sequences, tuple(map(reverse_complement, sequences)))


def _halves(dev: Split, problem_type: str, seed: int) -> tuple[Split, Split]:
    """Train and dev of a split that is to be both."""
    groups = defaultdict(list)  # rows that must stay together, or dev would be known from train
    for row, sequence in enumerate(dev.sequences):
        groups[strand_key(sequence, dev.pairs and dev.pairs[row])].append(row)
    strata = defaultdict(list)
    for rows in groups.values():
        strata[int(dev.labels[rows[0]]) if problem_type == SINGLE_LABEL else 0].append(rows)
    generator = np.random.default_rng(seed)
    chosen = []
    for _, stratum in sorted(strata.items()):
        count = max(1, round(DEV_SHARE * len(stratum))) if len(stratum) > 1 else 0
        chosen += [row for index in generator.permutation(len(stratum))[:count] for row in stratum[index]]
    is_dev = np.zeros(len(dev), dtype=bool)
    is_dev[chosen] = True
    if not chosen or is_dev.all():
        raise UsageError(f"{dev.where}: too few rows to give train and dev; add train.csv")
    return dev.take(np.flatnonzero(~is_dev)), dev.take(np.flatnonzero(is_dev))

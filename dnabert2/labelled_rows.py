"""Reads rows of sequences and labels, the labels still as text: of tables, of FASTA with a table, and of datasets.

    python -c 'from dnabert2.labelled_rows import *; print(read_rows("GUE/tf/0/dev.csv").labels[:10])'

Letters are checked and folded as everywhere (`dnabert2.sequences`). A row that cannot be used is an error: leaving it
out would change what a score is the score of.
"""

import glob
import os
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

import datasets

from dnabert2.errors import UsageError
from dnabert2.sequences import check_file, checked_letters, errors_name, read_records, split_name
from dnabert2.tables import TABLES, rows_of, table_columns, table_rows


SEPARATOR = ";"  # between the labels of a row
BATCH_ROWS = 1000  # read at a time


@dataclass(frozen=True)
class Rows:
    """Rows in the order of their file; `pairs` and `labels` are None where it has no such column."""

    where: str
    ids: list[str]
    sequences: list[str]
    pairs: list[str] | None
    labels: list[str] | None
    label_columns: list[str] | None  # where each label had a column of 0 and 1: `labels` are then made of their names


@dataclass(frozen=True)
class _Columns:
    """Which columns of a table are what."""

    sequences: list[str]  # one, two, or none: FASTA has them
    labels: list[str]
    has_id: bool

    @property
    def all(self) -> list[str]:
        return [*self.sequences, *self.labels, *(["id"] if self.has_id else [])]

    @staticmethod
    def of(where: object, header: Sequence[str], is_labelled: bool, is_multi_label: bool) -> "_Columns":
        pair = "sequence1" in header or "sequence2" in header
        sequences = ["sequence1", "sequence2"] if pair else ["sequence"]
        if not pair and "sequence" not in header and "id" in header:
            sequences = []
        labels = ["label"] if is_labelled else []
        if is_multi_label and "label" not in header:
            labels = [column for column in header if column not in ("id", *sequences)]
        columns = _Columns(sequences, labels, "id" in header)
        for column in columns.all:
            if (count := header.count(column)) != 1:
                shown = ", ".join(repr(name[:40]) for name in header[:20])
                raise UsageError(
                    f"{where}: {count or 'no'} columns are named {column!r}, of {len(header)}: {shown}; the "
                    "header must be sequence,label or sequence1,sequence2,label (or id,label beside a FASTA file)"
                )
        return columns


def read_rows(file: str | os.PathLike, is_labelled: bool = True, is_multi_label: bool = False) -> Rows:
    """
    The rows of a table; without labels, also of any other file that `read_records` reads.

    Args:
        is_labelled: whether there must be labels; otherwise none are read.
        is_multi_label: without a column `label`, each column but id and sequences is a label, of 0 and 1.

    Raises:
        UsageError: for a file, column or row that cannot be used; the records count from 1, without the header.
    """
    file = Path(file)
    file_format, _ = check_file(file)
    with errors_name(file):
        if file_format not in TABLES:
            records = list(read_records(file))
            return Rows(str(file), [r.id for r in records], [r.sequence for r in records], None, None, None)
        files = glob.escape(os.path.abspath(file))
        header = table_columns(files, file_format)
        columns = _Columns.of(file, header, is_labelled, is_multi_label)
        table = table_rows(files, file_format, header, columns.all, BATCH_ROWS)
        records = {} if columns.sequences else _fasta_beside(file)
        rows = _checked(file, table, columns, records)
    if records and (unlabelled := records.keys() - set(rows.ids)):
        raise UsageError(
            f"{file}: {len(unlabelled)} records of the FASTA file beside it have no row, as {min(unlabelled)!r}; add "
            "their labels, or remove them"
        )
    return rows


def dataset_rows(where: str, dataset: datasets.Dataset, is_multi_label: bool = False) -> Rows:
    """The labelled rows of a split of a dataset; classes that it names are told by name. Errors: `read_rows`."""
    columns = _Columns.of(where, dataset.column_names, True, is_multi_label)
    if not columns.sequences:
        raise UsageError(f"{where}: no column is named 'sequence', of {', '.join(dataset.column_names)}")
    feature = dataset.features[columns.labels[0]]
    rows = rows_of(dataset.select_columns(columns.all), BATCH_ROWS)
    if isinstance(feature, datasets.ClassLabel):
        rows = (row | {"label": feature.int2str(row["label"])} for row in rows)
    elif isinstance(feature, datasets.List):
        rows = (row | {"label": SEPARATOR.join(map(str, row["label"]))} for row in rows)
    return _checked(where, rows, columns, {})


def find_table(folder: Path, name: str) -> Path | None:
    """The table of this name in a folder, whatever its format; UsageError where there are several."""
    return _find(folder, name, TABLES)


def _find(folder: Path, name: str, formats: Iterable[str]) -> Path | None:
    parts = {file: split_name(file.name) for file in sorted(folder.iterdir()) if file.is_file()}
    found = [file for file, known in parts.items() if known and known[0] == name and known[1] in formats]
    if len(found) > 1:
        raise UsageError(f"{folder}: {found[0].name} and {found[1].name} are both there; keep one of them")
    return found[0] if found else None


def _fasta_beside(file: Path) -> dict[str, str]:
    """The sequences, by id, of the FASTA file that has a table's name."""
    name, *_ = split_name(file.name)
    if not (fasta := _find(file.parent, name, ["fasta"])):
        raise UsageError(
            f"{file}: has no column 'sequence', and there is no FASTA file {name}.fa beside it; add either"
        )
    sequences = {}
    for number, record in enumerate(read_records(fasta), start=1):
        if record.id in sequences:
            raise UsageError(f"{fasta}: record {number}: the id {record.id!r} comes twice; labels are found by it")
        sequences[record.id] = record.sequence
    return sequences


def _checked(where: object, table: Iterable[dict], columns: _Columns, records: dict[str, str]) -> Rows:
    """Checks the rows of a table; `records` gives the sequences of one that has none."""
    ids, labels = [], []
    sequences = [[] for _ in columns.sequences or ["from FASTA"]]
    for number, row in enumerate(table, start=1):
        identity = _text(row["id"]) if columns.has_id else str(number)
        ids.append(identity)
        if not columns.sequences:
            if identity not in records:
                raise UsageError(f"{where}: record {number}: no FASTA record is named {identity!r}; mend its id")
            sequences[0].append(records[identity])
        for column, found in zip(columns.sequences, sequences, strict=False):
            if not isinstance(row[column], str | None):
                raise UsageError(f"{where}: record {number}: column {column!r} holds {_text(row[column])}, not text")
            sequence, _ = checked_letters(where, number, identity, row[column] or "")
            if not sequence:
                raise UsageError(f"{where}: record {number}: column {column!r} is empty; fill it in or remove the row")
            found.append(sequence)
        labels.append(_label(where, number, row, columns.labels))
    if not ids:
        raise UsageError(f"{where}: no records in it; fetch it again or leave it out")
    if not columns.sequences and len(set(ids)) < len(ids):
        twice = next(identity for identity in ids if ids.count(identity) > 1)
        raise UsageError(f"{where}: the id {twice!r} has two rows; keep one of them")
    return Rows(
        where=str(where),
        ids=ids,
        sequences=sequences[0],
        pairs=sequences[1] if len(sequences) == 2 else None,
        labels=labels if columns.labels else None,
        label_columns=columns.labels if columns.labels and columns.labels != ["label"] else None,
    )


def _text(value: object) -> str:
    return "" if value is None else str(value).strip()


def _label(where: object, number: int, row: dict, columns: list[str]) -> str:
    """The label of a row: of its column `label`, or the names of the columns that hold 1."""
    if columns == ["label"] or not columns:
        return _text(row["label"]) if columns else ""
    values = {column: _text(row[column]) for column in columns}
    for column, value in values.items():
        if value not in ("0", "1", "False", "True"):
            raise UsageError(
                f"{where}: record {number}: column {column!r} holds {value[:40]!r}, not 0 or 1; without a column "
                "'label' each column but id and sequences is a label; remove others"
            )
    return SEPARATOR.join(column for column, value in values.items() if value in ("1", "True"))

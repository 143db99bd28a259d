"""Reads sequences and species from columns: of CSV, TSV and Parquet files, and of datasets. It checks no letters.

What pandas does in silence is undone: "NA" is two bases, not a missing value; "12" is text and "1e3" no number; and a
row that is longer than the header is an error, not shifted by a column. A CSV row that ends early cannot be told from
one with empty values at its end.
"""

from collections.abc import Iterable, Iterator, Sequence
from itertools import islice

import datasets

from dnabert2.errors import UsageError


TABLES = {  # what datasets' reader of it is told; rows held at a time, as a row group may have millions
    "csv": {"sep": ",", "chunksize": 1000},
    "tsv": {"sep": "\t", "chunksize": 1000},
    "parquet": {"batch_size": 1000},
}
# The header is read as a row: knowing of one, pandas takes the first value of longer rows for an index.
_CSV_OPTIONS = {"header": None, "keep_default_na": False, "encoding": "utf-8-sig"}

# Else every file that is opened is told to the Hub: seconds each where a firewall drops that, and nobody's business.
datasets.config.HF_UPDATE_DOWNLOAD_COUNTS = False

Row = tuple[int, str, str, str | None]  # number from 1, id, letters, species


def stream(reader: str, files: str, **options) -> datasets.IterableDataset:
    """What `datasets` reads of a file: nothing is copied into its cache."""
    return datasets.load_dataset(reader, data_files=files, split="train", streaming=True, **options)


def rows_of(dataset: datasets.IterableDataset, batch_size: int = 1) -> Iterator[dict]:
    """All rows, in a DataLoader's worker process too: iterated over as such, a dataset gives each worker its share.

    Short rows are read ten times as fast in batches of 1,000.
    """
    for batch in dataset.iter(batch_size=batch_size):
        for values in zip(*batch.values(), strict=True):
            yield dict(zip(batch, values, strict=True))


def wanted_columns(sequence_column: str, species_column: str | None) -> dict[str, str]:
    """The columns to read, of the options that name them."""
    species = {"--species_column": species_column} if species_column is not None else {}
    return {"--sequence_column": sequence_column, **species}


def check_columns(where: object, columns: Sequence[str], wanted: dict[str, str]) -> None:
    """Raises UsageError unless each of the wanted columns is there, and once."""
    for option, column in wanted.items():
        if (count := columns.count(column)) != 1:
            shown = ", ".join(repr(name[:40]) for name in columns[:20])  # without a header these are a row's values
            raise UsageError(
                f"{where}: {count or 'no'} columns are named {column!r}, of {len(columns)}: {shown}; name the one to "
                f"read with {option}"
            )


def checked_rows(where: object, rows: Iterable[dict], wanted: dict[str, str]) -> Iterator[Row]:
    """The wanted columns of rows; UsageError for a value that is no text, or for none where a species is wanted."""
    for number, row in enumerate(rows, start=1):
        for column in wanted.values():
            if not isinstance(value := row[column], str | None):
                raise UsageError(
                    f"{where}: record {number}: column {column!r} holds {str(value)[:40]} "
                    f"({type(value).__name__}), not text; name another column, or store it as text"
                )
        sequence, *species = (row[column] or "" for column in wanted.values())
        if species and not species[0].strip():
            raise UsageError(
                f"{where}: record {number}: no value in column {wanted['--species_column']!r}; fill it in, or leave "
                "out --species_column"
            )
        yield number, str(number), sequence, species[0].strip() if species else None


def table_columns(files: str, file_format: str) -> list[str]:
    """The names in a table's header."""
    if file_format == "parquet":
        return stream("parquet", files).column_names
    header = next(rows_of(stream("csv", files, nrows=1, **_CSV_OPTIONS | TABLES[file_format])))
    return [str(name) for name in header.values()]


def table_rows(
    files: str, file_format: str, header: Sequence[str], columns: Sequence[str], batch_size: int = 1
) -> Iterator[dict]:
    """The rows of a table with these `columns` at least, each of which is in its header once; text in CSV and TSV."""
    options = TABLES[file_format]
    if file_format == "parquet":
        return rows_of(stream("parquet", files, columns=[*dict.fromkeys(columns)], **options), batch_size)
    names = [str(index) for index in range(len(header))]  # those of the file may come twice
    features = datasets.Features({name: datasets.Value("string") for name in names})
    dataset = stream("csv", files, names=names, features=features, **_CSV_OPTIONS | options)
    return (dict(zip(header, row.values(), strict=True)) for row in islice(rows_of(dataset, batch_size), 1, None))


def read_table(where: object, files: str, file_format: str, wanted: dict[str, str]) -> Iterator[Row]:
    """The rows of one table; `where` names it in errors, which are those of `check_columns` and `checked_rows`."""
    header = table_columns(files, file_format)
    check_columns(where, header, wanted)
    return checked_rows(where, table_rows(files, file_format, header, [*wanted.values()]), wanted)

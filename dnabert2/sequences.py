"""Reads sequence files and checks them: FASTA, FASTQ, GenBank, text (a sequence a line), CSV, TSV, Parquet.

    python -c 'from dnabert2.sequences import read_records; print(next(read_records("genome.fa.xz")).id)'

All but Parquet are plain, gz, xz, zst or bz2. A file is a path, or a URL that fsspec knows (http, hf, s3 …), streamed.

`datasets` reads and judges nothing: text before the first header, the end of a cut .zst and an unfinished GenBank
record it drops in silence, and its errors name no file. Here each is an error that says where and what to do; but
the end of a .zst or GenBank file behind a URL is not looked at.
"""

import bz2
import errno
import glob
import gzip
import hashlib
import logging
import lzma
import os
import re
import string
import zlib
from collections import deque
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from io import BufferedReader
from pathlib import Path, PurePath, PurePosixPath
from typing import BinaryIO
from urllib.parse import unquote

import aiohttp
import fsspec
import zstandard
from huggingface_hub.utils import httpx

from dnabert2.errors import UsageError
from dnabert2.tables import TABLES, Row, read_table, rows_of, stream, wanted_columns


logger = logging.getLogger(__name__)

FORMATS = {  # endings, how a file opens, what datasets' reader of it is told
    # by default its reader collects 256 MB before it gives a record
    "fasta": ("fa fasta fna fas ffn frn", b">", {"columns": ["id", "sequence"], "max_batch_bytes": 1 << 20}),
    "fastq": ("fq fastq", b"@", {"columns": ["id", "sequence"]}),
    "genbank": ("gb gbk gbff genbank", b"LOCUS", {"columns": ["version", "locus_name", "sequence"]}),
    "text": ("txt", b"", {}),
    "csv": ("csv", b"", {}),
    "tsv": ("tsv", b"", {}),
    "parquet": ("parquet", b"PAR1", {}),
}
ENDINGS = {ending: name for name, (endings, _, _) in FORMATS.items() for ending in endings.split()}
OPENERS = {"": open, ".gz": gzip.open, ".xz": lzma.open, ".zst": zstandard.open, ".bz2": bz2.open}
KNOWN_NAMES = f"endings .{' .'.join(ENDINGS)} (alone or, .parquet aside, with{' '.join(OPENERS)})"

AMBIGUOUS = "RYSWKMBDHV"  # the IUPAC letters that stand for two or three bases
_LETTERS = "ACGTN" + AMBIGUOUS
# Letters to upper case, U to T, white space out. str.translate is fast on such ASCII tables: 2 Gbases/s.
_FOLD = str.maketrans(_LETTERS.lower() + "Uu", _LETTERS + "TT", string.whitespace)
_WITHOUT_ACGTN = str.maketrans("", "", "ACGTN")
_NOT_A_NUCLEOTIDE = re.compile(f"[^{_LETTERS}]")
_NAME = re.compile(rf"(.+)\.({'|'.join(ENDINGS)})(\.gz|\.xz|\.zst|\.bz2)?", re.IGNORECASE | re.DOTALL)


class SequenceFileError(UsageError):
    """A sequence file that cannot be used: the message names file and place, what is wrong and what to do."""


@dataclass(frozen=True)
class Record:
    """One sequence: upper case, T for U, no white space, only A C G T N and the IUPAC letters RYSWKMBDHV."""

    id: str
    sequence: str
    species: str | None = None  # of a table's species column


def acgt_runs(sequence: str) -> Iterator[tuple[int, str]]:
    """Yields (0-based start, run) of every longest run of A, C, G and T in an upper-case sequence."""
    return ((match.start(), match.group()) for match in re.finditer("[ACGT]+", sequence))


def file_sha256(path: str | os.PathLike) -> str:
    """The sha256 of a file's bytes as they lie on disk (compressed ones stay so), in hexadecimal."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def is_url(file: str | os.PathLike) -> bool:
    return isinstance(file, str) and "://" in file


def pure_path(file: str | os.PathLike) -> PurePath:
    """The path of a file, or of a URL without its query: what the name is read from."""
    return PurePosixPath(unquote(file.partition("://")[2].partition("?")[0])) if is_url(file) else Path(file)


def split_name(name: str) -> tuple[str, str, str] | None:
    """What a file's name says it is, as ("genome", "fasta", ".gz"); None for an unknown ending."""
    if not (match := _NAME.fullmatch(name)):
        return None
    file_format, compression = ENDINGS[match[2].lower()], (match[3] or "").lower()
    return None if file_format == "parquet" and compression else (match[1], file_format, compression)


def expand_files(patterns: Sequence[str]) -> list[Path | str]:
    """The sequence files that files, URLs, folders (searched recursively) and globs stand for, in order, each once.

    Folders and globs give their files with known endings, sorted; a file named outright must have one. A URL stays
    the str that it is, and names one file. Raises SequenceFileError where a pattern gives no file.
    """
    found: dict[Path | str, Path | str] = {}
    for pattern in patterns:
        if is_url(pattern):
            check_file(pattern)
            found.setdefault(pattern, pattern)
            continue
        path = Path(pattern)
        if path.is_file():
            candidates = [path]
            check_file(path)
        else:
            matches = path.rglob("*") if path.is_dir() else map(Path, glob.glob(str(path), recursive=True))
            matches = sorted(match for match in matches if match.is_file())
            candidates = [match for match in matches if split_name(match.name)]
            if skipped := [match for match in matches if match not in candidates]:
                logger.warning("%s: skipped %d file(s) of unknown endings, as %s", path, len(skipped), skipped[0].name)
        if not candidates:
            raise SequenceFileError(f"{path}: no such file, and no folder or glob of files with {KNOWN_NAMES}")
        for candidate in candidates:
            found.setdefault(candidate.resolve(), candidate)
    return list(found.values())


def check_file(file: Path | str, species_column: str | None = None) -> tuple[str, str]:
    """(format, compression) of a file that is there, has a known ending and is not empty; of a URL, by its name."""
    if not is_url(file) and not file.is_file():
        raise SequenceFileError(f"{file}: {'is a folder; name its files' if file.is_dir() else 'no such file'}")
    if not (parts := split_name(pure_path(file).name)):
        raise SequenceFileError(f"{file}: unknown ending; rename the file to one of the {KNOWN_NAMES}")
    if "::" in str(file):
        raise SequenceFileError(f"{file}: datasets takes '::' in a name for a chain of archives; rename the file")
    if is_url(file) and "*" in file:
        raise SequenceFileError(f"{file}: a URL names one file; give those that '*' stands for one by one")
    if not is_url(file) and file.stat().st_size == 0:
        raise SequenceFileError(f"{file}: the file is empty (0 bytes); fetch it again or leave it out")
    if species_column is not None and parts[1] not in TABLES:
        raise SequenceFileError(f"{file}: a {parts[1]} file has no columns; leave it out, or --species_column")
    return parts[1:]


@contextmanager
def errors_name(place: Path | str) -> Iterator[None]:
    """Turns what decompressors, datasets' readers and networks raise into a SequenceFileError that names the place.

    A place that is no path is a URL or a dataset.
    """
    try:
        yield
    except UsageError:
        raise
    except UnicodeDecodeError as error:  # its position counts from the start of a block, so it is not told
        raise SequenceFileError(f"{place}: not a text file (byte {error.object[error.start]:#04x} in it)") from error
    except (EOFError, OSError, ValueError, lzma.LZMAError, zlib.error, zstandard.ZstdError) as error:
        if getattr(error, "errno", None) == errno.EMFILE:
            raise SequenceFileError(f"{place}: too many open files; raise the limit with `ulimit -n`") from error
        if isinstance(place, Path):
            message = f"{place}: unreadable, truncated or corrupt ({error}); fetch it again"
            raise SequenceFileError(" ".join(message.split())) from error
        raise _unreachable(place, error) from error
    except (aiohttp.ClientError, httpx.HTTPError) as error:
        raise _unreachable(place, error) from error


def _unreachable(place: str, error: Exception) -> SequenceFileError:
    error = error.__cause__ or error  # fsspec says "not found" whatever the cause
    why = "no such file" if isinstance(error, FileNotFoundError) else " ".join(str(error).split())
    return SequenceFileError(
        f"{place}: cannot be read ({why}); check name and connection, or download it and name that"
    )


def _check_frames(path: Path) -> None:
    """Raises EOFError where a .zst file ends within a frame, which its readers take for the end."""
    frame = None
    with open(path, "rb") as file:
        while chunk := file.read(1 << 20):
            while chunk:
                if frame is None or frame.eof:
                    frame = zstandard.ZstdDecompressor().decompressobj()
                frame.decompress(chunk)
                chunk = frame.unused_data
    if not frame.eof:
        raise EOFError("Compressed file ended before the end of its last zstd frame")


@contextmanager
def _opened(file: Path | str, compression: str) -> Iterator[BinaryIO]:
    """The decompressed bytes of a file or URL."""
    if not is_url(file):
        with OPENERS[compression](file, "rb") as archive, BufferedReader(archive) as content:
            yield content
    else:
        with fsspec.open(file, "rb") as archive:
            yield BufferedReader(OPENERS[compression](archive, "rb") if compression else archive)


def _check_ends(file: Path | str, file_format: str, compression: str) -> None:
    """Refuses what datasets would drop in silence: lines before the first header, an unfinished GenBank record."""
    _, opening, _ = FORMATS[file_format]
    with _opened(file, compression) as content:
        lines = enumerate(iter(lambda: content.readline(1000), b""), start=1)
        number, line = next((numbered for numbered in lines if numbered[1].strip()), (0, b""))
        if not number:
            raise SequenceFileError(f"{file}: only blank lines in it; fetch it again or leave it out")
        if not line.startswith(opening):
            raise SequenceFileError(
                f"{file}: line {number} is {line.rstrip()[:40].decode(errors='replace')!r}, but a {file_format} "
                f"file opens with {opening.decode()!r}; remove what stands before it, or rename the file"
            )
        if file_format == "genbank" and not is_url(file):
            if not [line, *deque(filter(bytes.strip, content), 1)][-1].startswith(b"//"):
                raise EOFError("the last GenBank record does not end in '//'")


def _rows(files: str, file_format: str) -> Iterator[Row]:
    """The rows of a file that is no table."""
    _, _, options = FORMATS[file_format]
    for number, row in enumerate(rows_of(stream(file_format, files, **options)), start=1):
        *names, text = row.values()
        yield number, next(filter(None, names), str(number)), text, None


def checked_letters(where: Path | str, number: int, identity: str, text: str) -> tuple[str, int]:
    """The sequence of a record as in `Record`, and how many of its letters are no A, C, G, T or N.

    Raises SequenceFileError for a letter that is no nucleotide's; its position is 1-based and counts no white space.
    """
    sequence = text.translate(_FOLD)
    not_acgtn = sequence.translate(_WITHOUT_ACGTN)
    if not_acgtn and (wrong := _NOT_A_NUCLEOTIDE.search(sequence)):
        raise SequenceFileError(
            f"{where}: record {number} ({identity}), position {wrong.start() + 1}: {wrong.group()!r} is not a "
            f"nucleotide letter (ACGTU, N, IUPAC {AMBIGUOUS}); mend it, or leave out proteins and alignments"
        )
    return sequence, len(not_acgtn)


def checked_records(where: Path | str, rows: Iterable[Row]) -> Iterator[Record]:
    """Yields the records of rows, checked as `read_records` says; `where` names file or dataset in errors."""
    number = empty = ambiguous = 0
    for number, identity, text, species in rows:
        sequence, not_acgtn = checked_letters(where, number, identity, text)
        empty += not sequence
        ambiguous += 2 * not_acgtn > len(sequence)
        if sequence:
            yield Record(identity, sequence, species)
    if not number:
        raise SequenceFileError(f"{where}: no records in it; fetch it again or leave it out")
    if empty == number:
        raise SequenceFileError(f"{where}: all {number} records are empty; fetch the file with its sequences")
    if empty:
        logger.warning("%s: left out %d of %d records: they are empty", where, empty, number)
    if ambiguous:
        logger.warning("%s: %d of %d records are more than half IUPAC letters: proteins?", where, ambiguous, number)


def read_records(
    file: str | os.PathLike, sequence_column: str = "sequence", species_column: str | None = None
) -> Iterator[Record]:
    """Yields the records of one sequence file in order, checked; empty ones are left out with one counted warning.

    A record without a name, as every line of a text file and every row of a table, has its number for an id. The
    columns are a table's: other files have none, and a species column asked of them is an error. Raises
    SequenceFileError on a file that is missing, empty, cut or corrupt, a URL that does not answer, text before the
    first header, letters that are no nucleotide's (the position is 1-based and counts letters, not white space), and
    where every record is empty; UsageError on a column that is not there, a value that is no text, or no species.
    """
    file = file if is_url(file) else Path(file)
    file_format, compression = check_file(file, species_column)
    with errors_name(file):
        if compression == ".zst" and not is_url(file):
            _check_frames(file)
        _check_ends(file, file_format, compression)
        files = file if is_url(file) else glob.escape(os.path.abspath(file))
        if file_format in TABLES:
            rows = read_table(file, files, file_format, wanted_columns(sequence_column, species_column))
        else:
            rows = _rows(files, file_format)
        yield from checked_records(file, rows)

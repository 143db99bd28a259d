"""Reads sequence files and checks them: FASTA, FASTQ, GenBank, text (a sequence a line); plain, gz, xz, zst or bz2.

    python -c 'from dnabert2.sequences import read_records; print(next(read_records("genome.fa.xz")).id)'

`datasets` reads and judges nothing: text before the first header, the end of a cut .zst and an unfinished GenBank
record it drops in silence, and its errors name no file. Here each is an error that says where and what to do.
"""

import bz2
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
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from io import BufferedReader
from pathlib import Path

import datasets
import zstandard

from dnabert2.errors import UsageError


logger = logging.getLogger(__name__)

FORMATS = {  # endings, how a file opens, what datasets' reader of it is told
    "fasta": ("fa fasta fna fas ffn frn", b">", {"columns": ["id", "sequence"]}),
    "fastq": ("fq fastq", b"@", {"columns": ["id", "sequence"]}),
    "genbank": ("gb gbk gbff genbank", b"LOCUS", {"columns": ["version", "locus_name", "sequence"]}),
    "text": ("txt", b"", {}),
}
ENDINGS = {ending: name for name, (endings, _, _) in FORMATS.items() for ending in endings.split()}
OPENERS = {"": open, ".gz": gzip.open, ".xz": lzma.open, ".zst": zstandard.open, ".bz2": bz2.open}
KNOWN_NAMES = f"endings .{' .'.join(ENDINGS)} (alone or with{' '.join(OPENERS)})"

AMBIGUOUS = "RYSWKMBDHV"  # the IUPAC letters that stand for two or three bases
_LETTERS = "ACGTN" + AMBIGUOUS
# Letters to upper case, U to T, white space out. str.translate is fast on such ASCII tables: 2 Gbases/s.
_FOLD = str.maketrans(_LETTERS.lower() + "Uu", _LETTERS + "TT", string.whitespace)
_WITHOUT_ACGTN = str.maketrans("", "", "ACGTN")
_NOT_A_NUCLEOTIDE = re.compile(f"[^{_LETTERS}]")
_NAME = re.compile(rf"\.({'|'.join(ENDINGS)})(\.gz|\.xz|\.zst|\.bz2)?", re.IGNORECASE)


class SequenceFileError(UsageError):
    """A sequence file that cannot be used: the message names file and place, what is wrong and what to do."""


@dataclass(frozen=True)
class Record:
    """One sequence: upper case, T for U, no white space, only A C G T N and the IUPAC letters RYSWKMBDHV."""

    id: str
    sequence: str


def acgt_runs(sequence: str) -> Iterator[tuple[int, str]]:
    """Yields (0-based start, run) of every longest run of A, C, G and T in an upper-case sequence."""
    return ((match.start(), match.group()) for match in re.finditer("[ACGT]+", sequence))


def file_sha256(path: str | os.PathLike) -> str:
    """The sha256 of a file's bytes as they lie on disk (compressed ones stay so), in hexadecimal."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _format_and_compression(path: Path) -> tuple[str, str] | None:
    """What a file's name says it is, as ("fasta", ".gz"); None for an unknown ending."""
    match = _NAME.fullmatch("".join(path.suffixes[-2:])) or _NAME.fullmatch(path.suffix)
    return (ENDINGS[match[1].lower()], (match[2] or "").lower()) if match else None


def expand_files(patterns: Sequence[str]) -> list[Path]:
    """The sequence files that files, folders (searched recursively) and globs stand for, in order, each once.

    Folders and globs give their files with known endings, sorted; a file named outright must have one.
    Raises SequenceFileError where a pattern gives no file.
    """
    found: dict[Path, Path] = {}
    for path in map(Path, patterns):
        if path.is_file():
            candidates = [path]
            _check_file(path)
        else:
            matches = path.rglob("*") if path.is_dir() else map(Path, glob.glob(str(path), recursive=True))
            matches = sorted(match for match in matches if match.is_file())
            candidates = [match for match in matches if _format_and_compression(match)]
            if skipped := [match for match in matches if match not in candidates]:
                logger.warning("%s: skipped %d file(s) of unknown endings, as %s", path, len(skipped), skipped[0].name)
        if not candidates:
            raise SequenceFileError(f"{path}: no such file, and no folder or glob of files with {KNOWN_NAMES}")
        for candidate in candidates:
            found.setdefault(candidate.resolve(), candidate)
    return list(found.values())


def _check_file(path: Path) -> tuple[str, str]:
    """(format, compression) of a file that is there, has a known ending and is not empty."""
    if not path.is_file():
        raise SequenceFileError(f"{path}: {'is a folder; name its files' if path.is_dir() else 'no such file'}")
    if not (names := _format_and_compression(path)):
        raise SequenceFileError(f"{path}: unknown ending; rename the file to one of the {KNOWN_NAMES}")
    if "::" in str(path):
        raise SequenceFileError(f"{path}: datasets takes '::' in a name for a chain of archives; rename the file")
    if path.stat().st_size == 0:
        raise SequenceFileError(f"{path}: the file is empty (0 bytes); fetch it again or leave it out")
    return names


@contextmanager
def _errors_name(path: Path) -> Iterator[None]:
    """Turns what decompressors and datasets' readers raise into a SequenceFileError that names the file."""
    try:
        yield
    except SequenceFileError:
        raise
    except UnicodeDecodeError as error:  # its position counts from the start of a block, so it is not told
        raise SequenceFileError(f"{path}: not a text file (byte {error.object[error.start]:#04x} in it)") from error
    except (EOFError, OSError, ValueError, lzma.LZMAError, zlib.error, zstandard.ZstdError) as error:
        raise SequenceFileError(f"{path}: unreadable, truncated or corrupt ({error}); fetch it again") from error


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


def _check_ends(path: Path, file_format: str, compression: str) -> None:
    """Refuses what datasets would drop in silence: lines before the first header, an unfinished GenBank record."""
    _, opening, _ = FORMATS[file_format]
    with OPENERS[compression](path, "rb") as archive, BufferedReader(archive) as file:
        lines = enumerate(iter(lambda: file.readline(1000), b""), start=1)
        number, line = next((numbered for numbered in lines if numbered[1].strip()), (0, b""))
        if not number:
            raise SequenceFileError(f"{path}: only blank lines in it; fetch it again or leave it out")
        if not line.startswith(opening):
            raise SequenceFileError(
                f"{path}: line {number} is {line.rstrip()[:40].decode(errors='replace')!r}, but a {file_format} "
                f"file opens with {opening.decode()!r}; remove what stands before it, or rename the file"
            )
        if file_format == "genbank" and not [line, *deque(filter(bytes.strip, file), 1)][-1].startswith(b"//"):
            raise EOFError("the last GenBank record does not end in '//'")


def _rows(path: Path, file_format: str) -> Iterator[tuple[int, str, str]]:
    """(number, id, text) of every record as `datasets` streams it: nothing is copied into its cache."""
    files, (_, _, options) = glob.escape(os.path.abspath(path)), FORMATS[file_format]
    rows = datasets.load_dataset(file_format, data_files=files, split="train", streaming=True, **options)
    for number, row in enumerate(rows, start=1):
        *names, text = row.values()
        yield number, next(filter(None, names), str(number)), text


def read_records(path: str | os.PathLike) -> Iterator[Record]:
    """Yields the records of one sequence file in order, checked; empty ones are left out with one counted warning.

    A record without a name, as every line of a text file, has its number for an id. Raises SequenceFileError on a file
    that is missing, empty, cut or corrupt, on text before the first header, on letters that are no nucleotide's (the
    position is 1-based and counts letters, not white space), and where every record is empty.
    """
    path = Path(path)
    file_format, compression = _check_file(path)
    number = empty = ambiguous = 0
    with _errors_name(path):
        if compression == ".zst":
            _check_frames(path)
        _check_ends(path, file_format, compression)
        for number, identity, text in _rows(path, file_format):
            sequence = text.translate(_FOLD)
            not_acgtn = sequence.translate(_WITHOUT_ACGTN)
            if not_acgtn and (wrong := _NOT_A_NUCLEOTIDE.search(sequence)):
                raise SequenceFileError(
                    f"{path}: record {number} ({identity}), position {wrong.start() + 1}: {wrong.group()!r} is not a "
                    f"nucleotide letter (ACGTU, N, IUPAC {AMBIGUOUS}); mend it, or leave out proteins and alignments"
                )
            empty += not sequence
            ambiguous += 2 * len(not_acgtn) > len(sequence)
            if sequence:
                yield Record(identity, sequence)
    if empty == number:
        raise SequenceFileError(f"{path}: all {number} records are empty; fetch the file with its sequences")
    if empty:
        logger.warning("%s: left out %d of %d records: they are empty", path, empty, number)
    if ambiguous:
        logger.warning("%s: %d of %d records are more than half IUPAC letters: proteins?", path, ambiguous, number)

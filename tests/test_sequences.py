"""Reading sequence files: every format and compression, and every kind of bad file named with its place.

pytest tests/test_sequences.py
"""

import bz2
import gzip
import hashlib
import lzma
import os

import numpy as np
import pytest
import zstandard
from hypothesis import given, settings
from hypothesis import strategies as st

from dnabert2.errors import UsageError
from dnabert2.sequences import OPENERS, Record, SequenceFileError, acgt_runs, expand_files, file_sha256, read_records


FASTA = b">chr1 first\nacguN\r\nRYSW \n\n>chr2\n;a comment\nKMBDHV\n"
FASTA_RECORDS = [Record("chr1", "ACGTNRYSW"), Record("chr2", "KMBDHV")]
COMPRESSORS = {
    "": bytes,
    ".gz": gzip.compress,
    ".xz": lzma.compress,
    ".bz2": bz2.compress,
    ".zst": lambda content: zstandard.ZstdCompressor(write_checksum=True).compress(content),
}
LETTERS = "ACGTNRYSWKMBDHV"
GENBANK = b"""LOCUS       AB1          12 bp    DNA     linear   BCT 01-JAN-2000
DEFINITION  a plasmid.
VERSION     AB1.2
FEATURES             Location/Qualifiers
     source          1..12
ORIGIN
        1 acgtacgtac gu
//
"""


lines_of_fasta = st.sampled_from(
    [b">a", b">", b"", b"ACGTN", b"acgu", b" RY\tSW ", b"MKL", b"\xff", b"\0", b";c", b"+"]
)
contents = st.lists(lines_of_fasta, max_size=8).map(b"\n".join) | st.binary(max_size=60)


@settings(max_examples=150, deadline=None, derandomize=True)
@given(contents, st.sampled_from(["fa", "fq", "gb", "txt"]), st.sampled_from([*COMPRESSORS]), st.floats(0.5, 1.5))
def test_whatever_is_in_a_file_is_read_as_nucleotides_or_refused_by_name(
    tmp_path_factory, content, ending, compression, share
):
    """Cut, too, where the share is below 1."""
    packed = COMPRESSORS[compression](content)
    path = tmp_path_factory.mktemp("fuzz") / f"x.{ending}{compression}"
    path.write_bytes(packed[: int(share * len(packed))])
    try:
        records = list(read_records(path))
    except UsageError as error:
        assert str(path) in str(error) and "\n" not in str(error)
    else:
        assert records and all(record.sequence and not set(record.sequence) - set(LETTERS) for record in records)


@pytest.fixture
def write(tmp_path):
    """A function that writes a file and gives its path."""

    def write_file(name, content):
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content)
        return path

    return write_file


def refusal(path):
    """The message with which a file is refused, which always names it."""
    with pytest.raises(SequenceFileError) as error:
        list(read_records(path))
    assert str(path) in str(error.value)
    return str(error.value)


@pytest.mark.parametrize("compression", COMPRESSORS)
def test_fasta_is_read_from_every_compression(write, compression):
    path = write(f"Genome.FA{compression}", COMPRESSORS[compression](FASTA))
    assert list(read_records(path)) == FASTA_RECORDS


@pytest.mark.parametrize("compression", [".gz", ".xz", ".bz2", ".zst"])
def test_joined_archives_are_read_to_the_end(write, compression):
    parts = [COMPRESSORS[compression](part) for part in (b">a\nACGT\n", b">b\nGGCC\n")]
    path = write(f"a.fa{compression}", b"".join(parts))
    assert list(read_records(path)) == [Record("a", "ACGT"), Record("b", "GGCC")]


def test_fastq_genbank_and_text_are_read(write):
    fastq = write("a.fastq.gz", gzip.compress(b"@r1 x\nACGT\n+\nIIII\n@r2\nAC\n+r2\n@I\n"))
    assert list(read_records(fastq)) == [Record("r1", "ACGT"), Record("r2", "AC")]
    assert list(read_records(write("a.gbk", GENBANK * 2))) == [Record("AB1.2", "ACGTACGTACGT")] * 2
    text = write("a.txt", b"acgt\r\n\r\nAC GU\n")
    assert list(read_records(text)) == [Record("1", "ACGT"), Record("3", "ACGT")]


def test_one_very_long_line_is_read(write):
    line = b"ACGTTGCA" * 2_500_000
    (record,) = read_records(write("a.fa", b">long\n" + line))
    assert record.sequence == line.decode()


@pytest.mark.parametrize("name", ["with space.fa", "[a]*?.fa", "hash#.fa", "ünï.fa"])
def test_odd_file_names_mean_that_file(write, name):
    assert list(read_records(write(name, FASTA))) == FASTA_RECORDS


def test_nothing_is_copied_into_the_cache(write):
    def cached_bytes():
        found = os.walk(os.environ["HF_HOME"])
        return sum(os.path.getsize(os.path.join(folder, file)) for folder, _, files in found for file in files)

    before = cached_bytes()
    list(read_records(write("a.fa.gz", gzip.compress(b">a\n" + b"ACGT" * 500_000))))
    assert cached_bytes() - before < 100_000


def test_a_missing_file_a_folder_and_an_empty_file_are_refused(write, tmp_path):
    assert "no such file" in refusal(tmp_path / "absent.fa")
    (tmp_path / "folder.fa").mkdir()
    assert "is a folder" in refusal(tmp_path / "folder.fa")
    assert "empty (0 bytes)" in refusal(write("zero.fa", b""))
    assert "only blank lines" in refusal(write("blank.fa.gz", gzip.compress(b"\n  \n")))


def test_an_unknown_ending_is_refused_with_the_known_ones(write):
    message = refusal(write("proteins.faa", b">a\nMKL\n"))
    assert ".fasta" in message and ".gbff" in message and ".zst" in message
    assert "'::'" in refusal(write("a::b.fa", FASTA))


def test_an_unreadable_file_is_refused(write, monkeypatch):
    def refuse(path, mode):
        raise PermissionError(13, "Permission denied", str(path))

    monkeypatch.setitem(OPENERS, "", refuse)  # root, as whom containers run, may read any file
    assert "Permission denied" in refusal(write("a.fa", FASTA))


@pytest.mark.parametrize("compression", COMPRESSORS)
def test_text_before_the_first_header_is_refused_with_its_line(write, compression):
    path = write(f"a.fa{compression}", COMPRESSORS[compression](b"\n\nACGT\n>a\nACGT\n"))
    assert "line 3 is 'ACGT'" in refusal(path)


def test_a_file_of_another_format_is_refused(write):
    assert "line 1 is 'ACGT'" in refusal(write("no_header.fa", b"ACGT\nACGT\n"))
    assert "\\ufeff>a" in refusal(write("byte_order_mark.fa", b"\xef\xbb\xbf>a\nACGT\n"))
    assert "opens with '@'" in refusal(write("a.fq", FASTA))
    assert "opens with 'LOCUS'" in refusal(write("a.gb", FASTA))
    assert "'>' is not a nucleotide" in refusal(write("a.txt", FASTA))
    assert "opens with '>'" in refusal(write("in_truth_gzip.fa", gzip.compress(FASTA)))


def test_empty_records_are_left_out_with_one_counted_warning(write, caplog):
    path = write("a.fa", b">a\n>b\nACGT\n>c\n\n")
    assert list(read_records(path)) == [Record("b", "ACGT")]
    assert [record.getMessage() for record in caplog.records] == [f"{path}: left out 2 of 3 records: they are empty"]


def test_headers_alone_are_refused(write):
    assert "all 2 records are empty" in refusal(write("a.fa", b">a\n>b\n"))
    assert "all 1 records are empty" in refusal(write("a.gb", GENBANK[: GENBANK.index(b"ORIGIN")] + b"//\n"))


@pytest.mark.parametrize("wrong", [*"EFILPQXZJOe*-.5[\0éı"])
def test_any_other_letter_is_refused_with_record_and_position(write, wrong):
    path = write("a.fa", f">good\nACGT\n>bad x\nACG\nTN{wrong}A\n".encode())
    assert f"record 2 (bad), position 6: {wrong!r} is not a nucleotide letter" in refusal(path)


def test_peptides_of_iupac_letters_alone_give_a_warning(write, caplog):
    list(read_records(write("a.fa", b">peptide\nMKVSDRWHA\n>dna\nACGTNNNNRNNNN\n")))
    assert "1 of 2 records are more than half IUPAC letters: proteins?" in caplog.text


def test_bytes_that_are_not_text_are_refused(write):
    assert "not a text file (byte 0xff" in refusal(write("a.fa", b">a\nAC\xffGT\n"))


@pytest.mark.parametrize("compression", [".gz", ".xz", ".bz2", ".zst"])
def test_cut_and_broken_archives_are_refused_by_name(write, compression):
    content = b">a\n" + np.random.default_rng(0).choice(list(b"ACGT"), 50_000).astype(np.uint8).tobytes()
    archive = COMPRESSORS[compression](content)
    for length in (len(archive) - 3, len(archive) // 2, 10):
        assert "truncated or corrupt" in refusal(write(f"cut.fa{compression}", archive[:length]))
    assert "corrupt" in refusal(write(f"not.fa{compression}", FASTA))
    middle = len(archive) // 2
    broken = archive[:middle] + bytes(byte ^ 0x5A for byte in archive[middle : middle + 64]) + archive[middle + 64 :]
    refusal(write(f"broken.fa{compression}", broken))


def test_cut_fastq_and_genbank_are_refused(write):
    assert "record 'r1' has no '+'" in refusal(write("a.fq", b"@r1\nACGT\n"))
    assert "record 'r1' has 2 quality characters for 4 bases" in refusal(write("b.fq", b"@r1\nACGT\n+\nII\n"))
    assert "does not end in '//'" in refusal(write("a.gb", GENBANK + GENBANK[:-4]))
    assert "does not end in '//'" in refusal(write("b.gb", GENBANK[:20]))


def test_acgt_runs_give_starts_and_runs():
    assert list(acgt_runs("NNACGTNRAANT")) == [(2, "ACGT"), (8, "AA"), (11, "T")]
    assert list(acgt_runs("")) == list(acgt_runs("NNRY")) == []


def test_expand_files_takes_files_folders_and_globs_once(write, tmp_path, monkeypatch):
    for name in ("deep/b.fa.xz", "deep/down/a.fq", "c.txt", "notes.md", "deep/proteins.faa"):
        write(name, b"x")
    monkeypatch.chdir(tmp_path)
    found = expand_files(["c.txt", "deep", "**/*.fa.xz", str(tmp_path / "c.txt")])
    assert [path.as_posix() for path in found] == ["c.txt", "deep/b.fa.xz", "deep/down/a.fq"]


def test_expand_files_refuses_what_gives_no_file(write, tmp_path):
    write("notes.md", b"x")
    for pattern in ("absent.fa", "*.fa", "", "notes.md"):
        with pytest.raises(SequenceFileError, match=r"no such file|no folder or glob|unknown ending"):
            expand_files([str(tmp_path / pattern)])


def test_file_sha256_is_that_of_the_bytes_on_disk(write):
    content = gzip.compress(FASTA)
    assert file_sha256(write("a.fa.gz", content)) == hashlib.sha256(content).hexdigest()


def test_too_many_open_files_are_not_taken_for_a_damaged_one(tmp_path, monkeypatch):
    path = tmp_path / "a.fa"
    path.write_text(">a\nACGT\n")
    monkeypatch.setattr("dnabert2.sequences.BufferedReader", lambda archive: (_ for _ in ()).throw(OSError(24, "x")))
    with pytest.raises(SequenceFileError, match=r"a\.fa: too many open files; raise the limit with `ulimit -n`"):
        list(read_records(path))

"""Reading columns: what CSV, TSV and Parquet files hold is read as it stands, and what is missing or wrong named.

pytest tests/test_tables.py
"""

import bz2
import csv
import gzip
import io
import lzma

import datasets
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import zstandard
from hypothesis import given, settings
from hypothesis import strategies as st

from dnabert2.errors import UsageError
from dnabert2.sequences import Record, read_records


COMPRESSORS = {
    "": bytes,
    ".gz": gzip.compress,
    ".xz": lzma.compress,
    ".bz2": bz2.compress,
    ".zst": lambda content: zstandard.ZstdCompressor(write_checksum=True).compress(content),
}


@pytest.fixture
def read(tmp_path):
    """A function that gives the records of a file of this content: bytes, or columns of a Parquet file."""

    def read_file(content, name="a.csv", **columns):
        path = tmp_path / name
        if isinstance(content, dict):
            pq.write_table(pa.table(content), path)
        else:
            path.write_bytes(content)
        return list(read_records(path, **columns))

    return read_file


@pytest.fixture
def refusal(read, tmp_path):
    """A function that gives the message with which a file is refused, which names the file."""

    def message(content, name="a.csv", **columns):
        with pytest.raises(UsageError) as error:
            read(content, name, **columns)
        assert str(error.value).startswith(f"{tmp_path / name}: ") and "\n" not in str(error.value)
        return str(error.value)

    return message


@pytest.mark.parametrize("compression", COMPRESSORS)
def test_csv_and_tsv_are_read_from_every_compression(read, compression):
    for name, separator in (("a.csv", b","), ("a.tsv", b"\t")):
        content = b"kind|sequence|n\nfungi|acgu|1\nplants|GG|2\n".replace(b"|", separator)
        records = read(COMPRESSORS[compression](content), name + compression, species_column="kind")
        assert records == [Record("1", "ACGT", "fungi"), Record("2", "GG", "plants")]


def test_parquet_is_read(read):
    columns = {"n": [1, 2, 3], "dna": ["acgu", "", None], "kind": ["fungi", "a", "b"]}
    assert read(columns, "a.parquet", sequence_column="dna") == [Record("1", "ACGT")]
    assert read(columns, "a.parquet", sequence_column="dna", species_column="kind") == [Record("1", "ACGT", "fungi")]
    dictionary = {"sequence": pa.array(["AC", "GT"]).dictionary_encode()}
    assert read(dictionary, "a.parquet") == [Record("1", "AC"), Record("2", "GT")]


def test_csv_of_other_programs_is_read(read):
    content = b'\xef\xbb\xbf"sequence","a ""kind"""\r\n"ACGT\r\nAC"," fungi, yeasts "\r\n\r\nGG,562\r\n'
    records = read(content, species_column='a "kind"')
    assert records == [Record("1", "ACGTAC", "fungi, yeasts"), Record("2", "GG", "562")]


@pytest.mark.parametrize("value", ["NA", "NAN", "nan", "NaN", "N", "na"])
def test_letters_that_pandas_takes_for_no_value_are_read(read, value):
    content = f"sequence,kind\n{value},None\nACGT,null\n".encode()
    assert read(content, species_column="kind")[0] == Record("1", value.upper(), "None")


def test_a_number_is_text_in_csv_and_refused_in_parquet(read, refusal):
    assert read(b"sequence,kind\nAC,1e3\nAC,007\n", species_column="kind")[1].species == "007"
    assert "record 1 (1), position 1: '1' is not a nucleotide" in refusal(b"sequence\n12\n")
    assert "record 2: column 'n' holds 1.5 (float), not text" in refusal(
        {"n": [None, 1.5]}, "a.parquet", sequence_column="n"
    )
    assert "(bytes), not text" in refusal({"sequence": [b"ACGT"]}, "a.parquet")


def test_columns_that_are_missing_or_twice_are_refused_with_those_there(refusal):
    for content, name in ((b"dna,kind\nAC,x\n", "a.csv"), ({"dna": ["AC"], "kind": ["x"]}, "a.parquet")):
        message = refusal(content, name)
        assert "no columns are named 'sequence', of 2: 'dna', 'kind'" in message and "--sequence_column" in message
        assert "--species_column" in refusal(content, name, sequence_column="dna", species_column="species")
    assert "of 1: 'sequence;kind'" in refusal(b"sequence;kind\nAC;x\n")
    assert "2 columns are named 'sequence'" in refusal(b"sequence,sequence\nAC,GT\n")
    assert len(refusal(b"ACGT" * 10_000 + b"\nGG\n")) < 300


def test_rows_of_the_wrong_length_are_not_shifted(read, refusal):
    for content in (b"sequence,kind\nAC,x,y\n", b"sequence,kind\nAC,x\nAC,x,y\n", b"sequence,kind\nAC,x,\nGT,y,\n"):
        assert "Expected 2 fields in line" in refusal(content)
    assert read(b"sequence,kind\nAC\nGT,y\n") == [Record("1", "AC"), Record("2", "GT")]
    assert "record 1: no value in column 'kind'" in refusal(b"sequence,kind\nAC\nGT,y\n", species_column="kind")
    assert read(b"sequence,sequence2,sequence2\nAC,x,y\n") == [Record("1", "AC")]


def test_a_species_that_is_missing_is_refused_with_its_record(refusal):
    for species in (["x", None], ["x", ""], ["x", "  "]):
        message = refusal({"sequence": ["AC", "GT"], "kind": species}, "a.parquet", species_column="kind")
        assert "record 2: no value in column 'kind'" in message


def test_empty_sequences_are_counted(read, caplog):
    read(b"sequence,kind\n,x\nAC,y\n")
    assert "left out 1 of 2 records: they are empty" in caplog.text


def test_tables_without_records_are_refused(refusal):
    assert "no records in it" in refusal(b"sequence,kind\n")
    assert "no records in it" in refusal({"sequence": pa.array([], pa.string())}, "a.parquet")
    assert "all 2 records are empty" in refusal({"sequence": [None, ""]}, "a.parquet")
    assert "only blank lines" in refusal(b"\n\n")


def test_broken_tables_are_refused_by_name(read, refusal, tmp_path):
    assert "EOF inside string" in refusal(b'sequence,kind\n"AC,x\n')
    assert "not a text file (byte 0xff" in refusal("sequence\nAC\n".encode("utf-16"))
    read({"sequence": ["ACGT" * 100] * 50}, "whole.parquet")
    whole = (tmp_path / "whole.parquet").read_bytes()
    for length in (len(whole) - 1, len(whole) // 2, 10):
        assert "truncated or corrupt" in refusal(whole[:length], "a.parquet")
    assert "opens with 'PAR1'" in refusal(b"sequence\nAC\n", "a.parquet")
    assert "unknown ending" in refusal(gzip.compress(whole), "a.parquet.gz")


def test_many_rows_are_read_in_order(read):
    sequences = ["ACGT"[index % 4] * (index % 7 + 1) for index in range(2500)]
    table = "\n".join(["sequence", *sequences]).encode()
    for records in (read(table), read({"sequence": sequences}, "a.parquet")):
        assert [record.sequence for record in records] == sequences
        assert records[-1].id == "2500"


WILD = st.text(st.characters(exclude_categories=["Cs"]), min_size=1, max_size=12).filter(str.strip)


@settings(max_examples=40, deadline=None)
@given(
    rows=st.lists(st.tuples(st.text("ACGTN", min_size=1, max_size=12), WILD), min_size=1, max_size=6),
    sequence_column=WILD,
    species_column=WILD,
)
def test_whatever_csv_is_written_is_read(tmp_path_factory, rows, sequence_column, species_column):
    text = io.StringIO()
    writer = csv.writer(text, quoting=csv.QUOTE_ALL)
    names = [f"s{sequence_column}", f"k{species_column}"]  # no number: a header's, "1.0" say, is read as one
    writer.writerows([names, *rows])
    path = tmp_path_factory.mktemp("wild") / "a.csv"
    path.write_bytes(text.getvalue().encode())
    records = [(record.sequence, record.species) for record in read_records(path, *names)]
    assert records == [(sequence, species.strip()) for sequence, species in rows]


def test_no_file_is_told_to_the_hub(read, monkeypatch):
    asked = []
    monkeypatch.setattr(datasets.config, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(datasets.load, "get_session", lambda: asked.append("the Hub"))
    assert [record.sequence for record in read(b"sequence\nACGT\n")] == ["ACGT"]
    assert not asked

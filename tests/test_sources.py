"""Sources: names, contents and sizes of files, URLs and datasets; their records in other processes; what is refused.

pytest tests/test_sources.py
"""

import gzip
import json
import os
import pickle
import subprocess
import sys
import threading
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch

from dnabert2.errors import UsageError
from dnabert2.sequences import Record, expand_files, file_sha256, read_records
from dnabert2.sources import dataset_sources, file_sources


ROOT = Path(__file__).resolve().parent.parent
FASTA = b">a\nACGT\n>b\nGGCC\n"
FASTA_RECORDS = [Record("a", "ACGT"), Record("b", "GGCC")]
README = (
    "---\nconfigs:\n- config_name: small\n  data_files: small/*.parquet\n- config_name: all\n  data_files: a/*\n---\n"
)


FOLDER_RECORDS = [("ACGT", "bacteria"), ("GG", "fungi"), ("ACGTACGT", "bacteria")]
FOLDER_RECORDS += [("GG", "fungi"), ("ACGTACGTACGT", "bacteria"), ("GG", "fungi")]


class Quiet(SimpleHTTPRequestHandler):
    """A file server that logs nothing."""

    def log_message(self, *args):
        pass


@pytest.fixture
def site(tmp_path):
    """The address of a server of `tmp_path`/site, with FASTA as plants/a.fa and plants/a.fa.gz."""
    folder = tmp_path / "site"
    (folder / "plants").mkdir(parents=True)
    (folder / "plants/a.fa").write_bytes(FASTA)
    (folder / "plants/a.fa.gz").write_bytes(gzip.compress(FASTA))
    with ThreadingHTTPServer(("127.0.0.1", 0), partial(Quiet, directory=folder)) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_port}"
        server.shutdown()


@pytest.fixture
def folder(tmp_path):
    """A dataset of a local folder: three train files of two records each, and a test file."""
    folder = tmp_path / "genomes"
    folder.mkdir()
    for index in range(3):
        table = {"dna": ["ACGT" * (index + 1), "GG"], "kind": ["bacteria", "fungi"], "n": [1, 2], "none": ["x", None]}
        pq.write_table(pa.table(table), folder / f"train-0000{index}-of-00003.parquet")
    pq.write_table(pa.table({"dna": ["AA"], "kind": ["fungi"], "n": [1], "none": ["x"]}), folder / "test.parquet")
    return folder


class RecordsOf(torch.utils.data.Dataset):
    """The records of each source."""

    def __init__(self, sources):
        self.sources = sources

    def __len__(self):
        return len(self.sources)

    def __getitem__(self, index):
        return list(self.sources[index].records())


def refusal(function, *args, **options):
    """The message of a UsageError, which is of one line."""
    with pytest.raises(UsageError) as error:
        function(*args, **options)
    assert "\n" not in str(error.value)
    return str(error.value)


def pairs(sources):
    return [(record.sequence, record.species) for source in sources for record in source.records()]


def test_a_file_source_is_named_by_its_folder_and_stem(tmp_path, monkeypatch):
    for name in ("bacteria/e_coli.MG1655.fna.gz", "copy/bacteria/e_coli.MG1655.fna.gz", "x.CSV"):
        path = tmp_path / "k" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(b"x")
    monkeypatch.chdir(tmp_path / "k")
    names = [source.name for source in file_sources(["x.CSV", "bacteria", "copy"])]
    assert names == ["k/x", "bacteria/e_coli.MG1655", "bacteria/e_coli.MG1655"]
    urls = ["https://host/a/plants/b%20c.fa.xz?token=1.2", "hf://datasets/user/genomes/rice.parquet"]
    assert [source.name for source in file_sources(urls)] == ["plants/b c", "genomes/rice"]


def test_file_sources_give_records_key_and_size(tmp_path):
    for name in ("a.fa", "b.fa"):
        (tmp_path / name).write_bytes(FASTA)
    a, b = pickle.loads(pickle.dumps(file_sources([str(tmp_path)])))
    assert list(a.records()) == list(a.records()) == FASTA_RECORDS
    assert a.content_key() == b.content_key() == file_sha256(tmp_path / "a.fa")
    assert a.num_bytes() == len(FASTA)


def test_the_columns_are_part_of_a_tables_key_alone(tmp_path):
    (tmp_path / "a.csv").write_text("sequence,dna,kind\nAC,GT,fungi\n")
    (tmp_path / "a.fa").write_bytes(FASTA)
    table = [file_sources([tmp_path / "a.csv"], *columns)[0] for columns in ((), ("dna",), ("dna", "kind"))]
    assert len({source.content_key() for source in table}) == 3
    assert pairs(table) == [("AC", None), ("GT", None), ("GT", "fungi")]
    assert len({file_sources([tmp_path / "a.fa"], column)[0].content_key() for column in ("sequence", "dna")}) == 1


def test_a_species_column_of_a_file_without_columns_is_refused_at_once(tmp_path):
    (tmp_path / "a.csv").write_text("sequence,kind\nAC,fungi\n")
    (tmp_path / "b.fa").write_bytes(FASTA)
    message = refusal(file_sources, [str(tmp_path)], species_column="kind")
    assert "b.fa: a fasta file has no columns" in message and "--species_column" in message


@pytest.mark.parametrize("name", ["a.fa", "a.fa.gz", "a.fa.gz?version=1.2"])
def test_a_url_is_read_like_its_file(site, name):
    (source,) = file_sources([f"{site}/plants/{name}"])
    assert source.name == "plants/a"
    assert list(pickle.loads(pickle.dumps(source)).records()) == FASTA_RECORDS
    assert source.num_bytes() == len(gzip.compress(FASTA) if "gz" in name else FASTA)
    other = file_sources([f"{site}/plants/a.fa?another"])[0]
    assert source.content_key() == source.content_key() != other.content_key()


def test_tables_are_read_from_urls(site, tmp_path):
    (tmp_path / "site/t.csv.gz").write_bytes(gzip.compress(b"sequence,kind\nNA,fungi\n"))
    pq.write_table(pa.table({"sequence": ["AC"], "kind": ["fungi"]}), tmp_path / "site/t.parquet")
    sources = file_sources([f"{site}/t.csv.gz", f"{site}/t.parquet"], species_column="kind")
    assert pairs(sources) == [("NA", "fungi"), ("AC", "fungi")]


def test_worker_processes_read_every_record_of_urls_and_shards(site, folder):
    sources = file_sources([f"{site}/plants/a.fa", f"{site}/plants/a.fa.gz"])
    sources += dataset_sources(str(folder), sequence_column="dna", streaming=True)
    here = [list(source.records()) for source in sources]  # this starts the threads of fsspec before the fork
    loader = torch.utils.data.DataLoader(
        RecordsOf(sources), batch_size=None, num_workers=2, multiprocessing_context="fork"
    )
    assert list(loader) == here


def test_expand_files_passes_urls_through_in_their_place(tmp_path):
    path = tmp_path / "a.fa"
    path.write_bytes(FASTA)
    urls = ["https://host/x.fa.gz?a=1", "s3://bucket/y.parquet"]
    assert expand_files([urls[0], str(path), urls[1], urls[0]]) == [urls[0], path, urls[1]]
    for url, wrong in (("https://host/x.faa", "unknown ending"), ("hf://datasets/u/r/*.fa", "one by one")):
        assert wrong in refusal(expand_files, [url])


def test_urls_that_do_not_answer_are_refused_by_name(site, tmp_path):
    (tmp_path / "site/text.fa").write_bytes(b"ACGT\n")
    (tmp_path / "site/cut.fa.gz").write_bytes(gzip.compress(FASTA * 1000)[:-40])
    for url, why in {
        f"{site}/absent.fa": "404",
        f"{site}/absent.parquet": "404",
        "http://127.0.0.1:9/a.fa": "Cannot connect",
        f"{site}/text.fa": "line 1 is 'ACGT'",
        f"{site}/cut.fa.gz": "cannot be read",
        "unheard://of/a.fa": "unheard",
    }.items():
        message = refusal(list, read_records(url))
        assert message.startswith(url) and why in message
    assert "Cannot connect" in refusal(file_sources(["http://127.0.0.1:9/a.fa"])[0].num_bytes)


@pytest.mark.parametrize("streaming", [False, True])
def test_a_dataset_gives_its_records(folder, streaming):
    sources = dataset_sources(str(folder), None, "train", "dna", "kind", streaming)
    sources = pickle.loads(pickle.dumps(sources))
    assert pairs(sources) == pairs(sources) == FOLDER_RECORDS
    assert [source.name.removeprefix(str(folder)) for source in sources] == (
        [f"/train-0000{index}-of-00003" for index in range(3)] if streaming else ["/train"]
    )
    assert [record.id for record in sources[0].records()] == [str(n + 1) for n in range(2 if streaming else 6)]
    assert all(source.num_bytes() > 0 for source in sources)
    assert pairs(dataset_sources(str(folder), split="test", sequence_column="dna", streaming=streaming)) == [
        ("AA", None)
    ]


def test_a_large_dataset_is_in_parts_that_together_are_the_whole(folder, monkeypatch):
    load = partial(dataset_sources, str(folder), sequence_column="dna", species_column="kind")
    whole = load()
    monkeypatch.setattr("dnabert2.sources.PART_BYTES", whole[0].num_bytes() // 3)
    parts = load()
    assert len(parts) > 2 and pairs(parts) == pairs(whole)
    assert len({part.content_key() for part in parts} | {whole[0].content_key()}) == len(parts) + 1
    assert {part.name for part in parts} == {whole[0].name}  # without a species column, one species


def test_a_streamed_shard_has_the_size_of_its_file(folder):
    sizes = [source.num_bytes() for source in dataset_sources(str(folder), sequence_column="dna", streaming=True)]
    assert sizes == [path.stat().st_size for path in sorted(folder.glob("train*"))]


@pytest.mark.parametrize("streaming", [False, True])
def test_another_process_names_a_datasets_content_alike(folder, streaming, tmp_path):
    program = (
        "import sys, json; from dnabert2.sources import dataset_sources\n"
        f"sources = dataset_sources({str(folder)!r}, sequence_column='dna', streaming={streaming})\n"
        "print(json.dumps([source.content_key() for source in sources]))"
    )
    environment = {**os.environ, "HF_HOME": str(tmp_path / "home"), "PYTHONPATH": str(ROOT)}
    run = subprocess.run([sys.executable, "-c", program], env=environment, capture_output=True, text=True, check=True)
    sources = dataset_sources(str(folder), sequence_column="dna", streaming=streaming)
    keys = [source.content_key() for source in sources]
    assert json.loads(run.stdout) == keys and len(set(keys)) == len(keys)
    assert dataset_sources(str(folder), sequence_column="kind", streaming=streaming)[0].content_key() not in keys
    (folder / "train-00002-of-00003.parquet").unlink()
    changed = dataset_sources(str(folder), sequence_column="dna", streaming=streaming)
    assert not {source.content_key() for source in changed} & set(keys)


@pytest.mark.parametrize("streaming", [False, True])
def test_a_dataset_of_csv_files_is_read(tmp_path, streaming):
    (tmp_path / "train.csv").write_text("sequence,kind\nACGT,fungi\nNA,fungi\n")  # NA: two bases, no missing value
    load = partial(dataset_sources, str(tmp_path), streaming=streaming)
    assert pairs(load(species_column="kind")) == [("ACGT", "fungi"), ("NA", "fungi")]
    assert "no columns are named 'dna', of 2: 'sequence', 'kind'" in refusal(load, sequence_column="dna")


@pytest.mark.parametrize("streaming", [False, True])
def test_wrong_rows_of_a_dataset_are_refused_with_their_number(folder, streaming):
    def read(*columns):
        return refusal(lambda: pairs(dataset_sources(str(folder), None, "train", *columns, streaming=streaming)))

    assert "column 'n' holds 1 (int), not text" in read("n")
    assert "record 2: no value in column 'none'" in read("dna", "none")
    message = read("kind")
    assert message.startswith(f"{folder}/train") and "record 1 (1), position 5: 'e' is not a nucleotide" in message


@pytest.mark.parametrize("streaming", [False, True])
def test_a_dataset_that_is_not_there_is_refused_with_the_choices(folder, tmp_path, streaming):
    configured = tmp_path / "configured"
    for name in ("small", "a"):
        (configured / name).mkdir(parents=True)
        pq.write_table(pa.table({"sequence": ["ACGT"]}), configured / name / "x.parquet")
    (configured / "README.md").write_text(README)
    (tmp_path / "broken").mkdir()
    (tmp_path / "broken/train.parquet").write_bytes(b"PAR1 no more")
    load = partial(dataset_sources, streaming=streaming)
    assert "['train', 'test']" in refusal(load, str(folder), split="valid", sequence_column="dna")
    assert "['small', 'all']" in refusal(load, str(configured))
    assert "['small', 'all']" in refusal(load, str(configured), "large")
    assert pairs(load(str(configured), "small")) == [("ACGT", None)]
    assert "arquet" in refusal(load, str(tmp_path / "broken"))
    assert "user/absent" in refusal(load, "user/absent")  # offline, as all tests are
    assert "is a file" in refusal(load, str(folder / "test.parquet"))
    for name in ("", str(tmp_path / "absent"), "user/absent"):
        assert f"--dataset_name {name}:" in refusal(load, name)

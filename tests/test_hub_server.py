"""The test Hub, read by the real clients: huggingface_hub, datasets and transformers in processes of their own.

A process is this file run as a script: it prints what it saw as JSON. What no client shows is asked for in plain HTTP.
"""

import gzip
import hashlib
import http.client
import io
import json
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from hub_server import ROUTES, HubServer


ROOT = Path(__file__).resolve().parent.parent
SEQUENCE = "ACGTTGCATGCCATGA"
BINARY = bytes(range(256)) * 4


# --- in the fresh process ----------------------------------------------------------------------------------------


def name_of_error(function, *args, **options) -> str | None:
    """The class of what `function` raises."""
    try:
        function(*args, **options)
    except Exception as error:
        return type(error).__name__


def report_of_datasets() -> dict:
    import datasets

    def load(*args, **options):
        return list(datasets.load_dataset(*args, split="train", **options).select_columns("sequence"))

    # first: with the data in the cache, datasets makes do with that
    errors = {
        "anonymous": name_of_error(load, "user/secret"),
        "a stranger": name_of_error(load, "user/secret", token="hf_stranger"),
        "missing": name_of_error(load, "user/missing"),
        "no such revision": name_of_error(load, "user/genomes", revision="v0"),
    }

    read = {name: load(f"user/{name}") for name in ("genomes", "parquet", "gzipped", "fasta")}
    streamed = {name: load(f"user/{name}", streaming=True) for name in read}
    configurations = {name: load("user/two", name) for name in datasets.get_dataset_config_names("user/two")}
    return {
        "read": read,
        "streamed": streamed,
        "one file": load("user/genomes", data_files="human.csv"),
        "configurations": configurations,
        "splits": datasets.get_dataset_split_names("user/parquet"),
        "fasta columns": datasets.load_dataset("user/fasta", split="train").column_names,
        "branch": load("user/genomes", revision="v1"),
        "private": load("user/secret", token="hf_user"),
        "errors": errors,
    }


def report_of_models(private_sha: str) -> dict:
    """Run with the token of `user`."""
    import huggingface_hub
    import transformers
    from huggingface_hub import HfApi, HfFileSystem, hf_hub_download
    from huggingface_hub.utils import get_session

    api, files = HfApi(), HfFileSystem()
    # first: with a file in the cache, a refused download makes do with that
    errors = {
        "anonymous": name_of_error(api.model_info, "user/secret", token=False),
        "anonymous download": name_of_error(hf_hub_download, "user/secret", "weights.bin", token=False),
        "a stranger": name_of_error(api.model_info, "user/secret", token="hf_stranger"),
        "not a token": name_of_error(api.model_info, "user/tokenizer", token="letmein"),
        "missing": name_of_error(api.model_info, "user/missing"),
        "another kind": name_of_error(api.dataset_info, "user/tokenizer"),
        "revision": name_of_error(api.model_info, "user/tokenizer", revision="v0"),
        "file": name_of_error(hf_hub_download, "user/tokenizer", "none"),
        "folder": name_of_error(list, api.list_repo_tree("user/tokenizer", "none")),
        "file by path": name_of_error(files.read_text, "hf://datasets/user/fasta/none.fa"),
        "no transformers' file": name_of_error(transformers.AutoTokenizer.from_pretrained, "user/missing"),
    }

    info = api.model_info("user/secret", files_metadata=True)
    text, binary = (Path(hf_hub_download("user/secret", name)) for name in ("deep/er/hello.txt", "weights.bin"))
    with files.open("hf://datasets/user/fasta/genome.fa", "rb", block_size=4) as file:
        file.seek(3)
        middle = file.read(5).decode()
    snapshot = Path(huggingface_hub.snapshot_download("user/secret", revision=private_sha))
    tree = api.list_repo_tree("user/secret", recursive=True, expand=True)
    return {
        "info": [info.id, info.sha, info.private, info.tags, info.card_data.license],
        "siblings": {
            file.rfilename: [file.size, file.blob_id, file.lfs and file.lfs.sha256] for file in info.siblings
        },
        "expanded": api.model_info("user/secret", expand=["sha"]).siblings,
        "text": text.read_text(),
        "binary": binary.read_bytes() == BINARY,
        "cached as": [text.resolve().name, binary.resolve().name],
        "snapshot": [snapshot.name, sorted(path.name for path in snapshot.iterdir())],
        "tree": {entry.path: [type(entry).__name__, entry.last_commit.title] for entry in tree},
        "top": sorted(entry.path for entry in api.list_repo_tree("user/secret")),
        "below": [entry.path for entry in api.list_repo_tree("user/secret", "deep/er")],
        "paths": [entry.path for entry in api.get_paths_info("user/secret", ["deep", "weights.bin", "none"])],
        "exists": [api.file_exists("user/secret", name) for name in ("weights.bin", "none")],
        "fasta": files.read_text("hf://datasets/user/fasta/genome.fa"),
        "middle": middle,
        "found": files.glob("hf://datasets/user/genomes/**/*.csv"),
        "ids": transformers.AutoTokenizer.from_pretrained("user/tokenizer")(SEQUENCE)["input_ids"],
        "errors": errors,
        "beyond": get_session().get("http://example.org/").json(),
        "beyond, https": name_of_error(get_session().get, "https://example.org/"),
    }


# --- in the test process -----------------------------------------------------------------------------------------


def csv(*sequences: str) -> bytes:
    return "\n".join(["sequence", *sequences, ""]).encode()


def parquet(*sequences: str) -> bytes:
    import pyarrow
    import pyarrow.parquet

    file = io.BytesIO()
    pyarrow.parquet.write_table(pyarrow.table({"sequence": list(sequences)}), file)
    return file.getvalue()


TWO_CONFIGURATIONS = b"""---
configs:
- config_name: human
  data_files: human.csv
- config_name: mouse
  data_files: deep/mouse.csv
---
# Two genomes
"""


@pytest.fixture(scope="module")
def hub():
    with HubServer() as hub:
        genomes = hub.add_repo("dataset", "user/genomes", {"human.csv": csv("OLD")})
        genomes.commit({}, branch="v1")
        genomes.commit({"human.csv": csv("ACGT", "GG"), "mouse.csv": csv("TT")})
        two = {"README.md": TWO_CONFIGURATIONS, "human.csv": csv("ACGT"), "deep/mouse.csv": csv("TT")}
        hub.add_repo("dataset", "user/two", two)
        both = {"data/train-00000-of-00001.parquet": parquet("ACGT"), "data/test-00000-of-00001.parquet": parquet("T")}
        hub.add_repo("dataset", "user/parquet", both)
        hub.add_repo("dataset", "user/gzipped", {"train.csv.gz": gzip.compress(csv("ACGT", "GG"))})
        hub.add_repo("dataset", "user/fasta", {"genome.fa": b">a first\nACGT\nAC\n>b\nGG\n"})
        hub.add_repo("dataset", "user/secret", {"train.csv": csv("CCC")}, private=True)
        card = b"---\nlicense: mit\ntags: [dna]\n---\n"
        files = {"README.md": card, "deep/er/hello.txt": b"hello\n", "weights.bin": BINARY}
        hub.add_repo("model", "user/secret", files, private=True)
        hub.add_repo("model", "user/tokenizer", ROOT / "bpe_tokenizer")
        yield hub


def run_fresh_process(environment: dict[str, str], *arguments: str) -> dict:
    process = subprocess.run(
        [sys.executable, __file__, *arguments], env=environment, capture_output=True, text=True, timeout=120
    )
    assert process.returncode == 0, process.stderr
    return json.loads(process.stdout.splitlines()[-1])


@pytest.fixture(scope="module")
def reports(hub, tmp_path_factory) -> dict[str, dict]:
    homes = [tmp_path_factory.mktemp("home") for _ in range(2)]
    private_sha = hub.repositories["model", "user/secret"].at("main").sha
    with ThreadPoolExecutor() as executor:
        of_datasets = executor.submit(run_fresh_process, hub.environment(homes[0]), "datasets")
        of_models = executor.submit(run_fresh_process, hub.environment(homes[1], user="user"), "models", private_sha)
        return {"datasets": of_datasets.result(), "models": of_models.result()}


def rows(*sequences: str) -> list[dict]:
    return [{"sequence": sequence} for sequence in sequences]


class TestDatasets:
    @pytest.fixture
    def report(self, reports):
        return reports["datasets"]

    @pytest.mark.parametrize("way", ["read", "streamed"])
    def test_of_csv_parquet_gzip_and_fasta_arrive_whole(self, report, way):
        assert report[way] == {
            "genomes": rows("ACGT", "GG", "TT"),
            "parquet": rows("ACGT"),
            "gzipped": rows("ACGT", "GG"),
            "fasta": rows("ACGTAC", "GG"),
        }

    def test_of_fasta_has_these_columns(self, report):
        # "record" needs biopython when a row is decoded: select the others
        assert report["fasta columns"] == ["id", "description", "sequence", "record"]

    def test_by_file_configuration_split_and_revision(self, report):
        assert report["one file"] == rows("ACGT", "GG")
        assert report["configurations"] == {"human": rows("ACGT"), "mouse": rows("TT")}
        assert report["splits"] == ["train", "test"]
        assert report["branch"] == rows("OLD")

    def test_that_are_private_need_the_token_of_their_owner(self, report):
        assert report["private"] == rows("CCC")
        assert report["errors"]["anonymous"] == report["errors"]["a stranger"] == "DatasetNotFoundError"

    def test_that_are_not_there_are_not_found(self, report):
        assert report["errors"]["missing"] == report["errors"]["no such revision"] == "DatasetNotFoundError"


class TestModels:
    @pytest.fixture
    def report(self, reports):
        return reports["models"]

    def test_info_has_the_commit_the_card_and_the_files(self, hub, report):
        sha = hub.repositories["model", "user/secret"].at("main").sha
        assert report["info"] == ["user/secret", sha, True, ["dna"], "mit"]
        assert report["siblings"].keys() == {"README.md", "deep/er/hello.txt", "weights.bin"}
        assert report["siblings"]["deep/er/hello.txt"] == [
            6,
            "ce013625030ba8dba906f756967f9e9ca394464a",
            None,
        ]  # git's
        assert report["siblings"]["weights.bin"][::2] == [1024, hashlib.sha256(BINARY).hexdigest()]
        assert report["expanded"] is None

    def test_files_are_downloaded_and_cached_by_their_hashes(self, hub, report):
        assert report["text"] == "hello\n" and report["binary"]
        assert report["cached as"] == ["ce013625030ba8dba906f756967f9e9ca394464a", hashlib.sha256(BINARY).hexdigest()]
        sha = hub.repositories["model", "user/secret"].at("main").sha
        assert report["snapshot"] == [sha, ["README.md", "deep", "weights.bin"]]
        assert report["exists"] == [True, False]

    def test_listings_know_files_and_folders(self, report):
        expected = {"README.md": "RepoFile", "deep": "RepoFolder", "deep/er": "RepoFolder"}
        expected |= {"deep/er/hello.txt": "RepoFile", "weights.bin": "RepoFile"}
        assert report["tree"] == {path: [kind, "initial commit"] for path, kind in expected.items()}
        assert report["top"] == ["README.md", "deep", "weights.bin"]
        assert report["below"] == ["deep/er/hello.txt"]
        assert report["paths"] == ["deep", "weights.bin"]

    def test_the_file_system_reads_globs_and_seeks(self, report):
        assert report["fasta"] == ">a first\nACGT\nAC\n>b\nGG\n"
        assert report["middle"] == "first"
        assert report["found"] == ["datasets/user/genomes/human.csv", "datasets/user/genomes/mouse.csv"]

    def test_a_tokenizer_is_that_of_the_folder(self, report):
        from transformers import AutoTokenizer

        assert report["ids"] == AutoTokenizer.from_pretrained(ROOT / "bpe_tokenizer")(SEQUENCE)["input_ids"]

    def test_errors_are_the_clients_own(self, report):
        assert report["errors"] == {
            "anonymous": "RepositoryNotFoundError",
            "anonymous download": "RepositoryNotFoundError",
            "a stranger": "RepositoryNotFoundError",
            "not a token": "HfHubHTTPError",
            "missing": "RepositoryNotFoundError",
            "another kind": "RepositoryNotFoundError",
            "revision": "RevisionNotFoundError",
            "file": "RemoteEntryNotFoundError",
            "folder": "RemoteEntryNotFoundError",
            "file by path": "FileNotFoundError",
            "no transformers' file": "OSError",
        }

    def test_no_other_host_is_reached(self, report):
        assert report["beyond"] == {"error": "There is no network beyond this Hub"}
        assert report["beyond, https"] == "ProxyError"


class TestPlainHttp:
    @pytest.fixture
    def ask(self, hub):
        connection = http.client.HTTPConnection(hub.url.removeprefix("http://"), timeout=10)

        def ask(method: str, path: str, **headers: str):
            connection.request(method, path, headers={name.replace("_", "-"): text for name, text in headers.items()})
            response = connection.getresponse()
            return response.status, response.headers, response.read()

        yield ask
        connection.close()

    OWNER = {"Authorization": "Bearer hf_user"}
    WEIGHTS = "/user/secret/resolve/main/weights.bin"

    @pytest.mark.parametrize(
        "asked, given, content",
        [
            ("bytes=0-3", "bytes 0-3/1024", BINARY[:4]),
            ("bytes=1000-", "bytes 1000-1023/1024", BINARY[1000:]),
            ("bytes=1000-9999", "bytes 1000-1023/1024", BINARY[1000:]),
            ("bytes=-24", "bytes 1000-1023/1024", BINARY[1000:]),
        ],
    )
    def test_a_range_is_answered_alone(self, ask, asked, given, content):
        status, headers, body = ask("GET", self.WEIGHTS, Range=asked, **self.OWNER)
        assert (status, headers["Content-Range"], body) == (206, given, content)

    def test_a_range_beyond_the_end_is_refused(self, ask):
        status, headers, body = ask("GET", self.WEIGHTS, Range="bytes=1024-", **self.OWNER)
        assert (status, headers["Content-Range"], body) == (416, "bytes */1024", b"")

    def test_head_tells_the_commit_and_both_hashes_of_a_large_file(self, ask, hub):
        status, headers, body = ask("HEAD", self.WEIGHTS, **self.OWNER)
        assert (status, body, headers["Content-Length"]) == (200, b"", "1024")
        assert headers["X-Repo-Commit"] == hub.repositories["model", "user/secret"].at("main").sha
        assert headers["X-Linked-Etag"] == f'"{hashlib.sha256(BINARY).hexdigest()}"'
        assert headers["X-Linked-Size"] == "1024"
        assert headers["ETag"] not in (None, headers["X-Linked-Etag"])

    def test_a_missing_file_tells_the_commit(self, ask, hub):
        status, headers, _ = ask("HEAD", "/datasets/user/fasta/resolve/main/none")
        assert (status, headers["X-Error-Code"]) == (404, "EntryNotFound")
        assert headers["X-Repo-Commit"] == hub.repositories["dataset", "user/fasta"].at("main").sha

    def test_what_one_may_not_see_is_not_found(self, ask):
        for path in ("/api/models/user/secret", "/api/models/user/missing", "/api/models/missing"):
            assert ask("GET", path)[0] == 401
            assert ask("GET", path, Authorization="Bearer hf_stranger")[0] == 404

    def test_quoted_names_are_names(self, ask, hub):
        hub.add_repo("model", "user/odd", {"a b/c+d.txt": b"x"}).commit({}, branch="refs/pr/1")
        assert ask("GET", "/user/odd/resolve/refs%2Fpr%2F1/a%20b/c%2Bd.txt")[2] == b"x"
        assert json.loads(ask("GET", "/api/models/user/odd/tree/main/a%20b")[2])[0]["path"] == "a b/c+d.txt"


def test_commits_write_and_delete_on_one_branch():
    with HubServer() as hub:
        repository = hub.add_repo("model", "user/model", {"a": b"1", "b": b"2"})
        first = repository.at("main").sha
        second = repository.commit({"a": None, "c": b"3"}, branch="other")
        assert repository.files() == repository.files(first) == {"a": b"1", "b": b"2"}
        assert repository.files("other") == repository.files(second) == {"b": b"2", "c": b"3"}


def test_a_fault_of_the_server_fails_the_test(monkeypatch):
    monkeypatch.setitem(ROUTES, "GET /fault", lambda request: 1 / 0)
    with pytest.raises(ZeroDivisionError), HubServer() as hub:
        connection = http.client.HTTPConnection(hub.url.removeprefix("http://"), timeout=10)
        connection.request("GET", "/fault")
        assert connection.getresponse().status == 400
        assert hub.requests == ["400 GET /fault"]


def test_the_environment_has_nothing_of_another_hub(tmp_path, monkeypatch):
    others = {"HF_TOKEN", "HF_HUB_OFFLINE", "HUGGING_FACE_HUB_TOKEN", "TRANSFORMERS_OFFLINE", "https_proxy"}
    for name in others:
        monkeypatch.setenv(name, "1")
    with HubServer() as hub:
        assert not others & hub.environment(tmp_path).keys()
        assert hub.environment(tmp_path, user="user")["HF_TOKEN"] == "hf_user"


if __name__ == "__main__":
    kind, *arguments = sys.argv[1:]
    print(json.dumps({"datasets": report_of_datasets, "models": report_of_models}[kind](*arguments)))

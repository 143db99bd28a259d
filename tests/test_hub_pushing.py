"""The test Hub, pushed to by the real huggingface_hub, and what was pushed read by it and transformers.

One process pushes and then another, with a clean cache, reads: each is this file run as a script, which prints what it
saw as JSON. What they did to the Hub is looked up in it.
"""

import base64
import hashlib
import http.client
import json
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from unittest import mock

import pytest
from hub_pushing import GIT_ATTRIBUTES
from hub_server import HubServer


ROOT = Path(__file__).resolve().parent.parent
SEQUENCE = "ACGTTGCATGCCATGA"
CARD = b"---\nlicense: mit\ntags: [dna]\n---\n# A model\n"
BINARY = bytes(range(256)) * 4
LONG_TEXT = b"ACGTTGCA" * 2_650_001  # git takes 10 MB; of a cut download, the client keeps whole 10 MiB


def weights(name: str) -> bytes:
    """A file outside git, of which there is no other."""
    return f"{name}\0".encode() * 100


def sha256(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()


# --- in the fresh processes --------------------------------------------------------------------------------------


def error_of(function, *args, **options) -> list | None:
    """What `function` raises: the class and the Hub's status, or the message where the Hub did not answer."""
    try:
        function(*args, **options)
    except Exception as error:
        response = getattr(error, "response", None)
        return [type(error).__name__, str(error) if response is None else response.status_code]


def push(folder: str) -> dict:
    """Run with the token of `user`."""
    from huggingface_hub import CommitOperationAdd, CommitOperationDelete, HfApi

    api = HfApi()

    def commit(id: str, *operations, **options):
        return api.create_commit(id, operations, commit_message="A change", **options)

    def add(id: str, path: str, content: bytes, **options):
        return commit(id, CommitOperationAdd(path, content), **options)

    def create_and_add(id: str, content: bytes) -> list:
        """What each wait was before a retry, and the error in the end."""
        api.create_repo(id)
        with mock.patch("time.sleep") as sleep:
            error = error_of(add, id, "model.bin", content)
        return [*(call.args[0] for call in sleep.call_args_list), error]

    report = {
        "name": api.whoami()["name"],
        "urls": [api.create_repo("user/dna", private=True), api.create_repo("new")],
    }
    report["once more"] = [error_of(api.create_repo, "user/dna"), api.create_repo("user/dna", exist_ok=True)]
    report["create"] = {
        "anonymous": error_of(api.create_repo, "user/other", token=False),
        "a stranger": error_of(api.create_repo, "user/other", token="hf_stranger"),
        "not a token": error_of(api.create_repo, "user/other", token="letmein"),
        "a stranger, there": error_of(api.create_repo, "user/new", token="hf_stranger", exist_ok=True),
        "a stranger, hidden": error_of(api.create_repo, "user/dna", token="hf_stranger", exist_ok=True),
    }
    report["add"] = {
        f"{who}, {id}": error_of(add, f"user/{id}", "a.txt", b"a", token=token)
        for id in ("new", "dna", "missing")
        for who, token in {"anonymous": False, "a stranger": "hf_stranger", "not a token": "letmein"}.items()
    }
    report["delete"] = error_of(commit, "user/new", CommitOperationDelete(".gitattributes"), token="hf_stranger")

    pushed = api.upload_folder(repo_id="user/dna", folder_path=folder, commit_message="The folder")
    unchanged = api.upload_folder(repo_id="user/dna", folder_path=folder)
    report["folder"] = [pushed.oid, pushed.commit_url, unchanged.oid]

    files = {"a.txt": b"a", "keep/b.bin": BINARY, "drop/c.txt": b"c", "drop/deep/d.bin": BINARY, "empty": b""}
    first = commit("user/new", *(CommitOperationAdd(path, content) for path, content in files.items()))
    deletions = [CommitOperationDelete("a.txt"), CommitOperationDelete("drop/")]
    second = commit("user/new", *deletions, CommitOperationAdd("e.txt", b"e"), parent_commit=first.oid)
    report["commits"] = [first.oid, second.oid]
    report["conflict"] = error_of(add, "user/new", "f.txt", b"f", parent_commit=first.oid)
    report["deleted twice"] = error_of(commit, "user/new", CommitOperationDelete("a.txt"))

    api.create_repo("user/cards")
    add("user/cards", "README.md", CARD)
    report["cards"] = {
        "broken": error_of(add, "user/cards", "README.md", b"---\ntags: [dna\n---\n"),
        "a list": error_of(add, "user/cards", "README.md", b"---\n- dna\n---\n"),
    }

    api.create_repo("user/rows", repo_type="dataset")
    api.create_branch("user/rows", branch="v1", repo_type="dataset")
    add("user/rows", "data/train.csv", b"sequence\nACGT\n", repo_type="dataset", revision="v1")
    report["no branch"] = error_of(add, "user/rows", "a", b"a", repo_type="dataset", revision="v2")

    report["faults"] = {name: create_and_add(f"user/{name}", weights(name)) for name in ("busy", "down", "failing")}
    report["faults"]["cut"] = create_and_add("user/cut", LONG_TEXT + b"cut")
    report["later"] = error_of(add, "user/failing", "model.bin", weights("failing"))
    return report


def read(sha: str) -> dict:
    """Run with the token of `user`."""
    from huggingface_hub import snapshot_download
    from transformers import AutoTokenizer

    with mock.patch("time.sleep"):  # before it goes on with what was cut
        snapshot = Path(snapshot_download("user/dna", revision=sha, max_workers=1))
    return {
        "files": {
            str(path.relative_to(snapshot)): sha256(path.read_bytes())
            for path in snapshot.rglob("*")
            if path.is_file()
        },
        "ids": AutoTokenizer.from_pretrained("user/dna")(SEQUENCE)["input_ids"],
        "anonymous": error_of(snapshot_download, "user/dna", token=False, cache_dir="none"),
    }


# --- in the test process -----------------------------------------------------------------------------------------


def run_fresh_process(environment: dict[str, str], *arguments: str) -> dict:
    process = subprocess.run(
        [sys.executable, __file__, *arguments], env=environment, capture_output=True, text=True, timeout=120
    )
    assert process.returncode == 0, process.stderr
    return json.loads(process.stdout.splitlines()[-1])


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> dict[str, bytes]:
    """What is pushed: a tokenizer, and files in and outside git."""
    return {path.name: path.read_bytes() for path in (ROOT / "bpe_tokenizer").glob("*.json")} | {
        "README.md": CARD,
        "deep/er/weights.bin": BINARY,
        "genome.txt": LONG_TEXT,
        "naïve name+1.txt": "naïve\n".encode(),
        "empty.txt": b"",
    }


@pytest.fixture(scope="module")
def hub():
    with HubServer() as hub:
        yield hub


@pytest.fixture(scope="module")
def pushed(hub, folder, tmp_path_factory) -> dict:
    source = tmp_path_factory.mktemp("source")
    for path, content in folder.items():
        (source / path).parent.mkdir(parents=True, exist_ok=True)
        (source / path).write_bytes(content)
    hub.fail_next(503, 2, "/api/models/user/busy/preupload")
    hub.fail_next(500, 1, f"PUT /lfs/{sha256(weights('busy'))}")
    hub.fail_next(502, 6, "/api/models/user/down/preupload")
    hub.fail_next(500, 1, "/api/models/user/failing/commit")
    hub.fail_next("cut", 1, f"PUT /lfs/{sha256(LONG_TEXT + b'cut')}")
    return run_fresh_process(hub.environment(tmp_path_factory.mktemp("home"), user="user"), "push", str(source))


@pytest.fixture(scope="module")
def pulled(hub, pushed, tmp_path_factory) -> dict:
    hub.requests.clear()
    sha = pushed["folder"][0]
    hub.fail_next("cut", 1, f"GET /user/dna/resolve/{sha}/genome.txt")
    return run_fresh_process(hub.environment(tmp_path_factory.mktemp("home"), user="user"), "read", sha)


def files_of(hub: HubServer, id: str, revision: str = "main", kind: str = "model") -> dict[str, bytes]:
    return hub.repositories[kind, id].files(revision)


class TestRepositories:
    def test_are_created_once_for_their_user(self, hub, pushed):
        assert pushed["name"] == "user"
        assert pushed["urls"] == [f"{hub.url}/user/dna", f"{hub.url}/user/new"]
        assert [hub.repositories["model", id].private for id in ("user/dna", "user/new")] == [True, False]
        assert pushed["once more"] == [["HfHubHTTPError", 409], f"{hub.url}/user/dna"]

    def test_are_not_created_for_another_user(self, hub, pushed):
        assert pushed["create"] == {
            "anonymous": ["HfHubHTTPError", 401],
            "a stranger": ["HfHubHTTPError", 403],
            "not a token": ["HfHubHTTPError", 401],
            "a stranger, there": None,
            "a stranger, hidden": ["HfHubHTTPError", 403],
        }
        assert ("model", "user/other") not in hub.repositories

    def test_are_written_by_their_user_alone(self, pushed):
        missing = {"anonymous": ["RepositoryNotFoundError", 401], "a stranger": ["RepositoryNotFoundError", 404]}
        missing["not a token"] = ["HfHubHTTPError", 401]
        public = missing | {"a stranger": ["HfHubHTTPError", 403]}
        expected = {"new": public, "dna": missing, "missing": missing}
        assert pushed["add"] == {f"{who}, {id}": error for id, of in expected.items() for who, error in of.items()}
        assert pushed["delete"] == ["HfHubHTTPError", 403]

    def test_of_datasets_have_branches(self, hub, pushed):
        assert files_of(hub, "user/rows", "v1", "dataset")["data/train.csv"] == b"sequence\nACGT\n"
        assert files_of(hub, "user/rows", "main", "dataset").keys() == {".gitattributes"}
        assert pushed["no branch"] == ["RevisionNotFoundError", 404]


class TestCommits:
    def test_of_a_folder_have_its_files_in_and_outside_git(self, hub, pushed, folder):
        sha, url, sha_of_the_second = pushed["folder"]
        assert files_of(hub, "user/dna", sha) == folder | {".gitattributes": GIT_ATTRIBUTES}
        commit = hub.repositories["model", "user/dna"].at("main")
        assert {path for path, blob in commit.files.items() if blob.is_lfs} == {"deep/er/weights.bin", "genome.txt"}
        assert (commit.sha, commit.title, url) == (sha, "The folder", f"{hub.url}/user/dna/commit/{sha}")
        assert sha_of_the_second == sha  # for nothing had changed

    def test_delete_files_and_folders(self, hub, pushed):
        first, second = pushed["commits"]
        assert files_of(hub, "user/new", first).keys() == {
            *(".gitattributes", "a.txt", "keep/b.bin", "drop/c.txt", "drop/deep/d.bin", "empty")
        }
        expected = {"keep/b.bin": BINARY, "empty": b"", "e.txt": b"e", ".gitattributes": GIT_ATTRIBUTES}
        assert files_of(hub, "user/new", second) == expected
        assert pushed["deleted twice"] == ["RemoteEntryNotFoundError", 404]

    def test_after_another_one_are_refused(self, hub, pushed):
        assert pushed["conflict"] == ["HfHubHTTPError", 412]
        assert hub.repositories["model", "user/new"].at("main").sha == pushed["commits"][1]

    def test_of_a_card_need_yaml(self, hub, pushed):
        assert files_of(hub, "user/cards")["README.md"] == CARD
        (broken, message), (a_list, message_of_list) = pushed["cards"].values()
        assert broken == a_list == "ValueError"
        assert message.startswith("Invalid metadata in README.md.\n- while parsing a flow sequence")
        assert message_of_list == 'Invalid metadata in README.md.\n- "value" must be of type object'


class TestWhatWasPushed:
    def test_arrives_byte_for_byte_in_a_clean_cache(self, pulled, folder):
        expected = folder | {".gitattributes": GIT_ATTRIBUTES}
        assert pulled["files"] == {path: sha256(content) for path, content in expected.items()}

    def test_is_a_tokenizer(self, pulled):
        from transformers import AutoTokenizer

        assert pulled["ids"] == AutoTokenizer.from_pretrained(ROOT / "bpe_tokenizer")(SEQUENCE)["input_ids"]

    def test_is_private(self, pulled):
        assert pulled["anonymous"][0] == "RepositoryNotFoundError"

    def test_is_downloaded_further_after_a_cut(self, hub, pulled):
        attempts = [line.split()[0] for line in hub.requests if "GET" in line and line.endswith("/genome.txt")]
        assert attempts == ["cut", "206"]


class TestFaults:
    def test_of_the_server_are_waited_for(self, hub, pushed):
        assert pushed["faults"]["busy"] == [1, 2, 1, None]  # before the upload, twice; of the upload, once
        assert files_of(hub, "user/busy")["model.bin"] == weights("busy")

    def test_that_last_are_the_client_s(self, hub, pushed):
        assert pushed["faults"]["down"] == [1, 2, 4, 8, 8, ["HfHubHTTPError", 502]]
        assert files_of(hub, "user/down").keys() == {".gitattributes"}

    def test_of_a_commit_leave_it_to_be_tried_again(self, hub, pushed):
        assert pushed["faults"]["failing"] == [["HfHubHTTPError", 500]]
        assert pushed["later"] is None
        assert files_of(hub, "user/failing")["model.bin"] == weights("failing")
        assert len(hub.repositories["model", "user/failing"].commits) == 2

    def test_of_the_connection_in_an_upload_are_repeated(self, hub, pushed):
        assert pushed["faults"]["cut"] == [1, None]
        assert files_of(hub, "user/cut")["model.bin"] == LONG_TEXT + b"cut"


class TestPlainHttp:
    HEADERS = {"Authorization": "Bearer hf_user"}

    @pytest.fixture
    def hub(self):
        with HubServer() as hub:
            hub.add_repo("model", "user/model", {"a": b"1"})
            yield hub

    @pytest.fixture
    def ask(self, hub):
        def ask(method: str, path: str, body: bytes = b"") -> tuple[int, bytes]:
            connection = http.client.HTTPConnection(hub.url.removeprefix("http://"), timeout=10)
            connection.request(method, path, body, self.HEADERS)
            response = connection.getresponse()
            answer = response.status, response.read()
            connection.close()
            return answer

        return ask

    @staticmethod
    def lines(key: str, parent: str | None = None, **value: str) -> bytes:
        header = {"key": "header", "value": {"summary": "A change", "parentCommit": parent}}
        return b"\n".join(json.dumps(line).encode() for line in (header, {"key": key, "value": value}))

    COMMIT = "/api/models/user/model/commit/main"

    def test_of_commits_at_once_on_one_parent_one_wins(self, hub, ask, monkeypatch):
        repository = hub.repositories["model", "user/model"]
        first, commit = repository.at("main").sha, repository.commit
        monkeypatch.setattr(repository, "commit", lambda *change: time.sleep(0.05) or commit(*change))

        def add(number: int) -> int:
            content = base64.b64encode(b"1").decode()
            return ask("POST", self.COMMIT, self.lines("file", first, path=f"b{number}", content=content))[0]

        with ThreadPoolExecutor(8) as executor:
            assert sorted(executor.map(add, range(8))) == [200] + [412] * 7
        assert len(repository.files()) == len(repository.commits) == 2

    def test_an_upload_is_what_its_hash_says(self, hub, ask):
        oid = sha256(BINARY)
        pointer = self.lines("lfsFile", path="model.bin", algo="sha256", oid=oid)
        assert ask("PUT", f"/lfs/{oid}", BINARY[:-1])[0] == 400
        assert ask("POST", f"/lfs/{oid}/verify", json.dumps({"size": 1024}).encode())[0] == 404
        assert ask("POST", self.COMMIT, pointer)[0] == 400
        assert ask("PUT", f"/lfs/{oid}", BINARY)[0] == 200
        assert ask("POST", self.COMMIT, pointer)[0] == 200
        assert files_of(hub, "user/model") == {"a": b"1", "model.bin": BINARY}

    def test_a_sha_is_not_a_branch(self, hub, ask):
        sha = hub.repositories["model", "user/model"].at("main").sha
        path = self.COMMIT.replace("main", sha)
        assert ask("POST", path, self.lines("deletedFile", path="a"))[0] == 400
        assert ask("POST", self.COMMIT + "?create_pr=1", self.lines("deletedFile", path="a"))[0] == 400
        assert files_of(hub, "user/model") == {"a": b"1"}

    def test_faults_come_in_order_by_path_and_method(self, hub, ask):
        hub.fail_next(503, 2, "/api/models/user/model")
        hub.fail_next(429, 1, "GET /")
        assert ask("POST", "/api/models/user/model/paths-info/main")[0] == 503
        assert ask("GET", "/user/model/resolve/main/a")[0] == 429
        assert [ask("GET", "/api/models/user/model")[0] for _ in range(2)] == [503, 200]
        assert hub.faults == []

    def test_a_cut_is_within_the_body_and_does_nothing(self, hub, ask):
        hub.fail_next("cut", 2)
        change = self.lines("deletedFile", path="a")
        with pytest.raises((ConnectionError, http.client.HTTPException)):
            ask("POST", self.COMMIT, change)
        connection = http.client.HTTPConnection(hub.url.removeprefix("http://"), timeout=10)
        connection.putrequest("POST", self.COMMIT)
        connection.putheader("Content-Length", str(len(change)))
        connection.endheaders(change[: len(change) // 2])  # the Hub waits for no more
        with pytest.raises(ConnectionError):
            connection.getresponse()
        connection.close()
        assert files_of(hub, "user/model") == {"a": b"1"}
        assert hub.requests == [f"cut POST {self.COMMIT}"] * 2

    def test_a_cut_answer_is_half_of_it(self, hub, ask):
        hub.add_repo("model", "user/long", {"a": BINARY})
        hub.fail_next("cut", path_prefix="GET /")
        with pytest.raises(http.client.IncompleteRead) as caught:
            ask("GET", "/user/long/resolve/main/a")
        assert caught.value.partial == BINARY[:512]


if __name__ == "__main__":
    kind, *arguments = sys.argv[1:]
    print(json.dumps({"push": push, "read": read}[kind](*arguments)))

"""What the Hub of `hub_server` holds, and how it answers who reads: huggingface_hub, datasets and transformers.

Below come the repositories, then what a request and an answer are, then the answers, and their addresses at the end.
"""

import codecs
import hashlib
import json
import re
import threading
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path, PurePosixPath
from urllib.parse import parse_qs

import yaml  # huggingface_hub needs it too


class HubError(Exception):
    """An answer other than success; by the header `X-Error-Code` the clients choose their exception."""

    def __init__(self, status: int, message: str, code: str | None = None, headers: Mapping[str, str] | None = None):
        super().__init__(message)
        self.status = status
        self.headers = {"X-Error-Message": message} | ({"X-Error-Code": code} if code else {}) | dict(headers or {})


# --- what the Hub holds ------------------------------------------------------------------------------------------


def is_lfs(sample: bytes, size: int) -> bool:
    """Whether the Hub keeps a file outside git: what is big, and what is not text by its first 512 bytes."""
    try:
        codecs.getincrementaldecoder("utf-8")().decode(sample[:512])  # which may end within a character
    except UnicodeDecodeError:
        return True
    return size > 10_000_000 or b"\0" in sample[:512]


class Blob:
    """A file's content and names: `oid` is git's, of the content or of the pointer to it; `sha256` is LFS's."""

    def __init__(self, content: bytes):
        self.content, self.size, self.sha256 = content, len(content), hashlib.sha256(content).hexdigest()
        pointer = f"version https://git-lfs.github.com/spec/v1\noid sha256:{self.sha256}\nsize {self.size}\n".encode()
        self.is_lfs = is_lfs(content, self.size)
        in_git = pointer if self.is_lfs else content
        self.oid = hashlib.sha1(b"blob %d\0" % len(in_git) + in_git).hexdigest()
        self.pointer_size = len(pointer)

    def lfs(self, name_of_hash: str) -> dict:
        """What listings say of a file outside git; they do not agree on one key."""
        pointer = {name_of_hash: self.sha256, "size": self.size, "pointerSize": self.pointer_size}
        return {"lfs": pointer} if self.is_lfs else {}


class Commit:
    def __init__(self, files: dict[str, Blob], title: str, parent: str | None):
        self.files, self.title, self.date = files, title, datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%S.%fZ")
        self.folders = {str(folder) for path in files for folder in list(PurePosixPath(path).parents)[:-1]}
        oids = sorted((path, blob.oid) for path, blob in files.items())
        self.sha = hashlib.sha1(json.dumps([oids, title, parent, self.date]).encode()).hexdigest()


class Repository:
    """Branches of commits: a revision is a branch or a commit's sha."""

    def __init__(self, private: bool):
        self.private = private
        self.commits: dict[str, Commit] = {}
        self.branches: dict[str, str] = {}

    def commit(self, changes: Mapping[str, bytes | None], branch: str = "main", title: str = "A commit") -> str:
        """Write files, or delete those that are None, on `branch`: a new one starts at main. Returns the sha."""
        parent = self.branches.get(branch, self.branches.get("main"))
        files = dict(self.commits[parent].files) if parent else {}
        files |= {path: Blob(content) if content is not None else None for path, content in changes.items()}
        commit = Commit({path: files[path] for path in sorted(files) if files[path]}, title, parent)
        self.commits[commit.sha], self.branches[branch] = commit, commit.sha
        return commit.sha

    def at(self, revision: str) -> Commit:
        sha = self.branches.get(revision, revision)
        if sha not in self.commits:
            raise HubError(404, f"Invalid rev id: {revision}", "RevisionNotFound")
        return self.commits[sha]

    def files(self, revision: str = "main") -> dict[str, bytes]:
        return {path: blob.content for path, blob in self.at(revision).files.items()}


class Hub:
    """The repositories by kind and id, and what was uploaded for commits to come, by sha256."""

    url: str

    def __init__(self):
        self.repositories: dict[tuple[str, str], Repository] = {}
        self.uploads: dict[str, bytes] = {}
        self.lock = threading.Lock()  # of who changes a repository: requests come in threads

    def add_repo(self, kind: str, id: str, files: Mapping[str, bytes] | Path, private: bool = False) -> Repository:
        """The "model" or "dataset" `id`, "user/name", of the given files or of all files below a folder."""
        if isinstance(files, Path):
            files = {str(path.relative_to(files)): path.read_bytes() for path in files.rglob("*") if path.is_file()}
        repository = Repository(private)
        repository.commit(files, title="initial commit")
        self.repositories[kind, id] = repository
        return repository


# --- requests and answers ----------------------------------------------------------------------------------------


@dataclass
class Request:
    hub: Hub
    query: dict[str, list[str]]
    headers: Mapping[str, str]
    body: bytes

    @property
    def user(self) -> str | None:
        token = self.headers.get("Authorization")
        if token is not None and not token.startswith("Bearer hf_"):
            raise HubError(401, "Invalid credentials in Authorization header")
        return token and token.removeprefix("Bearer hf_")

    def repository(self, kind: str, id: str) -> Repository:
        user, repository = self.user, self.hub.repositories.get((kind, id))
        if repository is not None and (not repository.private or user == id.split("/")[0]):
            return repository
        if user is None:  # the real 401 has no code: the clients infer it, but at https addresses only
            raise HubError(401, "Invalid username or password.", "RepoNotFound")
        raise HubError(404, "Repository not found", "RepoNotFound")


@dataclass
class Answer:
    content: bytes | dict | list  # a dict or list is sent as JSON
    status: int = 200
    headers: dict[str, str] = field(default_factory=dict)


# --- reading -----------------------------------------------------------------------------------------------------


def flag(values: dict[str, list[str]], name: str) -> bool:
    return values.get(name, ["false"])[0].lower() in ("true", "1")


def card_head(readme: str) -> str | None:
    """The YAML at the head of README.md."""
    head = re.match(r"---\s*\n(.*?)\n---\s*(\n|$)", readme, re.DOTALL)
    return head and head[1]


def card_data(commit: Commit) -> dict:
    head = card_head(commit.files.get("README.md", Blob(b"")).content.decode())
    return (yaml.safe_load(head) if head else None) or {}


def info(request: Request, kind: str, id: str, revision: str | None) -> Answer:
    repository = request.repository(kind, id)
    commit, dates = repository.at(revision or "main"), [commit.date for commit in repository.commits.values()]
    siblings = [{"rfilename": path} for path in commit.files]
    if flag(request.query, "blobs"):
        for sibling, blob in zip(siblings, commit.files.values(), strict=True):
            sibling |= {"size": blob.size, "blobId": blob.oid} | blob.lfs("sha256")
    value = {"_id": hashlib.sha1(id.encode()).hexdigest()[:24], "id": id, "author": id.split("/")[0]}
    value |= {"sha": commit.sha, "createdAt": min(dates), "lastModified": max(dates), "siblings": siblings}
    value |= {"private": repository.private, "gated": False, "disabled": False, "downloads": 0, "likes": 0}
    card = card_data(commit)
    value |= {"cardData": card, "tags": []} | {key: card[key] for key in ("pipeline_tag", "tags") if key in card}
    wanted = {"_id", "id", *request.query["expand"]} if "expand" in request.query else value.keys()
    return Answer({key: value[key] for key in value if key in wanted})


def entry(commit: Commit, path: str, expand: bool) -> dict:
    """A line of a listing."""
    last = {"id": commit.sha, "title": commit.title, "date": commit.date}
    common = {"path": path} | ({"lastCommit": last} if expand else {})
    if path in commit.folders:
        return common | {"type": "directory", "oid": hashlib.sha1(path.encode()).hexdigest(), "size": 0}
    blob = commit.files[path]
    return common | {"type": "file", "oid": blob.oid, "size": blob.size} | blob.lfs("oid")


def tree(request: Request, kind: str, id: str, revision: str, path: str | None) -> Answer:
    commit = request.repository(kind, id).at(revision)
    if path and path not in commit.folders:
        raise HubError(404, f"{path} does not exist on {revision}", "EntryNotFound", {"X-Repo-Commit": commit.sha})
    start = f"{path}/" if path else ""
    below = sorted(name for name in commit.folders | commit.files.keys() if name.startswith(start))
    if not flag(request.query, "recursive"):
        below = [name for name in below if "/" not in name.removeprefix(start)]
    return Answer([entry(commit, name, flag(request.query, "expand")) for name in below])


def paths_info(request: Request, kind: str, id: str, revision: str) -> Answer:
    commit = request.repository(kind, id).at(revision)
    form = parse_qs(request.body.decode())
    known = [path for path in form.get("paths", []) if path in commit.files or path in commit.folders]
    return Answer([entry(commit, path, flag(form, "expand")) for path in known])


def resolve(request: Request, prefix: str | None, id: str, revision: str, path: str) -> Answer:
    commit = request.repository("dataset" if prefix else "model", id).at(revision)
    if path not in commit.files:
        raise HubError(404, "Entry not found", "EntryNotFound", {"X-Repo-Commit": commit.sha})
    blob = commit.files[path]
    headers = {"X-Repo-Commit": commit.sha, "ETag": f'"{blob.oid}"', "Accept-Ranges": "bytes"}
    if blob.is_lfs:
        headers |= {"X-Linked-Etag": f'"{blob.sha256}"', "X-Linked-Size": str(blob.size)}
    asked = re.fullmatch(r"bytes=(\d*)-(\d*)", request.headers.get("Range", ""))
    if not asked or asked[0] == "bytes=-":
        return Answer(blob.content, 200, headers)
    start = int(asked[1]) if asked[1] else max(blob.size - int(asked[2]), 0)  # without a start: the last bytes
    stop = min(int(asked[2]) + 1, blob.size) if asked[1] and asked[2] else blob.size
    if start >= min(stop, blob.size):
        return Answer(b"", 416, headers | {"Content-Range": f"bytes */{blob.size}"})
    return Answer(blob.content[start:stop], 206, headers | {"Content-Range": f"bytes {start}-{stop - 1}/{blob.size}"})


# What is asked for, and the function that answers `(request, **groups)`: unquoted, or None.
ID, REVISION, PATH = r"(?P<id>[\w.-]+(/[\w.-]+)?)", "(?P<revision>[^/]+)", "(?P<path>.+)"
REPO = f"(?P<kind>model|dataset)s/{ID}"
READING: dict[str, Callable[..., Answer]] = {
    f"GET /api/{REPO}(/revision/{REVISION})?": info,
    f"GET /api/{REPO}/tree/{REVISION}(/{PATH})?": tree,
    f"POST /api/{REPO}/paths-info/{REVISION}": paths_info,
    f"(GET|HEAD) /(?P<prefix>datasets/)?{ID}/resolve/{REVISION}/{PATH}": resolve,
}

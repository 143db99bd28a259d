"""How the Hub of `hub_server` answers who pushes: create_repo, branches, uploads and commits.

A file goes into git with the commit itself, or, where `is_lfs`, is uploaded before the commit that names its sha256.
"""

import base64
import hashlib
import json
from collections.abc import Callable

import yaml
from hub_reading import ID, REPO, REVISION, Answer, Commit, HubError, Repository, Request, card_head, is_lfs


GIT_ATTRIBUTES = b"*.bin filter=lfs diff=lfs merge=lfs -text\n*.safetensors filter=lfs diff=lfs merge=lfs -text\n"


def writer(request: Request, code: str | None = None) -> str:
    """The request's user, who must be one."""
    if request.user is None:
        raise HubError(401, "Invalid username or password.", code)
    return request.user


def writable(request: Request, kind: str, id: str, refusal: str = "Authorization error.") -> Repository:
    """The repository, if the request's user may write to it."""
    repository = request.repository(kind, id)
    # the real 401 has no code: at https addresses the clients infer it
    if writer(request, "RepoNotFound") != id.split("/")[0]:
        raise HubError(403, refusal)
    return repository


def address(request: Request, kind: str, id: str) -> str:
    return f"{request.hub.url}/{'datasets/' if kind == 'dataset' else ''}{id}"


# --- repositories ------------------------------------------------------------------------------------------------


def whoami(request: Request) -> Answer:
    token = {"displayName": "test", "role": "write"}
    user = {"type": "user", "name": writer(request), "orgs": []}
    return Answer(user | {"auth": {"type": "access_token", "accessToken": token}})


def create(request: Request) -> Answer:
    asked = json.loads(request.body)
    user, kind = writer(request), asked.get("type") or "model"
    namespace = asked.get("organization") or user
    if namespace != user:
        raise HubError(403, f'You don\'t have the rights to create a {kind} under the namespace "{namespace}"')
    id = f"{namespace}/{asked['name']}"
    url = address(request, kind, id)
    private = asked.get("visibility") == "private" or bool(asked.get("private"))
    with request.hub.lock:
        if (kind, id) in request.hub.repositories:
            return Answer({"error": f"You already created this {kind} repo", "url": url}, 409)
        request.hub.add_repo(kind, id, {".gitattributes": GIT_ATTRIBUTES}, private)
    return Answer({"url": url, "name": id})


def create_branch(request: Request, kind: str, id: str, revision: str) -> Answer:
    repository = writable(request, kind, id)
    start = json.loads(request.body or b"{}").get("startingPoint") or "main"
    with request.hub.lock:
        if revision in repository.branches:
            raise HubError(409, f"Reference already exists: {revision}")
        repository.branches[revision] = repository.at(start).sha
    return Answer({})


# --- before a commit ---------------------------------------------------------------------------------------------


def validate_yaml(request: Request) -> Answer:
    """Whether a card's head is YAML; the real Hub also knows which licences, tasks and languages there are."""
    head = card_head(json.loads(request.body)["content"])
    try:
        value = yaml.safe_load(head or "")
    except yaml.YAMLError as error:
        return Answer({"errors": [{"message": str(error)}], "warnings": []}, 400)
    if value is None:
        return Answer({"errors": [], "warnings": [{"message": "empty or missing yaml metadata in repo card"}]})
    if not isinstance(value, dict):
        return Answer({"errors": [{"message": '"value" must be of type object'}], "warnings": []}, 400)
    return Answer({"errors": [], "warnings": []})


TO_STRANGERS = "Forbidden: pass `create_pr=1` as a query parameter to create a Pull Request"


def preupload(request: Request, kind: str, id: str, revision: str) -> Answer:
    """How each file is to be uploaded, and what is there already by that name."""
    held = writable(request, kind, id, TO_STRANGERS).at(revision).files
    files = []
    for file in json.loads(request.body)["files"]:
        mode = "lfs" if is_lfs(base64.b64decode(file["sample"]), file["size"]) else "regular"
        blob = held.get(file["path"])
        oid = blob and (blob.sha256 if blob.is_lfs else blob.oid)
        files.append({"path": file["path"], "uploadMode": mode, "shouldIgnore": False, "oid": oid})
    return Answer({"files": files})


def lfs_batch(request: Request, prefix: str | None, id: str) -> Answer:
    """Where each large file is to be uploaded, unless it was."""
    writable(request, "dataset" if prefix else "model", id)
    objects = [{"oid": asked["oid"], "size": asked["size"]} for asked in json.loads(request.body)["objects"]]
    for asked in objects:
        if asked["oid"] not in request.hub.uploads:
            there = f"{request.hub.url}/lfs/{asked['oid']}"
            asked["actions"] = {"upload": {"href": there}, "verify": {"href": f"{there}/verify"}}
    return Answer({"transfer": "basic", "objects": objects})


def lfs_upload(request: Request, oid: str) -> Answer:
    """Needs no token: the address is one that only a writer is given."""
    if hashlib.sha256(request.body).hexdigest() != oid:
        raise HubError(400, f"The content's sha256 is not {oid}")
    request.hub.uploads[oid] = request.body
    return Answer(b"")


def lfs_verify(request: Request, oid: str) -> Answer:
    if len(request.hub.uploads.get(oid, b"")) != json.loads(request.body)["size"]:
        raise HubError(404, f"{oid} was not uploaded")
    return Answer({})


# --- the commit --------------------------------------------------------------------------------------------------


def changes_of(lines: list[dict], parent: Commit, uploaded: dict[str, bytes]) -> dict[str, bytes | None]:
    """What a commit's lines do to the files of its parent: new contents, and None for what they delete."""
    changes: dict[str, bytes | None] = {}
    outside_git = uploaded | {blob.sha256: blob.content for blob in parent.files.values() if blob.is_lfs}
    for line in lines:
        value, path = line["value"], line["value"]["path"]
        match line["key"]:
            case "file":
                changes[path] = base64.b64decode(value["content"])
            case "lfsFile":
                if value["oid"] not in outside_git:
                    raise HubError(400, f"LFS pointer pointed to a file that does not exist. For path: {path}")
                changes[path] = outside_git[value["oid"]]
            case "deletedFile" if path in parent.files:
                changes[path] = None
            case "deletedFolder" if path.rstrip("/") in parent.folders:
                below = path.rstrip("/") + "/"
                changes |= dict.fromkeys((name for name in parent.files if name.startswith(below)), None)
            case "deletedFile" | "deletedFolder":
                raise HubError(404, f"A file with this name doesn't exist: {path}", "EntryNotFound")
            case key:
                raise ValueError(f"a commit's line of an unknown kind: {key}")
    return changes


def commit(request: Request, kind: str, id: str, revision: str) -> Answer:
    repository = writable(request, kind, id, TO_STRANGERS)
    header, *lines = (json.loads(line) for line in request.body.splitlines())
    with request.hub.lock:
        parent = repository.at(revision)
        if "create_pr" in request.query or revision not in repository.branches:
            raise HubError(400, f"This Hub commits to branches alone, not to {revision}")
        if header["value"].get("parentCommit") not in (None, parent.sha):
            raise HubError(412, "A commit has happened since. Please refresh and try again.")
        changes = changes_of(lines, parent, request.hub.uploads)
        sha = repository.commit(changes, revision, header["value"]["summary"])
    url = f"{address(request, kind, id)}/commit/{sha}"
    return Answer({"success": True, "commitOid": sha, "commitUrl": url, "hookOutput": ""})


PUSHING: dict[str, Callable[..., Answer]] = {
    "GET /api/whoami-v2": whoami,
    "POST /api/repos/create": create,
    "POST /api/validate-yaml": validate_yaml,
    "PUT /lfs/(?P<oid>[0-9a-f]+)": lfs_upload,
    "POST /lfs/(?P<oid>[0-9a-f]+)/verify": lfs_verify,
    f"POST /api/{REPO}/branch/{REVISION}": create_branch,
    f"POST /api/{REPO}/preupload/{REVISION}": preupload,
    rf"POST /(?P<prefix>datasets/)?{ID}\.git/info/lfs/objects/batch": lfs_batch,
    f"POST /api/{REPO}/commit/{REVISION}": commit,
}

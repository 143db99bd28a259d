"""Pushes a model to the Hub, whole and in one commit: weights, configuration, code, tokenizer, card, curves, results.

    python -m dnabert2.publish output/117M user/dnabert2 [--private]

The folder is an --output_dir of run_mlm.py, one of its checkpoint-STEP, a run of run_gue.py with --save_model (an
adapter too), its merged/, or any other model's. The token is the environment's HF_TOKEN, or that of `hf auth login`.
"""

import argparse
import shutil
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TypeVar

from huggingface_hub import (
    CommitOperationAdd,
    CommitOperationDelete,
    HfApi,
    get_session,
    get_token,
    set_client_factory,
)
from huggingface_hub.errors import HfHubHTTPError, HTTPError, OfflineModeIsEnabled

from dnabert2 import cards
from dnabert2.errors import UsageError, add_debug, run_script
from dnabert2.releases import add_trust, assemble, is_of_model, refuse_untrusted_base
from dnabert2.run_records import WRITTEN


T = TypeVar("T")
WAITS = (1, 2, 4, 8, 16, 32, 64)  # s before a push is tried again; huggingface_hub has tried for 23 s by itself
PATIENCE = 900  # s after which nothing is tried again: a run that waits for its push holds a GPU
SILENCE = 60  # s without a byte until a connection is given up; huggingface_hub waits for ever


def reason(error: Exception) -> str:
    """What went wrong, in a line."""
    if isinstance(error, HfHubHTTPError) and error.response.status_code == 401:
        return "the Hub does not know this token"
    if isinstance(error, HfHubHTTPError) and error.response.status_code == 403:
        return f"this token may not write there ({error.server_message})"
    told = str(error).strip().splitlines() or [type(error).__name__]
    return told[0] + (f" ({reason(error.__cause__)})" if error.__cause__ else "")


def is_passing(error: BaseException) -> bool:
    """Whether a fault may be gone later: of the connection or within the Hub, not of this machine or the request."""
    if isinstance(error, RuntimeError) and error.__cause__:  # around what an upload raised
        error = error.__cause__
    if isinstance(error, HfHubHTTPError):
        return error.response.status_code in (408, 429) or error.response.status_code >= 500
    is_of_network = isinstance(error, HTTPError | ConnectionError | TimeoutError | RuntimeError)  # the last of hf_xet
    return is_of_network and not isinstance(error, OfflineModeIsEnabled)


def limit_silence():
    """Has huggingface_hub's connections given up after SILENCE, those too that it makes anew after a fault."""
    made = get_session()
    set_client_factory(lambda: type(made)(event_hooks=made.event_hooks, follow_redirects=True, timeout=SILENCE))


def patiently(ask: Callable[[], T], repo: str, waits: Sequence[float]) -> T:
    """
    What `ask` gives, tried again after each wait, but not beyond PATIENCE. Raises UsageError when the Hub refuses, or
    fails to the last.
    """
    limit_silence()
    end = time.monotonic() + PATIENCE
    for wait in (*waits, None):
        try:
            return ask()
        except (HTTPError, OSError, RuntimeError, ValueError) as error:
            if wait is None or not is_passing(error) or time.monotonic() + wait > end:
                where = "" if isinstance(error, HfHubHTTPError) else f" at {HfApi().endpoint}"
                raise UsageError(f"no pushing to {repo}{where}: {reason(error)}") from error
            print(f"{repo}: {reason(error)}; once more in {wait} s", file=sys.stderr)
            time.sleep(wait)
    raise AssertionError("unreachable")


def open_repository(
    repo: str, token: str | None, private: bool, revision: str | None = None, waits: Sequence[float] = WAITS
) -> str:
    """
    Has the model repository, and its branch, made if they are missing. Returns its whole name, as user/name.

    Raises UsageError if the Hub cannot be reached, it refuses the token or the name, or the token may not write; and
    for a repository that is public where a private one is asked for.
    """
    if not (token or get_token()):
        raise UsageError("the Hub wants a token that may write: set HF_TOKEN, or run `hf auth login`")
    api = HfApi(token=token)

    def ask() -> str:
        name = api.create_repo(repo, private=private or None, exist_ok=True).repo_id
        if revision:
            api.create_branch(name, branch=revision, exist_ok=True)
        # of one that was there: writes nothing, but asks to
        api.preupload_lfs_files(name, [CommitOperationAdd("README.md", b"# A card\n")])
        return name

    name = patiently(ask, repo, waits)
    if private and not patiently(lambda: api.model_info(name, timeout=SILENCE), repo, waits).private:
        raise UsageError(f"{name} is there already, and public: make it private in its settings, or name another one")
    return name


def upload(release: Path, repo: str, message: str, token: str | None = None, revision: str | None = None) -> str:
    """
    Commits the files of a folder, once; what an earlier push has left there of another model goes. Returns the
    commit's address. Raises UsageError as `patiently`.
    """
    api = HfApi(token=token)
    files = {str(path.relative_to(release)): path.resolve() for path in release.iterdir()}

    def commit() -> str:
        # All anew: what has arrived is not sent again, and a commit whose answer was lost is not made twice.
        operations: list = [CommitOperationAdd(name, path) for name, path in files.items()]
        # with a timeout: without one, as in `list_repo_files`, these calls override the session's
        present = [file.rfilename for file in api.model_info(repo, revision=revision, timeout=SILENCE).siblings]
        for name in present:
            if name not in files and (is_of_model(name) or name in WRITTEN):
                operations.append(CommitOperationDelete(name))
        return api.create_commit(repo, operations, commit_message=message, revision=revision).commit_url

    return patiently(commit, repo, WAITS)


def publish(
    folder: Path,
    repo: str,
    *,
    token: str | None = None,
    revision: str | None = None,
    base_model: str | None = None,
    gue_results: Path | None = None,
    card: Path | None = None,
    trust_remote_code: bool = False,
) -> str:
    """
    Pushes a folder's model with its card to a repository that is there, `open_repository`'s. Returns the commit's
    address. Raises UsageError as `assemble`, `cards.write_card` and `upload` do.
    """
    with tempfile.TemporaryDirectory(prefix="dnabert2-release-") as temporary:
        release = Path(temporary)
        assemble(folder, release, base_model)
        options = {"base_model": base_model, "gue_results": gue_results, "trust_remote_code": trust_remote_code}
        message = cards.write_card(release, folder, repo, **options)
        if card:
            shutil.copyfile(card, release / "README.md")
        return upload(release, repo, message, token, revision)


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path, help="the model's")
    parser.add_argument("repo", help="user/name, made if it is missing; without user/ the token's")
    parser.add_argument("--private", action="store_true", help="make it a private one")
    parser.add_argument("--revision", help="a branch, made if it is missing (default: main)")
    parser.add_argument("--base_model", help="Hub name of the model that this one was trained from, for its card")
    parser.add_argument("--gue_results", type=Path, help="--output_dir of run_gue.py with this model: its scores")
    parser.add_argument("--card", type=Path, help="a card of your own (default: written from what the run has left)")
    add_trust(parser)
    add_debug(parser)
    args = parser.parse_args()
    if args.card and not args.card.is_file():
        raise UsageError(f"--card {args.card}: no such file")
    with tempfile.TemporaryDirectory() as folder:
        # refuse what is no model before a repository is made
        assemble(args.folder, Path(folder), args.base_model)
        refuse_untrusted_base(Path(folder), args.trust_remote_code)
    repo = open_repository(args.repo, None, args.private, args.revision)
    options = {name: getattr(args, name) for name in ("base_model", "gue_results", "card", "trust_remote_code")}
    print(f"Pushed: {publish(args.folder, repo, revision=args.revision, **options)}")


if __name__ == "__main__":
    run_script(main)

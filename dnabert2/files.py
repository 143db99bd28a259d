"""Files and folders that are whole or absent: written aside, synced, renamed."""

import errno
import os
import shutil
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


PRUNED = ".pruned.tmp-"  # in the name of a folder that is being removed


@contextmanager
def whole_folder(folder: Path) -> Iterator[Path]:
    """
    Gives a folder to write into and names it `folder` once everything in it is written and on disk.

    For folders that are named by their content: one that another process, on whatever machine, has published
    meanwhile is as good, and stays. A process that dies on the way leaves a `*.tmp-…` beside it, which is never
    mistaken for a result.
    """
    folder.parent.mkdir(parents=True, exist_ok=True)
    temporary = folder.with_name(f"{folder.name}.tmp-{uuid.uuid4().hex}")
    temporary.mkdir()
    try:
        yield temporary
        sync(temporary)
        try:
            os.rename(temporary, folder)
        except OSError as error:
            if error.errno not in (errno.EEXIST, errno.ENOTEMPTY):  # it is there by now: never to be removed
                raise
        _sync_path(folder.parent)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def publish(temporary: Path, folder: Path):
    """
    Syncs a folder's files to disk and renames it; an older one of that name gives way only now, and whole: killed on
    the way, a process leaves of that name the older one, none or the new one, and never a part of one.

    For one process alone: what another publishes under that name at the same time may be lost.
    """
    sync(temporary)
    older = folder.with_name(f"{folder.name}{PRUNED}{uuid.uuid4().hex}")
    if folder.exists():
        folder.rename(older)
    os.replace(temporary, folder)
    _sync_path(folder.parent)
    shutil.rmtree(older, ignore_errors=True)


def sync(folder: Path):
    """Has a folder and all that is in it written to the disk."""
    for path in [*folder.rglob("*"), folder]:
        _sync_path(path)


def _sync_path(path: Path):
    """Of a folder: its names."""
    on_windows = os.name == "nt"
    if on_windows and path.is_dir():
        return  # it cannot be opened there
    descriptor = os.open(path, os.O_RDWR if on_windows else os.O_RDONLY)  # to sync is to write, for Windows
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def write_whole(path: Path, content: bytes | str):
    """Writes a file under a temporary name, syncs and renames it. Where that fails, it leaves nothing."""
    temporary = path.with_name(f".{path.name}.tmp-{uuid.uuid4().hex}")
    try:
        temporary.write_bytes(content.encode() if isinstance(content, str) else content)
        _sync_path(temporary)
        temporary.replace(path)
    except OSError:
        temporary.unlink(missing_ok=True)
        raise

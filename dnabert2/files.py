"""Files and folders that are whole or absent: written aside, synced, renamed."""

import errno
import os
import shutil
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


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
        _sync(temporary)
        try:
            os.rename(temporary, folder)
        except OSError as error:
            if error.errno not in (errno.EEXIST, errno.ENOTEMPTY):  # it is there by now: never to be removed
                raise
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def publish(temporary: Path, folder: Path):
    """
    Syncs a folder's files to disk and renames it; an older one of that name gives way only now.

    For one process alone: what another publishes under that name at the same time may be lost.
    """
    _sync(temporary)
    if folder.exists():
        shutil.rmtree(folder)
    os.replace(temporary, folder)


def _sync(folder: Path):
    """Has a folder and all that is in it written to the disk."""
    on_windows = os.name == "nt"
    for path in [*folder.rglob("*"), folder]:
        if on_windows and path.is_dir():
            continue  # it cannot be opened there
        descriptor = os.open(path, os.O_RDWR if on_windows else os.O_RDONLY)  # to sync is to write, for Windows
        os.fsync(descriptor)
        os.close(descriptor)


def write_whole(path: Path, content: bytes | str):
    """Writes a file under a temporary name and renames it."""
    temporary = path.with_name(f".{path.name}.tmp-{uuid.uuid4().hex}")
    temporary.write_bytes(content.encode() if isinstance(content, str) else content)
    temporary.replace(path)

"""Files and folders that are whole or absent: written aside, synced, renamed."""

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

    For folders that are named by their content: one that has appeared meanwhile is as good, and stays. A process that
    dies on the way leaves a `*.tmp-…` beside it, which is never mistaken for a result.
    """
    folder.parent.mkdir(parents=True, exist_ok=True)
    temporary = folder.with_name(f"{folder.name}.tmp-{uuid.uuid4().hex}")
    temporary.mkdir()
    try:
        yield temporary
        if not folder.exists():
            publish(temporary, folder)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def publish(temporary: Path, folder: Path):
    """Syncs a folder's files to disk and renames it; an older one of that name gives way only now."""
    for path in [*temporary.rglob("*"), temporary]:
        descriptor = os.open(path, os.O_RDONLY)
        os.fsync(descriptor)
        os.close(descriptor)
    if folder.exists():
        shutil.rmtree(folder)
    os.replace(temporary, folder)


def write_whole(path: Path, content: bytes | str):
    """Writes a file under a temporary name and renames it."""
    temporary = path.with_name(f".{path.name}.tmp-{uuid.uuid4().hex}")
    temporary.write_bytes(content.encode() if isinstance(content, str) else content)
    temporary.replace(path)

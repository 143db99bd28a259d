"""Folders under the eyes of several processes, and on Windows; what one process sees is in test_checkpoints.py.

pytest tests/test_files.py
"""

import errno
import os
import threading
from types import SimpleNamespace

import pytest

from dnabert2 import files


def test_a_folder_published_while_ones_own_is_synced_is_never_removed(tmp_path, monkeypatch):
    folder, fsync = tmp_path / "entry", os.fsync

    def published_meanwhile(descriptor):
        folder.mkdir(exist_ok=True)
        (folder / "of another").write_text("whole")
        fsync(descriptor)

    monkeypatch.setattr(files.os, "fsync", published_meanwhile)
    with files.whole_folder(folder) as temporary:
        (temporary / "own").write_text("own")
    assert [path.name for path in folder.iterdir()] == ["of another"] and list(tmp_path.iterdir()) == [folder]


def test_of_many_that_publish_at_once_one_is_there_from_then_on(tmp_path):
    folder, barrier, inodes = tmp_path / "entry", threading.Barrier(8), []

    def publish():
        with files.whole_folder(folder) as temporary:
            (temporary / "file").write_text("content")
            barrier.wait()
        inodes.append((folder / "file").stat().st_ino)

    threads = [threading.Thread(target=publish) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(inodes) == 8 and len(set(inodes)) == 1 and list(tmp_path.iterdir()) == [folder]


def test_another_failure_to_rename_is_raised(tmp_path, monkeypatch):
    (tmp_path / "entry").write_text("a file")
    with pytest.raises(NotADirectoryError), files.whole_folder(tmp_path / "entry"):
        pass
    assert [path.name for path in tmp_path.iterdir()] == ["entry"]


def test_windows_cannot_open_folders_and_syncs_only_what_is_open_for_writing(tmp_path, monkeypatch):
    synced = []

    def windows_open(path, flags):
        if path.is_dir():
            raise PermissionError
        return os.open(path, flags)

    def windows_fsync(descriptor):
        os.write(descriptor, b"")
        synced.append(descriptor)

    functions = {name: getattr(os, name) for name in ("O_RDONLY", "O_RDWR", "close", "rename", "replace")}
    fake = SimpleNamespace(name="nt", open=windows_open, fsync=windows_fsync, **functions)
    monkeypatch.setattr(files, "os", fake)
    with files.whole_folder(tmp_path / "entry") as temporary:
        (temporary / "sub").mkdir()
        (temporary / "sub" / "file").write_text("content")
    assert (tmp_path / "entry" / "sub" / "file").read_text() == "content" and len(synced) == 1
    fake.name = "posix"
    with pytest.raises(PermissionError), files.whole_folder(tmp_path / "other"):
        pass


@pytest.mark.parametrize("moment, left", [("replace", []), ("rmtree", ["new"])])
def test_a_folder_that_is_replaced_is_never_there_in_part(tmp_path, monkeypatch, moment, left):
    """Not even for a process that is killed on the way; a half removed checkpoint would be taken for a whole one."""
    for name in ("checkpoint-3", "aside"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "file").write_text("old" if name == "checkpoint-3" else "new")

    def die(*_, **__):
        raise KeyboardInterrupt

    monkeypatch.setattr(files.os if moment == "replace" else files.shutil, moment, die)
    with pytest.raises(KeyboardInterrupt):
        files.publish(tmp_path / "aside", tmp_path / "checkpoint-3")
    assert [path.read_text() for path in tmp_path.glob("checkpoint-3/file")] == left
    aside = [path for path in tmp_path.iterdir() if files.PRUNED in path.name]
    assert [(path / "file").read_text() for path in aside] == ["old"]


def test_a_folder_is_on_disk_before_it_is_named_and_its_name_after(tmp_path, monkeypatch):
    events, fsync, replace = [], os.fsync, os.replace
    (tmp_path / "aside").mkdir()
    (tmp_path / "aside" / "file").write_text("whole")

    def noted_fsync(descriptor):
        events.append(os.readlink(f"/proc/self/fd/{descriptor}"))
        fsync(descriptor)

    def noted_replace(*paths):
        events.append("renamed")
        replace(*paths)

    monkeypatch.setattr(files.os, "fsync", noted_fsync)
    monkeypatch.setattr(files.os, "replace", noted_replace)
    files.publish(tmp_path / "aside", tmp_path / "checkpoint-3")
    assert events == [str(tmp_path / "aside" / "file"), str(tmp_path / "aside"), "renamed", str(tmp_path)]


def test_a_file_that_cannot_be_written_leaves_the_older_one_and_nothing_beside_it(tmp_path, monkeypatch):
    files.write_whole(tmp_path / "file", "old")

    def full(descriptor):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(files.os, "fsync", full)
    with pytest.raises(OSError, match="No space left"):
        files.write_whole(tmp_path / "file", "new")
    assert [path.name for path in tmp_path.iterdir()] == ["file"] and (tmp_path / "file").read_text() == "old"

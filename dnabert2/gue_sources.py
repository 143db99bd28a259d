"""Where the tasks of a command are: of GUE's folder those that are there, a folder of the user's, or a dataset."""

import hashlib
from argparse import Namespace
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path, PurePath

from dnabert2.errors import UsageError
from dnabert2.gue import TASKS_BY_NAME, Recipe, Task, select_tasks
from dnabert2.labelled import SINGLE_LABEL, TaskData, dataset_builder, load_dataset_task, load_task
from dnabert2.labelled_rows import find_table


SPLIT_NAMES = ("train", "dev", "test")


@dataclass(frozen=True)
class Source:
    """One task that can be read; `name` is also its folder's in --output_dir."""

    name: str
    problem_type: str
    task: Task | None = None  # of GUE
    folder: Path | None = None  # or else a dataset
    dataset: tuple[str, str | None] = ("", None)

    @property
    def recipe(self) -> Recipe:
        return self.task.recipe if self.task else Recipe()

    def load(self) -> TaskData:
        """Its splits; UsageError as of `load_task` and `load_dataset_task`."""
        if self.folder:
            return load_task(self.folder, self.problem_type, self.name)
        return load_dataset_task(*self.dataset, self.problem_type)

    def fingerprint(self) -> str:
        """The same for the same files; of a dataset of the Hub for the same revision."""
        if self.folder is None:
            folder = Path(self.dataset[0])
            if not folder.is_dir():
                return dataset_builder(*self.dataset).hash
            return fingerprint(path for path in folder.rglob("*") if path.is_file())
        files = (path for path in self.folder.iterdir() if path.name.partition(".")[0] in SPLIT_NAMES)
        return fingerprint(path for path in files if path.is_file())


def fingerprint(files: Iterable[Path]) -> str:
    """Of the names and contents of files."""
    digest = hashlib.sha256()
    for path in sorted(files):
        with path.open("rb") as file:
            digest.update(f"{path.name} {hashlib.file_digest(file, 'sha256').hexdigest()}\n".encode())
    return digest.hexdigest()[:16]


def model_fingerprint(name_or_path: str) -> str | None:
    """Of weights, sizes and tokenizer in a model's folder; None for a model on the Hub."""
    folder = Path(name_or_path)
    if not folder.is_dir():
        return None
    return fingerprint(
        path
        for path in folder.iterdir()
        if path.suffix in (".safetensors", ".bin") or path.name.startswith(("config.json", "tokenizer", "vocab"))
    )


def is_of_gue(source: Source) -> bool:
    """Whether what was given as a folder of the user's own is named as one of GUE's tasks."""
    return bool(source.folder) and not source.task and "/".join(source.folder.resolve().parts[-2:]) in TASKS_BY_NAME


def find_sources(args: Namespace) -> tuple[list[Source], list[str]]:
    """
    The tasks that a command names, and the names of those that are left out because their files are not there.

    A group's tasks may be missing, as GUE is handed on in parts; one that is asked for by its name may not.

    Raises:
        UsageError: for names that are none, a task that is missing, and where nothing is there.
    """
    if args.dataset_name:
        parts = PurePath(args.dataset_name).parts[-2:]  # of a folder of this machine the end
        name = "/".join(
            [*(part for part in parts if part not in ("/", "..")), *filter(None, [args.dataset_config_name])]
        )
        dataset = (args.dataset_name, args.dataset_config_name)
        return [Source(name or "dataset", args.problem_type, dataset=dataset)], []
    if not args.data_dir.is_dir():
        raise UsageError(f"--data_dir {args.data_dir}: no such folder")
    if not args.tasks and any(find_table(args.data_dir, split) for split in SPLIT_NAMES):
        return [Source(args.data_dir.resolve().name, args.problem_type, folder=args.data_dir)], []
    tasks = select_tasks(args.tasks or ["all"])
    if args.problem_type != SINGLE_LABEL:
        raise UsageError(f"--problem_type {args.problem_type}: the tasks of GUE are of {SINGLE_LABEL}")
    sources, missing = [], []
    for task in tasks:
        folder = args.data_dir / task.name
        if folder.is_dir() and all(find_table(folder, split) for split in ("dev", "test")):
            sources.append(Source(task.name, args.problem_type, task, folder))
        else:
            missing.append(task.name)
    if asked := [name for name in missing if name in (args.tasks or ())]:
        raise UsageError(
            f"--data_dir {args.data_dir}: has no {asked[0]}: no dev.csv and test.csv in a folder of that name"
        )
    if not sources:
        raise UsageError(
            f"--data_dir {args.data_dir}: no task in it; a task of GUE is a folder as {next(iter(TASKS_BY_NAME))} of "
            "it, a task of yours a folder with train.csv, dev.csv and test.csv"
        )
    return sources, missing

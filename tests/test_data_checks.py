"""The checks of a task's data count what stands in it, and find in the archive of GUE the flaws that are known.

DNABERT2_GUE=unpacked/GUE pytest tests/test_data_checks.py
"""

import csv
import json
import os
from pathlib import Path

import numpy as np
import pytest

from dnabert2.data_checks import check_data, checks_markdown
from dnabert2.gue import TASKS, TASKS_BY_NAME
from dnabert2.labelled import MULTI_LABEL, REGRESSION, SINGLE_LABEL, Split, TaskData, load_task


def split_of(rows, pairs=None):
    sequences, labels = zip(*rows, strict=True)
    return Split("here", [*map(str, range(len(rows)))], [*sequences], pairs, np.array(labels))


def task_of(train, dev, test, problem_type=SINGLE_LABEL, names=("0", "1")):
    splits = {"train": split_of(train), "dev": split_of(dev), "test": split_of(test)}
    return TaskData("mine", problem_type, [*names], splits)


FLAWED = task_of(
    train=[("AAAC", 0), ("AAAC", 0), ("AAAC", 1), ("GGNN", 1)],
    dev=[("AAAC", 0), ("GGNN", 0), ("CCCCCC", 1)],
    test=[("GTTT", 1), ("CCCCCC", 1), ("CCCCCC", 0)],
)


def test_duplicates_letters_lengths_and_contradictions_are_counted():
    report = check_data(FLAWED)
    assert report["splits"]["train"] == {
        "rows": 4,
        "labels": {"0": 2, "1": 2},
        "length": [4, 4],
        "other_letters": {"N": 2},
        "duplicates": 2,
        "two_labels": 1,
        "published_rows": None,
    }
    assert report["splits"]["dev"]["length"] == [4, 6]
    assert report["overlaps"] == {
        "dev/train": {"rows": 2, "other_label": 1, "reverse_complement": 0},
        "test/train": {"rows": 0, "other_label": 0, "reverse_complement": 1},
        "test/dev": {"rows": 2, "other_label": 1, "reverse_complement": 1},
    }
    assert json.loads(json.dumps(report)) == report


def test_labels_of_several_and_of_regressions_are_summed_up():
    rows = [("ACGT", (0, 1)), ("CCC", (1, 1)), ("ACGT", (0, 0))]
    report = check_data(task_of(rows, rows, rows, MULTI_LABEL, ["liver", "brain"]))["splits"]["train"]
    assert (report["labels"], report["two_labels"]) == ({"liver": 1, "brain": 2}, 1)
    rows = [("ACGT", -1.0), ("CCC", 2.0)]
    report = check_data(task_of(rows, rows, rows, REGRESSION, ["label"]))
    assert report["splits"]["dev"]["labels"] == {"min": -1.0, "mean": 0.5, "max": 2.0}
    assert "| -1 to 2 |" in checks_markdown([report])


def test_pairs_are_the_same_only_if_both_sequences_are():
    split = split_of([("A", 0), ("A", 1)], pairs=["C", "G"])
    report = check_data(TaskData("pairs", SINGLE_LABEL, ["0", "1"], {"train": split, "dev": split, "test": split}))
    assert (report["splits"]["train"]["duplicates"], report["overlaps"]["test/dev"]["rows"]) == (0, 2)


def test_the_table_shows_flaws_and_what_differs_from_the_publication():
    table = checks_markdown([check_data(FLAWED, TASKS_BY_NAME["splice/reconstructed"]), check_data(FLAWED)])
    assert "4 (published: 36,496), 3 (published: 4,562)" in table
    assert "(published: 3 classes)" in table
    assert "2 (1 with another label) | 0 (1 reversed) | 2 (1 with another label, 1 reversed) |" in table
    widths = {line.count("|") for line in table.splitlines() if line.startswith("|")}
    assert len(widths) == 1
    assert "†" not in table


GUE = Path(os.environ.get("DNABERT2_GUE", "/nowhere"))


@pytest.mark.skipif(not GUE.is_dir(), reason="DNABERT2_GUE does not name the unpacked archive of GUE")
@pytest.mark.parametrize("task", TASKS, ids=lambda task: task.name)
def test_the_archive_has_the_published_rows_and_the_known_overlaps(reference, task):
    if not (GUE / task.name).is_dir():
        pytest.skip("not in the archive")
    report = check_data(load_task(GUE / task.name, name=task.name), task)
    rows = {split: found["rows"] for split, found in report["splits"].items()}
    assert report["label_names"] == [str(label) for label in range(task.num_labels)]
    if report["train_is_from_dev"]:
        rows = {"train": task.rows["train"], "dev": rows["train"] + rows["dev"], "test": rows["test"]}
    assert rows == task.rows
    with open(reference / "gue_overlap.csv") as file:
        known = [row for row in csv.DictReader(file) if row["dataset"] == task.name]
    for row in known:
        found = [*report["overlaps"][f"{row['query']}/{row['ref']}"].values()]
        if report["train_is_from_dev"]:  # each row of dev is in one of the two
            found = [a + b for a, b in zip(found, report["overlaps"]["test/train"].values(), strict=True)]
        assert found == [int(row[key]) for key in ("exact", "exact_label_conflict", "revcomp_exact")]

"""What is in a task's data that a score does not show: sizes, labels, letters, duplicates, rows shared by splits.

    checks_markdown([check_data(load_task(f"GUE/{task.name}", name=task.name), task) for task in select_tasks(["tf"])])

Two rows are the same where their sequences (of a pair both) are equal, letter by letter. Nothing is mended here.
"""

from collections import Counter, defaultdict
from collections.abc import Iterable

import numpy as np

from dnabert2.gue import Task
from dnabert2.labelled import REGRESSION, SINGLE_LABEL, Split, TaskData
from dnabert2.windows import reverse_complement


SPLITS = ("train", "dev", "test")
_WITHOUT_ACGT = str.maketrans("", "", "ACGT")
OVERLAPS = (("dev", "train"), ("test", "train"), ("test", "dev"))  # rows of the first that are in the second


def check_data(data: TaskData, task: Task | None = None) -> dict:
    """
    A report for JSON: what a reader of the task's scores must know.

    Args:
        data: as it is used: without a train file, train and dev are the parts of dev (`train_is_from_dev`).
        task: of GUE, whose published rows and classes then stand beside those found.

    Returns:
        {"name", "problem_type", "train_is_from_dev", "label_names", "published_num_labels" (None if not of GUE),
        "splits": for each
            "rows", "published_rows" (None if not known or not of GUE), "labels" (rows by name; of a regression
            min, mean and max), "length" [shortest, longest] in bases, of all sequences,
            "other_letters" (by letter, how many that are not A, C, G, T), "duplicates" (rows whose sequence stands in
            an earlier row), "two_labels" (sequences that have rows of different labels),
        "overlaps": for each of dev/train, test/train and test/dev
            "rows" of the first whose sequence is in the second, "other_label" (of these, rows without one of the same
            label there), "reverse_complement" (rows of the first whose reverse complement is in the second)}
    """
    labels_of = {split: _labels_by_sequence(rows) for split, rows in data.splits.items()}
    splits = {split: _check_split(rows, labels_of[split], data) for split, rows in data.splits.items()}
    for split, report in splits.items():
        report["published_rows"] = task.rows[split] if task else None
    return {
        "name": data.name,
        "problem_type": data.problem_type,
        "train_is_from_dev": data.train_is_from_dev,
        "label_names": data.label_names,
        "published_num_labels": task.num_labels if task else None,
        "splits": splits,
        "overlaps": {
            f"{query}/{reference}": _overlap(data.splits[query], labels_of[reference]) for query, reference in OVERLAPS
        },
    }


def flaws(check: dict) -> str | None:
    """What a report says of rows that come twice, in words; None if none do."""
    splits = check["splits"].items()
    counts = [(split["duplicates"], f"rows of {name} stand in it before") for name, split in splits]
    counts += [(split["two_labels"], f"sequences of {name} have rows of different labels") for name, split in splits]
    shared = check["overlaps"].items()
    counts += [(overlap["rows"], f"rows of {name.replace('/', ' are in ')}") for name, overlap in shared]
    found = [f"{count:,} {what}" for count, what in counts if count]
    return f"{check['name']}: {', '.join(found)}" if found else None


def _keys(split: Split) -> list[tuple[str, ...]]:
    return [*zip(*filter(None, (split.sequences, split.pairs)), strict=True)]


def _labels(split: Split) -> list:
    """Each row's label, as what can be compared and stand in a set."""
    return [tuple(label) if isinstance(label, list) else label for label in split.labels.tolist()]


def _labels_by_sequence(split: Split) -> dict[tuple[str, ...], set]:
    found = defaultdict(set)
    for key, label in zip(_keys(split), _labels(split), strict=True):
        found[key].add(label)
    return dict(found)


def _check_split(split: Split, labels_of: dict[tuple[str, ...], set], data: TaskData) -> dict:
    sequences = split.sequences + (split.pairs or [])
    letters = Counter()
    for sequence in sequences:
        letters.update(sequence.translate(_WITHOUT_ACGT))
    lengths = [*map(len, sequences)]
    return {
        "rows": len(split),
        "labels": _label_counts(split.labels, data),
        "length": [min(lengths), max(lengths)],
        "other_letters": dict(sorted(letters.items())),
        "duplicates": len(split) - len(labels_of),
        "two_labels": sum(len(labels) > 1 for labels in labels_of.values()),
    }


def _label_counts(labels: np.ndarray, data: TaskData) -> dict[str, float]:
    if data.problem_type == REGRESSION:
        return {"min": float(labels.min()), "mean": float(labels.mean(dtype=np.float64)), "max": float(labels.max())}
    if data.problem_type == SINGLE_LABEL:
        counts = np.bincount(labels, minlength=len(data.label_names))
    else:
        counts = labels.sum(axis=0)
    return {name: int(count) for name, count in zip(data.label_names, counts, strict=True)}


def _overlap(query: Split, labels_of: dict[tuple[str, ...], set]) -> dict[str, int]:
    rows = other_label = turned = 0
    for key, label in zip(_keys(query), _labels(query), strict=True):
        if key in labels_of:
            rows += 1
            other_label += label not in labels_of[key]
        turned += tuple(map(reverse_complement, key)) in labels_of
    return {"rows": rows, "other_label": other_label, "reverse_complement": turned}


def _rows_cell(split: dict, is_cut: bool) -> str:
    """A split's rows; where others were published, with their number. Half a dev cannot be compared."""
    rows, published = split["rows"], split["published_rows"]
    return f"{rows:,}" if is_cut or published in (None, rows) else f"{rows:,} (published: {published:,})"


def _labels_cell(check: dict) -> str:
    """The share of each label over all splits, in percent; of a regression the range."""
    counts = [split["labels"] for split in check["splits"].values()]
    if check["problem_type"] == REGRESSION:
        return f"{min(count['min'] for count in counts):g} to {max(count['max'] for count in counts):g}"
    rows = sum(split["rows"] for split in check["splits"].values())
    shares = [f"{name} {sum(count[name] for count in counts) / rows:.0%}" for name in check["label_names"][:10]]
    cell = ", ".join(shares) + ("" if len(check["label_names"]) <= 10 else ", …")
    published = check["published_num_labels"]
    return cell if published in (None, len(check["label_names"])) else f"{cell} (published: {published} classes)"


def _counts_cell(counts: Iterable[int]) -> str:
    """Of train, dev and test; one dash where all are 0."""
    counts = [*counts]
    return ", ".join(f"{count:,}" for count in counts) if any(counts) else "–"


def _overlap_cell(overlap: dict[str, int]) -> str:
    notes = [f"{overlap['other_label']:,} with another label"] if overlap["other_label"] else []
    notes += [f"{overlap['reverse_complement']:,} reversed"] if overlap["reverse_complement"] else []
    if not overlap["rows"] and not notes:
        return "–"
    return f"{overlap['rows']:,}" + (f" ({', '.join(notes)})" if notes else "")


_LEGEND = """
Three numbers are those of train, dev and test. Duplicates: rows whose sequence stands in an earlier row of the split.
Two labels: sequences that have rows of different labels in one split. A in B: rows of A whose sequence is in B;
reversed: rows of A whose reverse complement is in B. –: none.
"""
_FROM_DEV = "† There is no train file: dev was cut into train and dev.\n"


def checks_markdown(checks: list[dict]) -> str:
    """The reports of several tasks as one table in Markdown: a row a task, with a legend below it."""
    lines = [
        "| task | rows: train, dev, test | labels | bases | not ACGT | duplicates | two labels | "
        + " | ".join(f"{query} in {reference}" for query, reference in OVERLAPS)
        + " |",
        "|---|---|--:|--:|--:|--:|--:|--:|--:|--:|",
    ]
    for check in checks:
        splits = check["splits"]
        by_name = [splits[name] for name in SPLITS]
        lengths = [length for split in by_name for length in split["length"]]
        is_cut = check["train_is_from_dev"]
        cells = [
            check["name"] + (" †" if is_cut else ""),
            ", ".join(_rows_cell(splits[name], is_cut and name == "dev") for name in SPLITS),
            _labels_cell(check),
            f"{min(lengths)}" if min(lengths) == max(lengths) else f"{min(lengths)}–{max(lengths)}",
            _counts_cell(sum(split["other_letters"].values()) for split in by_name),
            _counts_cell(split["duplicates"] for split in by_name),
            _counts_cell(split["two_labels"] for split in by_name),
            *map(_overlap_cell, check["overlaps"].values()),
        ]
        lines.append("| " + " | ".join(" ".join(cell.split()).replace("|", r"\|") for cell in cells) + " |")
    return (
        "\n".join(lines) + "\n" + _LEGEND + (_FROM_DEV if any(check["train_is_from_dev"] for check in checks) else "")
    )

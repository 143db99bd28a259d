"""A picture of scores: a line a dataset, on it this model's mean and spread over seeds, and the published scores."""

from io import BytesIO

import matplotlib
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from dnabert2.curves import STYLE
from dnabert2.gue import GROUPS


NAMES = {"mcc": "MCC", "macro_f1": "macro-F1", "auroc": "AUROC", "spearman": "Spearman"}
OURS = {"color": "#0072B2", "marker": "o", "markersize": 7}
# open marks: they are not of this run; colours of dnabert2.curves
PUBLISHED = {
    "DNABERT-2": {"color": "#D55E00", "marker": "D", "markersize": 5},
    "DNABERT (6-mer)": {"color": "#CC79A7", "marker": "s", "markersize": 5},
    "NT-2500M-multi": {"color": "#009E73", "marker": "^", "markersize": 6},
}
WIDTH, ROW_HEIGHT, REST_HEIGHT = 9, 0.27, 1.5  # inches


def draw(summary: dict) -> bytes:
    """A PNG of what `gue_report.summarise` gives."""
    rows = _rows(summary["datasets"])
    picture = BytesIO()
    with matplotlib.rc_context(STYLE):
        figure = Figure(figsize=(WIDTH, REST_HEIGHT + ROW_HEIGHT * len(rows)), dpi=120, layout="constrained")
        axes = figure.add_subplot()
        _draw_rows(axes, rows)
        handles, names = axes.get_legend_handles_labels()
        figure.legend(handles, names, loc="outside upper left", ncols=2)
        figure.savefig(picture, format="png")
    return picture.getvalue()


def _rows(datasets: list[dict]) -> list[dict | str]:
    """The datasets, before each of GUE's tasks its name."""
    rows, group = [], None
    for dataset in datasets:
        if dataset["group"] != group:
            group = dataset["group"]
            rows.append(f"{GROUPS[group]}" if group else "others")
        rows.append(dataset)
    return rows


def _draw_rows(axes: Axes, rows: list[dict | str]):
    for model, style in PUBLISHED.items():
        points = [
            (row["published"][model], y)
            for y, row in enumerate(rows)
            if not isinstance(row, str) and model in row["published"]
        ]
        if points:
            mark = {"linestyle": "", "markerfacecolor": "white", "markeredgewidth": 1.3}
            axes.plot(*zip(*points, strict=True), label=f"{model}, published", **style | mark)
    of_runs = [(y, row) for y, row in enumerate(rows) if not isinstance(row, str) and row["mean"] is not None]
    if of_runs:
        # of a single seed no spread is known
        axes.errorbar(
            [row["mean"] for _, row in of_runs],
            [y for y, _ in of_runs],
            xerr=[row["sd"] or 0.0 for _, row in of_runs],
            label="this model, ± sd over seeds",
            linestyle="",
            elinewidth=2.5,
            **OURS,
        )
    for y, row in of_runs:
        if row["collapsed"]:
            axes.annotate(
                "collapsed", (row["mean"], y), xytext=(9, 0), textcoords="offset points", va="center", fontsize=8
            )
    names = [row if isinstance(row, str) else row["task"] + " †" * row["train_is_from_dev"] for row in rows]
    axes.set_yticks(range(len(rows)), names)
    for label, row in zip(axes.get_yticklabels(), rows, strict=True):
        if isinstance(row, str):
            label.set_fontweight("bold")
    axes.set_ylim(len(rows) - 0.4, -0.6)
    metrics = {row["metric"] for row in rows if not isinstance(row, str)}
    note = (
        "; † trained on a part of dev" if any(not isinstance(r, str) and r["train_is_from_dev"] for r in rows) else ""
    )
    axes.set_xlabel(f"{' or '.join(sorted(NAMES.get(metric, metric) for metric in metrics))} on test, percent{note}")

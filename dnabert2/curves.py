"""A picture of pretraining runs from their metrics.jsonl, also of one that is still writing.

    python -m dnabert2.curves output/117M [output/other ...] [--output curves.png]

Losses, validation accuracy, learning rate and throughput, over the tokens seen, or over steps if a run has not written
its tokens. One run also shows its validation by kingdom, if it has that; several are laid over each other.
"""

import argparse
import json
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from io import BytesIO
from itertools import cycle
from pathlib import Path

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.axis import Axis
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import Formatter, MaxNLocator

from dnabert2.errors import UsageError, add_debug, run_script
from dnabert2.files import write_whole


METRICS_FILE = "metrics.jsonl"  # as in dnabert2.checkpoints, which would import torch: seconds
# Okabe and Ito's, told apart by colour-blind readers; without their yellow, which is too light for a line
PALETTE = ["#0072B2", "#D55E00", "#009E73", "#CC79A7", "#56B4E9", "#000000", "#E69F00"]
# a look of its own for each of 28 lines
LOOKS = [{"color": color, "linestyle": style} for style in ("-", "--", ":", "-.") for color in PALETTE]
STYLE = {"text.parse_math": False}  # a folder's name may have dollars
UNITS = {"": 1, "thousand ": 1e3, "million ": 1e6, "billion ": 1e9, "trillion ": 1e12}
VALIDATION = {"marker": "o", "markersize": 3.5, "linewidth": 1}
LOSS, ACCURACY = ("nats a masked token", 1), ("% of masked tokens", 0.01)  # label and unit of an axis
SUPERSCRIPT = str.maketrans("-0123456789", "⁻⁰¹²³⁴⁵⁶⁷⁸⁹")
NOISY = 50  # readings: from so many on, a running mean over some twentieth of them is drawn
WIDTH, PANEL_HEIGHT, NAME_HEIGHT, LEGEND_HEIGHT = 10, 2.8, 0.19, 0.22  # inches; the latter two of a line
PANEL_NAMES, LEGEND_WIDTH = 10, 110  # that fit beside a panel; letters


def read_metrics(run_folder: Path) -> list[dict]:
    """A run's metrics, without a torn last line. Raises UsageError if they are missing, broken or without a loss."""
    path = run_folder / METRICS_FILE
    if not path.is_file():
        raise UsageError(f"{path} is missing: name the --output_dir of a run of run_mlm.py")
    texts, lines = path.read_text().splitlines(), []
    for number, text in enumerate(texts, 1):
        try:
            lines.append(json.loads(text))
        except json.JSONDecodeError as error:
            if number < len(texts):  # the last one is being written, or its run was killed
                raise UsageError(f"{path}, line {number} is no JSON: remove that line") from error
    if not any("loss" in line or "validation_loss" in line for line in lines):
        raise UsageError(f"{path} has no loss yet: wait until the run has written its first one")
    return lines


@dataclass
class Run:
    """A run's metrics and how it is drawn; `x` is "tokens" or "step"."""

    name: str
    lines: list[dict]
    style: dict
    validation_style: dict
    x: str

    def points(self, key: str) -> np.ndarray:
        """`key` over `self.x`, [2, readings]: only where it was read and is finite."""
        pairs = [(line.get(self.x, 0), line[key]) for line in self.lines if key in line]  # step 0 has seen 0 tokens
        points = np.array(pairs, dtype=float).reshape(-1, 2)
        return points[np.isfinite(points).all(axis=1)].T

    def kingdoms(self) -> list[str]:
        """In the order of the alphabet, so that each has the same colour in every picture."""
        keys = {key for line in self.lines for key in line if key.startswith("validation_loss/")}
        return sorted(key.partition("/")[2] for key in keys)


def name_runs(run_folders: Sequence[Path]) -> list[str]:
    """Their folder names, or where two have the same one, their paths."""
    names = [folder.resolve().name for folder in run_folders]
    return names if len(set(names)) == len(names) else [str(folder) for folder in run_folders]


def read_runs(run_folders: Sequence[Path]) -> list[Run]:
    """The runs, over tokens if all have written them with every step."""
    lines = [read_metrics(folder) for folder in run_folders]
    steps = [line for run_lines in lines for line in run_lines if line["step"]]
    x = "tokens" if steps and all("tokens" in line for line in steps) else "step"
    named = zip(name_runs(run_folders), lines, cycle(LOOKS), strict=False)
    alone = len(lines) == 1
    return [Run(name, of_run, look, (LOOKS[1] if alone else look) | VALIDATION, x) for name, of_run, look in named]


def running_mean(values: np.ndarray, half: int) -> np.ndarray:
    """Means over 2·half + 1 values; towards the ends over fewer, still as many on either side, as slopes demand."""
    index = np.arange(len(values))
    reach = np.minimum(half, np.minimum(index, index[::-1]))
    sums = np.concatenate([[0], np.cumsum(values)])
    return (sums[index + reach + 1] - sums[index - reach]) / (2 * reach + 1)


def unit(largest: float) -> tuple[str, float]:
    """The name and size of the largest unit that is no larger than a value."""
    return [(name, size) for name, size in UNITS.items() if size <= max(largest, 1)][-1]


class Scaled(Formatter):
    """Ticks in multiples of `size`, all of an axis with as many decimals."""

    def __init__(self, size: float):
        self.size = size

    def format_ticks(self, values: Sequence[float]) -> list[str]:
        values = [value / self.size for value in values]
        decimals = max(len(f"{value:.6f}".rstrip("0").partition(".")[2]) for value in values)
        return [f"{value:,.{decimals}f}" for value in values]


def scale(axis: Axis, label: str, size: float):
    """A label, and few ticks, in multiples of `size`."""
    axis.set_label_text(label)
    axis.set_major_locator(MaxNLocator(6, steps=[1, 2, 2.5, 5, 10]))
    axis.set_major_formatter(Scaled(size))


def draw_readings(axes: Axes, points: np.ndarray, style: dict):
    """A thin line, and if there are many readings, a running mean over it; a lonely one is marked."""
    x, y = points
    half = len(y) // 40 if len(y) >= NOISY else 0
    thin = {"linewidth": 0.7, "linestyle": "-", "alpha": 0.3} if half else {}
    axes.plot(x, y, marker="o" if len(y) == 1 else "", **style | thin)
    if half:
        axes.plot(x, running_mean(y, half), **style)


def draw_validation(axes: Axes, points: np.ndarray, style: dict):
    """Marked, of many readings not at each, but at the last."""
    every = math.ceil(points.shape[1] / 20) or 1
    axes.plot(*points, markevery=((points.shape[1] - 1) % every, every), **style)


def draw_loss(axes: Axes, runs: list[Run], key: str):
    scale(axes.yaxis, *LOSS)
    for run in runs:
        draw_readings(axes, run.points(key), run.style)
        draw_validation(axes, run.points(f"validation_{key}"), run.validation_style)
    grey = {"color": "0.3"} if len(runs) > 1 else {}
    handles = [Line2D([], [], **style | grey) for style in (runs[0].style, runs[0].validation_style)]
    axes.legend(handles, ["training", "validation"], frameon=False)


def draw_accuracy(axes: Axes, runs: list[Run], key: str):
    scale(axes.yaxis, *ACCURACY)
    for run in runs:
        draw_validation(axes, run.points(key), run.validation_style)


def draw_learning_rate(axes: Axes, runs: list[Run], key: str):
    curves = [run.points(key) for run in runs]
    largest = max(rates.max(initial=0) for _, rates in curves)
    exponent = math.floor(math.log10(largest)) if largest else 0
    scale(axes.yaxis, f"× 10{str(exponent).translate(SUPERSCRIPT)}" if exponent else "", 10.0**exponent)
    for run, (steps, rates) in zip(runs, curves, strict=True):
        axes.plot(steps, rates, marker="o" if len(rates) == 1 else "", **run.style)
    axes.set_ylim(-0.02 * largest, 1.1 * largest or 1)


def draw_throughput(axes: Axes, runs: list[Run], key: str):
    """From 0, and without a run's first reading, which includes compiling, if there are others."""
    curves = [run.points(key) for run in runs]
    curves = [points[:, 1:] if points.shape[1] > 1 else points for points in curves]
    largest = max(rates.max(initial=0) for _, rates in curves)
    name, size = unit(largest)
    scale(axes.yaxis, f"{name}tokens a second", size)
    for run, points in zip(runs, curves, strict=True):
        draw_readings(axes, points, run.style)
    axes.set_ylim(0, 1.15 * largest or 1)


def spread(heights: np.ndarray, distance: float) -> np.ndarray:
    """Ascending heights moved apart to `distance`, as little as that takes, and to within 0 and 1."""
    # Heights less the distances below them must only not fall: where they would, neighbours share their mean.
    blocks = []
    for height in heights - distance * np.arange(len(heights)):
        blocks.append([height])
        while len(blocks) > 1 and np.mean(blocks[-2]) > np.mean(blocks[-1]):
            blocks[-2:] = [blocks[-2] + blocks[-1]]
    levels = np.concatenate([np.full(len(block), np.mean(block)) for block in blocks])
    return np.clip(levels, 0, max(0, 1 - distance * (len(heights) - 1))) + distance * np.arange(len(heights))


def draw_kingdoms(axes: Axes, runs: list[Run], key: str):
    """A line a kingdom, its name at the line's end; the steep first tenth of a long run sets no scale."""
    scale(axes.yaxis, *(ACCURACY if key == "validation_accuracy" else LOSS))
    kingdoms = zip(runs[0].kingdoms(), cycle(LOOKS), strict=False)
    curves = [(kingdom, look, runs[0].points(f"{key}/{kingdom}")) for kingdom, look in kingdoms]
    for _, look, points in curves:
        draw_validation(axes, points, look | VALIDATION)
    is_long = max(points.shape[1] for *_, points in curves) > 10
    settled = is_long * max(x.max(initial=0) for *_, (x, _) in curves) / 10
    values = np.concatenate([y[x >= settled] for *_, (x, y) in curves])
    if not len(values):
        return
    margin = 0.05 * np.ptp(values) or 0.05
    low, high = axes.set_ylim(values.min() - margin, values.max() + margin)
    ends = sorted((y[-1], x[-1], kingdom, look["color"]) for kingdom, look, (x, y) in curves if len(y))
    heights = (np.array([end[0] for end in ends]) - low) / (high - low)
    heights = spread(heights, 1 / max(PANEL_NAMES, len(curves)))
    for (y, x, kingdom, color), height in zip(ends, heights, strict=True):
        leader = {"arrowstyle": "-", "color": color, "linewidth": 0.6, "shrinkA": 0, "shrinkB": 3, "relpos": (0, 0.5)}
        label = {"color": color, "fontsize": 9, "verticalalignment": "center", "arrowprops": leader}
        axes.annotate(kingdom, (x, y), (1.06, height), textcoords="axes fraction", **label)


PANELS = [  # title, what draws it, readings
    ("Loss", draw_loss, "loss"),
    ("Validation accuracy", draw_accuracy, "validation_accuracy"),
    ("Learning rate", draw_learning_rate, "learning_rate"),
    ("Throughput", draw_throughput, "tokens_per_second"),
]
KINGDOM_PANELS = [
    ("Validation loss by kingdom", draw_kingdoms, "validation_loss"),
    ("Validation accuracy by kingdom", draw_kingdoms, "validation_accuracy"),
]


def draw_panel(axes: Axes, runs: list[Run], title: str, draw: Callable[[Axes, list[Run], str], None], key: str):
    """The x axis is the same for all panels, from 0 to the last line of any run."""
    axes.set_title(title, loc="left", weight="bold")
    axes.grid(color="0.92")
    axes.spines[["top", "right"]].set_visible(False)
    draw(axes, runs, key)
    last = max(line.get(runs[0].x, 0) for run in runs for line in run.lines) or 1
    name, size = unit(last) if runs[0].x == "tokens" else ("", 1)
    scale(axes.xaxis, f"{name}tokens seen" if runs[0].x == "tokens" else "steps", size)
    axes.set_xlim(-0.02 * last, 1.02 * last)


def draw_figure(runs: list[Run]) -> Figure:
    """The panels that there are readings for, two in a row, and a last row by kingdom."""
    parts = [[panel for panel in PANELS if panel[0] == "Loss" or any(run.points(panel[-1]).size for run in runs)]]
    heights = [PANEL_HEIGHT * math.ceil(len(parts[0]) / 2)]
    if len(runs) == 1 and (kingdoms := runs[0].kingdoms()):
        parts.append(KINGDOM_PANELS)
        heights.append(PANEL_HEIGHT + NAME_HEIGHT * max(0, len(kingdoms) - PANEL_NAMES))
    names = [run.name for run in runs]
    columns = max(1, LEGEND_WIDTH // (max(map(len, names)) + 8))  # 8: the line before a name and the space behind it
    legend_height = LEGEND_HEIGHT * math.ceil(len(runs) / columns) if len(runs) > 1 else 0
    figure = Figure(figsize=(WIDTH, sum(heights) + legend_height), dpi=120, layout="constrained")
    figure.get_layout_engine().set(w_pad=0.08, h_pad=0.08)
    # parts of their own: the names of the kingdoms, right of their panels, make no other panel narrower
    subfigures = figure.subfigures(len(parts), 1, squeeze=False, height_ratios=heights).flat
    for subfigure, panels in zip(subfigures, parts, strict=True):
        for i, panel in enumerate(panels, start=1):
            draw_panel(subfigure.add_subplot(math.ceil(len(panels) / 2), 2, i), runs, *panel)
    if len(runs) > 1:
        handles = [Line2D([], [], **run.style) for run in runs]
        figure.legend(handles, names, loc="outside upper left", ncols=min(columns, len(runs)), frameon=False)
    return figure


def draw_curves(run_folders: Sequence[Path], output_file: Path):
    """
    Draws the runs into a picture; its ending names the format, as .png, .pdf or .svg.

    Raises UsageError as `read_metrics` does, and for a file that cannot be written or a format that is not known.
    """
    runs = read_runs(run_folders)
    picture = BytesIO()
    with matplotlib.rc_context(STYLE):
        figure = draw_figure(runs)
        formats = figure.canvas.get_supported_filetypes()
        if output_file.suffix[1:] not in formats:
            raise UsageError(f"{output_file} has no ending of a picture: give one of {' '.join(formats)}")
        figure.savefig(picture, format=output_file.suffix[1:])
    try:
        write_whole(output_file, picture.getvalue())
    except OSError as error:
        raise UsageError(f"{output_file} cannot be written ({error.strerror}): name another --output") from error


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run_folder", nargs="+", type=Path, help="--output_dir of a run of run_mlm.py")
    parser.add_argument("--output", type=Path, default=Path("curves.png"), help="picture (default: curves.png)")
    add_debug(parser)
    args = parser.parse_args()
    draw_curves(args.run_folder, args.output)
    print(f"Drawn to {args.output}")


if __name__ == "__main__":
    run_script(main)

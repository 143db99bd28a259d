"""The picture of a run shows what its metrics.jsonl holds, also of one line and while it is being written.

pytest tests/test_curves.py
"""

import json
import subprocess
import sys
import warnings
from itertools import pairwise
from pathlib import Path

import matplotlib
import numpy as np
import pytest
from matplotlib.image import imread
from matplotlib.text import Text

from dnabert2 import checkpoints, curves
from dnabert2.errors import UsageError
from dnabert2.loading import ROOT


KINGDOMS = ["archaea", "bacteria", "fungi", "invertebrate", "plant", "protist", "vertebrate"]


def metrics_of_a_run(num_lines=41, kingdoms=(), tokens_a_step=0, peak=5e-4):
    """Lines of every tenth step, validation with every fourth."""
    for i in range(num_lines):
        values = {"step": 10 * i}
        if tokens_a_step:
            values["tokens"] = 10 * i * tokens_a_step
        loss = 5 + 3 * np.exp(-i / 5)
        if i:
            values |= {"loss": loss + 0.1 * np.sin(40 * i), "learning_rate": peak * i / num_lines}
            values |= {"grad_norm": 1.2, "tokens_per_second": 660_000.0 if i > 1 else 9000.0, "memory_gib": 30.4}
        if i % 4 == 0:
            values |= {"validation_loss": loss, "validation_accuracy": 1 / loss**2}
            for number, kingdom in enumerate(kingdoms):
                values[f"validation_loss/{kingdom}"] = loss + 0.01 * number
                values[f"validation_accuracy/{kingdom}"] = 1 / loss**2 - 0.01 * number
        yield values


def write_run(folder, lines, torn=""):
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines) + torn)
    return folder


def panels(*run_folders):
    """The axes by their titles, laid out as in the picture."""
    with matplotlib.rc_context(curves.STYLE):
        figure = curves.draw_figure(curves.read_runs(run_folders))
        figure.draw_without_rendering()
    return {axes.get_title(loc="left"): axes for axes in figure.axes}


def tick_labels(axis):
    low, high = sorted(axis.get_view_interval())
    places = zip(axis.get_majorticklocs(), axis.get_ticklabels(), strict=True)
    return [label.get_text() for place, label in places if low <= place <= high]


# --- what is shown -----------------------------------------------------------------------------------------------


def test_four_panels_show_the_values_of_the_lines(tmp_path):
    lines = list(metrics_of_a_run())
    shown = panels(write_run(tmp_path, lines))
    assert list(shown) == ["Loss", "Validation accuracy", "Learning rate", "Throughput"]
    expected = {
        "Loss": ["loss", "validation_loss"],
        "Validation accuracy": ["validation_accuracy"],
        "Learning rate": ["learning_rate"],
    }
    for title, keys in expected.items():
        drawn = [line.get_xydata() for line in shown[title].lines]
        assert len(drawn) == len(keys)
        for values, key in zip(drawn, keys, strict=True):
            np.testing.assert_array_equal(values, [(line["step"], line[key]) for line in lines if key in line])


def test_every_axis_has_a_unit_and_few_ticks(tmp_path):
    shown = panels(write_run(tmp_path, metrics_of_a_run(kingdoms=KINGDOMS)))
    assert len(shown) == 6
    for axes in shown.values():
        assert axes.get_xlabel() == "steps" and axes.get_ylabel()
        assert 2 <= len(tick_labels(axes.xaxis)) <= 6 and 2 <= len(tick_labels(axes.yaxis)) <= 6
    assert shown["Learning rate"].get_ylabel() == "× 10⁻⁴"
    assert tick_labels(shown["Learning rate"].yaxis) == ["0", "1", "2", "3", "4", "5"]
    assert shown["Throughput"].get_ylabel() == "thousand tokens a second"
    assert tick_labels(shown["Throughput"].yaxis) == ["0", "200", "400", "600"]
    assert shown["Validation accuracy"].get_ylabel() == "% of masked tokens"
    assert tick_labels(shown["Validation accuracy"].yaxis) == ["1.5", "2.0", "2.5", "3.0", "3.5", "4.0"]


def test_ticks_of_an_axis_have_as_many_decimals():
    assert curves.Scaled(1).format_ticks([7, 7.5, 8]) == ["7.0", "7.5", "8.0"]
    assert curves.Scaled(1).format_ticks([0, 250_000, 500_000]) == ["0", "250,000", "500,000"]
    assert curves.Scaled(1e-4).format_ticks([0, 1e-4, 3e-4]) == ["0", "1", "3"]


def test_the_first_reading_of_the_throughput_which_includes_compiling_is_left_out(tmp_path):
    lines = list(metrics_of_a_run())
    lines[1]["tokens_per_second"] = 9e9
    (line,) = panels(write_run(tmp_path, lines))["Throughput"].lines
    assert set(line.get_ydata()) == {660_000.0} and line.get_xdata()[0] == 20
    (only,) = panels(write_run(tmp_path, lines[:2]))["Throughput"].lines
    assert only.get_ydata() == [9e9]


def test_a_noisy_loss_is_light_below_its_running_mean(tmp_path):
    raw, mean, validation = panels(write_run(tmp_path, metrics_of_a_run(401)))["Loss"].lines
    assert raw.get_alpha() < 0.5 and mean.get_alpha() is None and validation.get_marker() == "o"
    assert raw.get_color() == mean.get_color() != validation.get_color()
    assert np.std(np.diff(mean.get_ydata()[50:])) < np.std(np.diff(raw.get_ydata()[50:])) / 5


def test_the_running_mean_does_not_bend_a_slope_at_its_ends():
    slope = np.arange(30.0)
    np.testing.assert_allclose(curves.running_mean(slope, 5), slope)
    values = np.array([0.0, 3.0, 0.0, 3.0, 0.0])
    np.testing.assert_allclose(curves.running_mean(values, 1), [0, 1, 2, 1, 0])
    np.testing.assert_allclose(curves.running_mean(values, 9), [0, 1, 1.2, 1, 0])


def test_the_x_axis_is_of_tokens_if_every_step_of_every_run_has_them(tmp_path):
    lines = list(metrics_of_a_run(tokens_a_step=4096 * 128))
    del lines[0]["tokens"]  # nothing is seen at step 0
    with_tokens = write_run(tmp_path / "with", lines)
    without = write_run(tmp_path / "without", metrics_of_a_run())
    loss = panels(with_tokens)["Loss"]
    assert loss.get_xlabel() == "million tokens seen" and tick_labels(loss.xaxis) == ["0", "50", "100", "150", "200"]
    assert loss.lines[-1].get_xdata()[[0, -1]].tolist() == [0, 400 * 4096 * 128]
    assert panels(with_tokens, without)["Loss"].get_xlabel() == "steps"
    mixed = write_run(tmp_path / "mixed", [*metrics_of_a_run(9), *lines[9:]])  # begun by an older version
    assert panels(mixed)["Loss"].get_xlabel() == "steps"


def test_all_panels_have_the_same_x_axis(tmp_path):
    shown = panels(write_run(tmp_path, metrics_of_a_run(kingdoms=KINGDOMS))).values()
    assert len({axes.get_xlim() for axes in shown}) == 1


# --- kingdoms ----------------------------------------------------------------------------------------------------


def label_boxes(axes):
    return [Text.get_window_extent(text) for text in axes.texts]  # without the lines that lead to them


@pytest.mark.parametrize("kingdoms", [KINGDOMS[:1], KINGDOMS, [f"folder_{i:02d}" for i in range(28)]])
def test_kingdoms_are_named_at_the_ends_of_their_lines_and_no_name_is_over_another(tmp_path, kingdoms):
    shown = panels(write_run(tmp_path, metrics_of_a_run(kingdoms=kingdoms)))
    for title, order in (("Validation loss by kingdom", 1), ("Validation accuracy by kingdom", -1)):
        axes = shown[title]
        assert [text.get_text() for text in axes.texts] == kingdoms[::order]  # from the bottom
        boxes = label_boxes(axes)
        assert all(upper.y0 >= lower.y1 - 2 for lower, upper in pairwise(boxes))  # pixels
        assert all(box.x0 > axes.get_window_extent().x1 and box.x1 <= axes.figure.figure.bbox.x1 for box in boxes)
        ends = {line.get_color() + line.get_linestyle(): line.get_ydata()[-1] for line in axes.lines}
        assert len(ends) == len(kingdoms)  # each its own look
    accuracy, loss = (shown[f"Validation {name} by kingdom"].texts for name in ("accuracy", "loss"))
    assert {text.get_text(): text.get_color() for text in loss} == {t.get_text(): t.get_color() for t in accuracy}


def test_the_steep_beginning_of_a_long_run_does_not_set_the_scale_of_the_kingdoms(tmp_path):
    long = panels(write_run(tmp_path / "long", metrics_of_a_run(201, KINGDOMS)))["Validation loss by kingdom"]
    short = panels(write_run(tmp_path / "short", metrics_of_a_run(9, KINGDOMS)))["Validation loss by kingdom"]
    assert long.get_ylim()[1] < 5.5 and short.get_ylim()[1] > 8


def test_a_kingdom_without_a_last_or_with_any_reading_is_no_error(tmp_path):
    lines = list(metrics_of_a_run(9, ["bacteria", "plant", "virus"]))
    for key in ("loss", "accuracy"):
        del lines[8][f"validation_{key}/plant"]
        for line in lines:
            line.pop(f"validation_{key}/bacteria", None)
            if f"validation_{key}/virus" in line:
                line[f"validation_{key}/virus"] = float("nan")
    axes = panels(write_run(tmp_path, lines))["Validation loss by kingdom"]
    assert [text.get_text() for text in axes.texts] == ["plant"]
    lines[4] = lines[0] = {"step": 0, "loss": 1.0, "validation_loss/virus": float("nan")}
    assert not panels(write_run(tmp_path, lines))["Validation loss by kingdom"].texts


@pytest.mark.parametrize(
    "heights, expected",
    [
        ([0.5], [0.5]),
        ([0.1, 0.9], [0.1, 0.9]),
        ([0.5, 0.5], [0.45, 0.55]),
        ([0.0, 0.0, 0.5], [0.0, 0.1, 0.5]),
        ([0.4, 0.98, 1.0], [0.4, 0.9, 1.0]),
        ([0.5] * 11, np.linspace(0, 1, 11)),
    ],
)
def test_names_are_spread_as_little_as_it_takes(heights, expected):
    np.testing.assert_allclose(curves.spread(np.array(heights), 0.1), expected, atol=1e-12)


# --- several runs ------------------------------------------------------------------------------------------------


def legend(axes):
    (legend,) = axes.figure.figure.legends
    return [text.get_text() for text in legend.texts]


def test_several_runs_are_overlaid_under_their_folders_names_without_kingdoms(tmp_path):
    names = ["117M", "_lr$1e-3$", "a\\$\\frac$"]  # none is mathematics, none is left out
    folders = [write_run(tmp_path / name, metrics_of_a_run(kingdoms=KINGDOMS, peak=1e-3)) for name in names]
    shown = panels(*folders)
    assert list(shown) == ["Loss", "Validation accuracy", "Learning rate", "Throughput"]
    assert legend(shown["Loss"]) == names
    assert len({line.get_color() for line in shown["Learning rate"].lines}) == 3
    assert shown["Learning rate"].lines[1].get_color() == shown["Validation accuracy"].lines[1].get_color()


def test_the_legend_of_many_runs_stays_in_the_picture(tmp_path):
    folders = [write_run(tmp_path / f"{'long-' * 6}{i}", metrics_of_a_run(3)) for i in range(9)]
    axes = panels(*folders)["Loss"]
    box, picture = axes.figure.figure.legends[0].get_window_extent(), axes.figure.figure.bbox
    assert box.x1 <= picture.x1 and box.y1 <= picture.y1 and box.y0 > axes.get_window_extent().y1


def test_runs_in_folders_of_one_name_are_told_apart_by_their_paths(tmp_path, monkeypatch):
    for parent in ("a", "b"):
        write_run(tmp_path / parent / "model", metrics_of_a_run(3))
    monkeypatch.chdir(tmp_path)
    folders = [Path("a/model"), Path("b/model")]
    assert curves.name_runs(folders) == ["a/model", "b/model"]
    assert curves.name_runs([Path("a/model"), Path("a")]) == ["model", "a"]
    monkeypatch.chdir(tmp_path / "a")
    assert curves.name_runs([Path(".")]) == ["a"]


# --- runs that have only begun, and files that are none ------------------------------------------------------------


@pytest.mark.parametrize(
    "lines, titles",
    [
        ([{"step": 0, "validation_loss": 8.3, "validation_accuracy": 0.0}], ["Loss", "Validation accuracy"]),
        ([{"step": 1, "loss": 8.0, "learning_rate": 0.0}], ["Loss", "Learning rate"]),
        ([{"step": 10, "loss": 8.0, "tokens_per_second": 0.5}], ["Loss", "Throughput"]),
        (
            [{"step": 1, "loss": 1.0, "learning_rate": 1e-5, "tokens_per_second": 9.0}],
            ["Loss", "Learning rate", "Throughput"],
        ),
        (list(metrics_of_a_run(1, KINGDOMS)), ["Loss", "Validation accuracy", *["by kingdom"] * 2]),
    ],
)
def test_a_run_of_one_line_has_its_values_marked(tmp_path, lines, titles):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        shown = panels(write_run(tmp_path, lines))
    assert all(wanted in title for wanted, title in zip(titles, shown, strict=True))
    marked = [line for axes in shown.values() for line in axes.lines if len(line.get_xdata())]
    assert marked and all(line.get_marker() == "o" for line in marked)


def test_the_file_is_the_one_that_training_writes():
    assert curves.METRICS_FILE == checkpoints.METRICS_FILE


def test_a_line_that_is_being_written_is_left_out(tmp_path):
    lines = list(metrics_of_a_run(9))
    whole = curves.read_metrics(write_run(tmp_path, lines))
    for torn in ("{", '{"step": 90, "lo', '{"step": 90, "loss": 5.', '{"step": 90, "validation_loss/pl'):
        assert curves.read_metrics(write_run(tmp_path, lines, torn)) == whole == lines


def test_files_that_cannot_be_drawn_are_refused_by_name_and_with_a_remedy(tmp_path):
    with pytest.raises(UsageError, match=r"absent/metrics\.jsonl is missing: name the --output_dir of a run"):
        curves.read_metrics(tmp_path / "absent")
    for torn in ("", '{"step": 0, "val', '{"step": 0}\n'):
        with pytest.raises(UsageError, match=r"begun/metrics\.jsonl has no loss yet: wait"):
            curves.read_metrics(write_run(tmp_path / "begun", [], torn))
    broken = write_run(tmp_path / "broken", [], '{"step": 0}\n{"step": 1, "lo\n{"step": 2, "loss": 1.0}\n')
    with pytest.raises(UsageError, match=r"broken/metrics\.jsonl, line 2 is no JSON: remove that line"):
        curves.read_metrics(broken)
    with pytest.raises(UsageError, match="broken"):
        curves.draw_curves([write_run(tmp_path / "run", metrics_of_a_run(3)), broken], tmp_path / "curves.png")
    assert not (tmp_path / "curves.png").exists()


# --- the picture -------------------------------------------------------------------------------------------------


def test_the_picture_is_as_wide_as_a_readme_and_replaces_an_older_one(tmp_path):
    run = write_run(tmp_path / "run", metrics_of_a_run(kingdoms=KINGDOMS))
    picture = run / "curves.png"
    picture.write_text("an older one")
    before = dict(matplotlib.rcParams)
    curves.draw_curves([run], picture)
    assert imread(picture).shape[1] == 1200 and dict(matplotlib.rcParams) == before
    assert sorted(path.name for path in run.iterdir()) == ["curves.png", "metrics.jsonl"]


def test_a_picture_that_cannot_be_written_is_refused(tmp_path):
    run = write_run(tmp_path / "run", metrics_of_a_run(3))
    for name in ("curves", "curves.jsonl"):
        with pytest.raises(UsageError, match=rf"{name} has no ending of a picture: give one of .*pdf .*png"):
            curves.draw_curves([run], tmp_path / name)
    with pytest.raises(UsageError, match=r"absent/curves\.png cannot be written \(No such file.*\): name another"):
        curves.draw_curves([run], tmp_path / "absent" / "curves.png")
    assert list(tmp_path.iterdir()) == [run]


def test_the_command_draws_runs_and_tells_in_one_line_what_it_cannot_draw(tmp_path):
    for name in ("one", "two"):
        write_run(tmp_path / name, metrics_of_a_run(3))

    def call(*arguments):
        environment = {"PYTHONPATH": str(ROOT), "PATH": "", "MPLCONFIGDIR": str(tmp_path)}
        command = [sys.executable, "-m", "dnabert2.curves", *arguments]
        return subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True)

    drawn = call("one", "two")
    assert drawn.returncode == 0 and drawn.stdout == "Drawn to curves.png\n" and (tmp_path / "curves.png").exists()
    assert call("one", "--output", "one.svg").returncode == 0 and "<svg" in (tmp_path / "one.svg").read_text()
    refused = call("three")
    assert refused.returncode == 1 and refused.stderr.startswith("error: three/metrics.jsonl is missing")
    assert refused.stderr.count("\n") == 1

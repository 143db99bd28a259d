"""What benchmarks/gue_speed.py makes of its measures.

pytest tests/test_gue_speed.py
"""

import json

import pytest
from gue_speed import LOOPS, find_data, print_table, projected_seconds, published_run

from dnabert2.errors import UsageError
from dnabert2.gue import TASKS_BY_NAME


def test_a_dataset_has_its_published_steps_and_predicts_dev_at_every_evaluation():
    assert published_run(TASKS_BY_NAME["tf/0"]) == (3036, 16 * 1000 + 1000)  # every 200 steps, and after the last
    assert published_run(TASKS_BY_NAME["mouse/3"]) == (1000, 5 * 239 + 239)


def test_a_run_takes_its_steps_its_predictions_its_start_and_its_rows():
    row = {"ms_a_step": 10.0, "start_seconds": 2.0, "eval_ms_a_row": 0.5, "encode_ms_a_row": 0.1}
    seconds, others = projected_seconds(TASKS_BY_NAME["tf/0"], row)
    assert others == pytest.approx(2 + 17_000 * 0.0005 + 34_378 * 0.0001)
    assert seconds == pytest.approx(30.36 + others)


def test_a_folder_that_is_not_there_is_not_taken_for_random_data(tmp_path):
    with pytest.raises(UsageError, match="no such folder"):
        find_data("EMP", tmp_path / "absent")
    assert find_data("EMP", tmp_path)[1] is None and find_data("EMP", None)[1] is None


def test_the_loops_stand_side_by_side_with_what_each_takes_in_all(tmp_path, capsys):
    row = {"run": "a run", "group": "CVC", "dataset": "virus/covid", "data": "real", "mean_tokens": 209.0}
    row |= {"max_tokens": 224, "attention": "sdpa", "start_seconds": 0.0, "eval_ms_a_row": 0.0, "encode_ms_a_row": 0.0}
    rows = [row | {"loop": loop, "ms_a_step": ms, "gib": None} for loop, ms in zip(LOOPS, (60, 30, 20), strict=True)]
    (tmp_path / "rows").write_text("".join(json.dumps(row) + "\n" for row in rows))
    print_table(tmp_path / "rows")
    text = capsys.readouterr().out
    assert "| virus/covid (real), packed | 209, 224 | sdpa | 20.00 | 3.00 |" in text
    steps, _ = published_run(TASKS_BY_NAME["virus/covid"])
    minutes = [f"{steps * ms / 60_000:.2f} | 0.00" for ms in (60, 30, 20)]
    assert f"| virus/covid | {steps:,} | {' | '.join(minutes)} |" in text

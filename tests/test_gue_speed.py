"""What benchmarks/gue_speed.py makes of its measures.

pytest tests/test_gue_speed.py
"""

import pytest
from gue_speed import projected_seconds, published_run

from dnabert2.gue import TASKS_BY_NAME


def test_a_dataset_has_its_published_steps_and_predicts_dev_at_every_evaluation():
    assert published_run(TASKS_BY_NAME["tf/0"]) == (3036, 16 * 1000 + 1000)  # every 200 steps, and after the last
    assert published_run(TASKS_BY_NAME["mouse/3"]) == (1000, 5 * 239 + 239)


def test_a_run_takes_its_steps_its_predictions_its_start_and_its_rows():
    row = {"ms_a_step": 10.0, "start_seconds": 2.0, "eval_ms_a_row": 0.5, "encode_ms_a_row": 0.1}
    seconds, others = projected_seconds(TASKS_BY_NAME["tf/0"], row)
    assert others == pytest.approx(2 + 17_000 * 0.0005 + 34_378 * 0.0001)
    assert seconds == pytest.approx(30.36 + others)

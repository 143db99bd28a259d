"""benchmarks/run_distances.py tells by how much a run's losses and weights are other than the first one's.

pytest tests/test_run_distances.py
"""

import json

import pytest
import run_distances
import torch
from gue_runs import run_main_here
from safetensors.torch import save_file

from dnabert2.errors import UsageError


def write_run(folder, above, weights=None):
    """200 steps, a loss of each and of every hundredth one of validation, all so much above the first run's."""
    folder.mkdir()
    lines = [{"step": 0, "validation_loss": 8.0}]
    lines += [{"step": step, "loss": 7 - step / 100 + above(step)} for step in range(1, 201)]
    lines[100]["validation_loss"], lines[200]["validation_loss"] = 6 + above(100), 5 + above(200)
    (folder / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    if weights:
        save_file({"weight": torch.tensor(weights)}, folder / "model.safetensors")
    return folder


def test_distances_of_losses_and_weights(tmp_path, monkeypatch, capsys):
    first = write_run(tmp_path / "first", lambda step: 0.0, [3.0, 4.0])
    # alternately above and below: means of ten are equal but for a tenth of what step 200 has more
    noisy = write_run(tmp_path / "noisy", lambda step: (-1) ** step * 0.25 + (step == 200), [3.0, 5.0])
    bare = write_run(tmp_path / "bare", lambda step: 0.5)
    picture = tmp_path / "picture.png"
    run_main_here(monkeypatch, run_distances.main, first, noisy, bare, "--picture", picture)
    rows = [line.split(" | ") for line in capsys.readouterr().out.splitlines()[2:]]
    assert rows[0] == ["| noisy", "1.2500, 0.2550", "0.1000", "1.2500", "+1.2500", "0.200 |"]
    assert rows[1] == ["| bare", "0.5000, 0.5000", "0.5000", "0.5000", "+0.5000", "– |"]
    assert picture.stat().st_size > 10_000


def test_runs_without_common_steps_are_refused(tmp_path, monkeypatch):
    first = write_run(tmp_path / "first", lambda step: 0.0)
    other = write_run(tmp_path / "other", lambda step: 0.0)
    (other / "metrics.jsonl").write_text('{"step": 1, "loss": 7.0}\n')
    with pytest.raises(UsageError, match="shares 1 steps"):
        run_main_here(monkeypatch, run_distances.main, first, other)
    with pytest.raises(UsageError, match="two runs or more"):
        run_main_here(monkeypatch, run_distances.main, first)

"""The demo's own parts; the whole job is `make pretrain`.

pytest tests/test_demo.py
"""

import json

import pytest

from dnabert2 import demo


@pytest.fixture
def run(tmp_path, monkeypatch):
    """A function that runs the demo without training: on metrics and results of these accuracies."""

    def run_demo(accuracy, most_frequent):
        def pretrain(corpus, output_dir):
            assert sorted(path.name for path in corpus.iterdir()) == ["alpha.fa", "beta.fa", "delta.fa", "gamma.fa"]
            output_dir.mkdir(parents=True)
            metrics = [{"step": 0, "validation_loss": 8.3}, {"step": 50, "loss": 7.25}]
            (output_dir / "metrics.jsonl").write_text("\n".join(map(json.dumps, metrics)) + "\n")
            results = {"validation_accuracy": accuracy, "most_frequent_token_accuracy": most_frequent}
            (output_dir / "all_results.json").write_text(json.dumps(results))

        written = demo.write_corpus
        monkeypatch.setattr(demo, "write_corpus", lambda folder, bases_a_species, seed: written(folder, 1000, seed))
        monkeypatch.setattr(demo, "pretrain", pretrain)
        monkeypatch.setattr(demo, "show_filled_masks", lambda corpus, output_dir: None)
        monkeypatch.setattr(demo, "OUTPUT", tmp_path / "output")
        demo.main()

    return run_demo


def test_the_curve_has_a_line_a_step_with_a_blank_where_a_value_is_missing(tmp_path, capsys):
    metrics = [{"step": 0, "validation_loss": 8.3}, {"step": 50, "loss": 7.25}]
    metrics.append({"step": 100, "loss": 6.0, "validation_loss": 6.125})
    (tmp_path / "metrics.jsonl").write_text("\n".join(map(json.dumps, metrics)) + "\n")
    demo.show_curve(tmp_path)
    header, *lines = capsys.readouterr().out.strip("\n").splitlines()
    assert [line.split() for line in lines] == [["0", "8.300"], ["50", "7.250"], ["100", "6.000", "6.125"]]
    assert lines[0].index("8.300") == lines[2].index("6.125") and lines[1].index("7.250") == lines[2].index("6.000")
    assert header.split() == ["step", "loss", "held-out", "loss"]


def test_an_accuracy_clearly_above_the_most_frequent_tokens_passes(run, capsys):
    run(0.16, 0.05)
    out = capsys.readouterr().out
    assert "16.0% right" in out and "5.0%" in out and "50    7.250" in out


@pytest.mark.parametrize(("accuracy", "most_frequent"), [(0.14, 0.05), (0.0, 0.01), (float("nan"), 0.01)])
def test_an_accuracy_not_clearly_above_ends_with_an_error(run, accuracy, most_frequent):
    with pytest.raises(SystemExit, match="error: not clearly above"):
        run(accuracy, most_frequent)


def test_an_earlier_run_is_replaced(run, tmp_path):
    (tmp_path / "output").mkdir()
    (tmp_path / "output" / "old").write_text("")
    run(0.5, 0.05)
    assert not (tmp_path / "output" / "old").exists()

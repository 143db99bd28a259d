"""The convolutional network on one-hot bases: its sizes, and that it learns through run_gue.py.

pytest tests/test_cnn.py
"""

import cnn
import torch
from gue_runs import random_bases, results, run_main_here


def new_basset() -> cnn.BassetForSequenceClassification:
    torch.manual_seed(0)
    return cnn.BassetForSequenceClassification(cnn.BassetConfig(num_labels=2)).eval()


def test_the_network_has_the_sizes_of_basset_and_reads_bases_alone(no_grad):
    model = new_basset()
    shapes = {tuple(weight.shape) for weight in model.parameters() if weight.ndim > 1}
    assert shapes == {(300, 4, 19), (200, 300, 11), (200, 200, 7), (1000, 2000), (1000, 1000), (2, 1000)}
    bases = torch.tensor([[5, 6, 7, 8] * 20])
    logits = model(bases, torch.ones_like(bases)).logits
    assert logits.shape == (1, 2) and not torch.equal(model(bases.flip(1), torch.ones_like(bases)).logits, logits)
    unknown = [torch.cat([bases, torch.full((1, 9), other)], dim=1) for other in (0, 2, 3, 9)]
    ended = [model(ids, torch.ones_like(ids)).logits for ids in unknown]  # [UNK], [SEP], [PAD] and N are all nothing
    assert all(torch.equal(ended[0], other) for other in ended)


def test_a_planted_motif_is_learned_through_run_gue(tmp_path, monkeypatch):
    folder = tmp_path / "motif"
    folder.mkdir()
    for seed, (split, rows) in enumerate({"train": 256, "dev": 40, "test": 60}.items()):
        lines = ["sequence,label"]
        for row, bases in enumerate(random_bases(rows, 50, seed)):
            at = 5 + row % 30
            lines.append(f"{bases[:at]}TGACTCATGC{bases[at + 10 :]},1" if row % 2 else f"{bases},0")
        (folder / f"{split}.csv").write_text("\n".join(lines) + "\n")
    parts = ["--data_dir", folder, "--output_dir", tmp_path / "out", "--seeds", 1, "--max_train_steps", 40]
    run_main_here(monkeypatch, cnn.main, *parts, "--num_warmup_steps", 4, "--eval_steps", 10)
    found = results(tmp_path / "out/motif/seed-1")
    assert found["test"]["mcc"] > 0.8
    assert (
        found["recipe"]["learning_rate"] == float(cnn.LEARNING_RATE)
        and found["trained_parameters"] == found["parameters"]
    )
    assert (tmp_path / "out/gue_results.md").is_file()

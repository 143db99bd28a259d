"""What the studies of the default checkpoint in benchmarks/ measure.

pytest tests/test_default_checkpoint_study.py
"""

import json
import sys

import cnn
import frozen_embeddings
import numpy as np
import pytest
import torch
from accelerate import Accelerator
from accelerate.state import AcceleratorState
from gue_runs import results, save_base, write_task
from scipy.sparse import csr_matrix
from transformers import AutoModel

from dnabert2.encoding import encode
from dnabert2.errors import UsageError
from dnabert2.labelled import load_task
from dnabert2.loading import load_tokenizer
from dnabert2.padding import Collator


CPU = torch.device("cpu")


def random_bases(rows: int, length: int, seed: int) -> list[str]:
    return ["".join(row) for row in np.random.default_rng(seed).choice(list("ACGT"), size=(rows, length))]


def run(monkeypatch, script, *parts):
    """Runs a script's main in this process on its CPU."""
    AcceleratorState._reset_state(reset_partial_state=True)
    try:
        with monkeypatch.context() as patch:
            patch.setattr(sys, "argv", [script.__file__, *map(str, parts)])
            patch.setenv("ACCELERATE_USE_CPU", "true")
            script.main()
    finally:
        AcceleratorState._reset_state(reset_partial_state=True)


# Frozen embeddings


def test_pooling_leaves_out_padding_and_special_tokens(tmp_path):
    save_base(tmp_path / "base")
    tokenizer = load_tokenizer(tmp_path / "base")
    embedder = frozen_embeddings.load_embedder(str(tmp_path / "base"), tokenizer, False, CPU)
    task = encode(load_task(write_task(tmp_path / "task")), tokenizer)
    means, first = frozen_embeddings.embed(
        Accelerator(cpu=True), embedder, Collator(tokenizer.pad_token_id, False, 32, CPU), task.splits["test"], 5
    )
    model = AutoModel.from_pretrained(tmp_path / "base", trust_remote_code=True).eval()
    for row, ids in enumerate(task.splits["test"].input_ids):
        with torch.no_grad():
            hidden_states = model(torch.from_numpy(ids.astype(np.int64))[None]).last_hidden_state[0]
        assert means[row] == pytest.approx(hidden_states[1:-1].mean(dim=0).numpy(), abs=1e-5)  # of [CLS] … [SEP]
        assert first[row] == pytest.approx(hidden_states[0].numpy(), abs=1e-5)


@pytest.mark.parametrize("make", [np.asarray, csr_matrix])
def test_what_separates_the_classes_is_found_and_dev_chooses_the_penalty(make):
    rng = np.random.default_rng(0)
    features, labels = {}, {}
    for name, rows in {"train": 80, "dev": 40, "test": 60}.items():
        labels[name] = np.arange(rows) % 2
        noise = rng.poisson(3.0, size=(rows, 30))
        noise[:, 7] += 9 * labels[name]
        features[name] = make(noise.astype(np.float64))
    scores = frozen_embeddings.classify(features, labels)
    assert scores["mcc"] > 0.95 and scores["C"] in frozen_embeddings.STRENGTHS
    misled = frozen_embeddings.classify(features, labels | {"train": 1 - labels["train"]})
    assert misled["mcc"] < -0.5 and misled["C"] == min(frozen_embeddings.STRENGTHS)  # dev trusts it least


def test_frozen_embeddings_go_into_a_table_and_are_not_mixed_with_another_models(tmp_path, monkeypatch, capsys):
    write_task(tmp_path / "GUE/mouse/3")
    parts = ["--data_dir", tmp_path / "GUE", "--output_dir", tmp_path / "out"]
    run(monkeypatch, frozen_embeddings, "--model_name_or_path", save_base(tmp_path / "base"), *parts)
    saved = json.loads((tmp_path / "out/frozen_embeddings.json").read_text())["datasets"]["mouse/3"]
    assert saved["rows"] == {"train": 64, "dev": 22, "test": 26} and not saved["train_is_from_dev"]
    assert saved["scores"]["6-mers"]["mcc"] > 0.5 < saved["scores"]["mean"]["mcc"]  # half the rows are rich in A and T
    row = next(line for line in (tmp_path / "out/frozen_embeddings.md").read_text().splitlines() if "mouse/3" in line)
    assert f"| 64 | {100 * saved['scores']['mean']['mcc']:.2f} |" in row and "| 66.47 | 44.89 | 69.44 |" in row
    assert row in capsys.readouterr().out
    other = save_base(tmp_path / "other", "hidden_size=16,num_attention_heads=2,intermediate_size=32")
    with pytest.raises(UsageError, match="of another model"):
        run(monkeypatch, frozen_embeddings, "--model_name_or_path", other, *parts)


# The CNN


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
    run(monkeypatch, cnn, *parts, "--num_warmup_steps", 4, "--eval_steps", 10)
    found = results(tmp_path / "out/motif/seed-1")
    assert found["test"]["mcc"] > 0.8
    assert found["recipe"]["learning_rate"] == 1e-3 and found["trained_parameters"] == found["parameters"]
    assert (tmp_path / "out/gue_results.md").is_file()

"""Frozen embeddings: what is pooled, how a penalty is chosen, and the table.

pytest tests/test_frozen_embeddings.py
"""

import json

import frozen_embeddings
import numpy as np
import pytest
import torch
from accelerate import Accelerator
from gue_runs import run_main_here, save_base, write_task
from scipy.sparse import csr_matrix
from transformers import AutoModel

from dnabert2.encoding import encode
from dnabert2.errors import UsageError
from dnabert2.labelled import load_task
from dnabert2.loading import load_tokenizer
from dnabert2.padding import Collator


CPU = torch.device("cpu")


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
    run_main_here(monkeypatch, frozen_embeddings.main, "--model_name_or_path", save_base(tmp_path / "base"), *parts)
    saved = json.loads((tmp_path / "out/frozen_embeddings.json").read_text())["datasets"]["mouse/3"]
    assert saved["rows"] == {"train": 64, "dev": 22, "test": 26} and not saved["train_is_from_dev"]
    assert saved["scores"]["6-mers"]["mcc"] > 0.5 < saved["scores"]["mean"]["mcc"]  # half the rows are rich in A and T
    row = next(line for line in (tmp_path / "out/frozen_embeddings.md").read_text().splitlines() if "mouse/3" in line)
    assert f"| 64 | {100 * saved['scores']['mean']['mcc']:.2f} |" in row and "| 66.47 | 44.89 | 69.44 |" in row
    assert row in capsys.readouterr().out
    other = save_base(tmp_path / "other", "hidden_size=16,num_attention_heads=2,intermediate_size=32")
    with pytest.raises(UsageError, match="of another model"):
        run_main_here(monkeypatch, frozen_embeddings.main, "--model_name_or_path", other, *parts)

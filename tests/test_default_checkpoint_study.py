"""What the studies of the default checkpoint in benchmarks/ measure.

pytest tests/test_default_checkpoint_study.py
"""

import json
import math
import sys
from collections import Counter
from itertools import takewhile

import cnn
import default_checkpoint
import frozen_embeddings
import ngrams
import numpy as np
import overlap
import pytest
import torch
from accelerate import Accelerator
from accelerate.state import AcceleratorState
from gue_runs import results, save_base, write_task
from scipy.sparse import csr_matrix
from transformers import AutoModel, PreTrainedTokenizerFast

from dnabert2.batches import MaskedWindows, validation_loader
from dnabert2.encoding import encode
from dnabert2.errors import UsageError
from dnabert2.labelled import load_task
from dnabert2.loading import load_model, load_tokenizer
from dnabert2.padding import Collator
from dnabert2.tokenization import build_tokenizer, train_merges
from dnabert2.validation import validate
from dnabert2.windows import Windows, reverse_complement


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


# Masked tokens


BASES = random_bases(12, 300, seed=3)
TOKENIZER = PreTrainedTokenizerFast(
    tokenizer_object=build_tokenizer(train_merges(BASES, 60)),
    cls_token="[CLS]",
    sep_token="[SEP]",
    mask_token="[MASK]",
    unk_token="[UNK]",
    pad_token="[PAD]",
)
TEXTS = [token if set(token) <= set("ACGT") else "" for token in TOKENIZER.convert_ids_to_tokens(range(60))]


@pytest.fixture(scope="module")
def windows() -> Windows:
    ids = [TOKENIZER(bases)["input_ids"][:-1] for bases in BASES]
    rows = np.array([[*row[:49], TOKENIZER.sep_token_id] for row in ids], dtype=np.uint16)
    return Windows([rows[:7], rows[7:]], ["one/first", "other/second"])


@pytest.fixture(scope="module")
def counts(windows) -> ngrams.Counts:
    return ngrams.count(windows, np.arange(12), TOKENIZER)


def decoded(windows: Windows) -> list[str]:
    return ["".join(TEXTS[token] for token in row) for row in windows[range(12)]]


def direct_counts(strings: list[str]) -> Counter:
    """Each base with the 0 to 5 before it; only bases that have five before them."""
    found = Counter()
    for string in strings:
        for start in range(len(string) - 5):
            found.update(string[start + 5 - length : start + 6] for length in range(6))
    return found


def direct_probability(found: Counter, context: str, text: str) -> float:
    """P(text | context) of bases."""
    result = 1.0
    for base in text:
        counted = {other: found[context[-5:] + other] + 1 for other in "ACGT"}
        result *= counted[base] / sum(counted.values())
        context += base
    return result


def test_kmers_of_both_strands_are_counted_within_windows(windows, counts):
    expected = Counter()
    for string in decoded(windows):
        for strand in (string, reverse_complement(string)):
            expected.update(strand[start : start + 6] for start in range(len(strand) - 5))
    kmers = [string + base for string in ngrams.STRINGS if len(string) == 5 for base in "ACGT"]
    assert counts.kmers.tolist() == [expected[kmer] for kmer in kmers]
    tokens = windows[range(12)]
    assert (
        counts.pairs[tokens[0, 3], tokens[0, 4]]
        == ((tokens[:, :-1] == tokens[0, 3]) & (tokens[:, 1:] == tokens[0, 4])).sum()
    )


@pytest.mark.parametrize("has_right, has_frequencies", [(False, False), (True, False), (True, True)])
def test_the_markov_model_is_the_one_computed_directly(windows, counts, has_right, has_frequencies):
    row = windows[[0]]
    row[0, [10, 20, 21]] = TOKENIZER.mask_token_id
    positions = [1, 10, 21, 30, 48]  # the first and last of the window, beside a [MASK], and one that is shown
    model = ngrams.Markov(counts, has_right, has_frequencies)
    logits = model(input_ids=torch.from_numpy(row), prediction_positions=torch.tensor(positions)).logits
    strings = [strand for string in decoded(windows) for strand in (string, reverse_complement(string))]
    found_bases = direct_counts(strings)
    texts = {token: text for token, text in enumerate(TEXTS) if text}
    counted = {token: counts.tokens[token] + 1 for token in texts}

    def known(tokens) -> list[str]:
        """Up to the first token that is no bases."""
        return [*takewhile(bool, (TEXTS[token] for token in tokens))]

    for position, found in zip(positions, logits, strict=True):
        left = "".join(reversed(known(row[0, :position][::-1])))[-5:]
        right = "".join(known(row[0, position + 1 :]))[:5]
        expected = {}
        for token, text in texts.items():
            expected[token] = direct_probability(found_bases, left, text)
            expected[token] *= direct_probability(found_bases, left + text, right) if has_right else 1
            if has_frequencies:
                expected[token] *= counted[token] / direct_probability(found_bases, "", text)
            if token == row[0, position]:  # it is shown
                expected[token] *= 1 + 55
        probabilities = found.softmax(dim=0).numpy()
        total = sum(expected.values())
        for token, value in expected.items():
            assert probabilities[token] == pytest.approx(value / total, rel=2e-3)
        assert sum(probabilities[token] for token in texts) == pytest.approx(1)


def test_token_pairs_know_what_stands_beside_and_frequencies_nothing(windows, counts):
    row = windows[[0]]
    true = row[0, [10, 20, 30, 40]].tolist()
    row[0, [10, 20, 30, 40]] = TOKENIZER.mask_token_id
    batch = {"input_ids": torch.from_numpy(row), "prediction_positions": torch.tensor([10, 20, 30, 40])}
    losses = {}
    for name, model in {"pairs": ngrams.TokenPairs(counts, 1.0), "alone": ngrams.TokenFrequencies(counts)}.items():
        losses[name] = torch.nn.functional.cross_entropy(model(**batch).logits, torch.tensor(true)).item()
    frequencies = np.array([counts.tokens[token] + 1 if TEXTS[token] else 0 for token in range(60)])
    assert losses["alone"] == pytest.approx(-np.log(frequencies[true] / frequencies.sum()).mean(), rel=1e-5)
    assert losses["pairs"] < losses["alone"] - 1


def test_a_model_is_judged_as_run_mlm_validates_it(windows, tmp_path):
    model = load_model(save_base(tmp_path / "base"), TOKENIZER).eval()
    dataset = MaskedWindows(windows, TOKENIZER, 0.15, seed=0)
    table = validate(Accelerator(cpu=True), model, validation_loader(dataset, 5), windows)
    sums = default_checkpoint.judge({"checkpoint": model.eval()}, dataset, np.arange(12), "cpu")["checkpoint"]
    for species, row in table.items():
        for column, value in row.items():
            assert sums["[MASK]"][species][column] + sums["a token"][species][column] == pytest.approx(value)
    shown = sum(row["masked_tokens"] for row in sums["a token"].values())
    assert 0 < shown < sum(row["masked_tokens"] for row in sums["[MASK]"].values())


def test_the_study_runs_on_genomes(tmp_path, monkeypatch, capsys):
    for number, kingdom in enumerate(("fungi", "virus")):
        (tmp_path / "genomes" / kingdom).mkdir(parents=True)
        bases = "".join(random_bases(1, 120_000, number))
        (tmp_path / "genomes" / kingdom / "a.fa").write_text(f">a\n{bases}\n")
    parts = ["--train_file", tmp_path / "genomes", "--cache_dir", tmp_path / "cache", "--max_windows", 6]
    parts += ["--output_dir", tmp_path / "out", "--validation_split_percentage", 20]
    run(monkeypatch, default_checkpoint, "--model_name_or_path", save_base(tmp_path / "base"), *parts)
    text = capsys.readouterr().out
    assert "12 windows of" in text and "| fungi |" in text and "| shown as a token |" in text
    assert (tmp_path / "out/default_checkpoint.png").stat().st_size > 5000
    sums = json.loads((tmp_path / "out/default_checkpoint.json").read_text())["sums"]
    losses = {
        name: default_checkpoint.loss_and_accuracy(default_checkpoint.total([tables["[MASK]"]]))[0]
        for name, tables in sums.items()
    }
    assert losses["token frequencies"] < losses["random weights"] and losses["random weights"] > math.log(3000)


# Overlaps


@pytest.mark.parametrize("chunk", [50, 1000])
def test_rows_are_found_whole_and_in_part_on_either_strand(monkeypatch, chunk):
    monkeypatch.setattr(overlap, "CHUNK", chunk)
    monkeypatch.setattr(overlap, "TABLE_BITS", 8)
    genome, other, *new = random_bases(5, 400, seed=7)
    rows = {
        "whole": genome[20:120],
        "whole, other strand": reverse_complement(genome[150:250]),
        "64 bases": new[0][:30] + genome[100:164] + new[0][30:60],
        "64 bases, other strand": new[1][:30] + reverse_complement(other[:64]),
        "63 bases": new[2][:20] + genome[200:263] + new[2][20:40],
        "N in the middle": genome[250:300] + "N" + genome[301:340],
        "two pieces": genome[300:360] + other[300:360],  # with 64 bases in no place
        "over the end": genome[340:] + other[:40],
        "ends whole, begins not": genome[20:110] + new[0][:10],
    }
    search = overlap.Search(rows.values())
    search.scan("fungi/a", f"{genome}N{other}")
    assert {name for name, row in rows.items() if row in search.whole} == {"whole", "whole, other strand"}
    shared = {name for name, row in rows.items() if search.shares(row)}
    assert shared == {"whole", "whole, other strand", "64 bases", "64 bases, other strand", "ends whole, begins not"}


def test_overlaps_are_counted_by_dataset_and_genome(tmp_path, monkeypatch, capsys):
    genome, *new = random_bases(5, 300, seed=8)
    write_task(tmp_path / "GUE/mouse/3")
    rows = [
        genome[:101],
        genome[:101],
        reverse_complement(genome[100:201]),
        genome[60:130] + new[0][:31],
        new[1][:101],
    ]
    lines = ["sequence,label", *(f"{row},{number % 2}" for number, row in enumerate(rows))]
    (tmp_path / "GUE/mouse/3/test.csv").write_text("\n".join(lines) + "\n")
    (tmp_path / "genomes/fungi").mkdir(parents=True)
    (tmp_path / "genomes/fungi/a.fa").write_text(f">1\n{new[2]}\n>2\n{genome.lower()}\n")
    monkeypatch.setattr(overlap, "TABLE_BITS", 16)
    run(monkeypatch, overlap, "--data_dir", tmp_path / "GUE", "--train_file", tmp_path / "genomes")
    text = capsys.readouterr().out
    assert "| mouse/3 | 5 | 3 (60.0%) | 4 (80.0%) |" in text and "| fungi/a | 3 |" in text

"""A checkpoint on masked tokens, beside n-grams of bases and of tokens.

pytest tests/test_default_checkpoint_study.py
"""

import json
import math
from collections import Counter
from itertools import takewhile

import default_checkpoint
import ngrams
import numpy as np
import pytest
import torch
from accelerate import Accelerator
from gue_runs import random_bases, run_main_here, save_base
from transformers import PreTrainedTokenizerFast

from dnabert2.batches import MaskedWindows, Masking, validation_loader
from dnabert2.loading import load_model
from dnabert2.tokenization import build_tokenizer, train_merges
from dnabert2.validation import validate
from dnabert2.windows import Windows, reverse_complement


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


def test_windows_rich_in_gc_have_the_frequencies_of_their_like(windows, counts):
    row = windows[[0]]
    texts = [TEXTS[token] for token in row[0]]
    share = sum(text.count("G") + text.count("C") for text in texts) / sum(map(len, texts))
    its_class = int(share * ngrams.GC_CLASSES)
    model = ngrams.TokenPairs(counts, 1.0, has_gc=True)
    gains = model.gc_gains(torch.from_numpy(row), torch.tensor([10]))[0].numpy()
    usual = np.array([counts.tokens[token] + 1 if text else 0 for token, text in enumerate(TEXTS)])
    usual = usual / usual.sum()
    is_bases = np.array([*map(bool, TEXTS)])
    found = (counts.by_gc[its_class] + ngrams.LEAST * usual) * is_bases
    assert np.exp(gains[is_bases]) == pytest.approx((found / found.sum() / usual.clip(1e-9))[is_bases], rel=1e-4)
    assert counts.by_gc.sum() == windows[range(12)].size and (counts.by_gc.sum(axis=1) > 0).sum() > 1


def test_a_model_is_judged_as_run_mlm_validates_it(windows, tmp_path):
    model = load_model(save_base(tmp_path / "base"), TOKENIZER).eval()
    dataset = MaskedWindows(windows, Masking(TOKENIZER, 0.15), seed=0)
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
    run_main_here(monkeypatch, default_checkpoint.main, "--model_name_or_path", save_base(tmp_path / "base"), *parts)
    text = capsys.readouterr().out
    assert "12 windows of" in text and "| fungi |" in text and "| shown as a token |" in text
    assert (tmp_path / "out/default_checkpoint.png").stat().st_size > 5000
    sums = json.loads((tmp_path / "out/default_checkpoint.json").read_text())["sums"]
    losses = {
        name: default_checkpoint.loss_and_accuracy(default_checkpoint.total([tables["[MASK]"]]))[0]
        for name, tables in sums.items()
    }
    assert losses["token frequencies"] < losses["random weights"] and losses["random weights"] > math.log(3000)

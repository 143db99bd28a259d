"""benchmarks/masked_bases.py: what a model is told of a base that it is asked for, and how its answer is scored.

pytest tests/test_masked_bases.py
"""

from types import SimpleNamespace

import masked_bases
import numpy as np
import pytest
import torch
from models import build
from tokenizers import Tokenizer
from transformers import PreTrainedTokenizerFast

from dnabert2.batches import Masking
from dnabert2.errors import UsageError
from dnabert2.kmers import build_kmer_tokenizer
from dnabert2.tokenization import build_tokenizer, train_merges


RANDOM = np.random.default_rng(0)
MOTIFS = ["".join(RANDOM.choice([*"ACGT"], size=19)) for _ in range(3)]
NAMES = ["BPE", "3-mers", "3-mers, overlapping"]


def sequences(count: int, seed: int, length: int = 140) -> list[str]:
    """Motifs in a random order: a base is told by those around it."""
    rng = np.random.default_rng(seed)
    return [
        "".join(rng.choice(MOTIFS, size=length // 19 + 2))[shift:][:length] for shift in rng.integers(19, size=count)
    ]


def fast_tokenizer(backend: Tokenizer) -> PreTrainedTokenizerFast:
    special = {f"{name}_token": f"[{name.upper()}]" for name in ("unk", "cls", "sep", "pad", "mask")}
    return PreTrainedTokenizerFast(tokenizer_object=backend, **special)


@pytest.fixture(scope="module", params=NAMES)
def tokenizer(request) -> PreTrainedTokenizerFast:
    if request.param == "BPE":
        random = "".join(RANDOM.choice([*"ACGT"], size=20_000))  # of the motifs, tokens would tell them by themselves
        backend = build_tokenizer(train_merges([random], 48))
    else:
        backend = build_kmer_tokenizer(3, overlapping=request.param.endswith("overlapping"))
    return fast_tokenizer(backend)


class BasesByThemselves(torch.nn.Module):
    """Says of every token, whatever is around it, that its bases are as probable as `frequencies` and independent."""

    device = torch.device("cpu")

    def __init__(self, tokenizer: PreTrainedTokenizerFast, frequencies: dict[str, float]):
        super().__init__()
        tokens = tokenizer.convert_ids_to_tokens(range(len(tokenizer)))
        self.logits = torch.tensor([sum(np.log(frequencies.get(base, 1e-9)) for base in token) for token in tokens])

    def forward(self, input_ids, attention_mask, prediction_positions):
        return SimpleNamespace(logits=self.logits.expand(len(prediction_positions), -1))


def test_a_place_is_asked_for_every_67_bases_and_not_at_the_ends():
    assert masked_bases.sites_of(140).tolist() == [33, 100]
    assert len(masked_bases.sites_of(640)) == 9 and masked_bases.sites_of(67).tolist() == [33]


def test_the_true_base_decides_nothing_that_the_model_is_told(tokenizer):
    (sequence,) = sequences(1, seed=1)
    versions = masked_bases.mask_sites(sequence, tokenizer)
    for base in "ACGT":
        letters = [*sequence]
        letters[33], letters[100] = base, base
        for version, other in zip(versions, masked_bases.mask_sites("".join(letters), tokenizer), strict=True):
            assert all((version[name] == other[name]).all() for name in version)


def test_unmasked_the_four_are_the_sequence_with_each_base_at_the_sites(tokenizer):
    (sequence,) = sequences(1, seed=1)
    versions = masked_bases.mask_sites(sequence, tokenizer)
    visible = []
    for base, version in zip("ACGT", versions, strict=True):
        ids = version["input_ids"].copy()
        assert (ids[version["positions"]] == tokenizer.mask_token_id).all()
        visible.append([index for index in ids if index != tokenizer.mask_token_id])
        ids[version["positions"]] = version["tokens"]
        letters = [*sequence]
        letters[33], letters[100] = base, base
        assert ids.tolist() == tokenizer("".join(letters))["input_ids"]
        assert set(version["sites"]) == {0, 1}
        for site in (0, 1):
            ranks = version["ranks"][version["sites"] == site]
            assert (ranks == np.arange(len(ranks))).all()
    assert visible == visible[:1] * 4


def test_k_overlapping_kmers_hide_one_base_and_one_hides_it_without_overlap():
    (sequence,) = sequences(1, seed=1)
    for overlapping, count in ((True, 3), (False, 1)):
        fast = fast_tokenizer(build_kmer_tokenizer(3, overlapping))
        assert masked_bases.overlap_of(fast) == count
        for version in masked_bases.mask_sites(sequence, fast):
            assert version["sites"].tolist() == [0] * count + [1] * count


def test_bits_and_accuracy_are_those_of_known_probabilities(tokenizer):
    frequencies = {"A": 0.4, "C": 0.3, "G": 0.2, "T": 0.1}
    some = sequences(20, seed=2)
    found = masked_bases.judge(BasesByThemselves(tokenizer, frequencies), tokenizer, some)
    words = [token for token in tokenizer.get_vocab() if set(token) <= set("ACGT")]
    of_all = sum(np.prod([frequencies[base] for base in word]) for word in words)
    bits, right = [], []
    for sequence in some:
        versions = masked_bases.mask_sites(sequence, tokenizer)
        for number, site in enumerate((33, 100)):
            gaps = [version["tokens"][version["sites"] == number] for version in versions]
            fillings = [tokenizer.convert_ids_to_tokens(gap) for gap in gaps]
            weights = np.array([np.prod([frequencies[base] for base in "".join(filling)]) for filling in fillings])
            weights /= of_all ** np.array([len(filling) for filling in fillings])
            true = "ACGT".index(sequence[site])
            bits.append(-np.log2(weights[true] / weights.sum()))
            right.append(weights.argmax() == true)
    assert found["bases"] == 40
    assert found["bits"] == pytest.approx(np.mean(bits)) and found["accuracy"] == pytest.approx(np.mean(right))
    assert found["bits_error"] == pytest.approx(np.std(bits, ddof=1) / 40**0.5)


def test_without_overlap_kmers_give_exactly_the_probability_of_the_base():
    fast = fast_tokenizer(build_kmer_tokenizer(3, overlapping=False))
    frequencies = {"A": 0.4, "C": 0.3, "G": 0.2, "T": 0.1}
    found = masked_bases.predict_sites(BasesByThemselves(fast, frequencies), fast, sequences(3, seed=3))
    assert found.shape == (3, 2, 4)
    assert found.exp().numpy() == pytest.approx(np.broadcast_to([0.4, 0.3, 0.2, 0.1], (3, 2, 4)))


def test_calibration_takes_back_what_a_model_is_too_sure_of():
    true = torch.from_numpy(np.random.default_rng(0).choice(4, p=[0.4, 0.3, 0.2, 0.1], size=20_000))
    log_p = torch.tensor([0.4, 0.3, 0.2, 0.1], dtype=torch.float64).log()
    columns = torch.stack([true, *((true + shift) % 4 for shift in (1, 2, 3))], dim=1)
    honest = log_p[columns]
    for sureness in (1, 3):
        calibrated = masked_bases.calibrate((sureness * honest).log_softmax(1))
        assert calibrated[:, 0].mean().item() == pytest.approx(honest[:, 0].mean().item(), abs=1e-3)


def test_a_trained_model_tells_bases_that_an_untrained_one_does_not(tokenizer):
    model = build(vocab_size=len(tokenizer), initializer_range=0.05)
    held_out = sequences(48, seed=4, length=70)
    before = masked_bases.judge(model, tokenizer, held_out)
    rows = [tokenizer(sequence)["input_ids"] for sequence in sequences(512, seed=5, length=70)]
    tokens = np.array([row[: min(map(len, rows))] for row in rows])
    masking = Masking(tokenizer, 0.15, masked_bases.overlap_of(tokenizer))
    optimizer, rng = torch.optim.AdamW(model.parameters(), lr=5e-3), np.random.default_rng(6)
    for batch in rng.integers(len(tokens), size=(250, 16)):
        model(**masking(tokens[batch], rng.random((3, 16, tokens.shape[1])))).loss.backward()
        optimizer.step()
        optimizer.zero_grad()
    after = masked_bases.judge(model, tokenizer, held_out)
    assert before["accuracy"] < 0.5 < 0.9 < after["accuracy"]
    assert after["bits"] < 0.5 < 1.5 < before["bits"]


def test_sequences_are_spread_over_each_file(tmp_path):
    (tmp_path / "a.fa").write_text(">a\n" + "A" * 100 + "N" + "C" * 100 + "G" * 100 + "T" * 99 + "\n")
    (tmp_path / "b.fa").write_text(">b\n" + "ACGT" * 30 + "\n")
    found = masked_bases.cut_sequences([str(tmp_path)], count=2, bases=100)
    assert found == ["A" * 100, "G" * 100, "ACGT" * 25]
    with pytest.raises(UsageError, match="no 200 bases"):
        masked_bases.cut_sequences([str(tmp_path / "b.fa")], count=2, bases=200)


def test_tokens_that_do_not_make_up_the_sequence_are_refused():
    assert masked_bases.token_starts(["AC", "G", "T"], 4).tolist() == [0, 2, 3]
    assert masked_bases.token_starts(["ACG", "CGT"], 4).tolist() == [0, 1]
    with pytest.raises(UsageError, match="neither"):
        masked_bases.token_starts(["[UNK]", "A"], 4)

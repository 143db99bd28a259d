"""ALiBi: the slopes and the bias, exact in every dtype, at lengths that no table was made for."""

import math

import pytest
import torch
from models import LOW_PRECISION, build, encoder, load, random_ids, remote_module, worst
from safetensors.torch import load_file
from transformers import AutoModel, AutoModelForMaskedLM


class TestAlibi:
    @pytest.mark.parametrize(
        ("heads", "exponents"),
        [
            (1, [8]),
            (2, [4, 8]),
            (3, [4, 8, 2]),
            (4, [2, 4, 6, 8]),
            (6, [2, 4, 6, 8, 1, 3]),
            (8, [1, 2, 3, 4, 5, 6, 7, 8]),
            (12, [1, 2, 3, 4, 5, 6, 7, 8, 0.5, 1.5, 2.5, 3.5]),
            (16, [0.5 * head for head in range(1, 17)]),
        ],
    )
    def test_slopes(self, heads, exponents):
        model = build(AutoModel, num_attention_heads=heads, hidden_size=4 * heads, num_hidden_layers=1)
        expected = torch.tensor([2.0**-exponent for exponent in exponents], dtype=torch.float32)
        assert torch.equal(encoder(model).alibi.slopes, expected)

    def test_bias_is_minus_slope_times_distance(self):
        alibi = encoder(build(AutoModel)).alibi
        bias = alibi(5)
        assert bias.shape == (1, 4, 5, 5)
        for head, slope in enumerate(alibi.slopes):
            assert bias[0, head, 1, 4] == bias[0, head, 4, 1] == -3 * slope


def assert_slopes_are_exact(model):
    expected = remote_module(model).alibi_slopes(model.config.num_attention_heads)
    for module in model.modules():
        if hasattr(module, "slopes"):
            assert module.slopes.dtype == torch.float32
            assert torch.equal(module.slopes, expected)


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    """A saved MLM model of twelve heads, whose slopes 2^-0.5, ... are exact in no dtype."""
    folder = tmp_path_factory.mktemp("saved")
    build(num_attention_heads=12, hidden_size=48).save_pretrained(folder)
    return folder


class TestSlopesStayExact:
    @pytest.mark.parametrize("dtype", [torch.float32, torch.float64, *LOW_PRECISION], ids=str)
    def test_after_loading_in_a_dtype(self, saved, dtype):
        model = load(AutoModelForMaskedLM, saved, dtype=dtype)
        assert model.dtype == dtype
        assert_slopes_are_exact(model)

    @pytest.mark.parametrize("cast", ["half", "bfloat16", "double", "float"])
    def test_after_a_cast(self, saved, cast):
        assert_slopes_are_exact(getattr(load(AutoModelForMaskedLM, saved), cast)())

    def test_after_to_empty(self):
        with torch.device("meta"):
            model = build(num_attention_heads=12, hidden_size=48)
        assert_slopes_are_exact(model.to_empty(device="cpu"))

    def test_and_are_not_saved(self, saved):
        assert not [key for key in load_file(saved / "model.safetensors") if "slopes" in key]


def test_20_000_tokens_equal_attention_computed_by_hand():
    model = build(
        AutoModel, num_hidden_layers=1, num_attention_heads=2, hidden_size=8, intermediate_size=8
    ).requires_grad_(False)
    ids = random_ids(1, 20_000)
    last_hidden_state = model(ids).last_hidden_state[0]
    assert last_hidden_state.isfinite().all()

    embedded, layer = model.embeddings(ids, None, None)[0], model.encoder.layer[0]
    query, key, value = layer.attention.self.Wqkv(embedded).view(-1, 3, 2, 4).permute(1, 2, 0, 3)
    position = torch.arange(20_000)
    for row in (0, 9_999, 19_999):
        penalty = model.encoder.alibi.slopes[:, None] * (position - row).abs()
        scores = (key @ query[:, row, :, None]).squeeze(-1) / math.sqrt(4) - penalty
        context = (scores.softmax(-1)[:, None] @ value).flatten()
        expected = layer.mlp(layer.attention.output(context, embedded[row]))
        assert worst(last_hidden_state[row], expected) < 1e-5

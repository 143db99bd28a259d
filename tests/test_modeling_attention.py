"""Attention back ends: chosen by name, never one that is not the model's own, and the probabilities on request."""

import logging

import pytest
import torch
from models import FORWARD_BACK_ENDS, TINY, build, load, padded_batch, random_ids, remote_module, worst
from transformers import AutoModel


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    folder = tmp_path_factory.mktemp("saved")
    build(AutoModel).save_pretrained(folder)
    return folder


class TestAttentionNames:
    @pytest.mark.parametrize("attention", FORWARD_BACK_ENDS)
    @torch.no_grad()
    def test_a_model_can_be_switched(self, saved, attention, monkeypatch):
        model = load(AutoModel, saved, "eager" if attention == "sdpa" else "sdpa")
        model.set_attn_implementation(attention)
        (prepare, original), called = remote_module(model).ATTENTION_FUNCTIONS[attention], []
        spy = {attention: (prepare, lambda *args, **kwargs: called.append(attention) or original(*args, **kwargs))}
        monkeypatch.setattr(remote_module(model), "ATTENTION_FUNCTIONS", spy)
        model(random_ids(1, 4))
        assert called == [attention] * TINY["num_hidden_layers"]

    # ImportError: what transformers raises once it believes that a model has flash attention and the package is absent
    @pytest.mark.parametrize("name", ["flash_attention_3", "flash_attention_4", "paged|eager", "anything"])
    class TestThatAreNotOursAreRefused:
        def test_by_loading_or_the_first_forward(self, saved, name):
            with pytest.raises((ValueError, ImportError), match=r"attn_implementation|[Ff]lash"):
                load(AutoModel, saved, name)(random_ids(1, 4))

        def test_by_set_attn_implementation_or_the_first_forward(self, saved, name):
            model = load(AutoModel, saved)
            with pytest.raises((ValueError, ImportError), match=r"attn_implementation|[Ff]lash"):
                model.set_attn_implementation(name)
                model(random_ids(1, 4))

        def test_by_the_forward(self, name):
            model = build(AutoModel)
            model.config._attn_implementation = name
            with pytest.raises(ValueError, match="would drop ALiBi"):
                model(random_ids(1, 4))


@pytest.fixture
def warnings(caplog):
    """What is logged from now on; `warning_once` has not yet warned of anything."""
    logging.Logger.warning_once.cache_clear()
    with caplog.at_level("WARNING"):
        yield caplog


class TestOutputAttentions:
    def test_of_eager_need_no_warning(self, warnings):
        build(AutoModel, "eager")(random_ids(1, 4), output_attentions=True)
        assert not warnings.messages

    @pytest.mark.parametrize("attention", FORWARD_BACK_ENDS[1:])
    @torch.no_grad()
    def test_are_those_of_eager_on_every_other_back_end_with_one_warning(self, attention, warnings):
        batch = padded_batch()
        inputs = (batch["input_ids"], batch["attention_mask"])
        eager = build(AutoModel, "eager")(*inputs, output_attentions=True)
        model = build(AutoModel, attention)
        outputs, _ = (model(*inputs, output_attentions=True) for _ in range(2))
        assert ["runs the eager one" in message for message in warnings.messages] == [True]
        assert len(outputs.attentions) == TINY["num_hidden_layers"]
        for ours, expected in zip(outputs.attentions, eager.attentions, strict=True):
            assert torch.equal(ours, expected)
            assert worst(ours.sum(-1), torch.ones(4, 4, 24)) < 1e-6
            assert torch.count_nonzero(ours.masked_select(batch["attention_mask"][:, None, None] == 0)) == 0
        assert worst(outputs.last_hidden_state, model(*inputs).last_hidden_state) < 1e-5

    def test_of_packed_sequences_are_zero_between_them(self):
        cu_seqlens = torch.tensor([0, 4, 9], dtype=torch.int32)
        outputs = build(AutoModel, "eager")(random_ids(1, 9), cu_seqlens=cu_seqlens, output_attentions=True)
        for attentions in outputs.attentions:
            assert attentions.shape == (1, TINY["num_attention_heads"], 9, 9)
            assert not attentions[..., :4, 4:].any() and not attentions[..., 4:, :4].any()
            assert (attentions[..., :4, :4] > 0).all() and (attentions[..., 4:, 4:] > 0).all()


@pytest.mark.usefixtures("no_grad")
class TestFlex:
    """What it does besides attention: the numbers are those of the other back ends by all the tests that name it."""

    def test_leaves_a_mask_with_holes_to_sdpa_with_one_warning(self, warnings):
        batch, model = padded_batch(), build(AutoModel, "flex_attention")
        inputs = (batch["input_ids"], batch["attention_mask"])
        first, second = (model(*inputs).last_hidden_state for _ in range(2))
        assert ["mask with holes" in message for message in warnings.messages] == [True]
        assert torch.equal(first, second) and torch.equal(first, build(AutoModel, "sdpa")(*inputs).last_hidden_state)

    def test_computes_on_tokens_alone_and_puts_padding_back(self, monkeypatch):
        batch = {key: tensor[:3] for key, tensor in padded_batch().items() if key != "labels"}  # without the holes
        model = build(AutoModel, "flex_attention")
        seen = []
        model.encoder.layer[0].register_forward_hook(lambda layer, args, output: seen.append(output[0].shape))
        outputs = model(**batch, output_hidden_states=True)
        assert seen == [(1, batch["attention_mask"].sum(), TINY["hidden_size"])]
        is_token = batch["attention_mask"].bool()
        eager = build(AutoModel, "eager")(**batch, output_hidden_states=True)
        for ours, expected in zip(outputs.hidden_states, eager.hidden_states, strict=True):
            assert ours.shape == (3, 24, TINY["hidden_size"])
            assert worst(ours[is_token], expected[is_token]) < 1e-5
        for hidden_states in outputs.hidden_states[1:]:
            assert not hidden_states[~is_token].any()

    def test_refuses_attention_dropout_in_training_alone(self):
        model = build(AutoModel, "flex_attention", attention_probs_dropout_prob=0.1)
        model(random_ids(1, 4))
        with pytest.raises(ValueError, match="set attention_probs_dropout_prob to 0"):
            model.train()(random_ids(1, 4))

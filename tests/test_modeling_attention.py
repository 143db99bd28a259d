"""Attention back ends: chosen by name, never one that is not the model's own, and the probabilities on request."""

import logging

import pytest
import torch
from models import BACK_ENDS, TINY, build, load, padded_batch, random_ids, remote_module, worst
from transformers import AutoModel


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    folder = tmp_path_factory.mktemp("saved")
    build(AutoModel).save_pretrained(folder)
    return folder


class TestAttentionNames:
    @pytest.mark.parametrize("attention", BACK_ENDS)
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


def test_attentions_are_those_of_eager_on_every_back_end_with_one_warning(caplog):
    logging.Logger.warning_once.cache_clear()
    batch = padded_batch()
    inputs = (batch["input_ids"], batch["attention_mask"])
    eager = build(AutoModel, "eager")(*inputs, output_attentions=True)
    assert not caplog.records
    model = build(AutoModel, "sdpa")
    with caplog.at_level("WARNING"):
        outputs, _ = (model(*inputs, output_attentions=True) for _ in range(2))
    assert ["eager" in record.message for record in caplog.records] == [True]
    assert len(outputs.attentions) == TINY["num_hidden_layers"]
    for ours, expected in zip(outputs.attentions, eager.attentions, strict=True):
        assert torch.equal(ours, expected)
        assert worst(ours.sum(-1), torch.ones(4, 4, 24)) < 1e-6
        assert torch.count_nonzero(ours.masked_select(batch["attention_mask"][:, None, None] == 0)) == 0
    assert worst(outputs.last_hidden_state, model(*inputs).last_hidden_state) < 1e-5

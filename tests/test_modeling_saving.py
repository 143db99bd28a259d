"""Weights: as first drawn, saved and loaded, shared between heads, tied, and placed by a device map."""

import copy
import math

import pytest
import torch
from models import AUTO_CLASSES, CODE_FILES, TINY, assert_equal_tensors, build, load, padded_batch, random_ids, worst
from safetensors import safe_open
from transformers import AutoModel, AutoModelForMaskedLM


@pytest.mark.parametrize("initializer_range", [0.02, 0.1])
@pytest.mark.parametrize("auto_class", AUTO_CLASSES)
def test_fresh_weights(auto_class, initializer_range):
    model = build(auto_class, hidden_size=64, vocab_size=512, initializer_range=initializer_range)
    for name, parameter in model.named_parameters():
        if name.endswith("bias"):
            assert not parameter.any(), name
        elif "layernorm" in name.lower():
            assert (parameter == 1).all(), name
        else:  # five standard errors of a standard deviation, sigma / sqrt(2n)
            within = 5 * initializer_range / math.sqrt(2 * parameter.numel())
            assert abs(parameter.std().item() - initializer_range) < within, name
            assert abs(parameter.mean().item()) < 5 * initializer_range / math.sqrt(parameter.numel()), name


def assert_tied(model):
    assert model.get_output_embeddings().weight is model.get_input_embeddings().weight


@pytest.mark.parametrize("auto_class", AUTO_CLASSES)
def test_saving_and_loading_keeps_every_tensor(auto_class, tmp_path):
    model = build(auto_class)
    model.save_pretrained(tmp_path)
    loaded, info = load(auto_class, tmp_path, output_loading_info=True)
    assert not info["missing_keys"] and not info["unexpected_keys"] and not info["mismatched_keys"]
    assert_equal_tensors(loaded, model)
    assert all((tmp_path / file).is_file() for file in CODE_FILES)
    assert not list(tmp_path.glob("*.bin"))


class TestBetweenHeads:
    def test_an_encoder_checkpoint_gives_an_mlm_model_its_weights(self, tmp_path):
        encoder_alone = build(AutoModel)
        encoder_alone.save_pretrained(tmp_path)
        model, info = load(AutoModelForMaskedLM, tmp_path, output_loading_info=True)
        assert all(key.startswith("cls.predictions.") for key in info["missing_keys"])
        assert all("pooler" in key for key in info["unexpected_keys"])
        for name, tensor in model.bert.state_dict().items():
            assert torch.equal(tensor, encoder_alone.state_dict()[name]), name
        assert_tied(model)


class TestTiedWeights:
    def test_are_tied_in_a_fresh_and_in_a_loaded_model(self, tmp_path):
        model = build()
        assert_tied(model)
        model.save_pretrained(tmp_path)
        assert_tied(model)
        assert_tied(load(AutoModelForMaskedLM, tmp_path))

    def test_are_stored_once(self, tmp_path):
        build().save_pretrained(tmp_path)
        with safe_open(tmp_path / "model.safetensors", "pt") as file:
            tied = {"bert.embeddings.word_embeddings.weight", "cls.predictions.decoder.weight"} & set(file.keys())
        assert len(tied) == 1

    @pytest.mark.parametrize("size", [50, 80])
    def test_stay_tied_and_biased_when_the_vocabulary_is_resized(self, size, tmp_path):
        model = build()
        kept = min(size, TINY["vocab_size"])
        with torch.no_grad():
            model.cls.predictions.decoder.bias.normal_()
        before = copy.deepcopy(model.state_dict())
        model.resize_token_embeddings(size)
        assert_tied(model)
        assert model.config.vocab_size == size
        for name in ("bert.embeddings.word_embeddings.weight", "cls.predictions.decoder.bias"):
            assert model.state_dict()[name].shape[0] == size
            assert torch.equal(model.state_dict()[name][:kept], before[name][:kept])
        assert model(random_ids(1, 4, vocab_size=kept)).logits.shape == (1, 4, size)
        model.save_pretrained(tmp_path)
        loaded = load(AutoModelForMaskedLM, tmp_path)
        assert_tied(loaded)
        assert_equal_tensors(loaded, model)

    def test_are_two_where_the_configuration_says_so(self, tmp_path):
        model = build(tie_word_embeddings=False)
        assert not torch.equal(model.get_output_embeddings().weight, model.get_input_embeddings().weight)
        model.save_pretrained(tmp_path)
        loaded, info = load(AutoModelForMaskedLM, tmp_path, output_loading_info=True)
        assert not info["missing_keys"]
        assert_equal_tensors(loaded, model)


def test_device_map_auto(tmp_path):
    model = build()
    model.save_pretrained(tmp_path)
    loaded = load(AutoModelForMaskedLM, tmp_path, device_map="auto")
    batch = {key: value.to(loaded.device) for key, value in padded_batch().items()}
    assert worst(loaded(**batch).logits.cpu(), model(**padded_batch()).logits) < 1e-5


def test_a_device_map_with_a_layer_on_disk(tmp_path):
    model = build()
    model.save_pretrained(tmp_path / "model")
    device_map = {"bert.embeddings": "cpu", "bert.encoder.alibi": "cpu", "cls": "cpu"}
    device_map |= {"bert.encoder.layer.0": "cpu", "bert.encoder.layer.1": "disk"}
    loaded = load(AutoModelForMaskedLM, tmp_path / "model", device_map=device_map, offload_folder=tmp_path / "disk")
    assert worst(loaded(**padded_batch()).logits, model(**padded_batch()).logits) < 1e-5

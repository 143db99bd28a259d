"""What a forward takes and what it gives back, in all four classes."""

import pytest
import torch
from models import AUTO_CLASSES, FORWARD_BACK_ENDS, TINY, build, four_masks, padded_batch, random_ids
from transformers import AutoModel


@pytest.mark.parametrize("auto_class", AUTO_CLASSES)
@pytest.mark.parametrize("attention", FORWARD_BACK_ENDS)
@torch.no_grad()
def test_one_token(auto_class, attention):
    assert build(auto_class, attention)(random_ids(1, 1))[0].isfinite().all()


class TestInputs:
    def test_embeddings_equal_ids(self):
        batch, model = padded_batch(), build()
        embeddings = model.get_input_embeddings()(batch.pop("input_ids"))
        assert torch.equal(model(inputs_embeds=embeddings, **batch).logits, model(**padded_batch()).logits)

    def test_neither_or_both_of_ids_and_embeddings_are_refused(self):
        ids, model = random_ids(1, 4), build(AutoModel)
        for inputs in ({}, {"input_ids": ids, "inputs_embeds": model.get_input_embeddings()(ids)}):
            with pytest.raises(ValueError, match="give exactly one of input_ids and inputs_embeds"):
                model(**inputs)

    def test_token_types_default_to_zeros(self):
        ids, model = random_ids(2, 9), build(AutoModel)
        expected = model(ids).last_hidden_state
        assert torch.equal(model(ids, token_type_ids=torch.zeros_like(ids)).last_hidden_state, expected)
        assert not torch.equal(model(ids, token_type_ids=torch.ones_like(ids)).last_hidden_state, expected)

    @pytest.mark.parametrize("auto_class", AUTO_CLASSES)
    def test_the_second_positional_argument_is_the_mask(self, auto_class):
        ids, mask, model = random_ids(4, 24), four_masks(24), build(auto_class)
        assert torch.equal(model(ids, mask)[0], model(ids, attention_mask=mask)[0])
        assert not torch.equal(model(ids, mask)[0], model(ids)[0])

    @pytest.mark.parametrize("auto_class", AUTO_CLASSES)
    def test_an_unknown_argument_is_refused(self, auto_class):
        with pytest.raises(TypeError, match="position_ids"):
            build(auto_class)(random_ids(1, 4), position_ids=torch.arange(4)[None])


@pytest.mark.parametrize("auto_class", AUTO_CLASSES)
class TestOutputs:
    def test_hidden_states_are_the_embeddings_and_every_layer(self, auto_class):
        model = build(auto_class)
        batch = {key: value for key, value in padded_batch().items() if key != "labels"}
        hidden_states = model(**batch, output_hidden_states=True).hidden_states
        assert len(hidden_states) == TINY["num_hidden_layers"] + 1
        assert torch.equal(hidden_states[-1], model.base_model(**batch).last_hidden_state)
        embeddings = model.base_model.embeddings(batch["input_ids"], None, None)
        assert torch.equal(hidden_states[0], embeddings * batch["attention_mask"][:, :, None])

    def test_neither_is_there_unless_asked_for(self, auto_class):
        outputs = build(auto_class)(random_ids(1, 4))
        assert outputs.hidden_states is None and outputs.attentions is None

    def test_the_configuration_asks_for_them_too(self, auto_class):
        outputs = build(auto_class, "eager", output_hidden_states=True, output_attentions=True)(random_ids(1, 4))
        assert len(outputs.hidden_states) == len(outputs.attentions) + 1 == TINY["num_hidden_layers"] + 1

    def test_a_tuple_on_request(self, auto_class):
        model, ids = build(auto_class), random_ids(2, 9)
        outputs, as_tuple = model(ids), model(ids, return_dict=False)
        assert isinstance(as_tuple, tuple)
        assert all(torch.equal(a, b) for a, b in zip(as_tuple, outputs.to_tuple(), strict=True))

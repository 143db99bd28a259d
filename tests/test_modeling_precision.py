"""bfloat16 and float16 on the CPU, as weights and under autocast: as close to float32 as their rounding allows."""

import pytest
import torch
from models import BACK_ENDS, LOW_PRECISION, TINY, build, draw_biases, gradients, padded_batch
from torch import nn


def rounded_model(attention, dtype):
    """A float32 model whose weights `dtype` holds exactly: a model in `dtype` differs by its arithmetic alone."""
    return draw_biases(build(attention=attention, num_hidden_layers=3)).to(dtype).float()


def relative_error(actual, expected):
    """The root mean square of the difference, over that of the expected values."""
    difference = actual.detach().float() - expected.detach()
    return (difference.pow(2).mean() / expected.detach().pow(2).mean()).sqrt().item()


def errors(dtype, run):
    """Relative errors a back end of logits and gradients that `run(model, batch, dtype)` gives, against float32."""
    exact = rounded_model("eager", dtype)
    expected = exact(**padded_batch())
    expected.loss.backward()
    result = {}
    for attention in BACK_ENDS:
        model = rounded_model(attention, dtype)
        outputs = run(model, padded_batch(), dtype)
        assert outputs.logits.dtype == dtype and outputs.loss.dtype == torch.float32
        outputs.loss.backward()
        flat = [torch.cat([gradients(m)[name].float().flatten() for name in gradients(exact)]) for m in (model, exact)]
        result[attention] = relative_error(outputs.logits, expected.logits), relative_error(*flat)
    return result


def run_with_weights(model, batch, dtype):
    return model.to(dtype)(**batch)


def run_with_autocast(model, batch, dtype):
    with torch.autocast("cpu", dtype):
        return model(**batch)


# Errors are counted in roundings, 2^-9 in bfloat16 and 2^-12 in float16. Over four seeds and both ways to run, either
# back end gave 4 to 7.5 of them in the logits and 4 to 17 in the gradients, in both dtypes: twice that is allowed.
ROUNDING = {torch.bfloat16: 2.0**-9, torch.float16: 2.0**-12}


@pytest.mark.parametrize("dtype", LOW_PRECISION, ids=str)
@pytest.mark.parametrize("run", [run_with_weights, run_with_autocast])
def test_low_precision_stays_as_close_to_float32_as_it_can(run, dtype):
    result = errors(dtype, run)
    for quantity, bound in ((0, 15), (1, 34)):  # logits, gradients
        eager, sdpa = result["eager"][quantity], result["sdpa"][quantity]
        assert eager < bound * ROUNDING[dtype]
        assert sdpa < 2 * eager


class TestLowPrecisionLayerNorm:
    def norm_dtypes(self, **values):
        model, dtypes = build(**values), []
        for module in model.bert.modules():  # the head's own input is in the autocast dtype, and CPUs keep that
            if isinstance(module, nn.LayerNorm):
                module.register_forward_hook(lambda module, inputs, output: dtypes.append(output.dtype))
        with torch.autocast("cpu", torch.bfloat16):
            loss = model(**padded_batch()).loss
        loss.backward()
        assert all(parameter.grad.dtype == torch.float32 for parameter in model.parameters())
        assert len(dtypes) == 2 * TINY["num_hidden_layers"] + 1
        return set(dtypes)

    def test_computes_in_the_autocast_dtype(self):
        assert self.norm_dtypes(low_precision_layernorm=True) == {torch.bfloat16}

    def test_is_off_by_default(self):
        assert self.norm_dtypes() == {torch.float32}

    def test_changes_nothing_without_autocast(self):
        batch = padded_batch()
        assert torch.equal(build(low_precision_layernorm=True)(**batch).logits, build()(**batch).logits)

    def test_stays_close_to_float32(self):
        batch = padded_batch()
        with torch.autocast("cpu", torch.bfloat16):
            logits = build(low_precision_layernorm=True)(**batch).logits
        assert relative_error(logits, build()(**batch).logits) < 12 * ROUNDING[torch.bfloat16]

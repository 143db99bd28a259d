"""flash_attention_2 on any machine: refused where it cannot run, and given the right inputs where it does.

Its numbers on a GPU: test_modeling_backends.py. In place of an absent flash-attn transformers would take a kernel from
the Hub, which has no ALiBi: this file is also a script, run in a process that finds stand-ins for such packages.
"""

import json
import os
import subprocess
import sys
from importlib.util import find_spec

import pytest
import torch
from models import build, encoder, four_masks, load, masks, padded_batch, random_ids, worst
from transformers import AutoModel
from transformers.utils import import_utils


FLASH = "flash_attention_2"


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    folder = tmp_path_factory.mktemp("saved")
    build(AutoModel).save_pretrained(folder)
    return folder


def ways_to_ask(folder):
    return {
        "from_config": lambda name: build(AutoModel, name),
        "from_pretrained": lambda name: load(AutoModel, folder, name),
        "set_attn_implementation": lambda name: build(AutoModel).set_attn_implementation(name),
    }


def raised_by(ask, name):
    try:
        ask(name)
    except (ImportError, OSError, ValueError) as error:
        return f"{type(error).__name__}: {error}"
    return "nothing"


@pytest.mark.skipif(torch.cuda.is_available() and find_spec("flash_attn") is not None, reason="it runs here")
class TestIsRefusedWhereItCannotRun:
    @pytest.mark.parametrize("way", ways_to_ask(None))
    def test_by_an_import_error_that_says_what_is_missing(self, way, saved):
        with pytest.raises(ImportError, match=r"flash_attention_2 needs (the package flash-attn|a CUDA GPU).*sdpa"):
            ways_to_ask(saved)[way](FLASH)

    def test_by_the_forward(self):
        model = build(AutoModel)
        model.config._attn_implementation = FLASH
        with pytest.raises(ImportError, match="flash_attention_2 needs"):
            model(random_ids(1, 4))

    def test_and_the_model_stays_as_it_was(self):
        model = build(AutoModel)
        with pytest.raises(ImportError):
            model.set_attn_implementation(FLASH)
        assert model.config._attn_implementation == "sdpa"
        model(random_ids(1, 4))


# --- beside packages that are broken, or that transformers would take instead ------------------------------------


STAND_INS = {
    "kernels": """
import sys
from unittest.mock import MagicMock

def get_kernel(*args, **kwargs):
    print("a kernel was asked for", file=sys.stderr)
    raise RuntimeError

def use_kernel_forward_from_hub(*args, **kwargs):
    return lambda decorated: decorated

use_kernelized_func = use_kernel_forward_from_hub

def __getattr__(name):
    if name.startswith("__"):
        raise AttributeError(name)
    return MagicMock()
""",
    "flash_attn": 'raise ImportError("undefined symbol")',
}


def install(name, code, version, folder):
    (folder / name).mkdir()
    (folder / name / "__init__.py").write_text(code)
    metadata = folder / f"{name}-{version}.dist-info"
    metadata.mkdir()
    (metadata / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name.replace('_', '-')}\nVersion: {version}\n")
    (metadata / "top_level.txt").write_text(f"{name}\n")


def report(folder):
    """What this process sees and does, as JSON."""
    raised = {way: raised_by(ask, FLASH) for way, ask in ways_to_ask(folder).items()}
    eager = build(AutoModel, "eager")(random_ids(1, 4)).last_hidden_state.isfinite().all().item()
    return {"raised": raised, "eager runs": eager, "kernels": import_utils.is_kernels_available()}


def test_flash_is_refused_and_eager_runs_beside_kernels_and_a_broken_flash_attn(saved, tmp_path):
    versions = {"kernels": import_utils.KERNELS_MIN_VERSION, "flash_attn": "2.8.3"}
    for name, version in versions.items():
        install(name, STAND_INS[name], version, tmp_path)
    process = subprocess.run(
        [sys.executable, __file__, saved],
        env=os.environ | {"PYTHONPATH": os.pathsep.join([str(tmp_path), os.environ.get("PYTHONPATH", "")])},
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert process.returncode == 0 and "a kernel was asked for" not in process.stderr, process.stderr
    found = json.loads(process.stdout.splitlines()[-1])
    assert found["eager runs"] and found["kernels"]
    for message in found["raised"].values():
        assert message.startswith("ImportError: flash_attention_2 needs the package flash-attn"), message


# --- its inputs --------------------------------------------------------------------------------------------------


def plain_varlen_attention(qkv, cu_seqlens, max_seqlen, dropout_p, alibi_slopes):
    """What flash-attn's `flash_attn_varlen_qkvpacked_func` computes, sequence by sequence, in any dtype."""
    assert cu_seqlens.dtype == torch.int32 and alibi_slopes.dtype == torch.float32
    assert cu_seqlens.diff().max() <= max_seqlen and cu_seqlens[-1] == len(qkv)
    context = []
    for sequence in qkv.split(cu_seqlens.diff().tolist()):
        query, key, value = sequence.permute(1, 2, 0, 3)  # each (heads, length, head_dim)
        position = torch.arange(len(sequence))
        distance = (position[:, None] - position[None, :]).abs()
        scores = query @ key.mT / query.shape[-1] ** 0.5 - alibi_slopes[:, None, None] * distance
        context.append((scores.softmax(-1) @ value).transpose(0, 1))
    return torch.nn.functional.dropout(torch.cat(context), dropout_p)


@pytest.fixture
def flash_model(monkeypatch):
    """A float64 model on the CPU that runs through the flash back end, on the function above."""
    model = build(dtype=torch.float64)
    attention = sys.modules[type(encoder(model).alibi).__module__]
    monkeypatch.setattr(attention, "flash_attn_varlen_qkvpacked_func", plain_varlen_attention)
    monkeypatch.setattr(attention, "require_flash_attention", lambda *args: None)
    model.config._attn_implementation = FLASH
    return model


LAYOUTS = {
    "no mask": {},
    "a mask of ones": {"attention_mask": masks(24, *4 * [slice(None)])},
    "padding on both sides": {"attention_mask": masks(24, slice(None), slice(0, 9), slice(5, None), slice(3, 4))},
    "an empty row": {"attention_mask": masks(24, [], slice(0, 9), [], slice(5, None))},
    "padding alone": {"attention_mask": masks(24, *4 * [[]])},
    "holes": {"attention_mask": four_masks(24)},
}


@pytest.mark.parametrize("layout", LAYOUTS)
def test_flash_is_given_what_makes_it_equal_eager(layout, flash_model):
    batch = {"input_ids": random_ids(4, 24), "labels": random_ids(4, 24, seed=3)} | LAYOUTS[layout]
    eager = build(attention="eager", dtype=torch.float64)
    ours, expected = flash_model(**batch), eager(**batch)
    assert worst(ours.logits, expected.logits) < 1e-12
    ours.loss.backward()
    expected.loss.backward()
    for (name, parameter), other in zip(flash_model.named_parameters(), eager.parameters(), strict=True):
        assert worst(parameter.grad, other.grad) < 1e-12, name


@pytest.mark.parametrize("max_seqlen", [None, 15, 100])
def test_flash_is_given_packed_sequences(max_seqlen, flash_model):
    ids, cu_seqlens = random_ids(1, 24), torch.tensor([0, 1, 9, 24], dtype=torch.int32)
    packed = flash_model(ids, cu_seqlens=cu_seqlens, max_seqlen=max_seqlen).logits
    alone = [build(attention="eager", dtype=torch.float64)(part).logits for part in ids.split([1, 8, 15], dim=1)]
    assert worst(packed, torch.cat(alone, dim=1)) < 1e-12


def test_flash_is_given_attention_dropout_in_training_alone(flash_model):
    batch = padded_batch()
    for module in flash_model.modules():
        if hasattr(module, "attention_dropout"):
            module.attention_dropout = 0.5
    batch = {key: tensor[:3] for key, tensor in batch.items()}  # without the holes
    assert torch.equal(flash_model(**batch).logits, flash_model(**batch).logits)
    for module in flash_model.train().modules():
        if isinstance(module, torch.nn.Dropout):
            module.p = 0.0
    assert not torch.equal(flash_model(**batch).logits, flash_model(**batch).logits)


# --- on a GPU ----------------------------------------------------------------------------------------------------


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
class TestOnAGpu:
    @pytest.fixture(autouse=True)
    def needs_flash(self):
        pytest.importorskip("flash_attn")

    def test_a_model_on_the_cpu_is_refused(self):
        with pytest.raises(ValueError, match="the model is on cpu: move it"):
            build(AutoModel, FLASH, dtype=torch.bfloat16)(random_ids(1, 4))

    @pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
    def test_a_dtype_that_it_does_not_compute_in_is_refused(self, dtype):
        model = build(AutoModel, FLASH, dtype=dtype).cuda()
        with pytest.raises(ValueError, match=r"not in float(32|64): load the model with dtype=torch\.bfloat16"):
            model(random_ids(1, 4).cuda())


if __name__ == "__main__":
    print(json.dumps(report(sys.argv[1])))

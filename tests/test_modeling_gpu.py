"""The model on a CUDA device: compilation, dropout and gradient checkpointing. Skipped without one.

The precision of the back ends there: test_modeling_backends.py; the kernels alone: test_kernels_dnabert2.py.
"""

from importlib.util import find_spec

import pytest
import torch
from models import build, draw_biases, padded_batch, random_ids


pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device"),
]
FLASH = "flash_attention_2"
needs_flash = pytest.mark.skipif(find_spec("flash_attn") is None, reason="needs flash-attn")
# head dimension 64, so that the fused kernels run
SIZES = {"hidden_size": 128, "num_attention_heads": 2, "intermediate_size": 96, "hidden_dropout_prob": 0.0}


def model_on(device, attention, **values):
    """Scores as in the tiny models of the other tests, whose hidden size is a quarter."""
    return draw_biases(build(attention=attention, initializer_range=0.1, **SIZES | values)).to(device)


def batch_without_holes(length):
    """Rows without padding, padded right, and padded left."""
    return {key: tensor[:3] for key, tensor in padded_batch(length).items()}


def loss_and_gradients(model, batch, autocast_dtype=None, run=None):
    """In float64; the gradients of all parameters as one vector. `run` is a compiled form of the model."""
    model.zero_grad()
    run = model if run is None else run
    with torch.autocast(model.device.type, dtype=autocast_dtype, enabled=autocast_dtype is not None):
        loss = run(**{key: tensor.to(model.device) for key, tensor in batch.items()}).loss
    loss.backward()
    return loss.detach().double().cpu(), torch.cat([p.grad.flatten().double().cpu() for p in model.parameters()])


def error(values, exact):
    return (torch.linalg.vector_norm(values - exact) / torch.linalg.vector_norm(exact)).item()


@pytest.mark.parametrize("attention", ["eager", "sdpa", "flex_attention"])
def test_float32_equals_float64_on_the_cpu(attention):
    batch = batch_without_holes(40)
    exact = loss_and_gradients(model_on("cpu", "eager").double(), batch)
    for values, expected in zip(loss_and_gradients(model_on("cuda", attention), batch), exact, strict=True):
        assert error(values, expected) < 1e-5


@pytest.mark.parametrize(
    ("attention", "length", "autocast_dtype"),
    [
        ("sdpa", 40, None),
        ("sdpa", 40, torch.bfloat16),
        ("flex_attention", 40, None),
        pytest.param(FLASH, 40, torch.bfloat16, marks=needs_flash),  # a kernel of ours
        pytest.param(FLASH, 300, torch.bfloat16, marks=needs_flash),  # flash-attn's
    ],
)
def test_a_training_step_compiles_and_stays_as_close_to_float64(attention, length, autocast_dtype):
    torch._dynamo.reset()
    batch = batch_without_holes(length)
    exact = loss_and_gradients(model_on("cpu", "eager").double(), batch)
    model = model_on("cuda", attention).train()
    uncompiled = loss_and_gradients(model, batch, autocast_dtype)
    # taking padding out breaks the graph once; without that it is one
    compiled = torch.compile(model, fullgraph=attention == "sdpa")
    for values, of_uncompiled, expected in zip(
        loss_and_gradients(model, batch, autocast_dtype, compiled), uncompiled, exact, strict=True
    ):
        tolerance = 1e-5 if autocast_dtype is None else 5e-3
        assert error(values, expected) <= max(2 * error(of_uncompiled, expected), tolerance)


@pytest.mark.parametrize("is_compiled", [False, True], ids=["uncompiled", "compiled"])
@pytest.mark.parametrize("attention", ["sdpa", pytest.param(FLASH, marks=needs_flash)])
def test_a_seed_decides_dropout(attention, is_compiled):
    torch._dynamo.reset()
    model = model_on("cuda", attention, hidden_dropout_prob=0.1, attention_probs_dropout_prob=0.1).train()
    run = torch.compile(model) if is_compiled else model
    batch, losses = batch_without_holes(40), []
    for seed in (5, 5, 6):
        torch.manual_seed(seed)
        losses.append(loss_and_gradients(model, batch, torch.bfloat16, run)[0])
    assert losses[0] == losses[1] != losses[2]


@pytest.mark.parametrize(
    ("attention", "autocast_dtype", "tolerance"),
    [
        ("eager", None, 1e-6),
        ("sdpa", None, 1e-6),
        ("flex_attention", None, 1e-6),
        pytest.param(FLASH, torch.bfloat16, 2e-3, marks=needs_flash),  # its backward pass adds in any order
    ],
)
def test_gradient_checkpointing_draws_the_same_dropout_again(attention, autocast_dtype, tolerance):
    results = []
    for checkpointing in (False, True):
        model = model_on("cuda", attention, hidden_dropout_prob=0.1).train()
        if checkpointing:
            model.gradient_checkpointing_enable()
        torch.manual_seed(5)
        results.append(loss_and_gradients(model, batch_without_holes(40), autocast_dtype))
    (loss, gradients), (checkpointed_loss, checkpointed_gradients) = results
    assert loss == checkpointed_loss
    assert error(checkpointed_gradients, gradients) < tolerance


@pytest.mark.parametrize(
    ("attention", "max_seqlen"),
    [("sdpa", 40), pytest.param(FLASH, 40, marks=needs_flash), pytest.param(FLASH, 300, marks=needs_flash)],
)
def test_a_cuda_graph_of_packed_sequences_is_replayed_with_others(attention, max_seqlen):
    """Forward and backward of another batch: other tokens, and sequences that begin elsewhere."""
    model = model_on("cuda", attention).bfloat16()

    def packed(seed, *lengths):
        ends = torch.tensor([0, *lengths]).cumsum(0).int()
        return {"input_ids": random_ids(1, sum(lengths), seed=seed).cuda(), "cu_seqlens": ends.cuda()}

    def step(batch):
        model.zero_grad()
        outputs = model(**batch, labels=batch["input_ids"], max_seqlen=max_seqlen)
        outputs.loss.backward()
        return outputs.logits.detach(), model.bert.encoder.layer[0].attention.self.Wqkv.weight.grad

    recorded, other = packed(1, 20, 1, max_seqlen), packed(2, max_seqlen - 5, 20, 6)
    stream, graph = torch.cuda.Stream(), torch.cuda.CUDAGraph()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        step(recorded)
        expected = [tensor.clone() for tensor in step(other)]
    torch.cuda.synchronize()
    with torch.cuda.graph(graph, stream=stream):
        found = step(recorded)
    for name, tensor in other.items():
        recorded[name].copy_(tensor)
    graph.replay()
    for tensor, its_expected in zip(found, expected, strict=True):
        assert error(tensor.double(), its_expected.double()) < 2e-3


def test_dropout_follows_its_own_modules_not_the_model():
    """Monte-Carlo dropout: the model evaluates, and its dropout modules alone train."""
    model, batch = model_on("cuda", "sdpa", hidden_dropout_prob=0.1), batch_without_holes(40)
    ids, mask = (batch[key].cuda() for key in ("input_ids", "attention_mask"))
    dropouts = [layer.mlp.dropout.train() for layer in model.bert.encoder.layer]
    with torch.no_grad():
        assert not torch.equal(*(model(ids, mask).logits for _ in range(2)))
        model.train()
        for module in model.modules():
            module.train(not isinstance(module, torch.nn.Dropout))
        assert torch.equal(*(model(ids, mask).logits for _ in range(2)))
    assert not dropouts[0].training


@pytest.mark.skipif(torch.cuda.device_count() < 2, reason="needs two CUDA devices")
@pytest.mark.parametrize("attention", ["sdpa", pytest.param(FLASH, marks=needs_flash)])
def test_a_model_runs_on_a_gpu_that_is_not_the_current_one(attention):
    batch = batch_without_holes(40)
    first, second = (
        loss_and_gradients(model_on(device, attention), batch, torch.bfloat16) for device in ("cuda:0", "cuda:1")
    )
    assert error(second[0], first[0]) < 1e-6 and error(second[1], first[1]) < 1e-3

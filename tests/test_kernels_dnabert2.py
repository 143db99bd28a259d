"""The Triton kernels against plain torch in float64, and the statistics of dropout by a hash.

pytest tests/test_kernels_dnabert2.py; the kernels run on a machine with a CUDA device, and, if triton is there, on any
under TRITON_INTERPRET=1
"""

import os
import sys
from importlib.util import find_spec
from itertools import combinations

import pytest
import torch
from models import build, remote_module
from torch import nn


IS_INTERPRETED = os.environ.get("TRITON_INTERPRET") == "1" and find_spec("triton") is not None
DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
CANNOT_RUN = pytest.mark.skipif(
    DEVICE == "cpu" and not IS_INTERPRETED, reason="needs a CUDA device, or TRITON_INTERPRET=1"
)
# triton's interpreter cuts bfloat16 off instead of rounding it, and multiplies its matrices as if they were integers
DTYPES = (torch.float32, torch.float16) if IS_INTERPRETED else (torch.float32, torch.float16, torch.bfloat16)
ROUNDING = {torch.float32: 1e-6, torch.bfloat16: 1.01 * 2.0**-8, torch.float16: 1.01 * 2.0**-11}


@pytest.fixture(scope="module")
def kernels():
    return sys.modules[remote_module(build()).geglu.__module__]


def runs_kernels(test):
    return pytest.mark.gpu(CANNOT_RUN(test))


def normal(*shape, dtype=torch.float32, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed)).to(DEVICE, dtype)


def exact_geglu(gate_up):
    gate, up = gate_up.double().chunk(2, dim=-1)
    return nn.functional.gelu(gate) * up


# --- GEGLU -------------------------------------------------------------------------------------------------------


@runs_kernels
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("shape", [(7, 2), (5, 6), (2, 3, 96), (3, 1000), (2, 2050), (1, 3, 6144), (194,), (0, 8)])
class TestGeglu:
    def test_forward_equals_float64_to_a_rounding(self, kernels, shape, dtype):
        gate_up = 2 * normal(*shape, dtype=dtype)
        product = kernels.geglu(gate_up, 0.0)
        assert product.dtype == dtype and product.shape == (*shape[:-1], shape[-1] // 2)
        # the kernel's erf is right to 1.5e-7, and products are up to 20
        torch.testing.assert_close(product.double(), exact_geglu(gate_up), rtol=ROUNDING[dtype], atol=4e-6)

    def test_backward_equals_float64_to_a_rounding(self, kernels, shape, dtype):
        ours = (2 * normal(*shape, dtype=dtype)).requires_grad_()
        exact = ours.detach().double().requires_grad_()
        weight = normal(*shape, dtype=dtype, seed=1)[..., : shape[-1] // 2]  # its rows are not contiguous
        kernels.geglu(ours, 0.0).backward(weight)
        exact_geglu(exact).backward(weight.double())
        torch.testing.assert_close(ours.grad.double(), exact.grad, rtol=ROUNDING[dtype], atol=4e-6)


@runs_kernels
@pytest.mark.parametrize("value", [0.0, 30.0, -30.0, 1e4, -1e4])
def test_geglu_of_large_gates_is_finite(kernels, value):
    gate_up = torch.tensor([[value, 2.0]], device=DEVICE, requires_grad=True)
    product = kernels.geglu(gate_up, 0.0)
    product.sum().backward()
    torch.testing.assert_close(product.double(), exact_geglu(gate_up.detach()), rtol=1e-6, atol=1e-6)
    assert gate_up.grad.isfinite().all()


@runs_kernels
def test_geglu_takes_an_input_that_is_not_contiguous(kernels):
    gate_up = normal(8, 5).T
    torch.testing.assert_close(kernels.geglu(gate_up, 0.0).double(), exact_geglu(gate_up), rtol=1e-6, atol=1e-6)


# --- dropout -----------------------------------------------------------------------------------------------------


ROWS, WIDTH = 64 if IS_INTERPRETED else 512, 2048


class Dropout:
    """The masks of one of the two functions that draw them: geglu, and hashed_dropout, which is plain torch."""

    def __init__(self, kernels, name):
        self.function = getattr(kernels, name)
        self.columns = 2 if name == "geglu" else 1

    def __call__(self, rate, *shape, dtype=torch.float32):
        """Which elements the next call keeps, of `shape`; gelu(1)·1 is not zero."""
        *rows, width = shape or (ROWS, WIDTH)
        return self.function(torch.ones(*rows, self.columns * width, device=DEVICE, dtype=dtype), rate) != 0

    def seeded(self, seed, rate, *shape, **options):
        torch.manual_seed(seed)
        return self(rate, *shape, **options)


@pytest.fixture(params=["hashed_dropout", pytest.param("geglu", marks=[pytest.mark.gpu, CANNOT_RUN])])
def dropout(kernels, request):
    return Dropout(kernels, request.param)


def assert_rate(kept, rate):
    """The share that is kept, within five standard deviations of a binomial."""
    deviation = (rate * (1 - rate) / kept.numel()) ** 0.5
    assert abs(kept.double().mean().item() - (1 - rate)) < 5 * deviation


def assert_independent(one, other, rate):
    """The covariance of two masks of this rate is zero, within five standard deviations."""
    covariance = ((one.double() - (1 - rate)) * (other.double() - (1 - rate))).mean().item()
    assert abs(covariance) < 5 * rate * (1 - rate) / one.numel() ** 0.5


def assert_independent_of_neighbours(kept, rate):
    for distance in (1, 2, 3, 4, 8, 32, 64, 128, 1024, WIDTH, 2 * WIDTH, 2**15, 2**16):
        assert_independent(kept.flatten()[:-distance], kept.flatten()[distance:], rate)


class TestDropoutMasks:
    @pytest.mark.parametrize("rate", [0.01, 0.1, 0.5, 0.9])
    def test_are_of_their_rate(self, dropout, rate):
        for seed in range(4):
            assert_rate(dropout.seeded(seed, rate), rate)

    def test_of_rate_0_keep_everything(self, dropout):
        assert dropout.seeded(1, 0.0).all()

    def test_are_a_function_of_torchs_seed(self, dropout):
        assert torch.equal(dropout.seeded(3, 0.1), dropout.seeded(3, 0.1))
        assert not torch.equal(dropout.seeded(3, 0.1), dropout.seeded(4, 0.1))

    def test_differ_from_call_to_call(self, dropout):
        assert not torch.equal(dropout.seeded(3, 0.1), dropout(0.1))

    def test_are_a_function_of_the_position_alone(self, dropout):
        expected = dropout.seeded(3, 0.1).flatten()
        for shape in ((WIDTH, ROWS), (2, ROWS // 2, WIDTH)):
            assert torch.equal(dropout.seeded(3, 0.1, *shape, dtype=torch.bfloat16).flatten(), expected)

    def test_are_independent_of_their_neighbours(self, dropout):
        assert_independent_of_neighbours(dropout.seeded(5, 0.1), 0.1)

    def test_are_independent_from_call_to_call_and_seed_to_seed(self, dropout):
        kept = [dropout.seeded(7, 0.1), *(dropout(0.1) for _ in range(3))]
        kept += [dropout.seeded(seed, 0.1) for seed in range(8, 12)]
        for one, other in combinations(kept, 2):
            assert_independent(one, other, 0.1)

    def test_have_binomial_counts_in_rows_columns_and_calls(self, dropout):
        kept = dropout.seeded(13, 0.1).double()
        calls = torch.stack([dropout.seeded(seed, 0.1, 4, WIDTH) for seed in range(20, 84)]).double()
        for counts, number in ((kept.sum(1), WIDTH), (kept.sum(0), ROWS), (calls.sum(0).flatten(), 64)):
            variance = number * 0.1 * 0.9
            assert abs(counts.var().item() / variance - 1) < 5 * (2 / len(counts)) ** 0.5

    @runs_kernels
    def test_of_both_functions_are_the_same(self, kernels):
        hashed, geglu = (Dropout(kernels, name).seeded(3, 0.1) for name in ("hashed_dropout", "geglu"))
        assert torch.equal(hashed, geglu)


@pytest.mark.parametrize("rate", [0.1, 0.5])
class TestWhatDropoutKeeps:
    def test_is_scaled_by_hashed_dropout_and_so_are_gradients(self, kernels, rate):
        hidden_states = normal(64, 96).requires_grad_()
        dropped = kernels.hashed_dropout(hidden_states, rate)
        kept = dropped != 0
        torch.testing.assert_close(dropped, hidden_states * kept / (1 - rate), rtol=1e-6, atol=0)
        dropped.sum().backward()
        torch.testing.assert_close(hidden_states.grad, kept / (1 - rate), rtol=1e-6, atol=0)

    @pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float64], ids=str)
    def test_stays_in_its_dtype(self, kernels, rate, dtype):
        assert kernels.hashed_dropout(normal(4, 5, dtype=dtype), rate).dtype == dtype

    @runs_kernels
    @pytest.mark.parametrize("width", [96, 1025])  # of one block and of several
    def test_is_scaled_by_geglu_and_so_are_gradients(self, kernels, rate, width):
        gate_up = normal(16, 2 * width).requires_grad_()
        product = kernels.geglu(gate_up, rate)
        kept = product != 0
        exact = gate_up.detach().double().requires_grad_()
        expected = exact_geglu(exact) * kept / (1 - rate)
        torch.testing.assert_close(product.double(), expected, rtol=1e-6, atol=1e-6)
        product.sum().backward()
        expected.sum().backward()
        torch.testing.assert_close(gate_up.grad.double(), exact.grad, rtol=1e-5, atol=1e-6)


@pytest.mark.gpu
@pytest.mark.skipif(DEVICE == "cpu", reason="needs a CUDA device")
def test_hashed_dropout_is_as_good_when_compiled(kernels):
    compiled = torch.compile(lambda hidden_states: kernels.hashed_dropout(hidden_states, 0.1), fullgraph=True)
    hidden_states, masks = torch.ones(ROWS, WIDTH, device=DEVICE, requires_grad=True), []
    for seed in (1, 1, 2):
        torch.manual_seed(seed)
        dropped = compiled(hidden_states)
        masks.append(dropped != 0)
        assert_rate(masks[-1], 0.1)
        assert_independent_of_neighbours(masks[-1], 0.1)
        (gradient,) = torch.autograd.grad(dropped.sum(), hidden_states)
        torch.testing.assert_close(gradient, masks[-1] / 0.9, rtol=1e-6, atol=0)
    assert torch.equal(masks[0], masks[1])
    assert_independent(masks[0], masks[2], 0.1)


# --- attention ---------------------------------------------------------------------------------------------------


def plain_attention(qkv, cu_seqlens, slopes):
    """Attention with ALiBi, sequence by sequence, in the dtype of `qkv`."""
    context = []
    for sequence in qkv.split(cu_seqlens.diff().tolist()):
        query, key, value = sequence.permute(1, 2, 0, 3)
        position = torch.arange(len(sequence), device=qkv.device)
        bias = (-slopes[:, None, None].double() * (position[:, None] - position).abs()).to(qkv.dtype)
        probabilities = (query * query.shape[-1] ** -0.5 @ key.mT + bias).softmax(-1)
        context.append((probabilities @ value).transpose(0, 1))
    return torch.cat(context)


def forward_and_gradient(attend, qkv, weight):
    qkv = qkv.detach().requires_grad_()
    context = attend(qkv)
    context.backward(weight.to(context.dtype))
    return context.detach().double(), qkv.grad.double()


LENGTHS = {
    # the longest: lengths, with sequences of no token at either end and in between
    16: [0, 1, 2, 0, 0, 15, 16, 3, 0],
    32: [17, 0, 32, 31, 1],
    64: [33, 64, 5, 0],
    128: [0, *range(1, 129), 0] if DEVICE == "cuda" else [0, 128, 1, 65, 0, 127, 100],
}


@runs_kernels
@pytest.mark.parametrize("dtype", DTYPES if IS_INTERPRETED else DTYPES[1:], ids=str)  # flash has no float32 for it
@pytest.mark.parametrize(("longest", "head_dim"), [(16, 64), (32, 64), (64, 64), (128, 16), (128, 32), (128, 64)])
def test_tile_attention_is_as_close_to_float64_as_plain_torch(kernels, longest, head_dim, dtype):
    heads, cu_seqlens = 3, torch.tensor([0, *LENGTHS[longest]]).cumsum(0).int().to(DEVICE)
    tokens = int(cu_seqlens[-1])
    qkv = 1.5 * normal(tokens, 3, heads, head_dim, dtype=dtype)
    slopes = torch.tensor([0.5, 2.0**-4, 2.0**-8], device=DEVICE)
    weight = normal(tokens, heads, head_dim, dtype=dtype, seed=1)
    exact = forward_and_gradient(lambda x: plain_attention(x, cu_seqlens, slopes), qkv.double(), weight)
    plain = forward_and_gradient(lambda x: plain_attention(x, cu_seqlens, slopes), qkv, weight)
    ours = forward_and_gradient(lambda x: kernels.tile_attention(x, cu_seqlens, longest, slopes), qkv, weight)
    for values, of_torch, expected in zip(ours, plain, exact, strict=True):
        error, error_of_torch = ((x - expected).norm() / expected.norm() for x in (values, of_torch))
        assert error < max(1.5 * error_of_torch, 1e-6)


@runs_kernels
@pytest.mark.parametrize("dtype", DTYPES if IS_INTERPRETED else DTYPES[1:], ids=str)
@pytest.mark.parametrize("head_dim", [16, 32, 64])
@pytest.mark.parametrize("lengths", [[0, 1, 64, 65, 0], [129, 300, 0, 128], [1000] if DEVICE == "cpu" else [5000, 3]])
def test_long_attention_is_as_close_to_float64_as_plain_torch(kernels, lengths, head_dim, dtype):
    heads, cu_seqlens = 3, torch.tensor([0, *lengths]).cumsum(0).int().to(DEVICE)
    qkv = 1.5 * normal(int(cu_seqlens[-1]), 3, heads, head_dim, dtype=dtype)
    slopes = torch.tensor([0.5, 2.0**-4, 2.0**-8], device=DEVICE)
    exact = plain_attention(qkv.double(), cu_seqlens, slopes)
    plain = plain_attention(qkv, cu_seqlens, slopes).double()
    ours = kernels.long_attention(qkv, cu_seqlens, max(lengths), slopes).double()
    error, error_of_torch = ((x - exact).norm() / exact.norm() for x in (ours, plain))
    assert error < max(1.5 * error_of_torch, 1e-6)


@runs_kernels
@pytest.mark.parametrize("name", ["tile_attention", "long_attention"])
def test_a_sequence_sees_no_other(kernels, name):
    cu_seqlens = torch.tensor([0, 9, 16], dtype=torch.int32, device=DEVICE)
    slopes, qkv = torch.tensor([0.5, 0.1], device=DEVICE), normal(16, 3, 2, 16, dtype=torch.float16)
    other = torch.cat([normal(9, 3, 2, 16, dtype=torch.float16, seed=5), qkv[9:]])
    first, second = (getattr(kernels, name)(x, cu_seqlens, 9, slopes) for x in (qkv, other))
    assert torch.equal(first[9:], second[9:]) and not torch.equal(first[:9], second[:9])


@runs_kernels
def test_long_attention_takes_an_input_that_is_not_contiguous(kernels):
    cu_seqlens, slopes = torch.tensor([0, 70], dtype=torch.int32, device=DEVICE), torch.tensor([0.5], device=DEVICE)
    qkv = normal(70, 1, 3, 16, dtype=torch.float16).transpose(1, 2)
    expected = kernels.long_attention(qkv.contiguous(), cu_seqlens, 70, slopes)
    assert torch.equal(kernels.long_attention(qkv, cu_seqlens, 70, slopes), expected)


@runs_kernels
def test_which_inputs_the_kernels_take(kernels):
    for dtype, expected in ((torch.float32, True), (torch.bfloat16, True), (torch.float64, False)):
        assert kernels.can_run(torch.ones(1, dtype=dtype, device=DEVICE)) == (expected and DEVICE == "cuda")
    for head_dim, expected in ((64, True), (48, False), (8, False)):
        assert kernels.takes_heads(torch.ones(1, 3, 1, head_dim, device=DEVICE)) == (expected and DEVICE == "cuda")

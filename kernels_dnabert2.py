"""Kernels of DNABERT-2 for CUDA GPUs: dropout, the GEGLU with its dropout, and attention with ALiBi.

Remote code, beside `modeling_dnabert2.py`, which computes the same in plain torch wherever `can_run` says no. What
they save, and what was tried besides, is in benchmarks/throughput.md.
"""

from contextlib import AbstractContextManager, nullcontext

import torch
from torch.autograd.function import once_differentiable


try:
    import triton
    import triton.language as tl
except ImportError:  # comes with torch's CUDA builds on Linux
    triton = None

MAX_TILE_LENGTH = 128  # tokens of a sequence whose scores fit one program's registers
LONG_BLOCK = 64  # keys of a longer one at a time, for twice as many queries


def can_run(tensor: torch.Tensor) -> bool:
    """Whether the kernels of this file can run on `tensor`."""
    return triton is not None and tensor.is_cuda and tensor.dtype in (torch.float32, torch.bfloat16, torch.float16)


if triton is not None:

    @triton.jit
    def _kept(offset, seed_pointer, threshold: tl.constexpr):
        """
        Which elements dropout keeps: a hash of their index and the call's seed, so that the backward pass computes it
        again instead of reading it. Philox, torch's generator, would cost more than all the rest of the GEGLU.
        """
        seed = tl.load(seed_pointer).to(tl.uint32, bitcast=True)
        hashed = (offset.to(tl.uint32) ^ seed) * 0x9E3779B1
        hashed = (hashed ^ (hashed >> 15)) * 0x85EBCA77
        hashed = (hashed ^ (hashed >> 13)) * 0xC2B2AE3D
        return (hashed >> 8) >= threshold  # 24 bits: a rate is kept to 6e-8

    @triton.jit
    def _gelu(gate):
        """
        gelu(gate) and its derivative, the exact form: erf to 1.5e-7 (Abramowitz and Stegun, 7.1.26), whose exponential
        is also the derivative's.
        """
        exponential = tl.exp2(gate * gate * (-0.5 * 1.4426950408889634))
        t = 1.0 / (1.0 + 0.3275911 * 0.7071067811865476 * tl.abs(gate))
        tail = t * (-0.284496736 + t * (1.421413741 + t * (-1.453152027 + t * 1.061405429)))
        tail = 0.5 * t * (0.254829592 + tail) * exponential  # of the normal distribution, beyond |gate|
        cdf = tl.where(gate < 0, tail, 1.0 - tail)
        return gate * cdf, cdf + gate * exponential * 0.3989422804014327

    @triton.jit
    def _geglu_offsets(width: tl.constexpr, block: tl.constexpr):
        row = tl.program_id(0).to(tl.int64)
        column = tl.program_id(1) * block + tl.arange(0, block)
        return row * width + column, 2 * row * width + column, column < width

    @triton.jit
    def _geglu_forward(gate_up, product, seed, width: tl.constexpr, threshold: tl.constexpr, block: tl.constexpr):
        offset, gate_offset, is_inside = _geglu_offsets(width, block)
        gate = tl.load(gate_up + gate_offset, mask=is_inside).to(tl.float32)
        up = tl.load(gate_up + gate_offset + width, mask=is_inside).to(tl.float32)
        value = _gelu(gate)[0] * up
        if threshold > 0:
            value = tl.where(_kept(offset, seed, threshold), value * (1 / (1 - threshold / 2**24)), 0.0)
        tl.store(product + offset, value.to(product.dtype.element_ty), mask=is_inside)

    @triton.jit
    def _geglu_backward(
        gate_up, d_product, d_gate_up, seed, width: tl.constexpr, threshold: tl.constexpr, block: tl.constexpr
    ):
        offset, gate_offset, is_inside = _geglu_offsets(width, block)
        gate = tl.load(gate_up + gate_offset, mask=is_inside).to(tl.float32)
        up = tl.load(gate_up + gate_offset + width, mask=is_inside).to(tl.float32)
        gradient = tl.load(d_product + offset, mask=is_inside).to(tl.float32)
        if threshold > 0:
            gradient = tl.where(_kept(offset, seed, threshold), gradient * (1 / (1 - threshold / 2**24)), 0.0)
        value, slope = _gelu(gate)
        dtype = d_gate_up.dtype.element_ty
        tl.store(d_gate_up + gate_offset, (gradient * up * slope).to(dtype), mask=is_inside)
        tl.store(d_gate_up + gate_offset + width, (gradient * value).to(dtype), mask=is_inside)

    # The compiler takes every argument of a helper for written to if a store's address comes out of that helper, and
    # copies them all: so addresses are made by one that sees no pointer.

    @triton.jit
    def _tile_offsets(start, first, length, heads: tl.constexpr, dim: tl.constexpr, block: tl.constexpr):
        """Of a head of a sequence from `first` on: its elements in qkv and in the context, and which are tokens."""
        row, column = first + tl.arange(0, block), tl.arange(0, dim)
        token = (start + row).to(tl.int64)[:, None]
        head_column = (tl.program_id(1) * dim + column)[None, :]
        return token * (3 * heads * dim) + head_column, token * (heads * dim) + head_column, (row < length)[:, None]

    @triton.jit
    def _load_qkv(qkv, offset, is_token, hidden_size: tl.constexpr):
        query = tl.load(qkv + offset, mask=is_token, other=0.0)
        key = tl.load(qkv + offset + hidden_size, mask=is_token, other=0.0)
        value = tl.load(qkv + offset + 2 * hidden_size, mask=is_token, other=0.0)
        return query, key, value

    @triton.jit
    def _softmax(query, key, slope, length, dim: tl.constexpr, block: tl.constexpr):
        """softmax(QKᵀ/√d - slope·|i - j|) as its numerators, (block, block), and one over their sums, (block, 1)."""
        log2_e: tl.constexpr = 1.4426950408889634  # exp2 is the GPU's own exponential
        row = tl.arange(0, block)
        position = row.to(tl.float32)
        scores = tl.dot(query, tl.trans(key), input_precision="ieee") * (log2_e / dim**0.5)
        scores -= slope * log2_e * tl.abs(position[:, None] - position[None, :])
        scores = tl.where((row < length)[None, :], scores, float("-inf"))
        numerators = tl.exp2(scores - tl.max(scores, 1)[:, None])
        return numerators, (1.0 / tl.sum(numerators, 1))[:, None]

    @triton.jit
    def _attention_forward(
        qkv, context, cu_seqlens, slopes, heads: tl.constexpr, dim: tl.constexpr, block: tl.constexpr
    ):
        start = tl.load(cu_seqlens + tl.program_id(0))
        length = tl.load(cu_seqlens + tl.program_id(0) + 1) - start
        qkv_offset, offset, is_token = _tile_offsets(start, 0, length, heads, dim, block)
        query, key, value = _load_qkv(qkv, qkv_offset, is_token, heads * dim)
        numerators, normalizer = _softmax(query, key, tl.load(slopes + tl.program_id(1)), length, dim, block)
        product = tl.dot(numerators.to(value.dtype), value, input_precision="ieee") * normalizer
        tl.store(context + offset, product.to(value.dtype), mask=is_token)

    @triton.jit
    def _attention_backward(
        qkv, d_context, d_qkv, cu_seqlens, slopes, heads: tl.constexpr, dim: tl.constexpr, block: tl.constexpr
    ):
        start = tl.load(cu_seqlens + tl.program_id(0))
        length = tl.load(cu_seqlens + tl.program_id(0) + 1) - start
        qkv_offset, offset, is_token = _tile_offsets(start, 0, length, heads, dim, block)
        query, key, value = _load_qkv(qkv, qkv_offset, is_token, heads * dim)
        gradient = tl.load(d_context + offset, mask=is_token, other=0.0)
        dtype = value.dtype
        numerators, normalizer = _softmax(query, key, tl.load(slopes + tl.program_id(1)), length, dim, block)
        probabilities = numerators * normalizer
        d_value = tl.dot(tl.trans(probabilities.to(dtype)), gradient, input_precision="ieee")
        tl.store(d_qkv + qkv_offset + 2 * heads * dim, d_value.to(dtype), mask=is_token)
        d_probabilities = tl.dot(gradient, tl.trans(value), input_precision="ieee")
        row_sum = tl.sum(probabilities * d_probabilities, 1)[:, None]
        d_scores = (probabilities * (d_probabilities - row_sum)).to(dtype)
        d_query = tl.dot(d_scores, key, input_precision="ieee") * (1.0 / dim**0.5)
        tl.store(d_qkv + qkv_offset, d_query.to(dtype), mask=is_token)
        d_key = tl.dot(tl.trans(d_scores), query, input_precision="ieee") * (1.0 / dim**0.5)
        tl.store(d_qkv + qkv_offset + heads * dim, d_key.to(dtype), mask=is_token)

    @triton.jit
    def _long_attention(qkv, context, cu_seqlens, slopes, heads: tl.constexpr, dim: tl.constexpr, block: tl.constexpr):
        """The context of 2·block tokens: their sequence's keys pass by in blocks (FlashAttention-2, algorithm 1)."""
        rows: tl.constexpr = 2 * block
        start, first = tl.load(cu_seqlens + tl.program_id(2)), tl.program_id(0) * rows
        length = tl.load(cu_seqlens + tl.program_id(2) + 1) - start
        if first >= length:
            return
        log2_e: tl.constexpr = 1.4426950408889634
        slope = tl.load(slopes + tl.program_id(1)) * log2_e
        query_offset, offset, is_token = _tile_offsets(start, first, length, heads, dim, rows)
        query = tl.load(qkv + query_offset, mask=is_token, other=0.0)
        position, column = (first + tl.arange(0, rows)).to(tl.float32), tl.arange(0, block)
        highest, total = tl.full([rows], float("-inf"), tl.float32), tl.zeros([rows], tl.float32)
        product = tl.zeros([rows, dim], tl.float32)
        for passed in range(0, length, block):
            key_offset, _, is_key = _tile_offsets(start, passed, length, heads, dim, block)
            key = tl.load(qkv + key_offset + heads * dim, mask=is_key, other=0.0)
            value = tl.load(qkv + key_offset + 2 * heads * dim, mask=is_key, other=0.0)
            scores = tl.dot(query, tl.trans(key), input_precision="ieee") * (log2_e / dim**0.5)
            scores -= slope * tl.abs(position[:, None] - (passed + column).to(tl.float32)[None, :])
            scores = tl.where((passed + column < length)[None, :], scores, float("-inf"))
            higher = tl.maximum(highest, tl.max(scores, 1))
            numerators, shrink = tl.exp2(scores - higher[:, None]), tl.exp2(highest - higher)
            total, highest = total * shrink + tl.sum(numerators, 1), higher
            product = tl.dot(numerators.to(value.dtype), value, product * shrink[:, None], input_precision="ieee")
        tl.store(context + offset, (product / total[:, None]).to(query.dtype), mask=is_token)


def hashed_dropout(hidden_states: torch.Tensor, dropout: float) -> torch.Tensor:
    """
    Dropout by the same hash in plain torch, for compiled models: the compiler makes it part of the kernels around, and
    the backward pass computes the mask again.
    """
    index = torch.arange(hidden_states.numel(), dtype=torch.int32, device=hidden_states.device)
    hashed = (index.view(hidden_states.shape) ^ random_seed(hidden_states.device)) * (0x9E3779B1 - 2**32)
    hashed = (hashed ^ (hashed >> 15 & 0x1FFFF)) * (0x85EBCA77 - 2**32)  # & makes the shift of an int32 a logical one
    hashed = (hashed ^ (hashed >> 13 & 0x7FFFF)) * (0xC2B2AE3D - 2**32)
    is_kept = (hashed >> 8 & 0xFFFFFF) >= round(dropout * 2**24)
    return hidden_states * is_kept * (1 / (1 - dropout))


def on_device_of(tensor: torch.Tensor) -> AbstractContextManager:
    """Triton starts a kernel on the current GPU. Autograd makes a tensor's own that, and the compiler too; we must."""
    return nullcontext() if torch.compiler.is_compiling() else torch.cuda.device_of(tensor)


def random_seed(device: torch.device) -> torch.Tensor:
    return torch.randint(-(2**31), 2**31, (), dtype=torch.int32, device=device)


def _grid(product: torch.Tensor) -> tuple[tuple[int, int], int]:
    width = product.shape[-1]
    block = min(512, triton.next_power_of_2(width))
    return (product.numel() // width, triton.cdiv(width, block)), block


class _Geglu(torch.autograd.Function):
    @staticmethod
    def forward(ctx, gate_up: torch.Tensor, seed: torch.Tensor | None, threshold: int) -> torch.Tensor:
        gate_up = gate_up.contiguous()
        seed = gate_up if seed is None else seed  # without dropout it is not read
        product = gate_up.new_empty(*gate_up.shape[:-1], gate_up.shape[-1] // 2)
        grid, block = _grid(product)
        with on_device_of(gate_up):
            _geglu_forward[grid](gate_up, product, seed, product.shape[-1], threshold, block, num_warps=2)
        ctx.save_for_backward(gate_up, seed)
        ctx.threshold = threshold
        return product

    @staticmethod
    @once_differentiable
    def backward(ctx, d_product: torch.Tensor):
        gate_up, seed = ctx.saved_tensors
        d_product = d_product.contiguous()
        d_gate_up = torch.empty_like(gate_up)
        grid, block = _grid(d_product)
        _geglu_backward[grid](
            gate_up, d_product, d_gate_up, seed, d_product.shape[-1], ctx.threshold, block, num_warps=2
        )
        return d_gate_up, None, None


def geglu(gate_up: torch.Tensor, dropout: float) -> torch.Tensor:
    """
    dropout(gelu(gate)·up), (..., width), in float32 inside (GEGLU, arXiv 2002.05202, eq. 6, with the exact GELU).

    Args:
        gate_up: (..., 2·width), the gates first.
        dropout: rate, from 0 to below 1; its masks follow torch's random state, but are not `nn.Dropout`'s.
    """
    return _Geglu.apply(gate_up, random_seed(gate_up.device) if dropout else None, round(dropout * 2**24))


class _TileAttention(torch.autograd.Function):
    @staticmethod
    def forward(ctx, qkv: torch.Tensor, cu_seqlens: torch.Tensor, slopes: torch.Tensor, block: int) -> torch.Tensor:
        qkv = qkv.contiguous()
        tokens, _, heads, dim = qkv.shape
        context = qkv.new_empty(tokens, heads, dim)
        with on_device_of(qkv):
            _attention_forward[(len(cu_seqlens) - 1, heads)](qkv, context, cu_seqlens, slopes, heads, dim, block)
        ctx.save_for_backward(qkv, cu_seqlens, slopes)
        ctx.block = block
        return context

    @staticmethod
    @once_differentiable
    def backward(ctx, d_context: torch.Tensor):
        qkv, cu_seqlens, slopes = ctx.saved_tensors
        _, _, heads, dim = qkv.shape
        d_qkv = torch.empty_like(qkv)
        _attention_backward[(len(cu_seqlens) - 1, heads)](
            qkv, d_context.contiguous(), d_qkv, cu_seqlens, slopes, heads, dim, ctx.block
        )
        return d_qkv, None, None, None


def tile_attention(qkv: torch.Tensor, cu_seqlens: torch.Tensor, max_seqlen: int, slopes: torch.Tensor) -> torch.Tensor:
    """
    Attention with ALiBi where each sequence is one tile: the scores never leave the registers, and the backward pass
    computes them again from `qkv` alone.

    Args:
        qkv: (tokens, 3, heads, head_dim), sequences one after the other; head_dim 16, 32 or 64.
        cu_seqlens: where each sequence begins and the last ends, int32 (sequences + 1,).
        max_seqlen: the longest sequence's tokens, at most `MAX_TILE_LENGTH`.
        slopes: ALiBi's, float32 (heads,).

    Returns:
        (tokens, heads, head_dim).
    """
    return _TileAttention.apply(qkv, cu_seqlens, slopes, max(16, triton.next_power_of_2(max_seqlen)))


def long_attention(qkv: torch.Tensor, cu_seqlens: torch.Tensor, max_seqlen: int, slopes: torch.Tensor) -> torch.Tensor:
    """`tile_attention` for sequences of any length, but forward only: no gradient goes through it."""
    tokens, _, heads, dim = qkv.shape
    context = qkv.new_empty(tokens, heads, dim)
    grid = (triton.cdiv(max_seqlen, 2 * LONG_BLOCK), heads, len(cu_seqlens) - 1)
    tensors = qkv.contiguous(), context, cu_seqlens, slopes
    with on_device_of(qkv):
        _long_attention[grid](*tensors, heads, dim, LONG_BLOCK, num_warps=8, num_stages=3)
    return context


def takes_heads(qkv: torch.Tensor) -> bool:
    """Whether both kinds of attention take this; `tile_attention` only up to `MAX_TILE_LENGTH`."""
    return can_run(qkv) and qkv.shape[-1] in (16, 32, 64)

"""Attention of DNABERT-2: ALiBi, and the back ends that compute with it on padded, unpadded and packed sequences.

Remote code, beside `modeling_dnabert2.py`.
"""

from collections.abc import Callable
from functools import cache
from itertools import pairwise
from typing import NamedTuple

import torch
from torch import nn
from torch.nn.attention.flex_attention import BlockMask, create_block_mask, flex_attention

from .configuration_dnabert2 import DNABert2Config
from .kernels_dnabert2 import MAX_TILE_LENGTH, long_attention, takes_heads, tile_attention


try:
    from flash_attn import flash_attn_varlen_qkvpacked_func
except ImportError:
    flash_attn_varlen_qkvpacked_func = None


def alibi_slopes(num_heads: int) -> torch.Tensor:
    """
    The slope of every head's linear distance penalty, float32 of shape (num_heads,): ALiBi, arXiv 2108.12409, §3.

    A power of two n gives 2^(-8(i+1)/n). Other counts take the slopes of the largest power of two below, then every
    second slope of twice that power, as the authors' code does.
    """
    power = 1 << (num_heads.bit_length() - 1)
    slopes = [2.0 ** (-8.0 * (head + 1) / power) for head in range(power)]
    slopes += [2.0 ** (-4.0 * (head + 1) / power) for head in range(0, 2 * (num_heads - power), 2)]
    return torch.tensor(slopes, dtype=torch.float32)


class DNABert2Alibi(nn.Module):
    """Additive attention bias -slope·|i - j|, of any length: nothing is precomputed to a maximum."""

    def __init__(self, config: DNABert2Config):
        super().__init__()
        self.num_heads = config.num_attention_heads
        self.register_buffer("slopes", alibi_slopes(self.num_heads), persistent=False)

    def _apply(self, fn, recurse=True):
        # Slopes stay float32, and exact, whatever the model is cast to: rounding 2^-0.5 to bf16 moves the bias of
        # distant tokens by whole units. This also refills the buffer after `to_empty`.
        super()._apply(fn, recurse)
        self.slopes = alibi_slopes(self.num_heads).to(self.slopes.device)
        return self

    def forward(self, length: int) -> torch.Tensor:
        """Bias of shape (1, heads, length, length), float32."""
        position = torch.arange(length, device=self.slopes.device, dtype=torch.float32)
        distance = (position[:, None] - position[None, :]).abs_()
        return distance * -self.slopes[None, :, None, None]


def compute_dtype(hidden_states: torch.Tensor) -> torch.dtype:
    """The dtype of matrix products on `hidden_states`: autocast's where it is on."""
    device_type = hidden_states.device.type
    if torch.is_autocast_enabled(device_type):
        return torch.get_autocast_dtype(device_type)
    return hidden_states.dtype


class SequenceLayout(NamedTuple):
    """
    Which tokens see each other. In a padded batch (batch, length) those that `attention_mask`, (batch, length), has
    in a row; in packed sequences (1, tokens) those between two of `cu_seqlens`, int32 (sequences + 1,).
    """

    attention_mask: torch.Tensor | None = None
    cu_seqlens: torch.Tensor | None = None
    max_seqlen: int | None = None

    def sequence_ids(self, tokens: int) -> torch.Tensor:
        """The number of the packed sequence that each token belongs to, (tokens,)."""
        return torch.bucketize(torch.arange(tokens, device=self.cu_seqlens.device), self.cu_seqlens, right=True)


def dense_attention_bias(
    hidden_states: torch.Tensor, layout: SequenceLayout, alibi: DNABert2Alibi
) -> dict[str, torch.Tensor]:
    """ALiBi with -inf at keys that a query must not see, (1 or batch, heads, length, length)."""
    length = hidden_states.shape[1]
    bias = alibi(length).to(compute_dtype(hidden_states))
    if layout.cu_seqlens is not None:
        sequence = layout.sequence_ids(length)
        bias = bias.masked_fill(sequence[:, None] != sequence[None, :], float("-inf"))
    if layout.attention_mask is not None:
        is_token = layout.attention_mask.bool()
        # A row of padding alone attends to everything, so that its softmax is finite; its output is zeroed later.
        is_key = is_token | ~is_token.any(dim=-1, keepdim=True)
        bias = bias.masked_fill(~is_key[:, None, None, :], float("-inf"))
    return {"attention_bias": bias}


def eager_attention(
    qkv: torch.Tensor, attention_bias: torch.Tensor, dropout: float
) -> tuple[torch.Tensor, torch.Tensor]:
    """softmax(QKᵀ/√d + bias)·V written out; also returns the probabilities (batch, heads, length, length)."""
    query, key, value = qkv.permute(2, 0, 3, 1, 4)  # each (batch, heads, length, head_dim)
    scores = torch.matmul(query * query.shape[-1] ** -0.5, key.transpose(-1, -2)) + attention_bias
    probabilities = nn.functional.dropout(scores.softmax(dim=-1), p=dropout)
    return torch.matmul(probabilities, value).transpose(1, 2), probabilities


def sdpa_attention(qkv: torch.Tensor, attention_bias: torch.Tensor, dropout: float) -> tuple[torch.Tensor, None]:
    """The same through torch's fused kernels."""
    query, key, value = qkv.permute(2, 0, 3, 1, 4)
    context = nn.functional.scaled_dot_product_attention(
        query, key, value, attn_mask=attention_bias, dropout_p=dropout
    )
    return context.transpose(1, 2), None


def require_flash_attention(device: torch.device | None = None, dtype: torch.dtype | None = None):
    """
    Asks for all that flash-attn needs; of the model's device and dtype if they are given.

    Raises:
        ImportError: without the package flash-attn or a CUDA GPU, saying which.
        ValueError: for a model on another device, or a dtype that flash-attn does not compute in.
    """
    remedy = 'or choose attn_implementation="sdpa"'
    if flash_attn_varlen_qkvpacked_func is None:
        raise ImportError(
            "flash_attention_2 needs the package flash-attn, which is not installed here: "
            f"pip install flash-attn --no-build-isolation, {remedy}"
        )
    if not torch.cuda.is_available():
        raise ImportError(f"flash_attention_2 needs a CUDA GPU, which torch does not find here: use one, {remedy}")
    if device is not None and device.type != "cuda":
        raise ValueError(f"flash_attention_2 needs a CUDA GPU, and the model is on {device}: move it, {remedy}")
    if dtype not in (None, torch.float16, torch.bfloat16):
        raise ValueError(
            f"flash_attention_2 computes in float16 and bfloat16, not in {str(dtype).removeprefix('torch.')}: load "
            f"the model with dtype=torch.bfloat16, use torch.autocast, {remedy}"
        )


def flash_inputs(hidden_states: torch.Tensor, layout: SequenceLayout, alibi: DNABert2Alibi) -> dict:
    require_flash_attention(hidden_states.device, compute_dtype(hidden_states))
    batch, length, _ = hidden_states.shape
    cu_seqlens, max_seqlen = layout.cu_seqlens, layout.max_seqlen
    if cu_seqlens is None:  # no padding: rows of one length
        cu_seqlens = torch.arange(batch + 1, device=hidden_states.device, dtype=torch.int32) * length
        max_seqlen = length
    return {"cu_seqlens": cu_seqlens, "max_seqlen": max_seqlen, "slopes": alibi.slopes}


def flash_attention(
    qkv: torch.Tensor, cu_seqlens: torch.Tensor, max_seqlen: int, slopes: torch.Tensor, dropout: float
) -> tuple[torch.Tensor, None]:
    """
    FlashAttention-2 (arXiv 2307.08691) on unpadded tokens, by flash-attn; short sequences, and long ones without
    gradients, by kernels of our own, which are faster with ALiBi.
    """
    tokens = qkv.flatten(0, 1)
    if dropout == 0 and takes_heads(tokens) and max_seqlen <= MAX_TILE_LENGTH:
        context = tile_attention(tokens, cu_seqlens, max_seqlen, slopes)
    elif dropout == 0 and takes_heads(tokens) and not torch.is_grad_enabled():
        context = long_attention(tokens, cu_seqlens, max_seqlen, slopes)
    else:
        context = flash_attn_varlen_qkvpacked_func(
            tokens, cu_seqlens, max_seqlen, dropout_p=dropout, alibi_slopes=slopes
        )
    return context.view(*qkv.shape[:2], *context.shape[1:]), None


@cache
def compiled(function: Callable) -> Callable:
    return torch.compile(function)


def compiled_on_gpu(function: Callable, device: torch.device) -> Callable:
    """FlexAttention's functions hold all scores in memory unless they are compiled, by us or with the whole model."""
    return function if device.type == "cpu" or torch.compiler.is_compiling() else compiled(function)


def flex_inputs(hidden_states: torch.Tensor, layout: SequenceLayout, alibi: DNABert2Alibi) -> dict:
    slopes = alibi.slopes

    def add_alibi(score, batch, head, query, key):
        return score - slopes[head] * (query - key).abs()

    block_mask = None
    if layout.cu_seqlens is not None:
        tokens = hidden_states.shape[1]
        sequence = layout.sequence_ids(tokens)

        def is_same_sequence(batch, head, query, key):
            return sequence[query] == sequence[key]

        create = compiled_on_gpu(create_block_mask, sequence.device)
        block_mask = create(is_same_sequence, None, None, tokens, tokens, device=sequence.device)
    return {"score_mod": add_alibi, "block_mask": block_mask}


def flex_attention_with_alibi(
    qkv: torch.Tensor, score_mod: Callable, block_mask: BlockMask | None, dropout: float
) -> tuple[torch.Tensor, None]:
    """torch's FlexAttention (arXiv 2412.05496). On a CPU it has no backward pass."""
    if dropout:
        raise ValueError("flex_attention has no dropout: set attention_probs_dropout_prob to 0")
    query, key, value = qkv.permute(2, 0, 3, 1, 4)
    attend = compiled_on_gpu(flex_attention, qkv.device)
    return attend(query, key, value, score_mod=score_mod, block_mask=block_mask).transpose(1, 2), None


# Attention back ends by their name in transformers: what makes a back end's own inputs of the layout, once a forward,
# and the attention itself, qkv (batch, length, 3, heads, head_dim) to context (batch, length, heads, head_dim). Not in
# transformers' own registry on purpose: any function there that is not ours would lose ALiBi without a word.
ATTENTION_FUNCTIONS = {
    "eager": (dense_attention_bias, eager_attention),
    "sdpa": (dense_attention_bias, sdpa_attention),
    "flash_attention_2": (flash_inputs, flash_attention),
    "flex_attention": (flex_inputs, flex_attention_with_alibi),
}
UNPADDED = ("flash_attention_2", "flex_attention")  # these compute on real tokens alone


@torch.compiler.disable  # what it returns has a shape that depends on the mask
def unpad(attention_mask: torch.Tensor) -> tuple[torch.Tensor | None, SequenceLayout]:
    """
    Positions of the tokens in the flattened batch, (tokens,), and their layout once they stand one after the other.

    No positions where nothing is to be gained, in a batch without padding, nor where it would be wrong: a mask with a
    hole in a row (distances over it would shrink) or without any token comes back as it is.
    """
    is_token = attention_mask.bool()
    positions = is_token.flatten().nonzero().squeeze(-1)
    if len(positions) == is_token.numel():
        return None, SequenceLayout()
    begins = is_token.clone()
    begins[:, 1:] &= ~is_token[:, :-1]
    if len(positions) == 0 or (begins.sum(dim=1) > 1).any():
        return None, SequenceLayout(attention_mask)
    lengths = is_token.sum(dim=1)
    cu_seqlens = nn.functional.pad(lengths.cumsum(0), (1, 0)).to(torch.int32)
    return positions, SequenceLayout(cu_seqlens=cu_seqlens, max_seqlen=attention_mask.shape[1])


@torch.compiler.disable
def check_packed(shape: torch.Size, cu_seqlens: torch.Tensor, max_seqlen: int | None) -> SequenceLayout:
    """The layout of packed sequences. Raises ValueError where it does not describe a row of `shape` (1, tokens)."""
    if len(shape) != 2 or shape[0] != 1:
        raise ValueError(
            f"packed sequences are one row: cu_seqlens needs input_ids of (1, tokens), not {tuple(shape)}"
        )
    if cu_seqlens.dtype != torch.int32 or cu_seqlens.ndim != 1 or len(cu_seqlens) < 2:
        raise ValueError("cu_seqlens must be int32 of shape (sequences + 1,)")
    if cu_seqlens.is_cuda and torch.cuda.is_current_stream_capturing():
        # A CUDA graph will read other values at every replay; while it is recorded there are none to look at.
        if max_seqlen is None:
            raise ValueError("a CUDA graph of packed sequences needs max_seqlen, of the longest that it will be given")
        return SequenceLayout(cu_seqlens=cu_seqlens, max_seqlen=max_seqlen)
    ends = cu_seqlens.tolist()
    lengths = [end - start for start, end in pairwise(ends)]
    if ends[0] != 0 or ends[-1] != shape[1] or min(lengths) < 1:
        raise ValueError(
            f"cu_seqlens must rise from 0 to {shape[1]}, the number of tokens: goes from {ends[0]} to {ends[-1]}, "
            f"with sequences of {min(lengths)} to {max(lengths)} tokens"
        )
    if max_seqlen is not None and max_seqlen < max(lengths):
        raise ValueError(f"max_seqlen is {max_seqlen}, but the longest of the packed sequences has {max(lengths)}")
    return SequenceLayout(cu_seqlens=cu_seqlens, max_seqlen=max_seqlen or max(lengths))

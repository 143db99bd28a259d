"""Rows of different lengths as one batch, padded, or packed one after the other.

Collator(tokenizer.pad_token_id, True, 1, device)([(task.splits["train"], row) for row in range(32)])
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from accelerate import Accelerator
from accelerate.utils import DynamoBackend

from dnabert2.encoding import EncodedSplit


@dataclass(frozen=True)
class Collator:
    """
    Pads rows to batches.

    Args:
        pad_token_id: fills the rows up on their right.
        has_token_types: whether the model takes them.
        multiple: a batch is as long as its longest row, rounded up to a multiple of this; see `length_multiple`.
        device: where batches go.
    """

    pad_token_id: int
    has_token_types: bool
    multiple: int
    device: torch.device

    def __call__(self, rows: Sequence[tuple[EncodedSplit, int]]) -> dict[str, torch.Tensor]:
        """The model's arguments, int64 [rows, length], for these rows of splits."""
        longest = max(len(split.input_ids[row]) for split, row in rows)
        input_ids = np.full((len(rows), -(-longest // self.multiple) * self.multiple), self.pad_token_id)
        attention_mask, token_type_ids = np.zeros_like(input_ids), np.zeros_like(input_ids)
        for i, (split, row) in enumerate(rows):
            ids = split.input_ids[row]
            input_ids[i, : len(ids)], attention_mask[i, : len(ids)] = ids, 1
            if split.token_type_ids:
                token_type_ids[i, : len(ids)] = split.token_type_ids[row]
        batch = {"input_ids": input_ids, "attention_mask": attention_mask}
        if self.has_token_types and rows[0][0].token_type_ids:
            batch["token_type_ids"] = token_type_ids
        return {name: self.tensor(array) for name, array in batch.items()}

    def tensor(self, array: np.ndarray) -> torch.Tensor:
        tensor = torch.from_numpy(array)
        return tensor.pin_memory().to(self.device, non_blocking=True) if self.device.type == "cuda" else tensor


@dataclass(frozen=True)
class Packer(Collator):
    """
    Packs rows into one, as DNABERT-2 takes them, with sequences of padding after them.

    Args:
        multiple: a batch has a multiple of so many tokens. Of padding there are always as many sequences, of a token
            or more: batches of as many rows and as many tokens have the same shapes.
        max_seqlen: tokens of the longest row; a sequence of padding is no longer.
    """

    max_seqlen: int

    def __call__(self, rows: Sequence[tuple[EncodedSplit, int]]) -> dict[str, torch.Tensor | int]:
        """The model's arguments: int64 [1, tokens], `cu_seqlens` int32 [sequences + 1]; the rows come first."""
        ends = np.cumsum([len(split.input_ids[row]) for split, row in rows])
        used, paddings = int(ends[-1]), math.ceil((self.multiple - 1) / (self.max_seqlen - 1))
        tokens = math.ceil((used + paddings) / self.multiple) * self.multiple
        padding_ends = [used + (tokens - used) * part // paddings for part in range(1, paddings + 1)]
        input_ids = np.full((1, tokens), self.pad_token_id)
        np.concatenate([split.input_ids[row] for split, row in rows], out=input_ids[0, :used])
        batch = {"input_ids": input_ids, "cu_seqlens": np.array([0, *ends, *padding_ends], dtype=np.int32)}
        if self.has_token_types and rows[0][0].token_type_ids:
            token_type_ids = np.zeros_like(input_ids)
            np.concatenate([split.token_type_ids[row] for split, row in rows], out=token_type_ids[0, :used])
            batch["token_type_ids"] = token_type_ids
        return {name: self.tensor(array) for name, array in batch.items()} | {"max_seqlen": self.max_seqlen}


def length_multiple(accelerator: Accelerator, max_seq_length: int) -> int:
    """`Collator.multiple`: for a compiler all batches have one length; else padding would be computed for nothing."""
    is_compiled = accelerator.state.dynamo_plugin.backend != DynamoBackend.NO
    return max_seq_length if is_compiled and accelerator.device.type == "cuda" else 1

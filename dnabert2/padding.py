"""Rows of different lengths as one batch.

Collator(tokenizer.pad_token_id, True, 1, device)([(task.splits["train"], row) for row in range(32)])
"""

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


def length_multiple(accelerator: Accelerator, max_seq_length: int) -> int:
    """`Collator.multiple`: for a compiler all batches have one length; else padding would be computed for nothing."""
    is_compiled = accelerator.state.dynamo_plugin.backend != DynamoBackend.NO
    return max_seq_length if is_compiled and accelerator.device.type == "cuda" else 1

"""Which windows a training step sees, in which order and under which masks: a pure function of (seed, step).

Nothing here has a state that a checkpoint would have to hold. A run resumed at step 1,000 draws what an uninterrupted
run draws there, whatever the number of loader workers, and two processes share the very rows and masks of one.
"""

import math
from collections.abc import Iterator, Sequence

import numpy as np
import torch
from torch.utils.data import DataLoader, Dataset, Sampler
from transformers import PreTrainedTokenizerBase

from dnabert2.corpus import Windows


IGNORE_INDEX = -100
UNMASKED = -1  # in place of an epoch: nothing is to be predicted in this row
ORDER, MASK, DROPOUT = range(3)  # what a random stream is for: streams of different purposes never overlap


def random_stream(seed: int, purpose: int, *key: int) -> np.random.Generator:
    """
    The random numbers of one purpose and key, independent of every other's: Philox (Salmon et al., SC 2011).

    `seed` and the first key (an epoch or a step) make the cipher's key, `purpose` and the second key (a row or a
    process) the high words of its counter. Setting one up takes microseconds, so every row can have its own.
    """
    epoch, index = (*key, 0)[:2]
    return np.random.Generator(np.random.Philox(key=[seed, epoch], counter=[0, 0, purpose, index]))


def dropout_seed(seed: int, step: int, process_index: int) -> int:
    """Seed of torch's generators for one step on one process."""
    return int(random_stream(seed, DROPOUT, step, process_index).integers(2**63))


class MaskedWindows(Dataset):
    """
    Windows of a corpus, masked for MLM as in BERT: each token by itself with `mlm_probability`; of the chosen ones
    80 % become [MASK], 10 % a random token, 10 % stay. Special tokens are neither chosen nor drawn.

    An item is keyed by (epoch, row), which with `seed` decides its mask; the epoch `UNMASKED` masks nothing.
    """

    def __init__(self, windows: Windows, tokenizer: PreTrainedTokenizerBase, mlm_probability: float, seed: int):
        self.windows, self.mlm_probability, self.seed = windows, mlm_probability, seed
        self.mask_token_id = tokenizer.mask_token_id
        self.is_special = np.zeros(len(tokenizer), dtype=bool)
        self.is_special[tokenizer.all_special_ids] = True
        self.ordinary_ids = np.flatnonzero(~self.is_special)

    def __len__(self) -> int:
        return len(self.windows)

    def __getitems__(self, keys: Sequence[tuple[int, int]]) -> dict[str, torch.Tensor]:
        """
        A batch as int64 tensors: `input_ids` (len(keys), max_seq_length); `prediction_positions` (n,), the positions
        in the flattened ids where a token is to be predicted; `labels` (n,), those tokens. n is the same for almost
        all batches of one size, for the compiler's sake: position 0 and label -100 fill it up.
        """
        tokens = self.windows[[row for _, row in keys]]
        draws = np.empty((3, *tokens.shape))
        for i, (epoch, row) in enumerate(keys):
            draws[:, i] = random_stream(self.seed, MASK, epoch, row).random((3, tokens.shape[1]))
        is_chosen = (draws[0] < self.mlm_probability) & ~self.is_special[tokens]
        is_chosen[[epoch == UNMASKED for epoch, _ in keys]] = False
        is_random = is_chosen & (draws[1] >= 0.8) & (draws[1] < 0.9)
        input_ids = np.where(is_chosen & (draws[1] < 0.8), self.mask_token_id, tokens)
        random_ids = self.ordinary_ids[(draws[2] * len(self.ordinary_ids)).astype(np.int64)]
        positions = np.flatnonzero(is_chosen)
        filling = (0, self.prediction_rows(tokens.size, len(positions)) - len(positions))
        return {
            "input_ids": torch.from_numpy(np.where(is_random, random_ids, input_ids)),
            "prediction_positions": torch.from_numpy(np.pad(positions, filling)),
            "labels": torch.from_numpy(np.pad(tokens.flat[positions], filling, constant_values=IGNORE_INDEX)),
        }

    def prediction_rows(self, num_tokens: int, num_chosen: int) -> int:
        """The mean number of chosen tokens and six standard deviations, or more if it must be; a multiple of 64."""
        mean = num_tokens * self.mlm_probability
        usual = mean + 6 * math.sqrt(mean * (1 - self.mlm_probability))
        return 64 * math.ceil(max(usual, num_chosen) / 64)


class StepSampler(Sampler):
    """
    Yields one process's micro-batches of every step from `first_step` to `last_step`, each a list of (epoch, row).

    The corpus is read in epochs of a fresh permutation each, one after the other without a gap, so that a batch may
    span two; step s takes the s-th `total_batch_size` rows, of which each process has a contiguous share.
    """

    def __init__(
        self,
        num_rows: int,
        *,
        total_batch_size: int,
        micro_batch_size: int,
        first_step: int,
        last_step: int,
        seed: int,
        process_index: int = 0,
        num_processes: int = 1,
    ):
        self.num_rows, self.seed = num_rows, seed
        self.total_batch_size, self.micro_batch_size = total_batch_size, micro_batch_size
        self.share = total_batch_size // num_processes
        self.process_index = process_index
        self.steps = range(first_step, last_step)

    def __len__(self) -> int:
        return len(self.steps) * self.share // self.micro_batch_size

    def __iter__(self) -> Iterator[list[tuple[int, int]]]:
        epoch, order = -1, np.empty(0)
        for step in self.steps:
            start = step * self.total_batch_size + self.process_index * self.share
            batch = []
            for position in range(start, start + self.share):
                if position // self.num_rows != epoch:
                    epoch = position // self.num_rows
                    order = random_stream(self.seed, ORDER, epoch).permutation(self.num_rows)
                batch.append((epoch, int(order[position % self.num_rows])))
                if len(batch) == self.micro_batch_size:
                    yield batch
                    batch = []


def training_loader(dataset: MaskedWindows, sampler: StepSampler, num_workers: int) -> DataLoader:
    """Loader of the sampler's micro-batches. Not for Accelerate to prepare: the sampler has shared the rows out."""
    return DataLoader(
        dataset,
        batch_sampler=sampler,
        collate_fn=_whole,
        num_workers=num_workers,
        pin_memory=torch.cuda.is_available(),
        prefetch_factor=8 if num_workers else None,
    )


def validation_loader(
    dataset: MaskedWindows, batch_size: int, process_index: int = 0, num_processes: int = 1
) -> DataLoader:
    """
    Loader of this process's share of all rows, always in the same order and under the same masks.

    A share that is one row short gets one without labels: under FSDP every forward is a collective, and a process with
    a batch less than the others would leave them waiting.
    """
    keys = [(0, row) for row in range(process_index, len(dataset), num_processes)]
    keys += [(UNMASKED, 0)] * (math.ceil(len(dataset) / num_processes) - len(keys))
    batches = [keys[start : start + batch_size] for start in range(0, len(keys), batch_size)]
    return DataLoader(dataset, batch_sampler=batches, collate_fn=_whole)


def _whole(batch: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    return batch  # __getitems__ gives whole batches

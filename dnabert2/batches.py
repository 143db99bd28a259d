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

from dnabert2.stopping import ignore_sigterm
from dnabert2.windows import Windows


IGNORE_INDEX = -100
UNMASKED = -1  # in place of a pass: nothing is to be predicted in this row
# what a random stream is for: streams of different purposes never overlap
ORDER, MASK, DROPOUT, SPECIES_ORDER, STREAM, STRAND, LENGTH = range(7)


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


class Masking:
    """
    Masks tokens for MLM as in BERT: each token by itself is chosen with `mlm_probability`; of the chosen ones 80 %
    become [MASK], 10 % a random token, 10 % stay. Special tokens are neither chosen nor drawn.

    With an `mlm_span` of k, k tokens in a row are chosen, at places so many that each token is with `mlm_probability`
    in at least one, as DNABERT (doi 10.1093/bioinformatics/btab083) does for overlapping k-mers: a single one of
    those is told by its neighbours. A span that reaches beyond the end of a row goes on at its beginning.

    With `boundary_dropout`, of this share of rows [CLS] and the last [SEP] are shown as [MASK], and not predicted. A
    model that has the two near in all of training leans on them, and in long sequences most tokens have not
    (benchmarks/extrapolation.md).
    """

    def __init__(
        self,
        tokenizer: PreTrainedTokenizerBase,
        mlm_probability: float,
        mlm_span: int = 1,
        boundary_dropout: float = 0.0,
    ):
        self.mlm_probability, self.mlm_span, self.boundary_dropout = mlm_probability, mlm_span, boundary_dropout
        self.start_probability = 1 - (1 - mlm_probability) ** (1 / mlm_span)
        self.mask_token_id = tokenizer.mask_token_id
        self.is_special = np.zeros(len(tokenizer), dtype=bool)
        self.is_special[tokenizer.all_special_ids] = True
        self.ordinary_ids = np.flatnonzero(~self.is_special)

    def __call__(self, tokens: np.ndarray, draws: np.ndarray) -> dict[str, torch.Tensor]:
        """
        A batch of int64 tensors for the model, from `tokens` (rows, length) and uniform `draws` (3, rows, length).

        `input_ids` (rows, length); `prediction_positions` (n,), the positions in the flattened ids where a token is to
        be predicted; `labels` (n,), those tokens. n is the same for almost all batches of one size, for the
        compiler's sake: position 0 and label -100 fill it up.
        """
        is_start = draws[0] < self.start_probability
        is_chosen = np.logical_or.reduce([np.roll(is_start, i, axis=-1) for i in range(self.mlm_span)])
        is_chosen &= ~self.is_special[tokens]
        is_random = is_chosen & (draws[1] >= 0.8) & (draws[1] < 0.9)
        input_ids = np.where(is_chosen & (draws[1] < 0.8), self.mask_token_id, tokens)
        random_ids = self.ordinary_ids[(draws[2] * len(self.ordinary_ids)).astype(np.int64)]
        input_ids = np.where(is_random, random_ids, input_ids)
        is_hidden = draws[2, :, 0] < self.boundary_dropout  # no other use is made of this draw, as [CLS] stands there
        input_ids[np.ix_(is_hidden, [0, -1])] = self.mask_token_id
        positions = np.flatnonzero(is_chosen)
        filling = (0, self.prediction_rows(tokens.size, len(positions)) - len(positions))
        return {
            "input_ids": torch.from_numpy(input_ids),
            "prediction_positions": torch.from_numpy(np.pad(positions, filling)),
            "labels": torch.from_numpy(np.pad(tokens.flat[positions], filling, constant_values=IGNORE_INDEX)),
        }

    def prediction_rows(self, num_tokens: int, num_chosen: int) -> int:
        """The mean number of chosen tokens and six standard deviations, or more if it must be; a multiple of 64."""
        mean = num_tokens * self.mlm_probability
        usual = mean + 6 * math.sqrt(mean * (1 - self.mlm_probability) * self.mlm_span)  # as if spans never met
        return 64 * math.ceil(max(usual, num_chosen) / 64)


def window_lengths(min_seq_length: int, max_seq_length: int) -> list[int]:
    """The longest and its halves, down to the shortest. ValueError unless that is one of them."""
    lengths = [max_seq_length]
    while lengths[-1] > min_seq_length and lengths[-1] % 2 == 0:
        lengths.append(lengths[-1] // 2)
    if lengths[-1] != min_seq_length:
        raise ValueError(f"{max_seq_length} halved again and again does not give {min_seq_length}")
    return lengths


def step_length(seed: int, step: int, lengths: Sequence[int]) -> int:
    """Which of the lengths the windows of a step have; the same for all its micro-batches and processes."""
    return lengths[int(random_stream(seed, LENGTH, step).integers(len(lengths)))]


def cut_windows(batch: dict[str, torch.Tensor], length: int) -> dict[str, torch.Tensor]:
    """
    A batch of `Masking` in shorter windows [CLS] t … t [SEP], as many as fill the same number of tokens.

    Args:
        batch: of windows (rows, longest), on any device; the longest is a multiple of `length`.

    Returns:
        The batch in windows (rows·longest / length, length). Of what special tokens have pushed out of the end of
        every former window (1.5 % of 8,192 tokens in windows of 128) nothing is predicted.
    """
    ids, positions, labels = batch["input_ids"], batch["prediction_positions"], batch["labels"]
    rows, longest = ids.shape
    windows, inner = longest // length, length - 2
    if windows == 1:
        return batch
    first, last = (ids[:, [end]].repeat_interleave(windows, dim=0) for end in (0, -1))  # [CLS], [SEP], or hidden ones
    tokens = ids[:, 1 : 1 + windows * inner].reshape(rows * windows, inner)
    row, token = positions // longest, positions % longest - 1  # of those that fill up, at position 0, the token is -1
    is_kept = (token >= 0) & (token < windows * inner)
    moved = (row * windows + token // inner) * length + 1 + token % inner
    return {
        "input_ids": torch.cat([first, tokens, last], dim=1),
        "prediction_positions": moved.where(is_kept, 0),
        "labels": labels.where(is_kept, IGNORE_INDEX),
    }


class MaskedWindows(Dataset):
    """
    Windows of a corpus, masked. An item is keyed by (pass, row): `seed` and how often its species has been read decide
    the mask. The pass `UNMASKED` masks nothing.
    """

    def __init__(self, windows: Windows, masking: Masking, seed: int):
        self.windows, self.masking, self.seed = windows, masking, seed

    def __len__(self) -> int:
        return len(self.windows)

    def __getitems__(self, keys: Sequence[tuple[int, int]]) -> dict[str, torch.Tensor]:
        """A whole batch, as `Masking` gives it."""
        tokens = self.windows[[row for _, row in keys]]
        draws = np.empty((3, *tokens.shape))
        for i, (number, row) in enumerate(keys):
            draws[:, i] = random_stream(self.seed, MASK, number, row).random((3, tokens.shape[1]))
        draws[0, [number == UNMASKED for number, _ in keys]] = 1.0
        return self.masking(tokens, draws)


class Mixture:
    """
    Which rows make an epoch: of each species a number that its share of all rows and the temperature decide.

    A species of n rows gets a share proportional to n^(1/temperature): 1 leaves them as they are, higher ones bring
    them closer together (as mT5, arXiv 2010.11934, section 3.1, whose α is 1/temperature). Each is read in passes of a
    fresh permutation each, one after the other: a small one is through several times an epoch, a large one once in
    several.
    """

    def __init__(self, rows: Sequence[np.ndarray], temperature: float, seed: int):
        self.rows, self.seed = rows, seed  # of each species
        sizes = np.array([len(rows_of_species) for rows_of_species in rows])
        weights = sizes ** (1 / temperature)
        self.rows_an_epoch = np.maximum(1, np.rint(sizes.sum() * (weights / weights.sum()))).astype(np.int64)
        self.passes_an_epoch = self.rows_an_epoch / sizes

    def __len__(self) -> int:
        return int(self.rows_an_epoch.sum())

    def epoch(self, number: int) -> tuple[np.ndarray, np.ndarray]:
        """The epoch's rows in their order, and which pass of its species each belongs to; both (len(self),)."""
        passes, rows = [], []
        for species, (rows_of_species, count) in enumerate(zip(self.rows, self.rows_an_epoch.tolist(), strict=True)):
            size, start, stop = len(rows_of_species), number * count, (number + 1) * count
            for i in range(start // size, math.ceil(stop / size)):
                order = rows_of_species
                if count != size:  # else it is whole, and the order within is that of the epoch
                    order = order[random_stream(self.seed, SPECIES_ORDER, i, species).permutation(size)]
                rows.append(order[max(start - i * size, 0) : stop - i * size])
                passes.append(np.full(len(rows[-1]), i))
        order = random_stream(self.seed, ORDER, number).permutation(len(self))
        return np.concatenate(passes)[order], np.concatenate(rows)[order]


class StepSampler(Sampler):
    """
    Yields one process's micro-batches of every step from `first_step` to `last_step`, each a list of (pass, row).

    The corpus is read in epochs, one after the other without a gap, so that a batch may span two; step s takes the
    s-th `total_batch_size` rows, of which each process has a contiguous share.
    """

    def __init__(
        self,
        mixture: Mixture,
        *,
        total_batch_size: int,
        micro_batch_size: int,
        first_step: int,
        last_step: int,
        process_index: int = 0,
        num_processes: int = 1,
    ):
        self.mixture = mixture
        self.total_batch_size, self.micro_batch_size = total_batch_size, micro_batch_size
        self.share = total_batch_size // num_processes
        self.process_index = process_index
        self.steps = range(first_step, last_step)

    def __len__(self) -> int:
        return len(self.steps) * self.share // self.micro_batch_size

    def __iter__(self) -> Iterator[list[tuple[int, int]]]:
        epoch, length = -1, len(self.mixture)
        for step in self.steps:
            start = step * self.total_batch_size + self.process_index * self.share
            batch = []
            for position in range(start, start + self.share):
                if position // length != epoch:
                    epoch = position // length
                    passes, rows = self.mixture.epoch(epoch)
                batch.append((int(passes[position % length]), int(rows[position % length])))
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
        worker_init_fn=ignore_sigterm,
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

"""Labelled sequences to token ids, by the tokenizer in use; nothing is padded.

    encode(load_task("GUE/tf/0"), tokenizer).splits["train"].input_ids[0]

The length cap follows from the longest sequence. (The published caps were made for the released vocabulary: with them
most splice rows would lose their ends.) What is cut off all the same is counted.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

import numpy as np
from torch import nn
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from dnabert2.errors import UsageError
from dnabert2.labelled import Split, TaskData


LENGTH_MULTIPLE = 8  # what GPUs like
BATCH_ROWS = 1000  # tokenised at a time
MOST_UNKNOWN = 0.5  # of the tokens; beyond it the tokenizer is not one of such sequences


@dataclass(frozen=True)
class EncodedSplit:
    """
    The rows of a split as tokens, in its order.

    Args:
        input_ids: for each row an int32 array, special tokens included, of any length up to the cap.
        token_type_ids: the same, 1 on a pair's second sequence; None for a tokenizer that gives none.
        labels: as of `Split`.
        truncated: rows that were longer than the cap.
        unknown: the share of [UNK] among all tokens but special ones.
    """

    input_ids: list[np.ndarray]
    token_type_ids: list[np.ndarray] | None
    labels: np.ndarray | None
    truncated: int
    unknown: float

    def __len__(self) -> int:
        return len(self.input_ids)


@dataclass(frozen=True)
class EncodedTask:
    """The splits of a task as tokens, at most `max_seq_length` of them a row."""

    max_seq_length: int
    splits: dict[str, EncodedSplit]
    reverse_complements: dict[str, EncodedSplit] = field(default_factory=dict)  # empty unless asked for


def position_limit(model: PreTrainedModel) -> int | None:
    """How many tokens a model has position embeddings for; None for one without, as of ALiBi or rotary positions."""
    limits = [
        # With a padding index (as in RoBERTa and ESM), positions are counted from the one after it.
        module.num_embeddings - (0 if module.padding_idx is None else module.padding_idx + 1)
        for name, module in model.named_modules()
        if name.endswith("position_embeddings") and isinstance(module, nn.Embedding)
    ]
    return min(limits, default=None)


def kmers(sequence: str, k: int) -> str:
    """The overlapping k-mers of a sequence, as DNABERT reads them: "ACGTACG" is "ACGTAC CGTACG" of k = 6."""
    return " ".join(sequence[start : start + k] for start in range(len(sequence) - k + 1))


def encode(
    data: TaskData,
    tokenizer: PreTrainedTokenizerBase,
    max_seq_length: int | None = None,
    max_positions: int | None = None,
    kmer: int | None = None,
    reverse_complement: bool = False,
) -> EncodedTask:
    """
    The token ids of all splits.

    Args:
        max_seq_length: the cap, in tokens with special ones (default: the longest row's, rounded up to a multiple of
            8, but no more than tokenizer and model take).
        max_positions: that the model takes, as `position_limit` says.
        kmer: read overlapping k-mers of this length, for DNABERT's kind of tokenizer.
        reverse_complement: encode the other strand of every row, too.

    Raises:
        UsageError: for a cap that is too small or that the model cannot take, a sequence without a single k-mer, and a
            tokenizer to which most of the data is unknown.
    """
    limit = min(tokenizer.model_max_length, max_positions or tokenizer.model_max_length)
    if max_seq_length is not None and max_seq_length > limit:
        raise UsageError(f"--max_seq_length {max_seq_length}: the model takes no more than {limit} tokens")
    strands = [data.splits]
    if reverse_complement:
        strands.append({name: split.reverse_complement() for name, split in data.splits.items()})
    whole = [{name: _tokenize(split, tokenizer, kmer) for name, split in splits.items()} for splits in strands]
    if max_seq_length is None:
        longest = max(len(ids) for rows in whole for split in rows.values() for ids in split.input_ids)
        max_seq_length = min(-(-longest // LENGTH_MULTIPLE) * LENGTH_MULTIPLE, limit)
    encoded = [
        {name: _truncate(rows[name], split, tokenizer, max_seq_length, kmer) for name, split in splits.items()}
        for splits, rows in zip(strands, whole, strict=True)
    ]
    return EncodedTask(max_seq_length, *encoded)


def _texts(split: Split, rows: Sequence[int], kmer: int | None) -> dict[str, list[str]]:
    """The tokenizer's arguments for these rows."""
    texts = {"text": [split.sequences[row] for row in rows]}
    if split.pairs is not None:
        texts["text_pair"] = [split.pairs[row] for row in rows]
    return texts if kmer is None else {name: [kmers(text, kmer) for text in some] for name, some in texts.items()}


def _batches(count: int) -> Iterator[range]:
    return (range(start, min(start + BATCH_ROWS, count)) for start in range(0, count, BATCH_ROWS))


def _tokenize(split: Split, tokenizer: PreTrainedTokenizerBase, kmer: int | None) -> EncodedSplit:
    """All rows at their whole length."""
    if kmer is not None:
        _check_kmer(split, kmer)
    input_ids, token_type_ids = [], []
    for rows in _batches(len(split)):
        # truncation and padding are named: what a tokenizer was once called with is saved with it
        batch = tokenizer(**_texts(split, rows, kmer), truncation=False, padding=False, verbose=False)
        input_ids += [np.array(ids, dtype=np.int32) for ids in batch["input_ids"]]
        token_type_ids += [np.array(ids, dtype=np.int32) for ids in batch.get("token_type_ids", ())]
    tokens = np.concatenate(input_ids)
    tokens = tokens[~np.isin(tokens, list({*tokenizer.all_special_ids} - {tokenizer.unk_token_id}))]
    unknown = (
        float((tokens == tokenizer.unk_token_id).mean()) if len(tokens) and tokenizer.unk_token_id is not None else 0.0
    )
    if unknown > MOST_UNKNOWN:
        raise UsageError(
            f"{split.where}: {unknown:.0%} of the tokens are {tokenizer.unk_token}: the tokenizer does not know such "
            f"sequences{'' if kmer else '; a model of overlapping k-mers wants --kmer'}"
        )
    return EncodedSplit(input_ids, token_type_ids or None, split.labels, 0, unknown)


def _check_kmer(split: Split, kmer: int):
    if kmer < 1:
        raise UsageError(f"--kmer must be greater than 0, is {kmer}")
    for sequences in filter(None, (split.sequences, split.pairs)):
        for identity, sequence in zip(split.ids, sequences, strict=True):
            if len(sequence) < kmer:
                raise UsageError(f"{split.where}: record {identity} has {len(sequence)} bases: not one {kmer}-mer")


def _truncate(
    encoded: EncodedSplit, split: Split, tokenizer: PreTrainedTokenizerBase, max_seq_length: int, kmer: int | None
) -> EncodedSplit:
    """The same with the rows beyond the cap cut by the tokenizer, which keeps its special tokens."""
    smallest = tokenizer.num_special_tokens_to_add(pair=split.pairs is not None) + (1 if split.pairs is None else 2)
    if max_seq_length < smallest:
        raise UsageError(
            f"--max_seq_length {max_seq_length}: special tokens and a token of each sequence are {smallest}"
        )
    long = [row for row, ids in enumerate(encoded.input_ids) if len(ids) > max_seq_length]
    input_ids, token_type_ids = [*encoded.input_ids], [*(encoded.token_type_ids or ())]
    for batch_rows in _batches(len(long)):
        rows = [long[index] for index in batch_rows]
        batch = tokenizer(**_texts(split, rows, kmer), truncation=True, max_length=max_seq_length, padding=False)
        for index, row in enumerate(rows):
            input_ids[row] = np.array(batch["input_ids"][index], dtype=np.int32)
            if token_type_ids:
                token_type_ids[row] = np.array(batch["token_type_ids"][index], dtype=np.int32)
    return EncodedSplit(input_ids, token_type_ids or None, encoded.labels, len(long), encoded.unknown)

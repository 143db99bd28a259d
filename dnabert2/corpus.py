"""Sequence files to training data: windows of exactly `max_seq_length` tokens, made once and read from disk.

    corpus = prepare_corpus(expand_files(["genomes/"]), tokenizer, max_seq_length=128, cache_dir="~/.cache/dnabert2")

A record is split at runs of other letters than A, C, G, T, as in the paper, and the runs into regions of about 32
windows. Each region is tokenised by itself and cut into windows [CLS] t … t [SEP]. What is left over at its end, half
a window on average, is dropped: pretraining has no padding at all. A region goes as a whole to training or to
validation: no validation window shares a base with a training one of its file. Copies of a file are split alike; what
different files share, as two strains of a species do, is not looked for.

Every file has a cache entry of its own, named by the content of file and tokenizer and by the options: adding a file
tokenises that file alone, and an interrupted preparation goes on where it was.
"""

import hashlib
import json
import logging
import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path

import numpy as np
from tqdm.auto import tqdm
from transformers import PreTrainedTokenizerBase

from dnabert2.errors import UsageError
from dnabert2.files import whole_folder
from dnabert2.sequences import acgt_runs, file_sha256, read_records


logger = logging.getLogger(__name__)

CACHE_VERSION = 2  # part of every cache key: a change of what is stored must change it
REGION_WINDOWS = 32
BATCH_BASES = 20_000_000  # given to the tokenizer at a time, which shares them out over the cores
BASES_A_TOKEN = 5  # about what the BPE vocabulary of 4,096 gives; decides the length of regions, nothing else
SPLITS = ("train", "validation")


@dataclass
class Windows:
    """Rows of token ids, (n, max_seq_length), over the memory-mapped uint16 arrays of several files."""

    parts: list[np.ndarray]
    offsets: np.ndarray = field(init=False)

    def __post_init__(self):
        self.offsets = np.cumsum([0] + [len(part) for part in self.parts])

    def __len__(self) -> int:
        return int(self.offsets[-1])

    def __getitem__(self, rows: Sequence[int]) -> np.ndarray:
        """The token ids of these rows, int64 of shape (len(rows), max_seq_length)."""
        part_of_row = np.searchsorted(self.offsets, rows, side="right") - 1
        return np.stack(
            [self.parts[part][row - self.offsets[part]] for part, row in zip(part_of_row, rows, strict=True)]
        ).astype(np.int64)


@dataclass
class Corpus:
    """Training and validation windows, with a summary of where they come from."""

    train: Windows
    validation: Windows
    files: list[dict]  # one summary a file, as `prepare_file` writes it
    fingerprint: str  # of the content of files and tokenizer, and of the options

    def total(self, key: str) -> int:
        return sum(summary[key] for summary in self.files)

    def token_counts(self, split: str) -> np.ndarray:
        """How often each token occurs in a split, (vocab_size,)."""
        return np.sum([summary["token_counts"][split] for summary in self.files], axis=0)


def region_bases(max_seq_length: int) -> int:
    return REGION_WINDOWS * BASES_A_TOKEN * max_seq_length


def regions(path: Path, max_seq_length: int) -> Iterator[str]:
    """The regions of a file's records: pieces of A, C, G, T of at most `region_bases(max_seq_length)` bases."""
    length = region_bases(max_seq_length)
    for record in read_records(path):
        for _, run in acgt_runs(record.sequence):
            for start in range(0, len(run), length):
                yield run[start : start + length]


def cut_windows(tokens: np.ndarray, max_seq_length: int, cls_token_id: int, sep_token_id: int) -> np.ndarray:
    """[CLS] t … t [SEP] rows of a region's tokens, uint16 of shape (n, max_seq_length); the rest is dropped."""
    inner = max_seq_length - 2
    count = len(tokens) // inner
    windows = np.empty((count, max_seq_length), dtype=np.uint16)
    windows[:, 0], windows[:, -1] = cls_token_id, sep_token_id
    windows[:, 1:-1] = tokens[: count * inner].reshape(count, inner)
    return windows


def prepare_file(
    path: Path,
    tokenizer: PreTrainedTokenizerBase,
    max_seq_length: int,
    validation_percentage: float,
    entry: Path,
    progress: tqdm,
):
    """Tokenises one file into its cache entry: `train.npy`, `validation.npy` and `summary.json`, all or nothing."""
    backend = tokenizer.backend_tokenizer
    windows = {split: [np.empty((0, max_seq_length), dtype=np.uint16)] for split in SPLITS}
    bases, tokens, index, sequence = 0, 0, 0, hashlib.sha256()
    remaining = regions(path, max_seq_length)
    regions_at_once = max(1, BATCH_BASES // region_bases(max_seq_length))
    while batch := list(islice(remaining, regions_at_once)):
        if not index:
            # Every (100 / percentage)-th region is for validation: spread over the genome, and starting at a place
            # that the sequence itself decides, so that small files have their turn and copies are split alike.
            phase = int(hashlib.sha256(batch[0].encode()).hexdigest()[:8], 16) / 2**32
        for region, encoding in zip(batch, backend.encode_batch_fast(batch, add_special_tokens=False), strict=True):
            ids = np.array(encoding.ids, dtype=np.uint16)
            before, after = (int((index + i) * validation_percentage / 100 + phase) for i in range(2))
            split = "validation" if after > before else "train"
            windows[split].append(cut_windows(ids, max_seq_length, tokenizer.cls_token_id, tokenizer.sep_token_id))
            sequence.update(region.encode())
            bases, tokens, index = bases + len(region), tokens + len(ids), index + 1
        progress.update(sum(map(len, batch)))

    arrays = {split: np.concatenate(windows[split]) for split in SPLITS}
    summary = {
        "name": path.name,
        "sequence_sha256": sequence.hexdigest(),  # of the bases: the same for .fa and .fa.gz
        "bases": bases,
        "tokens": tokens,
        "windows": {split: len(arrays[split]) for split in SPLITS},
        "token_counts": {
            split: np.bincount(arrays[split][:, 1:-1].ravel(), minlength=len(tokenizer)).tolist() for split in SPLITS
        },
    }
    with whole_folder(entry) as folder:
        for split in SPLITS:
            np.save(folder / f"{split}.npy", arrays[split])
        (folder / "summary.json").write_text(json.dumps(summary))


def cache_entry(
    sha256: str, tokenizer_json: str, max_seq_length: int, validation_percentage: float, cache_dir: Path
) -> Path:
    options = [CACHE_VERSION, region_bases(max_seq_length), max_seq_length, validation_percentage]
    tokenizer_sha256 = hashlib.sha256(tokenizer_json.encode()).hexdigest()
    key = json.dumps([sha256, tokenizer_sha256, *options])
    return cache_dir / hashlib.sha256(key.encode()).hexdigest()[:32]


def prepare_corpus(
    files: Sequence[Path],
    tokenizer: PreTrainedTokenizerBase,
    *,
    max_seq_length: int,
    cache_dir: str | os.PathLike,
    validation_files: Sequence[Path] = (),
    validation_percentage: float = 1.0,
) -> Corpus:
    """
    Tokenises files that are not in the cache yet, a batch of regions at a time on all cores, and opens all of them.

    Args:
        files: sequence files, as `expand_files` gives them; of each, `validation_percentage` % of the regions are
            held out, or none where `validation_files` are given.
        tokenizer: loses a truncation or padding that was saved with it.
        max_seq_length: tokens a window, with [CLS] and [SEP].
        cache_dir: where token ids are kept, 2 bytes a token.

    Raises:
        SequenceFileError: for a file that cannot be read.
        UsageError: if no window comes out of all of them, a file is for training and validation, or the tokenizer's
            ids do not fit in 16 bits.
    """
    if len(tokenizer) > 2**16:
        raise UsageError(f"the tokenizer has {len(tokenizer)} tokens; ids are stored in 16 bits: at most 65,536")
    for name in ("cls_token", "sep_token", "mask_token"):
        if getattr(tokenizer, name) is None:
            raise UsageError(f"the tokenizer has no {name}: masked language modelling needs one")
    if max_seq_length < 3:
        raise UsageError(f"max_seq_length is {max_seq_length}: [CLS], a token and [SEP] need at least 3")
    cache_dir = Path(cache_dir).expanduser()
    try:
        cache_dir.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UsageError(f"--cache_dir {cache_dir} is no folder and cannot become one: {error.strerror}") from error
    # What a tokenizer was once called with is saved with it: either would quietly cut or fill the regions.
    tokenizer.backend_tokenizer.no_truncation()
    tokenizer.backend_tokenizer.no_padding()
    tokenizer_json = tokenizer.backend_tokenizer.to_str()
    percentages = [(path, 0.0 if validation_files else validation_percentage) for path in files]
    percentages += [(path, 100.0) for path in validation_files]
    jobs = {}
    for path, percentage in percentages:
        entry = cache_entry(file_sha256(path), tokenizer_json, max_seq_length, percentage, cache_dir)
        jobs[entry] = (path, tokenizer, max_seq_length, percentage, entry)
    missing = [job for job in jobs.values() if not job[-1].exists()]
    # Said outright, it keeps tokenizers from warning when the data loader forks its workers.
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "true")
    with tqdm(desc="Tokenising", unit=" bases", unit_scale=True, disable=not missing) as progress:
        for number, job in enumerate(missing, start=1):
            progress.set_postfix_str(f"file {number} of {len(missing)}, {job[0].name}")
            prepare_file(*job, progress)

    summaries = [json.loads((entry / "summary.json").read_text()) for entry in jobs]
    _refuse_leaks([(path, percentage) for path, _, _, percentage, _ in jobs.values()], summaries)
    train, validation = (
        Windows([np.load(entry / f"{split}.npy", mmap_mode="r") for entry in jobs]) for split in SPLITS
    )
    fingerprint = hashlib.sha256(" ".join(entry.name for entry in jobs).encode()).hexdigest()
    corpus = Corpus(train, validation, summaries, fingerprint)
    for summary in summaries:
        if not sum(summary["windows"].values()):
            logger.warning("%s: no sequence is long enough for a window of %d tokens", summary["name"], max_seq_length)
    for windows, paths in ((train, files), (validation, validation_files)):
        if paths and not len(windows):
            others = f" and {len(paths) - 1} more" if len(paths) > 1 else ""
            raise UsageError(
                f"{paths[0]}{others}: no sequence is long enough for a window of {max_seq_length} tokens; "
                "give longer ones or a smaller --max_seq_length"
            )
    return corpus


def _refuse_leaks(percentages: list[tuple[Path, float]], summaries: list[dict]):
    """Raises UsageError if a file for validation is one for training too, under whatever name or compression."""
    training = {}
    for (path, percentage), summary in zip(percentages, summaries, strict=True):
        if percentage < 100:
            training[summary["sequence_sha256"]] = path
    for (path, percentage), summary in zip(percentages, summaries, strict=True):
        if percentage == 100 and summary["sequence_sha256"] in training:
            raise UsageError(
                f"{path} is for validation, and {training[summary['sequence_sha256']]}, the same, for training"
            )


def unigram_baseline(corpus: Corpus) -> dict[str, float]:
    """
    What a model that knows nothing but how often tokens occur in training reaches on the validation windows.

    Returns its cross entropy in nats a token and the accuracy of always saying the most frequent token.
    """
    train, validation = corpus.token_counts("train"), corpus.token_counts("validation")
    log_probability = np.log((train + 1) / (train + 1).sum())  # one more of each: a token may be new in validation
    return {
        "unigram_loss": float(-(validation * log_probability).sum() / validation.sum()),
        "most_frequent_token_accuracy": float(validation[train.argmax()] / validation.sum()),
    }

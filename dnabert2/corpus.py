"""Sequences to training data: windows of exactly `max_seq_length` tokens, made once and read from disk.

    corpus = prepare_corpus(file_sources(["genomes/"]), tokenizer, max_seq_length=128, cache_dir="~/.cache/dnabert2")

A region (dnabert2/windows.py) goes as a whole to training or to validation, and with it all its copies in its file, on
whatever strand: no validation window shares a base with a training one of its file. Copies of a file are split alike;
what regions that are not equal share, as two strains of a species do, is not looked for.

What the species of a file have left over is joined to windows too, each of the species that its first token is of:
where many are shorter than a window, fewer have windows of their name, but of each file, split and strand less than a
window is lost.

Every file has a cache entry of its own, named by the content of file and tokenizer and by the options: adding a file
tokenises that file alone, an interrupted preparation goes on where it was, and several machines can share the files
out and put their entries into one folder.
"""

import hashlib
import json
import logging
import os
from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import chain, islice
from pathlib import Path

import numpy as np
from tqdm.auto import tqdm
from transformers import PreTrainedTokenizerBase

from dnabert2.errors import UsageError
from dnabert2.files import whole_folder
from dnabert2.sources import Source
from dnabert2.tokenization import encoder_of_acgt
from dnabert2.windows import (
    BASES_A_TOKEN,
    REGION_WINDOWS,
    SPLITS,
    Splitter,
    WindowCutter,
    Windows,
    check_tokenizer,
    region_bases,
    reverse_complement,
    split_regions,
)


logger = logging.getLogger(__name__)

CACHE_VERSION = 5  # part of every cache key: a change of what is stored must change it
BATCH_BASES = 20_000_000  # given to the tokenizer at a time, which shares them out over the cores


@dataclass
class Corpus:
    """Training and validation windows, with a summary of where they come from."""

    train: Windows
    validation: Windows
    files: list[dict]  # one summary a source, as `prepare_source` writes it
    fingerprint: str  # of the content of files and tokenizer, of the options, and of which files are of one species

    def total(self, key: str) -> int:
        return sum(summary[key] for summary in self.files)

    def left_over(self) -> int:
        """Tokens that are in no window: what is less than one at the end of a species."""
        return self.total("tokens") - int(sum(self.token_counts(split).sum() for split in SPLITS))

    def token_counts(self, split: str) -> np.ndarray:
        """How often each token occurs in a split, (vocab_size,)."""
        return np.sum([summary["token_counts"][split] for summary in self.files], axis=0)


def prepare_source(
    source: Source,
    tokenizer: PreTrainedTokenizerBase,
    max_seq_length: int,
    validation_percentage: float,
    both_strands: bool,
    entry: Path,
    progress: tqdm,
):
    """
    Tokenises one source into its cache entry: `train.npy`, `validation.npy` and `summary.json`, all or nothing.

    Until then its windows are in memory, 2 bytes a token: 0.4 a base, 0.8 with both strands.
    """
    encode = partial(encoder_of_acgt(tokenizer.backend_tokenizer).encode_batch_fast, add_special_tokens=False)
    new_cutter = partial(WindowCutter, max_seq_length, tokenizer)
    windows = {split: defaultdict(list) for split in SPLITS}  # of each species
    cutters = defaultdict(new_cutter)  # of each species, split and strand
    bases, tokens, sequence = 0, 0, hashlib.sha256()
    remaining = split_regions(source.records(), max_seq_length, Splitter(validation_percentage))
    regions_at_once = max(1, BATCH_BASES // region_bases(max_seq_length))
    while batch := list(islice(remaining, regions_at_once)):
        for strand in range(1 + both_strands):
            strands = [reverse_complement(region) if strand else region for *_, region in batch]
            for (split, species, _), encoding in zip(batch, encode(strands), strict=True):
                if split == "train" or not strand:  # the other strand is more to learn from, not more to judge by
                    ids = np.array(encoding.ids, dtype=np.uint16)
                    if len(rows := cutters[species, split, strand](ids)):  # of short sequences few fill one
                        windows[split][species].append(rows)
                    tokens += len(ids)
        sequence.update("".join(region for *_, region in batch).encode())
        bases += sum(len(region) for *_, region in batch)
        progress.update(sum(len(region) for *_, region in batch))

    for species, split, rows in _of_left_overs(cutters, new_cutter):
        windows[split][species].append(rows)
    counts = {split: np.zeros(len(tokenizer), dtype=np.int64) for split in SPLITS}
    for split in SPLITS:
        for rows in chain(*windows[split].values()):
            counts[split] += np.bincount(rows.ravel(), minlength=len(tokenizer))  # of all at once, 8 bytes a token
        counts[split][tokenizer.all_special_ids] = 0  # they are never predicted
    summary = {
        "name": source.name,
        "sequence_sha256": sequence.hexdigest(),  # of the bases: the same for .fa and .fa.gz
        "bases": bases,
        "tokens": tokens,
        "species": {split: [[name, sum(map(len, rows))] for name, rows in windows[split].items()] for split in SPLITS},
        "token_counts": {split: counts[split].tolist() for split in SPLITS},
    }
    with whole_folder(entry) as folder:
        for split in SPLITS:
            _save_rows(folder / f"{split}.npy", list(chain(*windows[split].values())), max_seq_length)
        (folder / "summary.json").write_text(json.dumps(summary))


def _of_left_overs(cutters: dict, new_cutter: Callable[[], WindowCutter]) -> Iterator[tuple[str, str, np.ndarray]]:
    """Windows of what the cutters of each species, split and strand have left over: species, split and rows."""
    joined, begun_by = defaultdict(new_cutter), {}  # of each split and strand
    for (species, *key), cutter in cutters.items():
        shared = joined[tuple(key)]
        if not len(shared.rest):
            begun_by[tuple(key)] = species
        if len(rows := shared(cutter.rest)):
            yield begun_by[tuple(key)], key[0], rows
            begun_by[tuple(key)] = species


def _save_rows(path: Path, pieces: Sequence[np.ndarray], max_seq_length: int):
    """What np.save would write of all pieces in one array, without a second copy of them."""
    shape = (sum(map(len, pieces)), max_seq_length)
    header = {"descr": np.lib.format.dtype_to_descr(np.dtype(np.uint16)), "fortran_order": False, "shape": shape}
    with path.open("wb") as file:
        np.lib.format.write_array_header_1_0(file, header)
        for piece in pieces:
            file.write(piece)


def open_windows(entries: Sequence[Path], sources: Sequence[Source], summaries: Sequence[dict], split: str) -> Windows:
    """The windows of one split of several cache entries, memory-mapped."""
    places, species = [], []
    for entry, source, summary in zip(entries, sources, summaries, strict=True):
        file, start = entry / f"{split}.npy", 0
        for name, count in summary["species"][split]:
            places.append((file, start, start + count))
            species.append(source.name if name is None else name)
            start += count
    return Windows.of_files(places, species)


def cache_entry(content_key: str, tokenizer_json: str, options: Sequence, cache_dir: Path) -> Path:
    tokenizer_sha256 = hashlib.sha256(tokenizer_json.encode()).hexdigest()
    key = json.dumps([content_key, tokenizer_sha256, CACHE_VERSION, REGION_WINDOWS, BASES_A_TOKEN, *options])
    return cache_dir / hashlib.sha256(key.encode()).hexdigest()[:32]


def prepare_corpus(
    sources: Sequence[Source],
    tokenizer: PreTrainedTokenizerBase,
    *,
    max_seq_length: int,
    cache_dir: str | os.PathLike,
    validation_sources: Sequence[Source] = (),
    validation_percentage: float = 1.0,
    both_strands: bool = False,
    shard_index: int = 0,
    num_shards: int = 1,
) -> Corpus | None:
    """
    Tokenises what is not in the cache yet, a batch of regions at a time on all cores, and opens all of it.

    Args:
        sources: of each, `validation_percentage` % of the regions are held out, or none where there are
            `validation_sources`.
        tokenizer: loses a truncation or padding that was saved with it.
        max_seq_length: tokens a window, with [CLS] and [SEP].
        cache_dir: where token ids are kept, 2 bytes a token.
        both_strands: whether training has windows of the reverse complement too.
        shard_index, num_shards: of several shards, about equal in bytes, make the entries of one only, and return
            None: every machine makes its own, and a call without shards finds them in the folder.

    Raises:
        SequenceFileError: for a file that cannot be read.
        UsageError: if no window comes out of all of them, a file is for training and validation, or the tokenizer's
            ids do not fit in 16 bits.
    """
    check_tokenizer(tokenizer, max_seq_length)
    cache_dir = Path(cache_dir).expanduser()
    try:
        cache_dir.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UsageError(f"--cache_dir {cache_dir} is no folder and cannot become one: {error.strerror}") from error
    tokenizer_json = tokenizer.backend_tokenizer.to_str()
    percentages = [(source, 0.0 if validation_sources else validation_percentage) for source in sources]
    percentages += [(source, 100.0) for source in validation_sources]
    keys = [source.content_key() for source, _ in percentages]
    _refuse_leaks(percentages, keys)  # before hours of work
    jobs = {}
    for (source, percentage), key in zip(percentages, keys, strict=True):
        options = [max_seq_length, percentage, both_strands and percentage < 100]
        entry = cache_entry(key, tokenizer_json, options, cache_dir)
        jobs.setdefault(entry, (source, tokenizer, *options, entry))  # of copies the first gives the name
    mine = list(jobs.values())
    if num_shards > 1:
        mine = sorted(mine, key=lambda job: -(job[0].num_bytes() or 0))[shard_index::num_shards]
        level = logging.INFO if mine else logging.WARNING
        logger.log(level, "shard %d of %d has %d of %d files", shard_index, num_shards, len(mine), len(jobs))
    missing = [job for job in mine if not job[-1].exists()]
    # Said outright, it keeps tokenizers from warning when the data loader forks its workers.
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "true")
    with tqdm(desc="Tokenising", unit=" bases", unit_scale=True, disable=not missing) as progress:
        for number, job in enumerate(missing, start=1):
            progress.set_postfix_str(f"file {number} of {len(missing)}, {job[0]}")
            prepare_source(*job, progress)
    if num_shards > 1:
        return None

    sources_of_jobs = [source for source, *_ in jobs.values()]
    summaries = [json.loads((entry / "summary.json").read_text()) for entry in jobs]
    contents = [summary["sequence_sha256"] for summary in summaries]
    _refuse_leaks([(source, percentage) for source, _, _, percentage, _, _ in jobs.values()], contents)
    train, validation = (open_windows(list(jobs), sources_of_jobs, summaries, split) for split in SPLITS)
    # Which parts are of one species decides the order of reading, what the species are called does not.
    numbers = {species: number for number, species in enumerate(dict.fromkeys(train.species))}
    content = [[entry.name for entry in jobs], [numbers[species] for species in train.species]]
    fingerprint = hashlib.sha256(json.dumps(content).encode()).hexdigest()
    for source, summary in zip(sources_of_jobs, summaries, strict=True):
        if not any(summary["species"].values()):
            logger.warning("%s: not enough bases for a single window of %d tokens", source, max_seq_length)
    for windows, those in ((train, sources), (validation, validation_sources)):
        if those and not len(windows):
            others = f" and {len(those) - 1} more" if len(those) > 1 else ""
            raise UsageError(
                f"{those[0]}{others}: not enough bases for a single window of {max_seq_length} tokens; "
                "give more or a smaller --max_seq_length"
            )
    return Corpus(train, validation, summaries, fingerprint)


def _refuse_leaks(percentages: Sequence[tuple[Source, float]], contents: Sequence[str]):
    """Raises UsageError if a file for validation has the content of one for training, under whatever name."""
    of_all = list(zip(percentages, contents, strict=True))
    training = {content: source for (source, percentage), content in of_all if percentage < 100}
    for (source, percentage), content in of_all:
        if percentage == 100 and content in training:
            raise UsageError(
                f"{source} is for validation, and {training[content]}, the same, for training: "
                "leave it out of one of them"
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

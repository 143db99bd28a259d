"""Streams of a corpus: every region in one of them, shares that follow the weights, and exact continuation.

pytest tests/test_streaming.py
"""

import json
import subprocess
import sys
from collections import Counter
from dataclasses import dataclass, replace
from itertools import islice

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from dnabert2 import mixing, streaming
from dnabert2.batches import Masking
from dnabert2.errors import UsageError
from dnabert2.loading import ROOT, load_tokenizer
from dnabert2.sequences import Record, SequenceFileError
from dnabert2.sources import Source
from dnabert2.windows import region_bases, reverse_complement


LENGTH, SIZE = 16, 8  # tokens a window, windows a batch
REGION = region_bases(LENGTH)


@dataclass(frozen=True)
class InMemory(Source):
    """A source of sequences in memory; the last may be an error."""

    sequences: tuple[str | Exception, ...]
    size: int | None

    def records(self):
        for number, sequence in enumerate(self.sequences, start=1):
            if isinstance(sequence, Exception):
                raise sequence
            yield Record(str(number), sequence)

    def content_key(self):
        return "0" * 64

    def num_bytes(self):
        return self.size


def random_bases(length, seed):
    return np.random.default_rng(seed).choice(list(b"ACGT"), length).astype(np.uint8).tobytes().decode()


def in_memory(name, *sequences):
    return InMemory(name, "sequence", None, sequences, sum(len(each) for each in sequences))


def genomes(*lengths):
    """A source of one sequence for each length."""
    return [in_memory(f"genome{i}", random_bases(length, seed=i)) for i, length in enumerate(lengths)]


@pytest.fixture(scope="module")
def tokenizer():
    return load_tokenizer(ROOT / "bpe_tokenizer")


@pytest.fixture
def loader(tokenizer):
    """A function that makes a loader of small blocks: of 5 batches."""

    def made(sources, **options):
        defaults = {"max_seq_length": LENGTH, "masking": Masking(tokenizer, 0.15), "micro_batch_size": SIZE, "seed": 3}
        return streaming.StreamingLoader(sources, tokenizer, **defaults | {"block_tokens": 40 * LENGTH} | options)

    return made


def assert_equal(batches, others):
    assert len(batches) == len(others)
    for batch, other in zip(batches, others, strict=True):
        assert batch.keys() == other.keys() == {"input_ids", "prediction_positions", "labels"}
        assert all(torch.equal(batch[name], other[name]) for name in batch)


def tokens(batches):
    """The unmasked windows, (n, LENGTH)."""
    rows = []
    for batch in batches:
        ids, is_label = batch["input_ids"].clone(), batch["labels"] >= 0
        ids.view(-1)[batch["prediction_positions"][is_label]] = batch["labels"][is_label]
        rows.append(ids.numpy())
    return np.concatenate(rows)


def weights_of(sources, temperature):
    return mixing.source_weights(sources, [source.num_bytes() for source in sources], temperature)


def one_pass(source, part):
    """The numbers of the regions that a part of a source owns."""
    reader, owned = mixing.Reader(source, part, LENGTH, 0, 0), []
    while reader.read() and (not owned or reader.index - 1 > owned[-1]):
        owned.append(reader.index - 1)
    return owned


# --- which stream reads what -------------------------------------------------------------------------------------


@settings(max_examples=100, deadline=None)
@given(
    sizes=st.lists(st.integers(1, 10**12), min_size=1, max_size=12),
    temperature=st.sampled_from([1.0, 1.5, 3.0]),
    num_streams=st.integers(1, 9),
)
def test_parts_of_all_streams_make_up_every_source_without_overlap(sizes, temperature, num_streams):
    sources = [replace(in_memory("a"), size=size) for size in sizes]
    weights = weights_of(sources, temperature)
    streams = [mixing.owned_parts(weights, stream, num_streams) for stream in range(num_streams)]
    for number in range(len(sizes)):
        parts = [parts[number] for parts in streams if number in parts]
        edges = [0.0, *(edge for part in parts for edge in part), 1.0]
        assert edges == sorted(edges) and edges[::2] == edges[1::2]  # each begins where the one before ends
    for parts in streams:
        owned = sum(weights[i] * (high - low) for i, (low, high) in parts.items())
        assert owned == pytest.approx(1 / num_streams, abs=2e-5)


@pytest.mark.parametrize("num_streams", [1, 2, 3, 7])
def test_every_region_is_read_once_a_pass_by_one_stream(num_streams):
    sources = genomes(40 * REGION, 3 * REGION, 100, 11 * REGION + 5)
    weights = weights_of(sources, 1.0)
    read = Counter()
    for stream in range(num_streams):
        for number, part in mixing.owned_parts(weights, stream, num_streams).items():
            read.update((number, index) for index in one_pass(sources[number], part))
    assert read == {(i, j): 1 for i, source in enumerate(sources) for j in range(-(-source.size // REGION))}


def test_a_large_source_is_shared_by_streams_and_a_small_one_opened_by_one():
    weights = np.array([0.7, 0.1, 0.2])
    opened = [list(mixing.owned_parts(weights, stream, 4)) for stream in range(4)]
    assert opened == [[0], [0], [0, 1], [1, 2]]


def test_equal_sources_on_as_many_streams_have_one_each():
    for number in (3, 6, 7, 49):
        weights = np.full(number, 1 / number)
        for stream in range(number):
            assert mixing.owned_parts(weights, stream, number) == {stream: (0.0, 1.0)}


# --- shares ------------------------------------------------------------------------------------------------------


def test_weights_are_brought_together_by_the_temperature():
    sources = genomes(8000, 1000)
    assert weights_of(sources, 1.0) == pytest.approx([8 / 9, 1 / 9])
    assert weights_of(sources, 3.0) == pytest.approx([2 / 3, 1 / 3])


def test_sources_of_unknown_size_are_equal_and_refuse_a_temperature():
    known, unknown = genomes(8000, 1000)
    sources = [known, replace(unknown, size=None)]
    assert weights_of(sources, 1.0) == pytest.approx([0.5, 0.5])
    with pytest.raises(UsageError, match=r"^genome1: its size is unknown, which --sampling_temperature 2.0 needs"):
        weights_of(sources, 2.0)


@pytest.mark.parametrize("temperature", [1.0, 3.0])
def test_shares_in_bases_follow_the_weights_whatever_the_lengths_of_records(temperature):
    whole, cut = random_bases(30 * REGION, seed=1), random_bases(10 * REGION, seed=2)
    sources = [in_memory("whole", whole), in_memory("cut", *(cut[i : i + 90] for i in range(0, len(cut), 90)))]
    sources += genomes(3 * REGION + 7)
    weights = weights_of(sources, temperature)
    parts = mixing.owned_parts(weights, 0, 1)
    mixer, bases = mixing.Mixer(sources, weights, parts, LENGTH, None), Counter()
    for _ in range(3000):
        number, region = mixer.draw()
        bases[number] += len(region)
        # at any time, not in the long run only
        assert all(abs(bases[i] - weights[i] * bases.total()) <= 2 * REGION for i in range(3))


def test_a_source_without_a_region_for_the_stream_is_dropped(loader):
    sources = [*genomes(20 * REGION), in_memory("gaps", "NNNN")]
    mixer = mixing.Mixer(sources, np.array([0.5, 0.5]), {0: (0.0, 1.0), 1: (0.0, 1.0)}, LENGTH, None)
    assert {mixer.draw()[0] for _ in range(50)} == {0}
    assert [number for number, *_ in mixer.position()] == [0]
    assert len(list(islice(loader(sources, num_workers=0), 12))) == 12


@pytest.mark.parametrize("num_workers", [0, 2])
def test_streams_without_any_region_are_refused(loader, num_workers):
    sources = [in_memory("gaps", "NNNN")] if not num_workers else genomes(REGION // 2)
    with pytest.raises(UsageError, match=r"^no sequence is left for one of the loader workers: lower --data"):
        list(islice(loader(sources, num_workers=num_workers), 12))


@pytest.mark.parametrize("process_index, told", [(0, 1), (1, 0)])
def test_fewer_sources_than_streams_are_told_once(loader, caplog, process_index, told):
    loader(genomes(*[9 * REGION] * 4), process_index=process_index, num_processes=2, num_workers=2)
    assert not caplog.records
    loader(genomes(*[9 * REGION] * 3), process_index=process_index, num_processes=2, num_workers=2)
    messages = [record.getMessage() for record in caplog.records]
    assert len(messages) == told and all("3 source(s) for 4 " in each and "split" in each for each in messages)


# --- windows -----------------------------------------------------------------------------------------------------


def test_windows_are_full_and_decode_to_bases_of_one_source(loader, tokenizer):
    sources = genomes(9 * REGION, 4 * REGION)
    seen = Counter()
    for window in tokens(islice(loader(sources), 30)):
        assert len(window) == LENGTH and window[0] == tokenizer.cls_token_id and window[-1] == tokenizer.sep_token_id
        assert tokenizer.pad_token_id not in window and tokenizer.mask_token_id not in window
        pieces = tokenizer.decode(window[1:-1]).replace(" ", "").split("[SEP]")
        homes = [{source.name for source in sources if piece in source.sequences[0]} for piece in pieces]
        home = set.intersection(*homes)
        assert len(home) == 1
        seen.update(home)
    assert set(seen) == {"genome0", "genome1"}


def test_half_of_the_regions_are_read_on_the_other_strand(loader, tokenizer):
    (source,) = genomes(40 * REGION)
    own, other = source.sequences[0], reverse_complement(source.sequences[0])
    strands = Counter()
    for window in tokens(islice(loader([source], both_strands=True), 60)):
        pieces = tokenizer.decode(window[1:-1]).replace(" ", "").split("[SEP]")
        strands.update("own" if piece in own else "other" for piece in pieces)
        assert all(piece in own or piece in other for piece in pieces)
    assert 0.3 < strands["other"] / strands.total() < 0.7


def test_blocks_are_shuffled_over_all_sources_and_nothing_comes_twice_in_a_pass(loader):
    sources = genomes(60 * REGION, 60 * REGION)
    batches = [tokens([batch]) for batch in islice(loader(sources, block_tokens=800 * LENGTH), 100)]
    rows = [row.tobytes() for batch in batches for row in batch]
    assert len(set(rows)) == len(rows)
    plain = [row.tobytes() for row in tokens(islice(loader(sources, block_tokens=800 * LENGTH, seed=4), 100))]
    assert rows != plain and len(set(rows) & set(plain)) > 0.9 * len(rows)


def test_masks_differ_by_stream_batch_and_seed(loader):
    (source,) = genomes(50)  # the same window again and again
    runs = [list(islice(loader([source], seed=seed), 20)) for seed in (3, 4)]
    masks = {batch["prediction_positions"].numpy().tobytes() for run in runs for batch in run}
    assert len(masks) == 40


# --- going on ----------------------------------------------------------------------------------------------------


@pytest.mark.filterwarnings(
    "ignore:This DataLoader will create 3 worker processes"
)  # the machine may have fewer cores
@pytest.mark.parametrize("num_workers, stops", [(0, range(13)), (1, [0, 4, 5]), (3, [2, 15, 16, 22])])
def test_a_resumed_run_goes_on_bit_for_bit_from_every_batch(loader, num_workers, stops):
    sources = genomes(20 * REGION, 7 * REGION, 5 * REGION + 9)
    options = {"num_workers": num_workers, "both_strands": True, "sampling_temperature": 2.0}
    whole = list(islice(loader(sources, **options), 34))
    for stop in stops:
        stopped = loader(sources, **options)
        assert_equal(list(islice(stopped, stop)), whole[:stop])
        state = json.loads(json.dumps(stopped.state()))
        resumed = loader(sources, **options, state=state)
        assert_equal(list(islice(resumed, 12)), whole[stop : stop + 12])
        assert sum(stream["batch"] for stream in resumed.state()["streams"]) == stop + 12


def test_a_state_before_the_first_batch_is_that_of_a_new_loader(loader):
    sources = genomes(5 * REGION)
    start = loader(sources, num_workers=2)
    assert_equal(list(islice(loader(sources, num_workers=2, state=start.state()), 3)), list(islice(start, 3)))


def test_iterating_again_goes_on(loader):
    sources = genomes(9 * REGION)
    whole, twice = list(islice(loader(sources), 13)), loader(sources)
    assert_equal([*islice(twice, 6), *islice(twice, 7)], whole)


def test_states_of_several_processes_are_joined(loader):
    sources = genomes(20 * REGION, 7 * REGION)
    made = [loader(sources, process_index=index, num_processes=2, num_workers=0) for index in range(2)]
    runs = [list(islice(each, 9)) for each in made]
    assert not torch.equal(runs[0][0]["input_ids"], runs[1][0]["input_ids"])
    # each process alone has its own; accelerate joins them in the order of processes
    made = [loader(sources, process_index=index, num_processes=2) for index in range(2)]
    for each in made:
        list(islice(each, 6))
    state = made[0].state() | {"streams": [stream for each in made for stream in each.state()["streams"]]}
    for index, run in enumerate(runs):
        resumed = loader(sources, process_index=index, num_processes=2, state=state)
        assert_equal(list(islice(resumed, 3)), run[6:])


def test_resuming_tokenises_nothing_before_the_block(loader, tokenizer, monkeypatch):
    sources = genomes(100 * REGION)
    stopped = loader(sources)
    list(islice(stopped, 52))
    asked = []
    cut = streaming.WindowCutter.__call__
    monkeypatch.setattr(streaming.WindowCutter, "__call__", lambda self, ids: asked.append(len(ids)) or cut(self, ids))
    next(iter(loader(sources, state=stopped.state())))
    assert 0 < len(asked) <= 4  # regions


@pytest.mark.parametrize(
    "options, numbers", [({"num_workers": 3}, "1 with 3"), ({"num_processes": 2, "num_workers": 1}, "2 with 1")]
)
def test_another_number_of_workers_or_processes_is_refused(loader, options, numbers):
    state = loader(genomes(5 * REGION), num_workers=2).state()
    with pytest.raises(
        UsageError, match=rf"of 1 process\(es\) with --dataloader_num_workers 2, this run has {numbers}"
    ):
        loader(genomes(5 * REGION), state=state, **options)


def test_batches_are_the_same_in_a_worker_and_without_one(loader):
    sources = genomes(9 * REGION, 4 * REGION)
    assert_equal(*(list(islice(loader(sources, num_workers=number), 11)) for number in (0, 1)))


@pytest.mark.parametrize("num_workers", [0, 2])
def test_the_random_numbers_of_the_training_loop_are_left_alone(loader, num_workers):
    sources = genomes(9 * REGION, 4 * REGION)
    torch.manual_seed(1)
    before = torch.get_rng_state()
    list(islice(loader(sources, num_workers=num_workers), 12))
    assert torch.equal(torch.get_rng_state(), before)


def test_a_process_that_ends_while_a_stream_is_open_says_nothing_of_it(tmp_path):
    (tmp_path / "genome.fa").write_text(f">x\n{random_bases(9 * REGION, seed=1)}\n")
    code = f"""
import sys
from dnabert2 import batches, loading, sources, streaming
tokenizer = loading.load_tokenizer(loading.ROOT / "bpe_tokenizer")
options = dict(max_seq_length={LENGTH}, masking=batches.Masking(tokenizer, 0.15), micro_batch_size={SIZE}, seed=1)
options["block_tokens"] = {40 * LENGTH}
stream = iter(streaming.StreamingLoader(sources.file_sources(sys.argv[1:]), tokenizer, **options))
next(stream)
sys.exit("error: the loss is nan")
"""
    command = [sys.executable, "-c", code, str(tmp_path / "genome.fa")]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=120)
    assert done.stderr == "error: the loss is nan\n"


# --- errors ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("num_workers", [0, 2])
def test_an_error_of_a_source_arrives_as_its_own_line(loader, num_workers):
    error = SequenceFileError("bad.fa: record 2 (x), position 7: 'J' is not a nucleotide letter")
    sources = [*genomes(9 * REGION), InMemory("bad", "sequence", None, (random_bases(REGION, 1), error), 9 * REGION)]
    with pytest.raises(SequenceFileError) as raised:
        list(islice(loader(sources, num_workers=num_workers), 100))
    assert str(raised.value) == str(error)

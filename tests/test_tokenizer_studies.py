"""What the studies of tokenizers in benchmarks/ count: leakage, edits, truncated merges.

pytest tests/test_tokenizer_studies.py
"""

import json
import math
import time
from argparse import Namespace
from functools import partial
from pathlib import Path
from threading import Event, Thread

import kmers
import leakage
import matplotlib.pyplot as plt
import numpy as np
import pytest
import tokenizer_runs
import vocabulary_size
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import AutoConfig, PreTrainedTokenizerFast

from dnabert2 import gue_arguments, mlm_arguments
from dnabert2.files import write_whole
from dnabert2.kmers import build_kmer_tokenizer
from dnabert2.loading import ROOT
from dnabert2.tokenization import build_tokenizer, train_merges


RANDOM = np.random.default_rng(0)
SEQUENCES = ["".join(RANDOM.choice([*"ACGT"], size=500, p=[0.4, 0.1, 0.2, 0.3])) for _ in range(20)]
SMALL_BPE = build_tokenizer(train_merges(SEQUENCES, 60))


def ids(tokenizer, text: str) -> list[int]:
    return tokenizer.encode(text, add_special_tokens=False).ids


@pytest.mark.parametrize("gap", [1, 2])
def test_ways_to_fill_a_gap_of_bpe_are_those_that_encode_to_themselves(gap):
    possible = leakage.possible_pairs(SMALL_BPE, 0, overlapping=False)
    tokens = ids(SMALL_BPE, SEQUENCES[0])[:12]
    names = [SMALL_BPE.id_to_token(index) for index in tokens]
    fillings = np.array(np.meshgrid(*[range(5, 60)] * gap)).reshape(gap, -1).T
    start, count = 5, 0
    for filling in fillings.tolist():
        if SMALL_BPE.token_to_id("N") in filling:
            continue
        filled = tokens[:start] + filling + tokens[start + gap :]
        text = "".join(names[:start] + [SMALL_BPE.id_to_token(i) for i in filling] + names[start + gap :])
        count += ids(SMALL_BPE, text) == filled
    bits = leakage.open_bits(possible, np.array([tokens[start - 1]]), np.array([tokens[start + gap]]), gap)
    assert 1 < count < len(fillings) and bits == pytest.approx([np.log2(count)])


@pytest.mark.parametrize("gap, ways", [(1, 1), (2, 1), (3, 4), (4, 16), (5, 64)])
def test_overlapping_kmers_leave_open_only_what_no_neighbour_covers(gap, ways):
    tokenizer = build_kmer_tokenizer(3, overlapping=True)
    possible = leakage.possible_pairs(tokenizer, 3, overlapping=True)
    tokens = np.array(ids(tokenizer, SEQUENCES[0]))
    starts = np.arange(1, 50)
    bits = leakage.open_bits(possible, tokens[starts - 1], tokens[starts + gap], gap)
    assert 2**bits == pytest.approx(np.full(49, ways))


def test_neighbours_tell_nothing_of_kmers_without_overlap():
    tokenizer = build_kmer_tokenizer(3, overlapping=False)
    possible = leakage.possible_pairs(tokenizer, 3, overlapping=False)
    assert possible.sum() == 64 * 64
    tokens = np.array(ids(tokenizer, SEQUENCES[0]))
    assert leakage.open_bits(possible, tokens[:5], tokens[2:7], 1) == pytest.approx(np.full(5, 6))


def test_gaps_are_found_with_their_lengths_and_not_at_the_ends():
    is_masked = np.array([1, 0, 1, 1, 0, 0, 1, 0, 1, 1, 0, 1], dtype=bool)
    found = {length: starts.tolist() for length, starts in leakage.gaps_of(is_masked).items()}
    assert found == {1: [6], 2: [2, 8]}


def test_spans_mask_fifteen_per_cent_in_runs_of_k_or_more():
    is_masked = leakage.span_masks(np.random.default_rng(0), 200_000, 6)
    assert is_masked.mean() == pytest.approx(0.15, abs=0.005)
    assert min(leakage.gaps_of(is_masked)) >= 6


def test_edits_change_one_base_or_the_start():
    sequence, other = SEQUENCES[:2]
    edited = kmers.edits_of(sequence, other, np.random.default_rng(0))
    assert list(edited) == kmers.EDITS and edited["another sequence"] == other
    assert [len(edited[name]) - 500 for name in kmers.EDITS[:4]] == [0, -1, 1, -1]
    assert sum(a != b for a, b in zip(sequence, edited["substitution"], strict=True)) == 1
    assert edited["start + 5"] == sequence[5:]


def test_shares_of_unchanged_tokens():
    assert kmers.share_of_multiset([1, 1, 2, 3], [3, 2, 1]) == 0.75
    assert kmers.share_aligned([1, 1, 2, 3], [3, 2, 1]) == 0.25
    assert kmers.share_aligned([1, 2, 3, 4], [1, 9, 3, 4]) == 0.75


@settings(max_examples=20)
@given(st.text("ACGT", min_size=12, max_size=60))
def test_a_start_shifted_by_k_drops_one_token_of_kmers_without_overlap(sequence):
    tokenizer = build_kmer_tokenizer(3, overlapping=False)
    assert ids(tokenizer, sequence[3:]) == ids(tokenizer, sequence)[1:]


@pytest.mark.parametrize("size", [16, 32, 64])
def test_the_first_merges_of_a_vocabulary_are_those_of_a_smaller_one(size):
    merges = train_merges(SEQUENCES, 256)
    assert vocabulary_size.truncate_merges(merges, size) == train_merges(SEQUENCES, size)
    assert vocabulary_size.truncate_merges(merges, 256) == merges


def test_flops_for_the_same_bases_fall_with_longer_tokens_and_rise_with_a_larger_head():
    config = AutoConfig.from_pretrained(ROOT, trust_remote_code=True)
    of = partial(vocabulary_size.flops_per_base, config)
    assert of(4096, 6.0, 0.15) < of(4096, 5.0, 0.15) < of(8192, 5.0, 0.15)
    assert of(4096, 5.0, 0.0) == of(8192, 5.0, 0.0)  # without a head to predict tokens


@pytest.mark.parametrize("ratio", [1.0, 3.44, 5.03, 6.1])
def test_every_tokenizer_is_pretrained_on_the_same_bases(ratio):
    args = Namespace(bases=1e8, bases_a_sequence=640, batch=256)
    length, steps = tokenizer_runs.schedule(ratio, args)
    assert length % 8 == 0 and 640 <= (length - 2) * ratio < 640 + 8 * ratio
    assert steps * args.batch * (length - 2) * ratio == pytest.approx(args.bases, rel=0.01)


def finish_run(folder, loss, accuracy, overlap=1):
    """Leaves what a run of tokenizer_runs.py leaves, as far as its table reads it."""
    seed, bases = folder.name, {"accuracy": accuracy, "bits": 2 - accuracy, "calibrated_bits": 1.5, "overlap": overlap}
    results = {"pretrained/all_results.json": {"validation_loss": loss, "validation_accuracy": 0.1}}
    results["masked_bases.json"] = bases | {"bases_a_token": 5.0, "bases_seen": 3e8, "flops": 2e15}
    results[f"gue/mouse/3/{seed}/all_results.json"] = {"test": {"mcc": 0.5}}
    for name, values in results.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        write_whole(folder / name, json.dumps(values))


def test_the_results_of_finished_runs_are_put_on_one_scale(tmp_path):
    finish_run(tmp_path / "4096" / "seed-42", 5.0, 0.30)
    finish_run(tmp_path / "4096" / "seed-43", 5.2, 0.34)
    finish_run(tmp_path / "overlapping" / "seed-42", 0.1, 0.29, overlap=6)
    (tmp_path / "256" / "seed-42" / "pretrained").mkdir(parents=True)  # is not finished
    args = Namespace(output_dir=tmp_path, tasks=["mouse/3"])
    tokenizer_runs.write_runs(args)
    found = json.loads((tmp_path / "runs.json").read_text())
    assert list(found) == ["4096", "overlapping"] and found["4096"]["score"] == [50.0, 50.0]
    assert found["4096"]["token_bits"] == pytest.approx([1 / math.log(2), 1.04 / math.log(2)])
    assert found["overlapping"]["token_bits"] == []  # neighbours tell such tokens
    picture = plt.imread(tmp_path / "runs.png")
    found["overlapping"]["score"] = [60.0]
    tokenizer_runs.draw(found, args.tasks, tmp_path / "other.png")
    other = plt.imread(tmp_path / "other.png")
    assert picture.shape == other.shape and (picture != other).any()  # what differs is one seed's dot
    text = (tmp_path / "runs.md").read_text()
    assert "| 4096 | 2 | 300 | 2 | 5.00 | 32.00 ± 2.83 | 1.6800 ± 0.0283 | 1.5000 ± 0.0000 | 1.4715 ± 0.0408 |" in text
    assert "| overlapping | 1 | 300 | 2 | 5.00 | 29.00 | 1.7100 | 1.5000 | – | 50.00 | 50.0 |" in text


def test_a_process_that_read_before_another_finished_does_not_write_after_it(tmp_path, monkeypatch):
    args, read_runs, has_read = Namespace(output_dir=tmp_path, tasks=["mouse/3"]), tokenizer_runs.read_runs, Event()

    def read_slowly(args):
        runs = read_runs(args)
        if len(runs) == 1:
            has_read.set()
            time.sleep(0.5)
        return runs

    monkeypatch.setattr(tokenizer_runs, "read_runs", read_slowly)
    finish_run(tmp_path / "first" / "seed-42", 5.0, 0.3)
    other = Thread(target=tokenizer_runs.write_runs, args=[args])
    other.start()
    has_read.wait()
    finish_run(tmp_path / "second" / "seed-42", 5.0, 0.3)
    tokenizer_runs.write_runs(args)
    other.join()
    assert list(json.loads((tmp_path / "runs.json").read_text())) == ["first", "second"]


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    """6-mers, and overlapping ones, as folders by name."""
    folders = {name: tmp_path_factory.mktemp("kmers") / name for name in ("6-mers", "overlapping")}
    for name, folder in folders.items():
        fast = PreTrainedTokenizerFast(tokenizer_object=build_kmer_tokenizer(6, name == "overlapping"))
        fast.save_pretrained(folder)
    return folders


def parsed(monkeypatch, parse_args, *words):
    with monkeypatch.context() as patch:
        patch.setattr("sys.argv", ["script", *map(str, words)])
        return parse_args()


def test_a_run_calls_the_scripts_with_arguments_that_they_take(folders, tmp_path, monkeypatch):
    words = ["--tokenizers", folders["overlapping"], "--train_file", "a", "--validation_file", "b", "c"]
    args = parsed(monkeypatch, tokenizer_runs.parse_args, *words, "--data_dir", "GUE", "--output_dir", tmp_path)
    commands = []
    monkeypatch.setattr(tokenizer_runs, "run_to_end", lambda words, log: commands.append(words) or 0)
    monkeypatch.setattr(tokenizer_runs, "judge_folder", lambda folder, sequences: {"accuracy": 0.3})
    tokenizer_runs.run(folders["overlapping"], "name", 43, ["ACGT" * 160], args)
    (mlm_words, gue_words) = (words[[word.endswith(".py") for word in words].index(True) + 1 :] for words in commands)
    pretraining = parsed(monkeypatch, partial(mlm_arguments.parse_args, ""), *mlm_words)
    assert pretraining.mlm_span == 6 and pretraining.validation_file == ["b", "c"] and pretraining.seed == 43
    mlm_arguments.check_args(pretraining, 1)
    assert pretraining.max_seq_length == 640 and pretraining.gradient_accumulation_steps == 4
    fine_tuning = parsed(monkeypatch, partial(gue_arguments.parse_args, ""), *gue_words)
    assert fine_tuning.seeds == [43] and fine_tuning.tasks == args.tasks
    assert Path(fine_tuning.model_name_or_path) == pretraining.output_dir
    bases = json.loads((tmp_path / "name" / "seed-43" / "masked_bases.json").read_text())
    assert bases["overlap"] == 6 and bases["bases_seen"] == pytest.approx(3e8, rel=0.01)


def test_with_the_same_flops_a_tokenizer_of_shorter_tokens_sees_fewer_bases(folders):
    args = Namespace(bases=1e9, bases_a_sequence=640, batch=256, config_name=ROOT / "configs" / "mini.json")
    sequences = [sequence[:480] for sequence in SEQUENCES]
    ratios = {name: tokenizer_runs.measure_ratio(folder, sequences) for name, folder in folders.items()}
    assert ratios == {"6-mers": 6.0, "overlapping": pytest.approx(480 / 475)}
    flops = {name: tokenizer_runs.flops_of_run(folder, ratios[name], args) for name, folder in folders.items()}
    assert 5.9 < flops["overlapping"] / flops["6-mers"] < 8  # attention is dearer in longer rows

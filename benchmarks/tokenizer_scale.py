"""BPE training by the bases of its sample, encoding by cores and length, and FASTA to token shards: time and memory.

    python benchmarks/tokenizer_scale.py --train_file genomes/ --output_dir output/scale
    python benchmarks/tokenizer_scale.py --train_file genomes/ --output_dir output/scale --parts encoding corpus

Samples are the pieces of lowest rank of all files (train_tokenizer.py), so that a larger one holds the smaller ones,
and a species counts as it is large. They and what was trained on them are kept in --output_dir, which is refused with
other files. Every measurement is a process of its own. Shards are those of run_mlm.py
--num_shards; what 32.5 Gbases would take is reckoned from the seconds of cores, less those it takes to start: on a
machine with other work they say more than those of the clock. Prints the tables of tokenizer_scale.md and writes
tokenizer_scale.png.
"""

import argparse
import json
import multiprocessing
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from itertools import pairwise
from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np
from kmers import HELD_OUT, ROOT, keep_arguments, size_of, tokenizer_file
from tokenizers import Tokenizer
from tqdm import tqdm

from dnabert2.errors import UsageError, run_script
from dnabert2.files import write_whole
from dnabert2.sequences import expand_files
from dnabert2.tokenization import bases_per_token, build_tokenizer, encoder_of_acgt, read_pieces, train_merges


VOCAB_SIZE = 4096
ENCODED_BASES = 8_000_000
LENGTHS = (100, 1000, 10_000, 100_000)
PAPER_BASES = 32.5e9
PARTS = ("training", "encoding", "corpus")


def in_process(function: Callable, *arguments):
    """The function's result, from a process of its own, which begins without what this one has in memory."""
    with multiprocessing.get_context("spawn").Pool(1) as pool:
        return pool.apply(function, arguments)


def write_samples(args: argparse.Namespace) -> tuple[Path, Path]:
    """Two files with a piece a line: to train on, lowest rank first, and held out."""
    training, held_out = args.output_dir / "pieces.txt", args.output_dir / "held_out.txt"
    keep_arguments(training, args.output_dir, {"train_file": size_of(args.train_file)})
    if not training.exists():
        paths = expand_files(args.train_file)
        pieces = [ranked for path in tqdm(paths, desc="Reading") for ranked in read_pieces(path, HELD_OUT["seed"])]
        pieces.sort()
        write_whole(held_out, "".join(f"{piece}\n" for rank, piece in pieces if rank < HELD_OUT["high"] / 10))
        write_whole(training, "".join(f"{piece}\n" for rank, piece in pieces if rank >= HELD_OUT["high"]))
    return training, held_out


def first_pieces(path: Path, bases: float) -> Iterator[str]:
    taken = 0
    with path.open() as file:
        for line in file:
            if taken >= bases:
                return
            piece = line.rstrip("\n")
            taken += len(piece)
            yield piece


def peak_memory() -> int:
    """The most bytes that this process has held; on Linux (getrusage's would count those of its parent too)."""
    status = dict(line.split(":", 1) for line in Path("/proc/self/status").read_text().splitlines())
    return 1024 * int(status["VmHWM"].split()[0])


def train(path: Path, bases: float) -> dict:
    """Trains on the first bases of a file of pieces: merges, seconds (of all cores too), and bytes of memory."""
    before = peak_memory()
    start, cpu = time.perf_counter(), time.process_time()
    merges = train_merges(first_pieces(path, bases), VOCAB_SIZE)
    times = {"seconds": time.perf_counter() - start, "cpu_seconds": time.process_time() - cpu}
    return {"bases": bases, "merges": merges, "bytes": peak_memory() - before, **times}


def print_training(args: argparse.Namespace) -> None:
    training, held_out = write_samples(args)
    judged = list(first_pieces(held_out, np.inf))
    available = training.stat().st_size
    runs, bases, most = [], 1e6, min(args.max_bases, available)
    while bases <= most:
        kept = args.output_dir / f"trained_{bases / 1e6:.0f}M.json"
        if not kept.exists():
            write_whole(kept, json.dumps(in_process(train, training, bases)))
        runs.append(json.loads(kept.read_text()))
        bases *= 2
    if len(runs) < 2:
        raise UsageError(f"{most / 1e6:.1f} Mbases are too few to compare samples: give 2 or more, and --max_bases")
    vocabularies, ratios = [], []
    for run in runs:
        tokenizer = build_tokenizer([tuple(merge) for merge in run["merges"]])
        vocabularies.append(set(tokenizer.get_vocab()))
        judged_bases, tokens = bases_per_token(tokenizer, judged)
        ratios.append(judged_bases / tokens)
    common = [100 * len(small & large) / VOCAB_SIZE for small, large in pairwise(vocabularies)]
    print("| Mbases | s | core s | GB | bytes a base | in the next, % | in the last, % | bases a token | change, % |")
    print(f"|{'--:|' * 9}")
    for number, run in enumerate(runs):
        cells = [f"{run['bases'] / 1e6:.0f}", f"{run['seconds']:.1f}", f"{run['cpu_seconds']:.1f}"]
        cells += [f"{run['bytes'] / 1e9:.2f}", f"{run['bytes'] / run['bases']:.0f}"]
        cells += [f"{common[number]:.1f}" if number < len(common) else ""]
        cells += [f"{100 * len(vocabularies[number] & vocabularies[-1]) / VOCAB_SIZE:.1f}", f"{ratios[number]:.4f}"]
        cells += [f"{100 * (ratios[number] / ratios[number - 1] - 1):+.2f}" if number else ""]
        print(f"| {' | '.join(cells)} |")
    megabases = np.array([run["bases"] for run in runs]) / 1e6
    for key, name in {"cpu_seconds": "seconds of cores", "bytes": "bytes"}.items():
        slope, _ = np.polyfit(np.log(megabases[-4:]), np.log([run[key] for run in runs[-4:]]), 1)
        print(f"\nOf the last {len(runs[-4:])} samples: {name} go with bases ^ {slope:.2f}")

    figure, panels = plt.subplots(1, 3, figsize=(12, 3.6), layout="constrained")
    panels[0].loglog(megabases, [run["cpu_seconds"] for run in runs], "o-", label="seconds of cores")
    panels[0].loglog(megabases, [run["bytes"] / 1e9 for run in runs], "o-", label="GB of memory")
    panels[0].legend()
    panels[1].semilogx(megabases[:-1], common, "o-")
    panels[1].set(title="tokens that twice the sample has too (%)", ylim=(None, 100))
    panels[2].semilogx(megabases, ratios, "o-")
    panels[2].set(title="bases a token, held out")
    for axes in panels:
        axes.set_xlabel("Mbases trained on")
    figure.savefig(args.output_dir / "tokenizer_scale.png", dpi=110)


def encode(file: str, path: Path, length: int) -> tuple[float, float]:
    """Mbases a second, and for each second of a core, the best of three: pieces joined and cut to one length."""
    letters = "".join(first_pieces(path, ENCODED_BASES))
    sequences = [letters[start : start + length] for start in range(0, len(letters), length)]
    tokenizer, times = encoder_of_acgt(Tokenizer.from_file(file)), []
    for _ in range(3):
        start, cpu = time.perf_counter(), time.process_time()
        tokenizer.encode_batch_fast(sequences, add_special_tokens=False)
        times.append((time.perf_counter() - start, time.process_time() - cpu))
    return tuple(len(letters) / seconds / 1e6 for seconds in np.min(times, axis=0))


def print_encoding(args: argparse.Namespace) -> None:
    training, _ = write_samples(args)
    file = tokenizer_file(args.tokenizer)
    print("\n| Mbases/s | " + " | ".join(f"{length:,} bases" for length in LENGTHS) + " |")
    print(f"|---|{'--:|' * len(LENGTHS)}")
    for cores in args.cores:
        os.environ["RAYON_NUM_THREADS"] = str(cores)  # read by the process that begins to encode
        rates = np.array([in_process(encode, file, training, length) for length in LENGTHS]).T
        names = (f"{cores} thread(s)", "… for each second of a core")
        for name, row in zip(names, rates, strict=True):
            print(f"| {name} | {' | '.join(f'{rate:.2f}' for rate in row)} |")
    os.environ.pop("RAYON_NUM_THREADS", None)


def prepare(args: argparse.Namespace, processes: int, cache: Path) -> np.ndarray:
    """Seconds, and seconds of cores, of run_mlm.py --num_shards by so many processes, which share the cores."""
    environment = os.environ | {"RAYON_NUM_THREADS": str(max(args.cores) // processes), "OMP_NUM_THREADS": "1"}
    shards = max(processes, 2)  # one would go on to train
    command = [sys.executable, str(ROOT / "run_mlm.py"), "--train_file", *args.train_file, "--num_shards", str(shards)]
    command += ["--cache_dir", str(cache), "--output_dir", str(args.output_dir / "run")]
    start, before = time.perf_counter(), os.times()
    for first in range(0, shards, processes):
        indices = range(first, first + processes)
        commands = [[*command, "--shard_index", str(index)] for index in indices]
        # what they say is no part of the tables
        running = [subprocess.Popen(words, env=environment, stdout=sys.stderr) for words in commands]
        if any([process.wait() for process in running]):
            raise UsageError("run_mlm.py ended with an error: see above")
    after = os.times()
    cores = after.children_user + after.children_system - before.children_user - before.children_system
    return np.array([time.perf_counter() - start, cores])


def print_corpus(args: argparse.Namespace) -> None:
    print("\n| processes | Mbases | s | core s | of these to start | Mbases a core s | core hours for 32.5 Gbases |")
    print(f"|{'--:|' * 7}")
    for processes in sorted({1, max(args.cores)}):
        cache = args.output_dir / f"cache_{processes}"
        shutil.rmtree(cache, ignore_errors=True)  # of an earlier run
        seconds, cores = prepare(args, processes, cache)
        _, start = prepare(args, processes, cache)  # finds all of it prepared
        bases = sum(json.loads(file.read_text())["bases"] for file in cache.rglob("summary.json"))
        rate = bases / (cores - start)
        cells = [f"{bases / 1e6:.1f}", f"{seconds:.1f}", f"{cores:.1f}", f"{start:.1f}", f"{rate / 1e6:.2f}"]
        print(f"| {processes} | {' | '.join([*cells, f'{PAPER_BASES / rate / 3600:.2f}'])} |")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--train_file", nargs="+", required=True, help="files, folders or globs of sequences")
    parser.add_argument("--output_dir", type=Path, required=True, help="for samples, trained merges and shards")
    parser.add_argument("--parts", nargs="+", choices=PARTS, default=PARTS, help="default: all")
    parser.add_argument("--tokenizer", type=Path, default=ROOT / "bpe_tokenizer", help="to encode with, its folder")
    parser.add_argument("--max_bases", type=float, default=64e6, help="of the largest sample (default: 64e6)")
    parser.add_argument("--cores", nargs="+", type=int, default=[1, 2], help="default: 1 2")
    args = parser.parse_args()
    args.output_dir.mkdir(parents=True, exist_ok=True)
    for part, measure in zip(PARTS, (print_training, print_encoding, print_corpus), strict=True):
        if part in args.parts:
            measure(args)


if __name__ == "__main__":
    run_script(main)

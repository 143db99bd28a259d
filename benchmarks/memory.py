"""Memory of a command and all its processes while it runs: does it grow?

    python benchmarks/memory.py --output output/memory -- timeout 3600 python run_mlm.py --train_file genomes/ ...

Every ten seconds it adds up, over the command's process and all below it, what Linux calls PSS, in which memory that
several processes have is shared out among them: anonymous and shared memory, which is the processes' own doing, and
apart from that mapped files, as of libraries and corpora, which others may use too and the system can drop.

Leaves --output.csv and --output.png, and prints by how much both grow an hour: the median of the slopes between any
two samples (Theil and Sen), which the peaks of a checkpoint do not move. Results: memory.md.
"""

import argparse
import csv
import subprocess
import sys
import time
from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np
import psutil
from scipy.stats import theilslopes


MIB = 2**20
KINDS = {  # in a picture: as in smaps_rollup
    "anonymous and shared memory": ("Pss_Anon", "Pss_Shmem", "SwapPss"),
    "mapped files": ("Pss_File",),
}
COLUMNS = ["seconds", "processes", *KINDS]


def memory(root: psutil.Process) -> list[int]:
    """Number of processes, and of each of KINDS the sum in bytes; a process that ends meanwhile is left out."""
    number, sums = 0, dict.fromkeys(KINDS, 0)
    for process in [root, *root.children(recursive=True)]:
        try:
            lines = Path(f"/proc/{process.pid}/smaps_rollup").read_text().splitlines()[1:]
        except (FileNotFoundError, ProcessLookupError):
            continue
        number += 1
        values = {name: 1024 * int(value.split()[0]) for name, value in (line.split(":") for line in lines)}
        for kind, parts in KINDS.items():
            sums[kind] += sum(values[part] for part in parts)
    return [number, *sums.values()]


def sample(command: list[str], every: float, file: Path) -> int:
    """Runs the command and writes a line of the file every so many seconds. Returns the exit status."""
    with file.open("w", newline="") as out, subprocess.Popen(command) as running:
        writer = csv.writer(out)
        writer.writerow(COLUMNS)
        begun = time.monotonic()
        while True:
            try:
                return running.wait(every)
            except subprocess.TimeoutExpired:
                writer.writerow([round(time.monotonic() - begun, 1), *memory(psutil.Process(running.pid))])
                out.flush()


def report(file: Path, warm_up: float):
    """Prints growth after so many seconds of warm-up, and draws all."""
    samples = dict(zip(COLUMNS, np.loadtxt(file, delimiter=",", skiprows=1, ndmin=2).T, strict=True))
    is_warm = samples["seconds"] >= warm_up
    if is_warm.sum() < 2:
        sys.exit(f"error: {file} has {is_warm.sum()} sample(s) after {warm_up:g} s: not enough to see it grow")
    hours = samples["seconds"] / 3600
    figure, axes = plt.subplots(figsize=(7, 4), layout="constrained")
    for kind in KINDS:
        mib = samples[kind] / MIB
        slope, intercept, low, high = theilslopes(mib[is_warm], hours[is_warm])
        tenth = max(1, is_warm.sum() // 10)
        first, last = (np.median(part) for part in (mib[is_warm][:tenth], mib[is_warm][-tenth:]))
        print(
            f"{kind}: {slope:+.1f} MiB an hour (95 %: {low:+.1f} to {high:+.1f}, were samples independent); median of "
            f"the first tenth {first:.1f} MiB, of the last {last:.1f}, highest {mib.max():.1f} ({is_warm.sum()} "
            f"samples after {warm_up:g} s)"
        )
        (line,) = axes.plot(60 * hours, mib, linewidth=0.8, label=kind)
        ends = hours[is_warm][[0, -1]]
        label = f"{slope:+.1f} MiB an hour"
        axes.plot(60 * ends, intercept + slope * ends, color=line.get_color(), linestyle="--", label=label)
    axes.set(xlabel="minutes", ylabel="memory (MiB)")
    axes.set_ylim(0)
    axes.legend(frameon=False, loc="center right")
    figure.savefig(file.with_suffix(".png"), dpi=120)


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("command", nargs="+", help="what to run, after --")
    parser.add_argument("--output", type=Path, required=True, help="path without an ending")
    parser.add_argument("--every", type=float, default=10, help="seconds from sample to sample (default: 10)")
    parser.add_argument("--warm_up", type=float, default=600, help="seconds that do not count (default: 600)")
    args = parser.parse_args()
    file = args.output.with_suffix(".csv")
    status = sample(args.command, args.every, file)
    print(f"exit status {status}")
    report(file, args.warm_up)
    sys.exit(status)


if __name__ == "__main__":
    main()

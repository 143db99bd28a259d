"""benchmarks/memory.py sees what a command's processes take, and whether it grows.

pytest tests/test_memory.py
"""

import csv
import sys

import memory
import pytest


GROWS = """
import time
kept = []
for _ in range(40):
    kept.append(bytearray(b"1") * 2**21)
    time.sleep(0.03)
raise SystemExit(3)
"""


def test_memory_of_a_process_below_the_command_is_seen_to_grow(tmp_path, capsys):
    file = tmp_path / "grows.csv"
    assert memory.sample(["sh", "-c", f"{sys.executable} -c '{GROWS}'; exit $?"], 0.1, file) == 3
    with file.open() as lines:
        samples = [{name: float(value) for name, value in line.items()} for line in csv.DictReader(lines)]
    samples.pop()  # the process may be ending in it
    assert samples[-1]["processes"] == 2
    sizes = [sample["anonymous and shared memory"] for sample in samples]
    assert sizes[-1] == max(sizes) > min(sizes) + 10 * 2**20
    memory.report(file, warm_up=0.2)
    of_memory, of_files = (float(line.split(": ")[1].split()[0]) for line in capsys.readouterr().out.splitlines())
    assert of_memory > 5000 and of_memory > 10 * abs(of_files)  # MiB an hour: 2 in 30 ms are 240,000
    assert file.with_suffix(".png").stat().st_size > 10_000


def test_too_few_samples_are_told(tmp_path):
    assert memory.sample(["sleep", "0.3"], 0.1, tmp_path / "short.csv") == 0
    with pytest.raises(SystemExit, match="not enough to see it grow"):
        memory.report(tmp_path / "short.csv", warm_up=60)


def test_ends_as_the_command_does(tmp_path, monkeypatch):
    options = ["--output", str(tmp_path / "fails"), "--every", "0.1", "--warm_up", "0"]
    monkeypatch.setattr(sys, "argv", ["memory.py", *options, "--", "sh", "-c", "sleep 1; exit 3"])
    with pytest.raises(SystemExit) as ended:
        memory.main()
    assert ended.value.code == 3

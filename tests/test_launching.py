"""Scripts that a benchmark starts: what a signal does to them.

pytest tests/test_launching.py
"""

import signal
import subprocess
import sys
import time
from pathlib import Path

import launching
import pytest


BENCHMARKS = Path(launching.__file__).parent
CHILD = """
import signal, sys, time
def save(*_):
    time.sleep(0.5)
    open(sys.argv[1], "w").write("saved")
    sys.exit(143)
signal.signal(signal.SIGTERM, save)
print("running", flush=True)
time.sleep(60)
"""
LAUNCHER = "import subprocess, sys; subprocess.run([sys.executable, '-c', *sys.argv[1:]])"
STUDY = """
import sys
from pathlib import Path
import launching
launching.end_by_signals()
launching.run_to_end([sys.executable, "-c", *sys.argv[2:]], Path(sys.argv[1]))
"""


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_reaches_what_is_launched_and_its_end_is_waited_for(tmp_path, number):
    log, saved = tmp_path / "log", tmp_path / "saved"
    words = [sys.executable, "-c", STUDY, str(log), LAUNCHER, CHILD, str(saved)]
    with subprocess.Popen(words, cwd=BENCHMARKS) as process:
        while not (log.exists() and "running" in log.read_text()):
            assert process.poll() is None
            time.sleep(0.1)
        process.send_signal(number)
        process.send_signal(signal.SIGTERM)  # who is in a hurry, or a cluster
        assert process.wait(timeout=30) in (128 + number, 128 + signal.SIGTERM)  # either can be the first
    assert saved.read_text() == "saved"

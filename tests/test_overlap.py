"""Rows of GUE's tests in genomes: whole or in part, on either strand.

pytest tests/test_overlap.py
"""

import overlap
import pytest
from gue_runs import random_bases, run_main_here, write_task

from dnabert2.windows import reverse_complement


@pytest.mark.parametrize("chunk", [50, 1000])
def test_rows_are_found_whole_and_in_part_on_either_strand(monkeypatch, chunk):
    monkeypatch.setattr(overlap, "CHUNK", chunk)
    monkeypatch.setattr(overlap, "TABLE_BITS", 8)
    genome, other, *new = random_bases(5, 400, seed=7)
    rows = {
        "whole": genome[20:120],
        "whole, other strand": reverse_complement(genome[150:250]),
        "64 bases": new[0][:30] + genome[100:164] + new[0][30:60],
        "64 bases, other strand": new[1][:30] + reverse_complement(other[:64]),
        "63 bases": new[2][:20] + genome[200:263] + new[2][20:40],
        "N in the middle": genome[250:300] + "N" + genome[301:340],
        "two pieces": genome[300:360] + other[300:360],  # with 64 bases in no place
        "over the end": genome[340:] + other[:40],
        "ends whole, begins not": genome[20:110] + new[0][:10],
    }
    search = overlap.Search(rows.values())
    search.scan("fungi/a", f"{genome}N{other}")
    assert {name for name, row in rows.items() if row in search.whole} == {"whole", "whole, other strand"}
    shared = {name for name, row in rows.items() if search.shares(row)}
    assert shared == {"whole", "whole, other strand", "64 bases", "64 bases, other strand", "ends whole, begins not"}


def test_overlaps_are_counted_by_dataset_and_genome(tmp_path, monkeypatch, capsys):
    genome, *new = random_bases(5, 300, seed=8)
    write_task(tmp_path / "GUE/mouse/3")
    rows = [
        genome[:101],
        genome[:101],
        reverse_complement(genome[100:201]),
        genome[60:130] + new[0][:31],
        new[1][:101],
    ]
    lines = ["sequence,label", *(f"{row},{number % 2}" for number, row in enumerate(rows))]
    (tmp_path / "GUE/mouse/3/test.csv").write_text("\n".join(lines) + "\n")
    (tmp_path / "genomes/fungi").mkdir(parents=True)
    (tmp_path / "genomes/fungi/a.fa").write_text(f">1\n{new[2]}\n>2\n{genome.lower()}\n")
    monkeypatch.setattr(overlap, "TABLE_BITS", 16)
    run_main_here(monkeypatch, overlap.main, "--data_dir", tmp_path / "GUE", "--train_file", tmp_path / "genomes")
    text = capsys.readouterr().out
    assert "| mouse/3 | 5 | 3 (60.0%) | 4 (80.0%) |" in text and "| fungi/a | 3 |" in text

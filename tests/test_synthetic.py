"""The synthetic corpus: the same from the same seed, and with the composition, repeats and motifs it promises.

pytest tests/test_synthetic.py
"""

from collections import Counter

import numpy as np
import pytest

from dnabert2 import synthetic
from dnabert2.sequences import read_records


BASES = 60_000


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("synthetic")
    synthetic.write_corpus(folder, BASES, seed=42)
    return folder


@pytest.fixture(scope="module")
def genomes(folder):
    return {path.stem: next(read_records(path)).sequence for path in folder.iterdir()}


def kmers(sequence, k):
    return Counter(sequence[start : start + k] for start in range(len(sequence) - k + 1))


def test_the_same_seed_gives_the_same_bytes_and_another_seed_others(folder, tmp_path):
    paths = synthetic.write_corpus(tmp_path / "again", BASES, seed=42)
    assert [path.read_bytes() for path in paths] == [(folder / path.name).read_bytes() for path in paths]
    others = synthetic.write_corpus(tmp_path / "other", BASES, seed=43)
    assert all(path.read_bytes() != (folder / path.name).read_bytes() for path in others)


def test_a_species_is_a_fasta_file_of_one_record_of_acgt(folder, genomes):
    assert set(genomes) == set(synthetic.GC_CONTENT)
    for species, genome in genomes.items():
        assert set(genome) == set("ACGT")
        assert BASES <= len(genome) < BASES + 1000
        header, *lines = (folder / f"{species}.fa").read_text().splitlines()
        assert header.startswith(f">{species} ") and max(map(len, lines)) == 80
        assert len(list(read_records(folder / f"{species}.fa"))) == 1


def test_gc_content_is_close_to_the_species(genomes):
    for species, expected in synthetic.GC_CONTENT.items():
        gc = sum(base in "GC" for base in genomes[species]) / len(genomes[species])
        assert gc == pytest.approx(expected, abs=0.04)


def test_repeats_fill_about_as_much_of_a_genome_as_they_should(genomes):
    for genome in genomes.values():
        counts = kmers(genome, 16)  # by chance one in 4^16 / 60,000 occurs twice
        repeated = sum(count for count in counts.values() if count > 2) / len(genome)
        assert 0.3 < repeated < 0.8
    shuffled = "".join(np.random.default_rng(0).permutation(list(genomes["alpha"])))
    assert max(kmers(shuffled, 16).values()) <= 2


def test_species_have_repeats_of_their_own_and_motifs_in_common(genomes):
    common = {
        species: {kmer for kmer, count in kmers(genome, 20).items() if count > 2}
        for species, genome in genomes.items()
    }
    in_all = set.intersection(*common.values())
    assert 4 <= len(in_all) < 20  # four motifs, on both strands, each of one 20-mer
    assert all(len(kmers_of_species - in_all) > 500 for kmers_of_species in common.values())


def test_diverged_copies_differ_in_about_two_percent():
    rng = np.random.default_rng(0)
    repeat = rng.integers(4, size=100_000)
    differing = (synthetic.diverged(rng, repeat) != repeat).mean()
    assert differing == pytest.approx(synthetic.REPEAT_DIVERGENCE * 3 / 4, rel=0.1)  # a quarter of mutations is none


def test_genes_begin_with_motif_and_atg_end_with_a_stop_and_have_none_inside():
    rng = np.random.default_rng(0)
    motif, usage = np.array([0, 1, 2, 3, 0, 1]), np.full(64, 1.0)
    usage[synthetic.STOP_CODONS] = 0
    strands = Counter()
    for _ in range(50):
        gene = synthetic.draw_gene(rng, usage / usage.sum(), motif)
        if not (gene[:6] == motif).all():
            gene, strands["reverse"] = synthetic.COMPLEMENT[gene[::-1]], strands["reverse"] + 1
        text = "".join(synthetic.BASES[gene])
        codons = [text[start : start + 3] for start in range(6, len(text), 3)]
        assert text.startswith("ACGTAC") and codons[0] == "ATG" and codons[-1] in ("TAA", "TAG", "TGA")
        assert not {"TAA", "TAG", "TGA"} & set(codons[:-1])
    assert 10 < strands["reverse"] < 40

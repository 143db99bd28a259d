"""Labelled sequences are read as they stand, for every kind of label, and what cannot be used is refused by name.

pytest tests/test_labelled.py
"""

import random

import datasets
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from dnabert2.errors import UsageError
from dnabert2.labelled import MULTI_LABEL, REGRESSION, load_dataset_task, load_task, read_unlabelled, strand_key


TWO = "sequence,label\nACGT,0\nCCGT,1\n"


@pytest.fixture
def folder(tmp_path):
    """A function that writes a task's folder: content by name without ending, which is .csv, or by name."""

    def write(**contents):
        for name, content in contents.items():
            (tmp_path / (name.replace("_", ".") if "_" in name else f"{name}.csv")).write_text(content)
        return tmp_path

    return write


def test_rows_keep_their_order_and_letters_are_folded(folder):
    data = load_task(folder(train="sequence,label\nacgu,1\nNNRY,0\nNA,1\n", dev=TWO, test=TWO), name="mine")
    train = data.splits["train"]
    assert (train.sequences, train.labels.tolist(), train.ids) == (["ACGT", "NNRY", "NA"], [1, 0, 1], ["1", "2", "3"])
    assert (data.name, data.label_names, data.train_is_from_dev, train.pairs) == ("mine", ["0", "1"], False, None)
    assert train.labels.dtype == np.int64


def test_integer_labels_are_sorted_as_numbers_and_words_as_text(folder):
    numbers = "sequence,label\n" + "".join(f"ACGT,{label}\n" for label in (10, 9, 2))
    data = load_task(folder(train=numbers, dev=numbers, test=numbers))
    assert (data.label_names, data.splits["dev"].labels.tolist()) == (["2", "9", "10"], [2, 1, 0])
    words = "label,sequence\ntata,ACGT\nnone,CCGT\n"
    data = load_task(folder(train=words, dev=words, test=words))
    assert (data.label_names, data.splits["test"].labels.tolist()) == (["none", "tata"], [1, 0])


def test_pairs_are_read_from_two_columns(folder):
    pairs = "sequence1,sequence2,label\nACGT,TTT,0\nCCGT,GGG,1\n"
    split = load_task(folder(train=pairs, dev=pairs, test=pairs)).splits["train"]
    assert (split.sequences, split.pairs) == (["ACGT", "CCGT"], ["TTT", "GGG"])
    assert split.reverse_complement().pairs == ["AAA", "CCC"]
    assert split.take(np.array([1])).pairs == ["GGG"]


def test_several_labels_are_separated_by_semicolons_or_have_columns(folder):
    text = "sequence,label\nACGT,liver; brain\nCCGT,\nGGGG,brain\n"
    data = load_task(folder(train=text, dev=text, test=text), MULTI_LABEL)
    assert data.label_names == ["brain", "liver"]
    assert data.splits["train"].labels.tolist() == [[1, 1], [0, 0], [1, 0]]
    columns = "id,liver,sequence,brain\na,1,ACGT,1\nb,0,CCGT,0\nc,0,GGGG,1\n"
    data = load_task(folder(train=columns, dev=columns, test=columns), MULTI_LABEL)
    assert (data.label_names, data.splits["train"].ids) == (["liver", "brain"], ["a", "b", "c"])
    assert data.splits["train"].labels.tolist() == [[1, 1], [0, 0], [0, 1]]


def test_columns_of_labels_that_differ_between_splits_are_refused(folder):
    columns = "sequence,liver,brain\nACGT,1,1\nCCGT,0,1\n"
    with pytest.raises(UsageError, match=r"dev\.csv and .*train\.csv have other columns .* 'brain', 'heart'"):
        load_task(folder(train=columns, dev=columns.replace("brain", "heart"), test=columns), MULTI_LABEL)


def test_a_regression_has_numbers_for_labels(folder):
    text = "sequence,label\nACGT,-1.5\nCCGT,2\nGGGG,1e-3\n"
    data = load_task(folder(train=text, dev=text, test=text), REGRESSION)
    assert data.splits["train"].labels == pytest.approx([-1.5, 2, 1e-3])
    assert (data.label_names, data.splits["train"].labels.dtype) == (["label"], np.float32)


def test_fasta_is_labelled_by_the_table_beside_it_in_the_order_of_the_table(folder):
    task = folder(train="id,label\nb,1\na,0\n", train_fa=">a one\nAC\nGT\n>b\nCCC\n", dev=TWO, test=TWO)
    assert load_task(task).splits["train"].sequences == ["CCC", "ACGT"]
    (task / "train.csv").write_text("id,label\nb,1\nc,0\n")
    with pytest.raises(UsageError, match=r"train.csv: record 2: no FASTA record is named 'c'"):
        load_task(task)
    (task / "train.csv").write_text("id,label\nb,1\n")
    with pytest.raises(UsageError, match="1 records of the FASTA file beside it have no row, as 'a'"):
        load_task(task)


def test_parquet_and_compressed_tables_are_read_too(folder):
    task = folder(dev=TWO)
    pq.write_table(pa.table({"sequence": ["ACGT", "CCC"], "label": [0, 1]}), task / "train.parquet")
    (task / "test.tsv").write_text(TWO.replace(",", "\t"))
    assert load_task(task).splits["train"].labels.tolist() == [0, 1]


@pytest.mark.parametrize(
    ("train", "problem_type", "message"),
    [
        ("sequence,label\nACGT,0\nACXT,1\n", None, r"train.csv: record 2 \(2\), position 3: 'X' is not a nucleotide"),
        ("sequence,label\nACGT,0\n,1\n", None, r"train.csv: record 2: column 'sequence' is empty; fill it in"),
        ("sequence,label\nACGT,0\nACGT,\n", None, r"train.csv: record 2: no label"),
        ("sequence,label\nACGT,0\nACGT,0.5\n", None, r"record 2: the label '0.5' .* --problem_type regression"),
        ("sequence,label\nACGT,1\nCCGT,1\n", None, r"all rows have the label '1'"),
        ("sequence,class\nACGT,1\n", None, r"no columns are named 'label', of 2: 'sequence', 'class'"),
        ("sequence,label,label\nACGT,1,1\n", None, r"2 columns are named 'label'"),
        ("dna,label\nACGT,1\n", None, r"no columns are named 'sequence'"),
        ("id,label\na,1\n", None, r"no FASTA file train.fa beside it"),
        ("sequence,label\n", None, r"no records"),
        ("sequence,label\nACGT,high\nACGT,1\n", REGRESSION, r"record 1: the label 'high' is not a number"),
        ("sequence,label\nACGT,nan\nACGT,1\n", REGRESSION, r"record 1: the label 'nan' is not a number"),
        ("sequence,label\nACGT,1\nACGT,1\n", REGRESSION, r"nothing to learn"),
        ("sequence,liver\nACGT,2\n", MULTI_LABEL, r"record 1: column 'liver' holds '2', not 0 or 1"),
        ("sequence,label\nACGT,\n", MULTI_LABEL, r"no row has a label"),
    ],
)
def test_what_cannot_be_used_is_refused_with_file_and_record(folder, train, problem_type, message):
    task = folder(train=train, dev=TWO, test=TWO)
    with pytest.raises(UsageError, match=message):
        load_task(task, *([problem_type] if problem_type else []))


def test_a_label_that_train_has_not_is_refused(folder):
    task = folder(train=TWO, dev=TWO, test=TWO + "GGGG,2\n")
    with pytest.raises(UsageError, match=r"test.csv: record 3: train has no label '2', only 0, 1"):
        load_task(task)


def test_missing_and_ambiguous_files_are_refused(folder, tmp_path):
    with pytest.raises(UsageError, match="no such folder"):
        load_task(tmp_path / "nowhere")
    task = folder(train=TWO, test=TWO)
    with pytest.raises(UsageError, match=r"no dev.csv"):
        load_task(task)
    folder(dev=TWO, dev_tsv=TWO)
    with pytest.raises(UsageError, match=r"dev.csv and dev.tsv are both there"):
        load_task(task)


def random_rows(count, classes=2, seed=0):
    draw = random.Random(seed)
    return [("".join(draw.choices("ACGT", k=30)), index % classes) for index in range(count)]


def csv_of(rows):
    return "sequence,label\n" + "".join(f"{sequence},{label}\n" for sequence, label in rows)


def test_without_train_dev_is_cut_and_the_result_says_so(folder):
    rows = random_rows(300, classes=3)
    rows += rows[:30]  # duplicates, which must not come to stand on both sides
    task = folder(dev=csv_of(rows), test=TWO, train_partial=csv_of(rows))
    (task / "train_partial.csv").write_text(csv_of(rows))
    data = load_task(task)
    train, dev = data.splits["train"], data.splits["dev"]
    assert data.train_is_from_dev
    assert len(train) + len(dev) == len(rows)
    assert 20 <= len(dev) <= 45
    assert set(np.bincount(dev.labels)) <= set(range(9, 15))
    assert not {*map(strand_key, train.sequences)} & {*map(strand_key, dev.sequences)}
    assert [int(number) for number in dev.ids] == sorted(int(number) for number in dev.ids)
    again = load_task(task).splits["dev"]
    other = load_task(task, seed=1).splits["dev"]
    assert again.ids == dev.ids != other.ids


def test_a_dataset_of_the_hub_is_read_by_its_columns(tmp_path):
    features = datasets.Features(
        {"sequence": datasets.Value("string"), "label": datasets.ClassLabel(names=["b", "a"])}
    )
    for split in ("train", "validation", "test"):
        table = datasets.Dataset.from_dict({"sequence": ["ACGT", "GGG"], "label": [0, 1]}, features=features)
        (tmp_path / "data").mkdir(exist_ok=True)
        table.to_parquet(tmp_path / "data" / f"{split}-00000-of-00001.parquet")
    data = load_dataset_task(str(tmp_path))
    assert (data.label_names, data.splits["dev"].labels.tolist()) == (["a", "b"], [1, 0])
    with pytest.raises(UsageError, match="--dataset_name nobody/nothing"):
        load_dataset_task("nobody/nothing")


def test_what_is_to_be_predicted_needs_no_labels(folder):
    task = folder(a="sequence\nACGT\nCC\n", b_fa=">x\nACGT\n>y\nGG\n", c="sequence1,sequence2,label\nA,C,0\n")
    split = read_unlabelled(task / "a.csv")
    assert (split.sequences, split.labels) == (["ACGT", "CC"], None)
    assert read_unlabelled(task / "b.fa").ids == ["x", "y"]
    assert read_unlabelled(task / "c.csv").pairs == ["C"]

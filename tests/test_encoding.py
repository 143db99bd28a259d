"""Sequences become tokens whole, by any tokenizer; what is cut is counted, and a tokenizer of other text is refused.

pytest tests/test_encoding.py
"""

import itertools

import numpy as np
import pytest
from conftest import ROOT
from tokenizers import Tokenizer, models, pre_tokenizers, processors
from transformers import AutoTokenizer, BertConfig, BertModel, EsmConfig, EsmModel, PreTrainedTokenizerFast

from dnabert2.encoding import encode, kmers, position_limit
from dnabert2.errors import UsageError
from dnabert2.labelled import SINGLE_LABEL, Split, TaskData
from dnabert2.windows import reverse_complement


@pytest.fixture(scope="module")
def tokenizer():
    return AutoTokenizer.from_pretrained(ROOT / "bpe_tokenizer")


@pytest.fixture(scope="module")
def kmer_tokenizer():
    """As DNABERT's: words are 3-mers."""
    words = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", *map("".join, itertools.product("ACGT", repeat=3))]
    vocabulary = {word: index for index, word in enumerate(words)}
    words = Tokenizer(models.WordLevel(vocabulary, unk_token="[UNK]"))
    words.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    words.post_processor = processors.BertProcessing(("[SEP]", 3), ("[CLS]", 2))
    special = {"pad_token": "[PAD]", "unk_token": "[UNK]", "cls_token": "[CLS]", "sep_token": "[SEP]"}
    return PreTrainedTokenizerFast(tokenizer_object=words, model_max_length=12, **special)


def split_of(*sequences, pairs=None):
    return Split(
        "here", [str(n) for n in range(1, 1 + len(sequences))], [*sequences], pairs, np.arange(len(sequences))
    )


def task_of(*sequences, pairs=None):
    split = split_of(*sequences, pairs=pairs)
    return TaskData("mine", SINGLE_LABEL, ["0", "1"], {"train": split, "dev": split, "test": split})


def test_every_row_is_what_the_tokenizer_makes_of_it(tokenizer):
    sequences = ["ACGTTGCAAGGT" * 5, "ACGT", "NNNN"]
    encoded = encode(task_of(*sequences), tokenizer)
    rows = encoded.splits["train"]
    assert [ids.tolist() for ids in rows.input_ids] == [tokenizer(text)["input_ids"] for text in sequences]
    assert (rows.truncated, rows.unknown, rows.labels.tolist(), rows.input_ids[0].dtype) == (0, 0, [0, 1, 2], np.int32)
    longest = max(map(len, rows.input_ids))
    assert longest <= encoded.max_seq_length < longest + 8
    assert encoded.max_seq_length % 8 == 0
    assert encoded.reverse_complements == {}


def test_a_cap_cuts_rows_keeps_special_tokens_and_counts(tokenizer):
    encoded = encode(task_of("ACGTTGCAAGGT" * 5, "ACGT"), tokenizer, max_seq_length=8)
    rows = encoded.splits["test"]
    assert (encoded.max_seq_length, rows.truncated, len(rows.input_ids[0])) == (8, 1, 8)
    assert [rows.input_ids[0][0], rows.input_ids[0][-1]] == [tokenizer.cls_token_id, tokenizer.sep_token_id]


def test_pairs_have_token_types(tokenizer):
    encoded = encode(task_of("ACGT", "GGGG", pairs=["TTT", "AACCT" * 9]), tokenizer, max_seq_length=9).splits["dev"]
    expected = tokenizer("ACGT", "TTT")
    assert encoded.input_ids[0].tolist() == expected["input_ids"]
    assert encoded.token_type_ids[0].tolist() == expected["token_type_ids"]
    assert [len(types) for types in encoded.token_type_ids] == [len(ids) for ids in encoded.input_ids]
    assert set(encoded.token_type_ids[1].tolist()) == {0, 1}


def test_the_other_strand_is_encoded_on_demand_and_counts_for_the_cap(tokenizer):
    sequences = ["ACGTTGCAAGGTN", "GGGGGGGGGG"]
    encoded = encode(task_of(*sequences), tokenizer, reverse_complement=True)
    other = encoded.reverse_complements["train"].input_ids
    assert [ids.tolist() for ids in other] == [tokenizer(reverse_complement(s))["input_ids"] for s in sequences]
    assert max(map(len, other)) <= encoded.max_seq_length


def test_the_reverse_complement_knows_the_letters_of_iupac():
    assert reverse_complement("AACGTRYKMBVDHSWN") == "NWSDHBVKMRYACGTT"


def test_kmers_overlap():
    assert kmers("ACGTACG", 6) == "ACGTAC CGTACG"
    assert kmers("ACG", 3) == "ACG"


def test_a_kmer_tokenizer_reads_kmers_up_to_its_own_limit(kmer_tokenizer):
    encoded = encode(task_of("ACGTACG", "ACGT" * 5), kmer_tokenizer, kmer=3)
    rows = encoded.splits["train"]
    expected = ["[CLS]", "ACG", "CGT", "GTA", "TAC", "ACG", "[SEP]"]
    assert kmer_tokenizer.convert_ids_to_tokens(rows.input_ids[0]) == expected
    assert (encoded.max_seq_length, rows.truncated, len(rows.input_ids[1])) == (12, 1, 12)


def test_what_cannot_be_encoded_is_refused(tokenizer, kmer_tokenizer):
    with pytest.raises(UsageError, match=r"here: 100% of the tokens are \[UNK\].*--kmer"):
        encode(task_of("ACGTACG"), kmer_tokenizer)
    with pytest.raises(UsageError, match="here: record 2 has 2 bases: not one 3-mer"):
        encode(task_of("ACGTACG", "AC"), kmer_tokenizer, kmer=3)
    with pytest.raises(UsageError, match="--max_seq_length 13: the model takes no more than 12"):
        encode(task_of("ACGTACG"), kmer_tokenizer, max_seq_length=13, kmer=3)
    with pytest.raises(UsageError, match="--max_seq_length 2"):
        encode(task_of("ACGTACG"), tokenizer, max_seq_length=2)


def test_the_cap_is_no_more_than_the_model_has_positions_for(tokenizer):
    encoded = encode(task_of("ACGTTGCAAGGT" * 9), tokenizer, max_positions=10)
    assert (encoded.max_seq_length, encoded.splits["train"].truncated) == (10, 1)
    assert len(encoded.splits["train"].input_ids[0]) == 10


def test_position_embeddings_limit_a_model_and_rotary_ones_do_not():
    sizes = {
        "hidden_size": 8,
        "num_hidden_layers": 1,
        "num_attention_heads": 2,
        "intermediate_size": 8,
        "vocab_size": 9,
    }
    assert position_limit(BertModel(BertConfig(max_position_embeddings=40, **sizes))) == 40
    esm = {"max_position_embeddings": 40, "pad_token_id": 1, **sizes}
    assert position_limit(EsmModel(EsmConfig(position_embedding_type="absolute", **esm))) == 38
    assert position_limit(EsmModel(EsmConfig(position_embedding_type="rotary", **esm))) is None

"""k-mer tokenizers: what they cut, and that the scripts' ways of using them give the same tokens.

pytest tests/test_kmers.py
"""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import AutoTokenizer

from dnabert2 import kmers
from dnabert2.encoding import kmers as split_kmers
from dnabert2.errors import UsageError
from dnabert2.kmers import build_kmer_tokenizer


TOKENIZERS = {(k, overlapping): build_kmer_tokenizer(k, overlapping) for k in (3, 6) for overlapping in (False, True)}


def tokens(text: str, k: int, overlapping: bool) -> list[str]:
    return TOKENIZERS[k, overlapping].encode(text, add_special_tokens=False).tokens


@settings(max_examples=50)
@given(st.text("ACGT", max_size=100), st.sampled_from([3, 6]))
def test_overlapping_tokens_are_the_kmers_of_a_sequence(sequence, k):
    expected = [sequence[start : start + k] for start in range(len(sequence) - k + 1)]
    assert tokens(sequence, k, True) == expected


@settings(max_examples=50)
@given(st.text("ACGTNacgtu", max_size=100), st.sampled_from([3, 6]))
def test_words_as_kmer_of_run_gue_cuts_them_give_the_same_tokens(sequence, k):
    assert tokens(sequence, k, True) == tokens(split_kmers(sequence, k), k, True)


def test_an_overlapping_kmer_with_another_letter_is_unknown():
    assert tokens("ACGNTTT", 3, True) == ["ACG", "[UNK]", "[UNK]", "[UNK]", "TTT"]
    assert tokens("ACG6TTT", 3, True) == ["ACG", "[UNK]", "[UNK]", "[UNK]", "TTT"]


def test_white_space_separates_overlapping_kmers():
    assert tokens("ACGT\nTTTT", 3, True) == ["ACG", "CGT", "TTT", "TTT"]
    assert tokens("AC GT", 3, True) == []


@settings(max_examples=50)
@given(st.text("ACGT", max_size=100), st.sampled_from([3, 6]))
def test_without_overlap_the_rest_at_the_end_is_single_bases(sequence, k):
    whole = len(sequence) // k * k
    expected = [sequence[start : start + k] for start in range(0, whole, k)] + list(sequence[whole:])
    assert tokens(sequence, k, False) == expected


def test_without_overlap_an_n_stands_alone_and_what_is_left_before_it_too():
    assert tokens("ACGTNacguA", 3, False) == ["ACG", "T", "N", "ACG", "T", "A"]
    assert tokens("AC\nG-R", 3, False) == ["ACG", "[UNK]", "N"]


@pytest.mark.parametrize("overlapping", [False, True])
def test_the_mask_is_a_token_between_kmers(overlapping):
    assert tokens("ACG[MASK]TTT", 3, overlapping) == ["ACG", "[MASK]", "TTT"]


def test_vocabularies_have_all_kmers_and_the_special_tokens():
    assert TOKENIZERS[6, True].get_vocab_size() == 5 + 4**6  # DNABERT's 4,101
    assert TOKENIZERS[6, False].get_vocab_size() == 10 + 4**6


@pytest.mark.parametrize("overlapping", [False, True])
def test_the_script_writes_a_folder_that_auto_tokenizer_loads(tmp_path, monkeypatch, capsys, overlapping):
    monkeypatch.setattr("sys.argv", ["kmers", "3", str(tmp_path), *["--overlapping"] * overlapping])
    kmers.main()
    assert ("69" if overlapping else "74") in capsys.readouterr().out
    tokenizer = AutoTokenizer.from_pretrained(tmp_path)
    expected = ["[CLS]", "ACG", *(["CGT"] if overlapping else ["T"]), "[SEP]"]
    assert tokenizer.convert_ids_to_tokens(tokenizer("acgt")["input_ids"]) == expected
    assert tokenizer("ACGT", "TTT")["token_type_ids"] == [0, 0, 0, 0, 1, 1]
    ids = tokenizer("ACGTAC")["input_ids"]
    assert tokenizer(tokenizer.decode(ids, skip_special_tokens=True))["input_ids"] == ids


def test_a_length_that_is_not_supported_is_refused():
    with pytest.raises(UsageError, match="k is 8"):
        build_kmer_tokenizer(8, True)


def test_another_tokenizer_is_not_overwritten(tmp_path, monkeypatch):
    monkeypatch.setattr("sys.argv", ["kmers", "3", str(tmp_path)])
    for _ in range(2):  # the same is
        kmers.main()
    monkeypatch.setattr("sys.argv", ["kmers", "4", str(tmp_path)])
    with pytest.raises(UsageError, match="is another tokenizer: name another folder"):
        kmers.main()
    assert AutoTokenizer.from_pretrained(tmp_path).tokenize("ACGACG") == ["ACG", "ACG"]

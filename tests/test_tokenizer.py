"""The built vocabulary: contract by contract what it does with each kind of input; and the released one as it is.

pytest tests/test_tokenizer.py
"""

import json
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tokenizers import Tokenizer
from transformers import AutoTokenizer, PreTrainedTokenizerFast

from dnabert2.kmers import build_kmer_tokenizer
from dnabert2.sequences import AMBIGUOUS
from dnabert2.tokenization import encoder_of_acgt, tokenizer_config


ROOT = Path(__file__).resolve().parent.parent
FILES = ("tokenizer.json", "tokenizer_config.json")
TOKENIZER = AutoTokenizer.from_pretrained(ROOT / "bpe_tokenizer")  # a constant, for hypothesis wants no fixture
ACGT_ENCODER = encoder_of_acgt(TOKENIZER.backend_tokenizer)
UNK, CLS, SEP, PAD, MASK, A, C, G, T, N = range(10)


def ids(text: str) -> list[int]:
    return TOKENIZER(text, add_special_tokens=False)["input_ids"]


def bases(text: str) -> str:
    """The text after encoding and decoding."""
    return TOKENIZER.decode(TOKENIZER(text)["input_ids"], skip_special_tokens=True)


def test_the_copies_at_the_root_equal_the_built_files():
    for name in FILES:
        assert (ROOT / name).read_bytes() == (ROOT / "bpe_tokenizer" / name).read_bytes()


def test_the_configuration_is_the_one_the_script_writes():
    written = json.loads((ROOT / "bpe_tokenizer" / "tokenizer_config.json").read_text())
    assert written == tokenizer_config()


def test_special_tokens_and_single_letters_have_the_first_ids():
    assert TOKENIZER.convert_ids_to_tokens(range(10)) == ["[UNK]", "[CLS]", "[SEP]", "[PAD]", "[MASK]", *"ACGTN"]
    special = (TOKENIZER.unk_token_id, TOKENIZER.cls_token_id, TOKENIZER.sep_token_id, TOKENIZER.pad_token_id)
    assert (*special, TOKENIZER.mask_token_id) == (UNK, CLS, SEP, PAD, MASK)
    assert set(TOKENIZER.all_special_ids) == set(range(5))


def test_it_is_a_fast_tokenizer_of_4096_tokens_without_a_length_limit():
    assert isinstance(TOKENIZER, PreTrainedTokenizerFast) and TOKENIZER.is_fast
    assert sorted(TOKENIZER.get_vocab().values()) == list(range(4096)) and len(TOKENIZER) == 4096
    assert TOKENIZER.model_max_length > 10**20 and TOKENIZER.padding_side == "right"
    assert TOKENIZER.model_input_names == ["input_ids", "token_type_ids", "attention_mask"]


def test_only_a_c_g_and_t_merge():
    merged = [token for token, index in TOKENIZER.get_vocab().items() if index > N]
    assert all(set(token) <= set("ACGT") and len(token) > 1 for token in merged)


def test_one_sequence_is_cls_tokens_sep_of_type_0():
    encoded = TOKENIZER("ACGTTGCA")
    assert encoded["input_ids"] == [CLS, *ids("ACGTTGCA"), SEP]
    assert set(encoded["token_type_ids"]) == {0} and set(encoded["attention_mask"]) == {1}


def test_a_pair_has_type_1_on_the_second_sequence_and_its_sep():
    first, second = ids("ACGTTGCA"), ids("GGGTACCAT")
    encoded = TOKENIZER("ACGTTGCA", "GGGTACCAT")
    assert encoded["input_ids"] == [CLS, *first, SEP, *second, SEP]
    assert encoded["token_type_ids"] == [0] * (len(first) + 2) + [1] * (len(second) + 1)


def test_empty_input_and_white_space_alone_are_cls_sep():
    for text in ("", " ", "\n\t \r\n"):
        assert TOKENIZER(text)["input_ids"] == [CLS, SEP]
    assert TOKENIZER([""])["input_ids"] == [[CLS, SEP]]


def test_n_is_one_token_a_letter_and_breaks_tokens():
    assert ids("N") == [N] and ids("nnNN") == [N] * 4
    assert ids("ACGTNACGT") == [*ids("ACGT"), N, *ids("ACGT")]


@pytest.mark.parametrize("letter", AMBIGUOUS + AMBIGUOUS.lower())
def test_other_iupac_letters_become_n(letter):
    assert ids(letter) == [N] and bases(f"ACG{letter}TTA") == "ACGNTTA"


def test_any_other_character_is_one_unk_each():
    for character in "EFIJLOPQXZefijlopqxz*-.?0é中":
        assert ids(character) == [UNK] and ids(character * 3) == [UNK] * 3
    assert ids("A--C") == [A, UNK, UNK, C]


def test_the_mask_token_survives_among_bases_with_and_without_spaces():
    expected = [*ids("ACG"), MASK, *ids("TTA")]
    assert ids("ACG[MASK]TTA") == ids("ACG [MASK] TTA") == ids("acg\n[MASK]\ttta") == expected
    assert ids("[MASK][MASK]") == [MASK, MASK]


def test_decoding_puts_no_spaces_between_tokens():
    encoded = TOKENIZER("ACGTTGCAGGCATTACG")["input_ids"]
    assert len(encoded) > 3
    assert TOKENIZER.decode(encoded, skip_special_tokens=True) == "ACGTTGCAGGCATTACG"
    assert TOKENIZER.decode(encoded) == "[CLS]ACGTTGCAGGCATTACG[SEP]"
    assert TOKENIZER.batch_decode([encoded] * 2, skip_special_tokens=True) == ["ACGTTGCAGGCATTACG"] * 2


def test_padding_and_truncation():
    batch = TOKENIZER(["ACGTTGCA" * 20, "N"], padding=True, truncation=True, max_length=16)
    assert [len(row) for row in batch["input_ids"]] == [16, 16]
    assert batch["input_ids"][0][-1] == SEP and batch["input_ids"][1] == [CLS, N, SEP] + [PAD] * 13
    assert batch["attention_mask"][1] == [1] * 3 + [0] * 13


@given(st.text(max_size=100) | st.text("ACGT[MASK]SEPUNK ", max_size=100))
def test_any_text_gives_ids_of_the_vocabulary_and_text_again(text):
    found = TOKENIZER(text)["input_ids"]
    assert (found[0], found[-1]) == (CLS, SEP) and all(0 <= index < len(TOKENIZER) for index in found)
    assert PAD not in found or "[PAD]" in text
    assert isinstance(TOKENIZER.decode(found), str)


@given(st.text("ACGTN", max_size=300))
def test_bases_come_back(sequence):
    assert bases(sequence) == sequence


@given(st.text("ACGTUNacgtun" + AMBIGUOUS + AMBIGUOUS.lower(), max_size=300))
def test_every_spelling_equals_the_upper_case_dna_of_the_same_length(sequence):
    folded = sequence.upper().replace("U", "T").translate(str.maketrans(AMBIGUOUS, "N" * len(AMBIGUOUS)))
    assert ids(sequence) == ids(folded) and bases(sequence) == folded


@given(st.text("ACGTNacgtn \n\t\r", max_size=300))
def test_white_space_is_as_if_it_were_not_there(sequence):
    assert ids(sequence) == ids("".join(sequence.split()))


@given(st.text("ACGTN \n", max_size=100))
def test_offsets_point_into_the_text_as_given(sequence):
    encoded = TOKENIZER(sequence.lower(), add_special_tokens=False, return_offsets_mapping=True)
    for index, (start, end) in zip(encoded["input_ids"], encoded["offset_mapping"], strict=True):
        token = TOKENIZER.convert_ids_to_tokens(index)
        assert "".join(sequence[start:end].split()) == token


def test_every_token_is_reached_from_its_own_bases():
    for token, index in TOKENIZER.get_vocab().items():
        assert ids(token) == [index]


@given(st.text("ACGT", max_size=300))
def test_the_encoder_of_acgt_gives_the_same_ids(sequence):
    assert ACGT_ENCODER.encode(sequence, add_special_tokens=False).ids == ids(sequence)


def test_the_encoder_of_acgt_has_no_normalizer_and_leaves_foreign_ones_alone():
    assert ACGT_ENCODER.normalizer is None and TOKENIZER.backend_tokenizer.normalizer is not None
    foreign = build_kmer_tokenizer(3, overlapping=True)
    assert encoder_of_acgt(foreign) is foreign


def test_saving_and_loading_changes_no_id(tmp_path):
    TOKENIZER.save_pretrained(tmp_path)
    again = AutoTokenizer.from_pretrained(tmp_path)
    text = "acgtnnRYacg [MASK] uuagcGATTACA*"
    assert again(text)["input_ids"] == TOKENIZER(text)["input_ids"]
    assert again.decode(again("acgtu")["input_ids"], skip_special_tokens=True) == "ACGTT"


@pytest.fixture(scope="module")
def released(reference):
    """The released tokenizer and its recorded cases."""
    cases = json.loads((reference / "tokenizer_cases.json").read_text())
    return Tokenizer.from_file(str(reference / "released_tokenizer.json")), cases


def test_the_released_tokenizer_gives_all_225_recorded_cases(released):
    tokenizer, cases = released
    assert len(cases["cases"]) == 225
    for case in cases["cases"]:
        encoding = tokenizer.encode(case["text"])
        assert encoding.ids == case["ids"], case["kind"]
        assert case["tokens"] is None or encoding.tokens == case["tokens"]


def test_the_released_tokenizer_gives_the_recorded_pairs_and_truncations(released):
    tokenizer, cases = released
    for pair in cases["pairs"]:
        encoding = tokenizer.encode(pair["a"], pair["b"])
        assert encoding.ids == pair["ids"] and encoding.type_ids == pair["type_ids"]
    for case in cases["truncation"]:
        tokenizer.enable_truncation(case["max_length"])
        assert tokenizer.encode(case["text"]).ids == case["ids"]
    tokenizer.no_truncation()


def test_the_released_tokenizer_loads_through_transformers(released, reference):
    tokenizer = PreTrainedTokenizerFast(tokenizer_file=str(reference / "released_tokenizer.json"))
    for case in released[1]["cases"]:
        assert tokenizer(case["text"])["input_ids"] == case["ids"]
    for case in released[1]["decode"]:
        assert tokenizer.decode(case["ids"]) == case["decode_keep_special"]

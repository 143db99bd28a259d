"""The BPE tokenizer of DNA: the pieces it is trained and judged on, and the tokenizer made of its merges.

    python -c 'from dnabert2.tokenization import *; print(build_tokenizer([("A", "C")]).encode("ACGT").tokens)'

train_tokenizer.py puts these together; whatever judges a vocabulary takes the same held-out pieces from here.
"""

import json
import os
from collections.abc import Iterable, Iterator
from hashlib import blake2b

from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, normalizers, processors, trainers
from tokenizers.normalizers import Replace

from dnabert2.sequences import AMBIGUOUS, acgt_runs, read_records


SPECIAL_TOKENS = ("[UNK]", "[CLS]", "[SEP]", "[PAD]", "[MASK]")
SINGLE_LETTERS = "ACGTN"  # ids 5 to 9; N is in no merge, so it always stands alone
SMALLEST_VOCABULARY = len(SPECIAL_TOKENS) + len(SINGLE_LETTERS)
FOLD_LETTERS = (  # upper case, T for U, N for the other IUPAC letters
    Replace(Regex("a"), "A"),
    Replace(Regex("c"), "C"),
    Replace(Regex("g"), "G"),
    Replace(Regex("[tUu]"), "T"),
    Replace(Regex(f"[n{AMBIGUOUS}{AMBIGUOUS.lower()}]"), "N"),
)
PIECE_LENGTH = 2_000  # bases; few tokens meet an end, and BPE trains twice as fast as on pieces of 10,000


def acgt_pieces(sequence: str) -> Iterator[str]:
    """Cuts the runs of A, C, G and T of an upper-case sequence into pieces of at most PIECE_LENGTH bases."""
    for _, run in acgt_runs(sequence):
        for start in range(0, len(run), PIECE_LENGTH):
            yield run[start : start + PIECE_LENGTH]


def piece_rank(piece: str, seed: int) -> float:
    """A number in [0, 1) that looks random and depends on nothing but the bases of the piece and the seed.

    Pieces of rank below holdout_percentage / 100 are never trained on. As the rank comes from the bases, a piece that
    stands in two files is held out of both.
    """
    digest = blake2b(piece.encode(), digest_size=6, key=str(seed).encode()).digest()
    return int.from_bytes(digest) / 2**48


def read_pieces(
    path: str | os.PathLike, seed: int, low: float = 0.0, high: float = 1.0
) -> Iterator[tuple[float, str]]:
    """Yields (rank, piece) of the pieces of a sequence file with low <= rank < high, in the order of the file."""
    for record in read_records(path):
        for piece in acgt_pieces(record.sequence):
            if low <= (rank := piece_rank(piece, seed)) < high:
                yield rank, piece


def bases_per_token(tokenizer: Tokenizer, pieces: list[str]) -> tuple[int, int]:
    """(bases, tokens) of the pieces, special tokens not counted."""
    encodings = tokenizer.encode_batch_fast(pieces, add_special_tokens=False)
    return sum(map(len, pieces)), sum(map(len, encodings))


def train_merges(pieces: Iterable[str], vocab_size: int) -> list[tuple[str, str]]:
    """The BPE merges, best first, that fill a vocabulary of `vocab_size`; fewer where the pieces give no more.

    Takes 46 to 65 bytes of memory and 1 to 2 microseconds a base. A pair as frequent as another loses to the one whose
    tokens were made first, so neither the order of the pieces nor Python's hash seed changes the merges.
    """
    tokenizer = Tokenizer(models.BPE())
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size - SMALLEST_VOCABULARY + len("ACGT"),
        initial_alphabet=list("ACGT"),
        min_frequency=2,
    )
    tokenizer.train_from_iterator(pieces, trainer)
    return [tuple(merge) for merge in json.loads(tokenizer.to_str())["model"]["merges"]]


def folding_normalizer() -> normalizers.Normalizer:
    """FOLD_LETTERS, and white space dropped."""
    return normalizers.Sequence([*FOLD_LETTERS, Replace(Regex(r"\s"), "")])


def encoder_of_acgt(tokenizer: Tokenizer) -> Tokenizer:
    """A tokenizer that does the same to upper-case A, C, G and T, a sixth faster: one without `folding_normalizer`.

    A tokenizer with any other normalizer is returned as it is.
    """
    contents = json.loads(tokenizer.to_str())
    plain = Tokenizer(models.BPE())
    plain.normalizer = folding_normalizer()
    if contents["normalizer"] != json.loads(plain.to_str())["normalizer"]:
        return tokenizer
    return Tokenizer.from_str(json.dumps(contents | {"normalizer": None}))


def add_special_tokens(tokenizer: Tokenizer) -> None:
    """Gives it `[CLS] A [SEP]`, and `[CLS] A [SEP] B [SEP]` with token type 1 on B and its [SEP]."""
    tokenizer.add_special_tokens([AddedToken(token, special=True, normalized=False) for token in SPECIAL_TOKENS])
    tokenizer.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]",
        pair="[CLS] $A [SEP] $B:1 [SEP]:1",
        special_tokens=[(token, tokenizer.token_to_id(token)) for token in ("[CLS]", "[SEP]")],
    )


def build_tokenizer(merges: list[tuple[str, str]]) -> Tokenizer:
    """The tokenizer of these merges: [UNK] [CLS] [SEP] [PAD] [MASK] A C G T N are ids 0 to 9, the merges follow.

    Lower case equals upper case, U is T, IUPAC letters become N, white space is dropped, any other character is one
    [UNK]. `[CLS] A [SEP]`, and `[CLS] A [SEP] B [SEP]` with token type 1 on B and its [SEP]. Decoding gives the bases
    without spaces.
    """
    vocabulary = {token: index for index, token in enumerate([*SPECIAL_TOKENS, *SINGLE_LETTERS])}
    for left, right in merges:
        vocabulary.setdefault(left + right, len(vocabulary))  # two merges can spell the same token
    tokenizer = Tokenizer(models.BPE(vocab=vocabulary, merges=merges, unk_token="[UNK]", fuse_unk=False))
    tokenizer.normalizer = folding_normalizer()
    add_special_tokens(tokenizer)
    tokenizer.decoder = decoders.Fuse()
    return tokenizer


def tokenizer_config() -> dict:
    """The contents of tokenizer_config.json, in the form that every transformers since 4.0 reads."""
    return {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "unk_token": "[UNK]",
        "cls_token": "[CLS]",
        "sep_token": "[SEP]",
        "pad_token": "[PAD]",
        "mask_token": "[MASK]",
        "clean_up_tokenization_spaces": False,
        "model_input_names": ["input_ids", "token_type_ids", "attention_mask"],
        "model_max_length": int(1e30),  # transformers' own number for "no limit"
        "padding_side": "right",
    }

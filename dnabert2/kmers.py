"""k-mer tokenizers, for comparison with BPE: a folder that `AutoTokenizer`, run_mlm.py and run_gue.py load.

    python -m dnabert2.kmers 6 output/kmers_6                # non-overlapping, as Nucleotide Transformer's
    python -m dnabert2.kmers 6 output/kmers_6_overlapping --overlapping  # as DNABERT's

Both are fast tokenizers of `tokenizers`' own parts and take sequences as they are. The overlapping ones also take
words of k letters, as `run_gue.py --kmer` cuts them for DNABERT's own tokenizer, and give the same tokens.
"""

import argparse
import json
from itertools import product
from pathlib import Path

from tokenizers import Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers
from tokenizers.normalizers import Replace

from dnabert2.errors import UsageError, run_script
from dnabert2.files import write_whole
from dnabert2.tokenization import (
    FOLD_LETTERS,
    SINGLE_LETTERS,
    SPECIAL_TOKENS,
    add_special_tokens,
    folding_normalizer,
    tokenizer_config,
)


KMER_LENGTHS = range(2, 8)  # the end marks are single digits, and ids of 8-mers would not fit 16 bits


def build_kmer_tokenizer(k: int, overlapping: bool) -> Tokenizer:
    """
    The tokenizer of all k-mers of A, C, G and T. Ids 0 to 4 are [UNK] [CLS] [SEP] [PAD] [MASK], as in the BPE one.

    Overlapping, "ACGTACG" is ACGTAC CGTACG of k = 6: a token for each base but the last k - 1, and [UNK] where
    another letter is among the k. White space separates sequences. Decoding gives the k-mers with spaces between.

    Non-overlapping, it is ACGTAC G: what is left over at the end, or before an N, is single letters, which have ids
    5 to 9, and any other character is one [UNK]. White space is dropped. Decoding gives the bases without spaces.

    Raises UsageError for a k that is none of KMER_LENGTHS.
    """
    if k not in KMER_LENGTHS:
        raise UsageError(f"k is {k}: there are tokenizers of k from {KMER_LENGTHS[0]} to {KMER_LENGTHS[-1]}")
    tokens = [*SPECIAL_TOKENS, *("" if overlapping else SINGLE_LETTERS), *map("".join, product("ACGT", repeat=k))]
    vocabulary = {token: index for index, token in enumerate(tokens)}
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token="[UNK]"))
    if overlapping:
        tokenizer.normalizer = normalizers.Sequence([*FOLD_LETTERS, *_write_kmers(k)])
        tokenizer.pre_tokenizer = pre_tokenizers.Split(Regex(rf"{k}|\s+"), "removed")
    else:
        tokenizer.normalizer = folding_normalizer()
        tokenizer.pre_tokenizer = pre_tokenizers.Split(Regex(f"[ACGT]{{{k}}}|."), "isolated")
        tokenizer.decoder = decoders.Fuse()
    add_special_tokens(tokenizer)
    return tokenizer


def _write_kmers(k: int) -> list[normalizers.Normalizer]:
    """
    Replacements that write ACGT as "ACG3CGT3" of k = 3.

    `tokenizers` cuts a text, and no part of one cut overlaps another, so the text itself gets the letters more than
    once: every letter begins a block of its own, which then takes over, k - 1 times, the letter that the block behind
    it got last. The digit at a block's end counts its letters: A1C1G1T1, AC2CG2GT2T1, ACG3CGT3GT2T1.
    """
    steps = [Replace(Regex(r"[^ACGTN\s]"), "N"), *(Replace(letter, letter + "1") for letter in SINGLE_LETTERS)]
    for length in range(1, k):
        for letter in SINGLE_LETTERS:
            behind = f"(?=[ACGTN]{{{length - 1}}}{letter})"
            steps.append(Replace(Regex(f"{length}{behind}"), f"{letter}{length + 1}"))
    return [*steps, Replace(Regex(f"[ACGTN]+[1-{k - 1}]"), "")]  # blocks without a whole k-mer


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("k", type=int, help="letters a token")
    parser.add_argument("output_dir", type=Path, help="folder for tokenizer.json and tokenizer_config.json")
    parser.add_argument("--overlapping", action="store_true", help="a token for every base, not for every k")
    args = parser.parse_args()
    tokenizer = build_kmer_tokenizer(args.k, args.overlapping)
    file, text = args.output_dir / "tokenizer.json", tokenizer.to_str() + "\n"
    if file.exists() and file.read_text() != text:
        raise UsageError(f"{file} is another tokenizer: name another folder")
    args.output_dir.mkdir(parents=True, exist_ok=True)
    write_whole(args.output_dir / "tokenizer_config.json", json.dumps(tokenizer_config(), indent=2) + "\n")
    write_whole(file, text)
    print(f"{args.output_dir}: {tokenizer.get_vocab_size():,} tokens")


if __name__ == "__main__":
    run_script(main)

"""How well models with different tokenizers tell a base from all the others: accuracy and bits a base, on one scale.

    python benchmarks/masked_bases.py --model_name_or_path output/bpe output/6-mers --sequence_file held_out/

Every model is asked for the very same bases of the very same sequences, and is told all other bases but those that
share a token with another base that is asked for at the same time. A, C, G and T are put in a base's place in turn and
the sequence is tokenised anew. The tokens that are not the same in all four, a gap, are masked, and the model says how
probable each of the four fillings is: of the first token's, and with that unmasked of the second, and so on (the chain
rule). The four, normalised, are its prediction of the base; told are the accuracy, and bits: -log2 of the true base's
share, 2 by chance. A model that is too sure of itself loses bits by that, and of several tokens it adds up; so bits
are also told after its log probabilities were multiplied by the one number that makes them fewest ("calibrated").

The probabilities of a masked token, summed up base by base, will not do. For that one must know how many bases a token
of BPE has, and to know that alone, without any model, tells 0.2 of a base's 2 bits, and guesses 39 % of the bases
(6-mers: 0.0 bits and 26 %). Here the true base decides nothing that the model is told. What is favoured all the same:

- k-mers. Their four fillings have equally many tokens, of BPE two thirds have. How many tokens are behind a gap no
  model has learned, so the four numbers count as equally likely; and a gap of BPE is two tokens, not one.
- k-mers once more: some bases of a sequence are asked for at once, and of random ones BPE's gaps hide 15 %, those of
  6-mers 8 %, of overlapping ones 1 %.
- Models that were masked in training as they are here. So overlapping k-mers want k tokens masked in a row (run_mlm.py
  --mlm_span k): else they have learned to copy from neighbours, and here these are masked too.

Results: kmers.md. tokenizer_runs.py judges its models by this.
"""

import argparse
import math
from functools import reduce
from pathlib import Path

import numpy as np
import torch
from tqdm import tqdm
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from dnabert2.errors import UsageError, run_script
from dnabert2.loading import load_model, load_tokenizer
from dnabert2.sequences import acgt_runs
from dnabert2.sources import file_sources


BASES = "ACGT"
APART = 67  # bases from one that is asked for to the next: no multiple of any k, and a seventh of BPE's tokens masked
SEQUENCES_AT_ONCE = 16


def sites_of(length: int) -> np.ndarray:
    """The places that are asked for in a sequence of so many bases."""
    return np.arange(APART // 2, length - APART // 2, APART)


def cut_sequences(files: list[str], count: int, bases: int) -> list[str]:
    """Of each file at most `count` pieces of A, C, G and T, `bases` long, spread over it."""
    pieces = []
    for source in file_sources(files):
        found = [
            run[start : start + bases]
            for record in source.records()
            for _, run in acgt_runs(record.sequence)
            for start in range(0, len(run) - bases + 1, bases)
        ]
        pieces += [found[i] for i in np.linspace(0, len(found) - 1, min(count, len(found))).astype(int)]
    if not pieces:
        raise UsageError(f"no {bases} bases of A, C, G and T in a row in these files: give larger ones")
    return pieces


def token_starts(tokens: list[str], length: int) -> np.ndarray:
    """
    Where in a sequence of `length` bases its tokens begin.

    Raises UsageError for tokens that neither follow one another nor begin at every base.
    """
    lengths = np.array([len(token) for token in tokens])
    if lengths.sum() == length:
        return np.cumsum(lengths) - lengths
    if len(set(lengths)) == 1 and len(tokens) + lengths[0] - 1 == length:
        return np.arange(len(tokens))
    raise UsageError(f"the {len(tokens)} tokens of {length} bases are neither these bases nor overlapping k-mers")


def overlap_of(tokenizer: PreTrainedTokenizerBase) -> int:
    """k of overlapping k-mers; 1 of tokens that do not overlap."""
    tokens = tokenizer.tokenize("ACGT" * 8)
    return len(tokens[0]) if sum(map(len, tokens)) > 32 else 1


def mask_sites(sequence: str, tokenizer: PreTrainedTokenizerBase) -> list[dict[str, np.ndarray]]:
    """
    The sequence with A, with C, with G and with T at all its sites.

    Returns:
        Of each of the four `input_ids`, (tokens,), masked in the gaps, with [CLS] and [SEP]; and of the masked
        tokens from left to right, each (masked,): their `positions` there, the `tokens` themselves, the number of the
        `sites` they belong to, and their `ranks` in its gap, from 0.
    """
    places, versions = sites_of(len(sequence)), []
    letters = np.array([*sequence])
    for base in BASES:
        letters[places] = base
        encoding = tokenizer.backend_tokenizer.encode("".join(letters), add_special_tokens=False)
        versions.append((np.array(encoding.ids), token_starts(encoding.tokens, len(sequence))))
    keys = [starts * len(tokenizer) + ids for ids, starts in versions]  # one number for a token at its place
    visible = reduce(np.intersect1d, keys)
    masked = []
    for (ids, starts), key in zip(versions, keys, strict=True):
        is_masked = ~np.isin(key, visible)
        sites = np.abs(starts[is_masked, None] - places).argmin(axis=1)
        hidden = np.where(is_masked, tokenizer.mask_token_id, ids)
        masked.append(
            {
                "input_ids": np.array([tokenizer.cls_token_id, *hidden, tokenizer.sep_token_id]),
                "positions": np.flatnonzero(is_masked) + 1,
                "tokens": ids[is_masked],
                "sites": sites,
                "ranks": np.arange(len(sites)) - np.searchsorted(sites, sites),
            }
        )
    return masked


@torch.no_grad()
def predict_sites(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, sequences: list[str]) -> torch.Tensor:
    """Log probabilities of A, C, G and T at the sites of sequences of one length: float64, (sequences, sites, 4)."""
    versions = [version for sequence in sequences for version in mask_sites(sequence, tokenizer)]
    rows = [torch.from_numpy(version["input_ids"]) for version in versions]
    input_ids = torch.nn.utils.rnn.pad_sequence(rows, batch_first=True, padding_value=tokenizer.pad_token_id)
    input_ids = input_ids.to(model.device)
    attention_mask = (input_ids != tokenizer.pad_token_id).long()
    row = torch.arange(len(rows)).repeat_interleave(torch.tensor([len(version["tokens"]) for version in versions]))
    position, token, site, rank = (
        torch.from_numpy(np.concatenate([version[name] for version in versions])).to(model.device)
        for name in ("positions", "tokens", "sites", "ranks")
    )
    row = row.to(model.device)
    log_p = torch.zeros(len(rows), len(sites_of(len(sequences[0]))), dtype=torch.float64, device=model.device)
    for number in range(int(rank.max()) + 1):
        now = (rank == number).nonzero().flatten()
        is_row, in_batch = torch.unique(row[now], return_inverse=True)  # gaps of k-mers are equally long: all rows
        positions = in_batch * input_ids.shape[1] + position[now]
        logits = model(input_ids[is_row], attention_mask=attention_mask[is_row], prediction_positions=positions).logits
        of_token = logits.double().log_softmax(-1).gather(1, token[now, None]).flatten()
        log_p.index_put_((row[now], site[now]), of_token, accumulate=True)
        input_ids[row[now], position[now]] = token[now]
    return log_p.view(len(sequences), len(BASES), -1).log_softmax(1).transpose(1, 2).cpu()


def calibrate(log_p: torch.Tensor) -> torch.Tensor:
    """
    Log probabilities after their multiplication by the number from 0.01 to 2 for which the true base has most.

    Args:
        log_p: (bases, 4), the true base in column 0.
    """
    scaled = [(scale * log_p).log_softmax(1) for scale in np.geomspace(0.01, 2, 101)]
    return max(scaled, key=lambda values: values[:, 0].sum())


def judge(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, sequences: list[str]) -> dict[str, float]:
    """
    `accuracy`, `bits` and `calibrated_bits` over the sites of sequences of one length, and their number, `bases`.

    Beside them their standard errors, `accuracy_error` and so on, of one model: the differences between models, which
    are asked for the same bases, are known better.
    """
    predicted = []
    for start in tqdm(range(0, len(sequences), SEQUENCES_AT_ONCE), desc="Masked bases", leave=False):
        some = sequences[start : start + SEQUENCES_AT_ONCE]
        log_p, sites = predict_sites(model, tokenizer, some), sites_of(len(some[0]))
        true = torch.tensor([[BASES.index(sequence[site]) for site in sites] for sequence in some])
        others = torch.tensor([[base for base in range(4) if base != number] for number in range(4)])
        order = torch.cat([true[..., None], others[true]], dim=2)  # the true base first
        predicted.append(log_p.gather(2, order).flatten(0, 1))
    log_p = torch.cat(predicted)
    values = {"accuracy": (log_p[:, 0] > log_p[:, 1:].amax(1)).double(), "bits": -log_p[:, 0] / math.log(2)}
    values["calibrated_bits"] = -calibrate(log_p)[:, 0] / math.log(2)
    found = {"bases": len(log_p)}
    for name, of_base in values.items():
        found |= {name: of_base.mean().item(), f"{name}_error": of_base.std().item() / len(of_base) ** 0.5}
    return found


def judge_folder(folder: str | Path, sequences: list[str]) -> dict[str, float]:
    """`judge` of a checkpoint, on a GPU if there is one; in float32, as bf16 would round the logits by hundredths."""
    tokenizer = load_tokenizer(folder)
    model = load_model(folder, tokenizer)
    model.set_attn_implementation("sdpa")
    return judge(model.to("cuda" if torch.cuda.is_available() else "cpu").eval(), tokenizer, sequences)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model_name_or_path", nargs="+", required=True, help="folders of pretrained models")
    parser.add_argument("--sequence_file", nargs="+", required=True, help="genomes that none was trained on")
    parser.add_argument("--sequences", type=int, default=500, help="of every file, at most (default: 500)")
    parser.add_argument("--bases", type=int, default=640, help="a sequence (default: 640, about 128 tokens of BPE)")
    args = parser.parse_args()
    if args.bases < APART:
        raise UsageError(f"--bases {args.bases}: a base is asked for every {APART}")
    sequences = cut_sequences(args.sequence_file, args.sequences, args.bases)
    print("| model | bases asked for | accuracy, % | bits a base | calibrated |\n|---|--:|--:|--:|--:|")
    for folder in args.model_name_or_path:
        found = judge_folder(folder, sequences)
        accuracy = f"{100 * found['accuracy']:.2f} ± {100 * found['accuracy_error']:.2f}"
        bits = [f"{found[name]:.4f} ± {found[f'{name}_error']:.4f}" for name in ("bits", "calibrated_bits")]
        print(f"| {folder} | {found['bases']:,} | {accuracy} | {' | '.join(bits)} |")


if __name__ == "__main__":
    run_script(main)

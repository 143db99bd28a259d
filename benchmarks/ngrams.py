"""What counting tells of a masked token, from the bases and tokens beside it: the peers of default_checkpoint.py.

    counts = count(corpus.train, rows, tokenizer)
    logits = Markov(counts)(input_ids=input_ids, prediction_positions=positions).logits

Each is a module with the arguments and logits of DNABERT-2 for masked language modelling; logits are log
probabilities up to a constant. Next to a masked token the bases are known up to the next [MASK] or special token; what
lies beyond is summed out. A token that is shown in place of [MASK] is believed: the neighbours' as what it seems, the
one to predict as masking makes it, in half of the cases the true one (`shown`).
"""

from copy import copy
from dataclasses import dataclass
from itertools import product

import numpy as np
import torch
from torch.nn.functional import pad
from tqdm import tqdm
from transformers import PreTrainedTokenizerBase
from transformers.modeling_outputs import MaskedLMOutput

from dnabert2.windows import Windows, reverse_complement


ORDER = 5
LENGTHS = range(ORDER + 1)
STRINGS = ["".join(letters) for length in LENGTHS for letters in product("ACGT", repeat=length)]  # a context's number
CONTEXTS = {string: number for number, string in enumerate(STRINGS)}
GC_CLASSES = 20  # of windows, by the share of G and C among their bases
LEAST = 1000  # counts that a class has from all classes
WINDOWS_AT_ONCE = 5000
NOTHING = -1e4  # in place of -inf


@dataclass(frozen=True)
class Counts:
    """Of windows."""

    tokenizer: PreTrainedTokenizerBase
    by_gc: np.ndarray  # tokens, by the class of their window [GC_CLASSES, vocabulary]
    pairs: np.ndarray  # of tokens, one behind the other [vocabulary, vocabulary]
    kmers: np.ndarray  # of ORDER + 1 bases, on both strands [4^(ORDER + 1)]

    @property
    def tokens(self) -> np.ndarray:
        return self.by_gc.sum(axis=0)

    @property
    def texts(self) -> list[str | None]:
        """The bases of each token; None for special ones and N."""
        tokens = self.tokenizer.convert_ids_to_tokens(range(len(self.tokenizer)))
        return [token if not set(token) - set("ACGT") else None for token in tokens]


def count_kmers(texts: list[str | None], ids: np.ndarray) -> np.ndarray:
    """How often each (ORDER + 1)-mer occurs in rows of tokens, [4^(ORDER + 1)]; none reaches over a token of None."""
    codes = [np.array(["ACGT".index(base) for base in text]) if text else np.array([4]) for text in texts]
    lengths, joined = np.array([*map(len, codes)]), np.concatenate(codes)
    begins = np.cumsum(lengths) - lengths  # of each token in `joined`
    tokens = ids.ravel()
    its_lengths = lengths[tokens]
    before = np.cumsum(its_lengths) - its_lengths
    bases = joined[np.repeat(begins[tokens] - before, its_lengths) + np.arange(its_lengths.sum())]
    kmers, is_whole = 0, True
    for place in range(ORDER + 1):
        part = bases[place : len(bases) - ORDER + place]
        kmers, is_whole = 4 * kmers + part, is_whole & (part < 4)
    return np.bincount(kmers[is_whole], minlength=4 ** (ORDER + 1))


def gc_classes(gc: torch.Tensor, bases: torch.Tensor, ids: torch.Tensor) -> torch.Tensor:
    """The class of each row of tokens, of which so many bases are G or C, and so many bases at all."""
    share = gc[ids].sum(dim=1) / bases[ids].sum(dim=1).clamp(min=1)
    return (share * GC_CLASSES).long().clamp(max=GC_CLASSES - 1)


def bases_of(texts: list[str | None]) -> tuple[torch.Tensor, torch.Tensor]:
    """How many bases of each token are G or C, and how many it has; a token of None has none."""
    gc = [sum(base in "GC" for base in text or "") for text in texts]
    return torch.tensor(gc), torch.tensor([len(text or "") for text in texts])


def count(windows: Windows, rows: np.ndarray, tokenizer: PreTrainedTokenizerBase) -> Counts:
    """Counts tokens, pairs and k-mers of these rows; k-mers on both strands."""
    size = len(tokenizer)
    empty = (np.zeros(shape) for shape in ((GC_CLASSES, size), (size, size), 4 ** (ORDER + 1)))
    counts = Counts(tokenizer, *empty)
    gc, bases = bases_of(counts.texts)
    for start in tqdm(range(0, len(rows), WINDOWS_AT_ONCE), desc="Counting", leave=False):
        ids = windows[rows[start : start + WINDOWS_AT_ONCE]]
        classes = gc_classes(gc, bases, torch.from_numpy(ids)).numpy()
        of_classes = np.bincount((classes[:, None] * size + ids).ravel(), minlength=GC_CLASSES * size)
        counts.by_gc[:] += of_classes.reshape(GC_CLASSES, size)
        pairs = np.bincount((ids[:, :-1] * size + ids[:, 1:]).ravel(), minlength=size**2)
        counts.pairs[:] += pairs.reshape(size, size)
        counts.kmers[:] += count_kmers(counts.texts, ids)
    kmers = ["".join(letters) for letters in product("ACGT", repeat=ORDER + 1)]
    numbers = {kmer: number for number, kmer in enumerate(kmers)}
    counts.kmers[:] += counts.kmers[[numbers[reverse_complement(kmer)] for kmer in kmers]]
    return counts


class Counted(torch.nn.Module):
    """What all of them have: which tokens are bases, log probabilities of tokens, and where tokens stand."""

    def __init__(self, counts: Counts):
        super().__init__()
        self.mask_token_id = counts.tokenizer.mask_token_id
        self.special_id = counts.tokenizer.cls_token_id
        self.num_random = len(counts.tokenizer) - len(counts.tokenizer.all_special_ids)  # that masking draws from
        is_bases = np.array([text is not None for text in counts.texts])
        tokens = np.where(is_bases, counts.tokens + 1, 0)  # one more of each: a token may be new
        frequencies = np.where(is_bases, np.log(np.maximum(tokens, 1) / tokens.sum()), NOTHING)
        self.register_buffer("is_bases", torch.from_numpy(is_bases))
        self.register_buffer("frequencies", torch.from_numpy(frequencies).float())
        of_classes = np.where(is_bases, counts.by_gc + LEAST * np.exp(frequencies), 1e-30)
        of_classes = np.log(of_classes / of_classes.sum(axis=1, keepdims=True)) - frequencies
        self.register_buffer("gains_by_gc", torch.from_numpy(of_classes).float())
        for name, values in zip(("gc", "bases"), bases_of(counts.texts), strict=True):
            self.register_buffer(name, values)

    def gc_gains(self, input_ids: torch.Tensor, positions: torch.Tensor) -> torch.Tensor:
        """log of how much more frequent tokens are in windows of as much G and C as is seen of these."""
        classes = gc_classes(self.gc, self.bases, input_ids)
        return self.gains_by_gc[classes[positions // input_ids.shape[1]]]

    def neighbours(self, input_ids: torch.Tensor, positions: torch.Tensor, distance: int) -> torch.Tensor:
        """The tokens at some distance from positions in the flattened ids; beyond a row's end a special one."""
        padded = pad(input_ids, (ORDER, ORDER), value=self.special_id)
        rows, columns = positions // input_ids.shape[1], positions % input_ids.shape[1]
        return padded[rows, columns + ORDER + distance]

    def log_scores(self, input_ids: torch.Tensor, positions: torch.Tensor) -> torch.Tensor:
        """Of every token at these positions, [positions, vocabulary], up to a constant."""
        raise NotImplementedError

    def forward(self, input_ids: torch.Tensor, prediction_positions: torch.Tensor) -> MaskedLMOutput:
        scores = self.log_scores(input_ids, prediction_positions).masked_fill(~self.is_bases, NOTHING)
        return MaskedLMOutput(logits=self.shown(scores.log_softmax(dim=-1), input_ids, prediction_positions))

    def shown(self, scores: torch.Tensor, input_ids: torch.Tensor, positions: torch.Tensor) -> torch.Tensor:
        """
        Bayes' rule for what is shown: another token than [MASK] is, as likely as not, the true one left as it was, or
        one drawn from all of them. So the true one shown is 1 + (number of tokens) times as probable as not shown.
        """
        tokens = self.neighbours(input_ids, positions, 0)
        is_shown = (tokens != self.mask_token_id) & self.is_bases[tokens]
        gain = is_shown * float(np.log(1 + self.num_random))
        return scores.scatter_add(1, tokens[:, None], gain[:, None])


class TokenFrequencies(Counted):
    def log_scores(self, input_ids: torch.Tensor, positions: torch.Tensor) -> torch.Tensor:
        return self.frequencies.expand(len(positions), -1)


class Markov(Counted):
    """
    A Markov model of order 5 of bases: of a token t between the bases L and R, five of each or as many as are known,

        P(t | L) P(R | L t)                            with `has_right`
        P(t | L) P(R | L t) frequency(t) / P(t)        and with `has_frequencies`

    over all tokens. The last is Bayes' rule, as the bases do not tell where a tokenizer cuts: P(t) is the Markov
    model's own probability of the token's bases anywhere. With `has_gc` frequencies are those in windows of as much G
    and C.
    """

    def __init__(self, counts: Counts, has_right: bool = True, has_frequencies: bool = True, has_gc: bool = False):
        super().__init__(counts)
        self.has_right, self.has_frequencies, self.has_gc = has_right, has_frequencies, has_gc
        texts = [text or "" for text in counts.texts]
        transitions = log_transitions(counts.kmers)
        after, left = read(texts, transitions)
        after_reversed, _ = read([text[::-1] for text in texts], transitions)
        # what follows is read outwards too, so its numbers are of strings written backwards
        _, right = read([string[::-1] for string in STRINGS], transitions)
        for tables in (after, after_reversed):
            tables[:, [text is None for text in counts.texts]] = 0  # behind such a token nothing is known
        for name, table in {"after": after, "after_reversed": after_reversed, "left": left, "right": right}.items():
            self.register_buffer(name, torch.from_numpy(table))

    @classmethod
    def variants(cls, counts: Counts) -> dict[str, "Markov"]:
        """All of them; they share their tables."""
        found = {}
        whole = cls(counts)
        for has_right, (has_frequencies, has_gc) in product(
            (False, True), ((False, False), (True, False), (True, True))
        ):
            variant = copy(whole)
            variant.has_right, variant.has_frequencies, variant.has_gc = has_right, has_frequencies, has_gc
            names = ["left", *["right"] * has_right, *["frequencies"] * has_frequencies, *["GC"] * has_gc]
            found[", ".join(names)] = variant
        return found

    def log_scores(self, input_ids: torch.Tensor, positions: torch.Tensor) -> torch.Tensor:
        before = behind = torch.zeros_like(positions)  # numbers of contexts; 0: nothing is known
        for distance in range(ORDER, 0, -1):  # five tokens hold five bases or more
            before = self.after[before, self.neighbours(input_ids, positions, -distance)]
            behind = self.after_reversed[behind, self.neighbours(input_ids, positions, distance)]
        scores = self.left[before]
        if self.has_right:
            scores = scores + self.right[self.after[before], behind[:, None]]
        if self.has_frequencies:
            scores = scores + self.frequencies - self.left[0]
        return scores + self.gc_gains(input_ids, positions) if self.has_gc else scores


def log_transitions(kmers: np.ndarray) -> np.ndarray:
    """
    log P(base | context), [contexts, 4], contexts of 0 to ORDER bases: of a shorter one the longer ones' sums, as if
    the bases before it were summed out. One is added to every count.
    """
    shorter = [kmers.reshape(-1, 4**length, 4).sum(axis=0) + 1 for length in LENGTHS]
    return np.concatenate([np.log(counts / counts.sum(axis=1, keepdims=True)) for counts in shorter])


def read(texts: list[str], transitions: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """
    From every context on: the number of the context behind each text, and the text's log probability; both
    [contexts, texts].
    """
    following = np.array([[CONTEXTS[(string + base)[-ORDER:]] for base in "ACGT"] for string in STRINGS])
    after = np.empty((len(STRINGS), len(texts)), dtype=np.int64)
    log_probability = np.zeros((len(STRINGS), len(texts)), dtype=np.float32)
    for column, text in enumerate(texts):
        contexts, values = np.arange(len(STRINGS)), np.zeros(len(STRINGS))
        for base in map("ACGT".index, text):
            values, contexts = values + transitions[contexts, base], following[contexts, base]
        after[:, column], log_probability[:, column] = contexts, values
    return after, log_probability


class TokenPairs(Counted):
    """
    P(t | token before) P(token behind | t) over all tokens, each from counts with `weight` more that are shared out
    by the frequencies; of a neighbour that is no token of bases nothing is known. With `has_gc` times how much more
    frequent t is in windows of as much G and C.
    """

    def __init__(self, counts: Counts, weight: float, has_gc: bool = False):
        super().__init__(counts)
        self.has_gc = has_gc
        frequencies = self.frequencies.exp().double().numpy()
        pairs = counts.pairs + weight * frequencies
        follows = np.log(np.maximum(pairs, 1e-30) / pairs.sum(axis=1, keepdims=True))
        before, behind = follows, follows.T.copy()
        is_unknown = ~self.is_bases.numpy()
        before[is_unknown], behind[is_unknown] = self.frequencies.numpy(), 0
        self.register_buffer("before", torch.from_numpy(before).float())
        self.register_buffer("behind", torch.from_numpy(behind).float())

    @classmethod
    def variants(cls, counts: Counts) -> dict[str, "TokenPairs"]:
        found = {}
        for weight in (300, 3000, 30_000):
            found[f"{weight:,} more"] = cls(counts, weight)
            found[f"{weight:,} more, GC"] = with_gc = copy(found[f"{weight:,} more"])
            with_gc.has_gc = True
        return found

    def log_scores(self, input_ids: torch.Tensor, positions: torch.Tensor) -> torch.Tensor:
        left, right = (self.neighbours(input_ids, positions, distance) for distance in (-1, 1))
        scores = self.before[left] + self.behind[right]
        return scores + self.gc_gains(input_ids, positions) if self.has_gc else scores

"""Serves a checkpoint on Inference Endpoints, which imports this file from the model's folder.

It travels with the checkpoint and stands alone: torch, transformers, the standard library. Tried without an endpoint:

    python -c 'from handler import EndpointHandler; print(EndpointHandler(".")({"inputs": "ACGT[MASK]TTGA"}))'

A request is {"inputs": one sequence or a list of them, "parameters": {...}}; the answer is the result of the sequence,
or the list of their results. Of a classifier it is a list for one sequence too: InferenceClient takes its first.

    {"inputs": "ACGT[MASK]TTGA", "parameters": {"top_k": 3}}
        of a masked language model, as pipeline("fill-mask") gives it: [{"score": 0.9, "token": 7, "token_str": "G",
        "sequence": "ACGTGTTGA"}, ...]; for several masks a list of these
    {"inputs": ["ACGTTGA", "ttgnacg"]}
        of a classifier, the most probable label first: [[{"label": "promoter", "score": 0.8}, ...], [...]]; of a
        regression the score is the value, in the unit of its labels; means of both strands where run_gue.py took them
        (--reverse_complement); of an encoder alone these are embeddings
    {"inputs": ["ACGTTGA", "ttgnacg"], "parameters": {"pooling": "mean"}}
        of any of them, an embedding, a list of numbers, for each sequence

A sequence is of A, C, G, T, U, N, the other IUPAC letters and [MASK], in either case; white space is dropped. All the
parameters, which may stand beside "inputs" too, as InferenceClient puts them; "options" there are ignored:

    top_k       so many guesses for a mask (5), or labels (all)
    pooling     asks for embeddings: the last hidden states' "mean" over all tokens but padding, or that of "cls"
    max_length  how many tokens a sequence may have, special ones included: at most, and by default, MAX_TOKENS
    truncation  true: what is longer is cut; false, the default: it is an error; also called truncate
    normalize   asks for embeddings, if true of length 1

Errors are raised: Endpoints' server makes of them status 400 and {"error": the message}. What the caller can mend is a
RequestError; of what goes wrong in the model the caller hears that it did, and the log has the details.
"""

import logging
import re
import threading
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path

import torch
from transformers import AutoConfig, AutoModel, AutoModelForMaskedLM, AutoModelForSequenceClassification, AutoTokenizer
from transformers.utils import is_flash_attn_2_available


AUTO_CLASSES = {  # by the ending of the architecture's name
    "ForMaskedLM": AutoModelForMaskedLM,
    "ForSequenceClassification": AutoModelForSequenceClassification,
    "Model": AutoModel,
}
FOR_EMBEDDINGS = {"pooling", "normalize"}
PARAMETERS = ("top_k", "pooling", "max_length", "truncation", "normalize")
MAX_SEQUENCES = 1_000  # in a request, as the next four
MAX_LETTERS = {"cpu": 100_000, "cuda": 2_000_000}  # of all its sequences together
MAX_TOKENS = {"sdpa": 4_096, "flash_attention_2": 65_536}  # of one; sdpa's memory grows with the square
MAX_TOP_K = 100
MAX_ANSWER = 10_000_000  # letters of the sequences that fill-mask gives back
BATCH_TOKENS = {"cpu": 8_192, "cuda": 65_536}
BATCH_SCORES = 2**28  # of sdpa's bias, heads × length² a sequence: 1 GiB in float32
COMPLEMENT = str.maketrans("ACGTRYKMBVDH", "TGCAYRMKVBHD")  # N, S and W are their own
SEQUENCE = re.compile(r"(?:[ACGTUNRYSWKMBDHV\s]+|\[MASK\])*", re.ASCII | re.IGNORECASE)
logger = logging.getLogger(__name__)


class RequestError(ValueError):
    """A request that cannot be answered: the message says which part of it and what to do."""


def shown(value: object) -> str:
    """For a message: a string in quotes, cut, and of anything else what it is; it may be too long or deep to show."""
    if isinstance(value, str):
        return repr(value[:40]) + ("…" if len(value) > 40 else "")
    kinds = {bool: "true or false", int: "a number", float: "a number", list: "a list", dict: "an object"}
    return "null" if value is None else kinds.get(type(value), "not of JSON")


def read_sequences(inputs: object, max_letters: int) -> dict[str, str]:
    """The sequences, in upper case and without white space, by what messages call them. Raises RequestError."""
    if isinstance(inputs, list) and not 1 <= len(inputs) <= MAX_SEQUENCES:
        raise RequestError(f"inputs has {len(inputs):,} sequences: send from 1 to {MAX_SEQUENCES:,} in a request")
    named = {"inputs": inputs}
    if isinstance(inputs, list):
        named = {f"inputs[{number}]": sequence for number, sequence in enumerate(inputs)}
    for name, sequence in named.items():
        if not isinstance(sequence, str):
            raise RequestError(f"{name} must be {'text' if '[' in name else 'text or a list'}, is {shown(sequence)}")
    if (letters := sum(map(len, named.values()))) > max_letters:
        raise RequestError(f"inputs has {letters:,} letters in all: send at most {max_letters:,} in a request")
    for name, sequence in named.items():
        end = SEQUENCE.match(sequence).end()
        if end < len(sequence) or not sequence.strip():
            found = f"has {sequence[end]!r} at position {end + 1}" if end < len(sequence) else "is empty"
            raise RequestError(f"{name} {found}: a sequence is of A, C, G, T, N, other IUPAC letters and [MASK]")
    # T for U: our tokenizer does so itself, the released one does not
    return {name: "".join(sequence.split()).upper().replace("U", "T") for name, sequence in named.items()}


def other_strand(sequence: str) -> str:
    parts = re.split(r"(\[MASK\])", sequence)
    return "".join(part if part == "[MASK]" else part.translate(COMPLEMENT)[::-1] for part in reversed(parts))


def read_parameters(parameters: object, beside: dict, max_tokens: int) -> dict:
    """Those that are given and not null. Raises RequestError for unknown ones and for values that cannot be."""
    if not isinstance(parameters, dict | None):
        raise RequestError(f"parameters must be an object, is {shown(parameters)}")
    given = {name: value for name, value in (beside | (parameters or {})).items() if value is not None}
    given = {"truncation" if name == "truncate" else name: value for name, value in given.items()}
    for name, value in given.items():
        if name not in PARAMETERS:
            raise RequestError(f"there is no parameter {shown(name)}: there are {', '.join(PARAMETERS)}")
        least, most = (1, MAX_TOP_K) if name == "top_k" else (3, max_tokens)
        if name in ("top_k", "max_length") and not (type(value) is int and least <= value <= most):
            raise RequestError(f"{name} must be a whole number from {least} to {most:,}")
        if name == "pooling" and value not in ("mean", "cls"):
            raise RequestError(f'pooling must be "mean" or "cls", is {shown(value)}')
        if name in ("truncation", "normalize") and not isinstance(value, bool):
            raise RequestError(f"{name} must be true or false, is {shown(value)}")
    return given


class EndpointHandler:
    """
    Answers requests by one checkpoint: on a GPU in bf16, by flash attention where it can run and else by sdpa; on one
    before Ampere, and on the CPU, in float32. `path` is the model's folder, by default this file's; its code is run.

    Raises:
        ValueError: for a checkpoint of another task, of k-mers, and one whose tokenizer does not fit.
    """

    def __init__(self, path: str = ""):
        path = path or str(Path(__file__).parent)
        config = AutoConfig.from_pretrained(path, trust_remote_code=True)
        if kmer := getattr(config, "kmer", None):  # run_gue.py's note
            raise ValueError(f"{path}: it reads overlapping {kmer}-mers, and this handler does not cut sequences so")
        architecture = (config.architectures or ["none"])[0]
        if not (endings := [ending for ending in AUTO_CLASSES if architecture.endswith(ending)]):
            raise ValueError(f"{path}: only *{', *'.join(AUTO_CLASSES)} are served, and it is a {architecture}")
        self.head = endings[0]
        self.device = "cuda" if torch.cuda.is_available() else "cpu"
        has_bf16 = self.device == "cuda" and torch.cuda.get_device_capability() >= (8, 0)
        self.attention = "flash_attention_2" if has_bf16 and is_flash_attn_2_available() else "sdpa"
        self.tokenizer = AutoTokenizer.from_pretrained(path, trust_remote_code=True)
        options = {"dtype": torch.bfloat16 if has_bf16 else torch.float32, "attn_implementation": self.attention}
        options |= {"trust_remote_code": True, "output_loading_info": True}
        self.model, info = AUTO_CLASSES[self.head].from_pretrained(path, **options)
        missing = [name for name in info["missing_keys"] if self.head != "Model" or "pooler" not in name]
        if missing or any("encoder.layer" in name for name in info["unexpected_keys"]):
            raise ValueError(f"{path}: the weights are not, or not all, those of config.json")
        if len(self.tokenizer) > self.model.config.vocab_size:
            raise ValueError(f"{path}: the tokenizer has {len(self.tokenizer)} tokens, which is more than the model's")
        self.model.eval().to(self.device)
        self.lock = threading.Lock()  # one request at a time: the limits are of one, and threads share no tokenizer

    def __call__(self, data: dict) -> list:
        """
        The answer to a request, of what JSON can hold: see the head of this file.

        Raises:
            RequestError: for a request that is wrong or too large.
            RuntimeError: where the model fails; the log says how.
        """
        if not isinstance(data, dict) or "inputs" not in data:
            raise RequestError('send {"inputs": one sequence or a list of them, "parameters": {...}}')
        beside = {name: value for name, value in data.items() if name not in ("inputs", "parameters", "options")}
        parameters = read_parameters(data.get("parameters"), beside, MAX_TOKENS[self.attention])
        sequences = read_sequences(data["inputs"], MAX_LETTERS[self.device])
        try:
            with self.lock, torch.inference_mode():
                results = self.run(sequences, parameters)
        except torch.OutOfMemoryError:
            logger.exception("out of memory")
            raise RequestError("this endpoint's memory is too small for the request: send shorter sequences") from None
        except RuntimeError:  # torch's: of no use to the caller
            logger.exception("the model failed")
            raise RuntimeError("the model failed on this request: the endpoint's log says why") from None
        is_labels = self.head == "ForSequenceClassification" and not parameters.keys() & FOR_EMBEDDINGS
        return results if is_labels or isinstance(data["inputs"], list) else results[0]

    def run(self, sequences: dict[str, str], parameters: dict) -> list:
        limits = {"max_length": MAX_TOKENS[self.attention], "truncation": False}
        limits |= {name: parameters[name] for name in limits.keys() & parameters.keys()}
        rows, top_k = self.encode(sequences, **limits), parameters.get("top_k")
        if self.head == "Model" or parameters.keys() & FOR_EMBEDDINGS:
            if top_k:
                raise RequestError("top_k is of guesses and labels; there are none to embeddings")
            return self.in_batches(partial(self.embed, parameters=parameters), rows)
        if self.head == "ForMaskedLM":
            self.check_masks(sequences, rows, top_k or 5)
            return self.in_batches(partial(self.fill_masks, top_k=top_k or 5), rows)
        strands = [rows]
        if getattr(self.model.config, "reverse_complement", False):  # run_gue.py's note
            others = {name: other_strand(sequence) for name, sequence in sequences.items()}
            strands.append(self.encode(others, **limits))
        scores = torch.tensor([self.in_batches(self.scores, strand) for strand in strands]).mean(dim=0)
        return [self.labelled(row, top_k) for row in scores.tolist()]

    def in_batches(self, answer: Callable[[list[list[int]]], list], rows: list[list[int]]) -> list:
        results = [None] * len(rows)
        for batch in self.batches(rows):
            for number, result in zip(batch, answer([rows[number] for number in batch]), strict=True):
                results[number] = result
        return results

    def encode(self, sequences: dict[str, str], max_length: int, truncation: bool) -> list[list[int]]:
        """Token ids, special ones included."""
        texts = list(sequences.values())
        rows = self.tokenizer(texts, truncation=truncation, max_length=max_length, verbose=False)["input_ids"]
        for name, ids in zip(sequences, rows, strict=True):
            if len(ids) > max_length:
                remedy = 'send it in pieces, or with "parameters": {"truncation": true}'
                raise RequestError(f"{name} has {len(ids):,} tokens and may have {max_length:,}: {remedy}")
        return rows

    def check_masks(self, sequences: dict[str, str], rows: list[list[int]], top_k: int):
        """Raises RequestError for a sequence without a mask, and where the answer would be too long."""
        letters = 0
        for (name, sequence), ids in zip(sequences.items(), rows, strict=True):
            masks = ids.count(self.tokenizer.mask_token_id)
            if not masks:
                where = " within max_length" if "[MASK]" in sequence else ""
                remedy = 'for embeddings add "parameters": {"pooling": "mean"}'
                raise RequestError(f"{name} has no [MASK]{where} to fill: {remedy}")
            letters += masks * top_k * len(sequence)
        if letters > MAX_ANSWER:
            remedy = f"at most {MAX_ANSWER:,} are given: send fewer masks, a lower top_k or shorter sequences"
            raise RequestError(f"a sequence for each guess of each mask makes {letters:,} letters: {remedy}")

    def batches(self, rows: list[list[int]]) -> Iterator[list[int]]:
        """Numbers of rows: those of like lengths together, the longest first, as many as the memory is for."""
        numbers = sorted(range(len(rows)), key=lambda number: len(rows[number]), reverse=True)
        while numbers:
            length = len(rows[numbers[0]])
            size = BATCH_TOKENS[self.device] // length
            if self.attention == "sdpa":
                size = min(size, BATCH_SCORES // (self.model.config.num_attention_heads * length**2))
            yield numbers[: max(1, size)]
            numbers = numbers[max(1, size) :]

    def pad(self, rows: list[list[int]]) -> dict[str, torch.Tensor]:
        """The model's arguments; no mask where nothing is padded, with which sdpa would need more memory."""
        lengths = torch.tensor([len(ids) for ids in rows])
        input_ids = torch.full((len(rows), lengths.max()), self.tokenizer.pad_token_id)
        attention_mask = torch.arange(lengths.max()) < lengths[:, None]
        input_ids[attention_mask] = torch.tensor([token for ids in rows for token in ids])
        inputs = {"input_ids": input_ids.to(self.device)}
        return inputs if attention_mask.all() else inputs | {"attention_mask": attention_mask.long().to(self.device)}

    def embed(self, rows: list[list[int]], parameters: dict) -> list[list[float]]:
        hidden_states = self.model.base_model(**self.pad(rows)).last_hidden_state.float()
        lengths = torch.tensor([[len(ids)] for ids in rows], device=self.device)
        is_first = parameters.get("pooling") == "cls"
        pooled = hidden_states[:, 0] if is_first else hidden_states.sum(1) / lengths  # at padding they are exactly 0
        return finite(torch.nn.functional.normalize(pooled) if parameters.get("normalize") else pooled)

    def scores(self, rows: list[list[int]]) -> list[list[float]]:
        config = self.model.config
        scores = self.model(**self.pad(rows)).logits.float()
        if config.problem_type == "regression" or (config.problem_type is None and config.num_labels == 1):
            # run_gue.py trains on standardised labels, and keeps their scale here
            scores = scores * getattr(config, "label_std", 1.0) + getattr(config, "label_mean", 0.0)
        elif config.problem_type == "multi_label_classification":
            scores = scores.sigmoid()
        else:
            scores = scores.softmax(dim=-1)
        return finite(scores)

    def labelled(self, scores: list[float], top_k: int | None) -> list[dict]:
        results = [{"label": self.model.config.id2label[label], "score": score} for label, score in enumerate(scores)]
        return sorted(results, key=lambda result: result["score"], reverse=True)[:top_k]

    def fill_masks(self, rows: list[list[int]], top_k: int) -> list[list]:
        """As the pipeline: of one mask its guesses; of several a list of each one's, in which the others stay."""
        inputs, mask_token_id = self.pad(rows), self.tokenizer.mask_token_id
        positions = (inputs["input_ids"] == mask_token_id).flatten().nonzero().squeeze(-1)
        probabilities = self.model(**inputs, prediction_positions=positions).logits.float().softmax(dim=-1)
        scores, tokens = probabilities.topk(min(top_k, probabilities.shape[-1]))
        guesses = zip(finite(scores), tokens.tolist(), strict=True)  # of one mask after the other
        results = []
        for ids in rows:
            places = [place for place, token in enumerate(ids) if token == mask_token_id]
            result = [self.filled(ids, place, *next(guesses), len(places) == 1) for place in places]
            results.append(result[0] if len(places) == 1 else result)
        return results

    def filled(self, ids: list[int], place: int, scores: list[float], tokens: list[int], bare: bool) -> list[dict]:
        """The guesses for one mask; `bare`: without special tokens, other masks among them."""
        guesses = []
        for score, token in zip(scores, tokens, strict=True):
            sequence = self.tokenizer.decode([*ids[:place], token, *ids[place + 1 :]], skip_special_tokens=bare)
            guess = {"score": score, "token": token, "token_str": self.tokenizer.decode([token])}
            # the released tokenizer has no decoder, and transformers joins its tokens with spaces
            guesses.append(guess | {"sequence": sequence.replace(" ", "")})
        return guesses


def finite(tensor: torch.Tensor) -> list[list[float]]:
    """As a list. Raises RuntimeError for NaN and infinity, which JSON cannot hold."""
    if not tensor.isfinite().all():
        raise RuntimeError("the model's output is not finite")
    return tensor.tolist()

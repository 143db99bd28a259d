"""What a pretrained model's embeddings tell without fine-tuning: logistic regression on GUE, beside plain counts.

    python benchmarks/frozen_embeddings.py --model_name_or_path . --data_dir GUE --output_dir output/frozen

Four kinds of features: the last hidden states' mean over a sequence's tokens, without special ones and padding; the
last hidden state of [CLS]; how often each 6-mer occurs; how often each token does. Each is standardised (counts are
divided by their standard deviation alone, which keeps them sparse); the L2 penalty is weakened as long as the
loss on dev falls; test is predicted once. Splits are those of run_gue.py: where there is no train, 90 % of dev are.

Left in --output_dir: frozen_embeddings.json and the table, frozen_embeddings.md, of all datasets so far. The same
command again goes on with those that are missing. On a GPU the model computes in bf16.
"""

import argparse
import json
from pathlib import Path
from statistics import mean

import numpy as np
import torch
from accelerate import Accelerator
from scipy.sparse import issparse
from sklearn.feature_extraction.text import CountVectorizer
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import log_loss
from sklearn.preprocessing import StandardScaler
from tqdm import tqdm
from transformers import AutoModel, PreTrainedTokenizerBase
from transformers.modeling_outputs import SequenceClassifierOutput

from dnabert2 import metrics
from dnabert2.encoding import EncodedSplit, EncodedTask, encode
from dnabert2.errors import UsageError, run_script
from dnabert2.files import write_whole
from dnabert2.finetuning import predict
from dnabert2.gue import GROUPS, TASKS, TASKS_BY_NAME
from dnabert2.gue_arguments import eval_batch_size
from dnabert2.gue_report import SHOWN
from dnabert2.gue_sources import SPLIT_NAMES, find_sources, model_fingerprint
from dnabert2.labelled import SINGLE_LABEL, TaskData
from dnabert2.loading import errors_name, fastest_attention, is_trusted, load_tokenizer
from dnabert2.padding import Collator


FEATURES = ("mean", "[CLS]", "6-mers", "tokens")
STRENGTHS = (1e-4, 1e-3, 1e-2, 1e-1, 1.0)  # C of scikit-learn: the lower, the stronger the penalty
MOST_ITERATIONS = 1000
RESULTS_FILE, TABLE_FILE = "frozen_embeddings.json", "frozen_embeddings.md"


class Embedder(torch.nn.Module):
    """In the place of logits, for `finetuning.predict`: mean and [CLS] of the last hidden states, [rows, 2·hidden]."""

    def __init__(self, model: torch.nn.Module, tokenizer: PreTrainedTokenizerBase):
        super().__init__()
        self.model = model
        self.register_buffer("special_ids", torch.tensor(tokenizer.all_special_ids))

    def forward(self, input_ids: torch.Tensor, attention_mask: torch.Tensor) -> SequenceClassifierOutput:
        hidden_states = self.model(input_ids=input_ids, attention_mask=attention_mask).last_hidden_state.float()
        is_counted = (attention_mask.bool() & ~torch.isin(input_ids, self.special_ids))[:, :, None]
        means = (hidden_states * is_counted).sum(dim=1) / is_counted.sum(dim=1).clamp(min=1)
        return SequenceClassifierOutput(logits=torch.cat([means, hidden_states[:, 0]], dim=1))


def load_embedder(name: str, tokenizer: PreTrainedTokenizerBase, trust_remote_code: bool, device: torch.device):
    """A pretrained encoder for this device. UsageError if there is none, or weights of it are missing."""
    is_gpu = device.type == "cuda"
    with errors_name(name):
        model, loading = AutoModel.from_pretrained(
            name,
            trust_remote_code=is_trusted(name, trust_remote_code),
            dtype=torch.bfloat16 if is_gpu else torch.float32,
            output_loading_info=True,
        )
    if missing := [key for key in loading["missing_keys"] if "pooler" not in key.split(".")]:  # the pooler is not used
        raise UsageError(f"{name} lacks {len(missing)} of this model's weights, as {min(missing)}")
    if model.config.model_type == "dnabert2":
        model.set_attn_implementation(fastest_attention(device.type, "bf16" if is_gpu else "no"))
    return Embedder(model, tokenizer).to(device)


def embed(accelerator: Accelerator, embedder: Embedder, collator: Collator, split: EncodedSplit, batch_size: int):
    """Mean and [CLS], each float64 [rows, hidden]."""
    return np.split(predict(accelerator, embedder, collator, [split], batch_size)[0].astype(np.float64), 2, axis=1)


def counts(data: TaskData, task: EncodedTask) -> dict[str, dict]:
    """Of each split the sparse counts [rows, columns] of 6-mers and of tokens; columns are those that train has."""
    vectorizers = {
        "6-mers": CountVectorizer(analyzer="char", lowercase=False, ngram_range=(6, 6), dtype=np.float64),
        "tokens": CountVectorizer(analyzer=np.ndarray.tolist, dtype=np.float64),
    }
    texts = {"6-mers": {name: data.splits[name].sequences for name in SPLIT_NAMES}}
    texts["tokens"] = {name: task.splits[name].input_ids for name in SPLIT_NAMES}
    found = {}
    for kind, vectorizer in vectorizers.items():
        vectorizer.fit(texts[kind]["train"])
        found[kind] = {name: vectorizer.transform(rows) for name, rows in texts[kind].items()}
    return found


def classify(features: dict, labels: dict[str, np.ndarray]) -> dict:
    """
    Scores on test of a logistic regression on features [rows, columns], dense or sparse, of train, dev and test.

    Returns `metrics.score`'s, and "C", the strength that dev chose.
    """
    scaler = StandardScaler(with_mean=not issparse(features["train"])).fit(features["train"])
    train, dev, test = (scaler.transform(features[name]) for name in SPLIT_NAMES)
    regression = LogisticRegression(max_iter=MOST_ITERATIONS, warm_start=True)
    best = None
    for strength in STRENGTHS:
        regression.set_params(C=strength).fit(train, labels["train"])
        loss = log_loss(labels["dev"], regression.predict_proba(dev), labels=regression.classes_)
        if best and loss >= best[0]:
            break  # weaker ones fit train closer still, and take longest
        best = loss, strength, regression.predict_proba(test)
    return metrics.score(SINGLE_LABEL, best[2], labels["test"]) | {"C": best[1]}


def markdown(results: dict[str, dict]) -> str:
    """The table: scores in percent by dataset, by the paper's tasks, and over all, beside the published ones."""
    lines = [
        f"| dataset | metric | rows of train | {' | '.join(FEATURES)} | {' | '.join(SHOWN)} |",
        "|---|---|--:|" + "--:|" * (len(FEATURES) + len(SHOWN)),
    ]
    names = [name for name in TASKS_BY_NAME if name in results]
    values = {}
    for name in names:
        task, scores = TASKS_BY_NAME[name], results[name]["scores"]
        values[name] = [100 * scores[kind][task.metric] for kind in FEATURES]
        values[name] += [task.published[model] for model in SHOWN]
        rows = f"{results[name]['rows']['train']:,}" + (" †" if results[name]["train_is_from_dev"] else "")
        metric = {"mcc": "MCC", "macro_f1": "F1"}[task.metric]
        lines.append(f"| {name} | {metric} | {rows} | {' | '.join(f'{value:.2f}' for value in values[name])} |")
    groups = {f"{group}, {title}": group for group, title in GROUPS.items()}
    means = {title: [name for name in names if TASKS_BY_NAME[name].group == group] for title, group in groups.items()}
    means |= {f"**all, {len(names)} of {len(TASKS)}**": names}
    for title, those in means.items():
        if those:
            row = [mean(column) for column in zip(*(values[name] for name in those), strict=True)]
            lines.append(f"| {title} | mean of {len(those)} | | {' | '.join(f'{value:.2f}' for value in row)} |")
    note = "† 90 % of dev, as there is no train; published scores are of the whole train."
    return "\n".join([*lines, "", note]) + "\n"


def read_results(file: Path, model: str) -> dict[str, dict]:
    """The datasets that are done. Raises UsageError if they are of another model."""
    if not file.is_file():
        return {}
    saved = json.loads(file.read_text())
    if saved["model_files"] != model:
        raise UsageError(f"{file} is of another model: name another --output_dir, or remove it")
    return saved["datasets"]


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model_name_or_path", required=True, help="pretrained model: a folder or a Hub name")
    parser.add_argument("--trust_remote_code", action="store_true", help="run the code of a model on the Hub")
    parser.add_argument("--data_dir", type=Path, required=True, help="GUE's folder")
    parser.add_argument("--tasks", nargs="+", default=["all"], help="names, folders or groups (default: all)")
    parser.add_argument("--output_dir", type=Path, required=True, help="folder for results and table")
    parser.set_defaults(dataset_name=None, problem_type=SINGLE_LABEL, per_device_eval_batch_size=None)
    args = parser.parse_args()
    sources, missing = find_sources(args)
    if missing:
        print(f"Not in {args.data_dir}, left out: {', '.join(missing)}")
    fingerprint = model_fingerprint(args.model_name_or_path) or args.model_name_or_path  # of the Hub: its name
    results = read_results(args.output_dir / RESULTS_FILE, fingerprint)
    args.output_dir.mkdir(parents=True, exist_ok=True)
    accelerator = Accelerator()
    tokenizer = load_tokenizer(args.model_name_or_path, args.trust_remote_code)
    embedder = load_embedder(args.model_name_or_path, tokenizer, args.trust_remote_code, accelerator.device)
    collator = Collator(tokenizer.pad_token_id, False, 1, accelerator.device)
    for source in tqdm([source for source in sources if source.name not in results], unit="dataset"):
        data = source.load()
        task = encode(data, tokenizer)
        batch_size = eval_batch_size(args, accelerator.device.type, task.max_seq_length)
        features = counts(data, task) | {"mean": {}, "[CLS]": {}}
        for name in SPLIT_NAMES:
            embedded = embed(accelerator, embedder, collator, task.splits[name], batch_size)
            features["mean"][name], features["[CLS]"][name] = embedded
        labels = {name: data.splits[name].labels for name in SPLIT_NAMES}
        results[source.name] = {
            "rows": {name: len(split) for name, split in data.splits.items()},
            "train_is_from_dev": data.train_is_from_dev,
            "scores": {kind: classify(features[kind], labels) for kind in FEATURES},
        }
        saved = {"model_files": fingerprint, "datasets": results}
        write_whole(args.output_dir / RESULTS_FILE, json.dumps(saved, indent=2) + "\n")
        write_whole(args.output_dir / TABLE_FILE, markdown(results))
    print(markdown(results), end="")


if __name__ == "__main__":
    run_script(main)

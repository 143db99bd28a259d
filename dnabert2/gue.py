"""The 28 tasks of GUE: classes, sizes as published, the recipe that DNABERT-2 was fine-tuned by, published scores.

    python -c 'from dnabert2.gue import *; [print(task.name, task.recipe) for task in select_tasks(["splice", "tf"])]'

GUE is of Zhou et al., arXiv 2306.15006. Recipe: finetune/scripts/run_dnabert2.sh of github.com/MAGICS-LAB/DNABERT_2 at
d87d29f. Scores: figures/Performance.png there (Table 6 of the paper's second version). Rows: of the released files.
"""

import difflib
from collections.abc import Sequence
from dataclasses import dataclass

from dnabert2.errors import UsageError


@dataclass(frozen=True)
class Recipe:
    """One fine-tuning: AdamW, linear warm-up and decay, the checkpoint of the lowest loss on dev. Defaults: EMP's."""

    num_train_epochs: int | None = 3  # None where the steps are given
    max_train_steps: int | None = None
    num_warmup_steps: int = 50
    eval_steps: int = 200
    total_train_batch_size: int = 32  # sequences a step, over all processes
    learning_rate: float = 3e-5
    weight_decay: float = 0.01


@dataclass(frozen=True)
class Task:
    """One dataset of GUE. Scores are percentages, as published."""

    name: str  # its folder in the archive, as "EMP/H3"
    group: str  # the paper's name of its task, a key of GROUPS, as "EMP"
    species: str
    num_labels: int
    rows: dict[str, int | None]  # of train, dev and test, as released; None: not known
    published: dict[str, float]  # by model: those of MODELS
    metric: str  # "mcc" or "macro_f1": what the published scores are
    recipe: Recipe

    @property
    def title(self) -> str:
        return GROUPS[self.group]


GROUPS = {
    "EMP": "epigenetic marks",
    "PD": "promoter detection, 300 bases",
    "CPD": "core promoter detection",
    "TF-H": "transcription factors, human",
    "TF-M": "transcription factors, mouse",
    "SSP": "splice sites",
    "CVC": "covid variants",
}
MODELS = ("DNABERT-2", "DNABERT (6-mer)", "DNABERT (3-mer)", "NT-2500M-multi", "NT-500M-human")

_PROMOTER = Recipe(num_train_epochs=4, eval_steps=400)
_TATA = Recipe(num_train_epochs=10)
_HUMAN = Recipe(num_warmup_steps=30)
_MOUSE = Recipe(num_train_epochs=None, max_train_steps=1000, num_warmup_steps=30)
_SPLICE = Recipe(num_train_epochs=5)
_COVID = Recipe(num_train_epochs=8, total_train_batch_size=128)

# Of covid the paper says 77,669, 7,000 and 7,000 rows, but others were released, and how many are dev is not known.
_TABLE = [  # group, name, rows of train, dev and test, scores of MODELS, recipe
    ("EMP", "EMP/H3", 11_971, 1_497, 1_497, 78.27, 73.10, 74.15, 78.77, 69.67, Recipe()),
    ("EMP", "EMP/H3K14ac", 26_438, 3_305, 3_305, 52.57, 40.06, 42.07, 56.20, 33.55, Recipe()),
    ("EMP", "EMP/H3K36me3", 27_904, 3_488, 3_488, 56.88, 47.25, 48.49, 61.99, 44.14, Recipe()),
    ("EMP", "EMP/H3K4me1", 25_341, 3_168, 3_168, 50.52, 41.44, 42.95, 55.30, 37.15, Recipe()),
    ("EMP", "EMP/H3K4me2", 24_545, 3_069, 3_069, 31.13, 32.27, 31.34, 36.49, 30.87, Recipe()),
    ("EMP", "EMP/H3K4me3", 29_439, 3_680, 3_680, 36.27, 27.81, 28.92, 40.34, 24.06, Recipe()),
    ("EMP", "EMP/H3K79me3", 23_069, 2_884, 2_884, 67.39, 61.17, 60.12, 64.70, 58.35, Recipe()),
    ("EMP", "EMP/H3K9ac", 22_224, 2_779, 2_779, 55.63, 51.22, 50.48, 56.01, 45.81, Recipe()),
    ("EMP", "EMP/H4", 11_679, 1_461, 1_461, 80.71, 79.26, 78.27, 81.67, 76.17, Recipe()),
    ("EMP", "EMP/H4ac", 27_275, 3_410, 3_410, 50.43, 37.43, 38.60, 49.13, 33.74, Recipe()),
    ("PD", "prom/prom_300_all", 47_356, 5_920, 5_920, 86.77, 90.48, 90.44, 91.01, 87.71, _PROMOTER),
    ("PD", "prom/prom_300_notata", 42_452, 5_307, 5_307, 94.27, 93.05, 93.61, 94.00, 90.75, _PROMOTER),
    ("PD", "prom/prom_300_tata", 4_904, 613, 613, 71.59, 61.56, 69.83, 79.43, 78.07, _TATA),
    ("CPD", "prom/prom_core_all", 47_356, 5_920, 5_920, 69.37, 68.90, 70.92, 70.33, 63.45, _PROMOTER),
    ("CPD", "prom/prom_core_notata", 42_452, 5_307, 5_307, 68.04, 70.47, 69.82, 71.58, 64.82, _PROMOTER),
    ("CPD", "prom/prom_core_tata", 4_904, 613, 613, 74.17, 76.06, 78.15, 72.97, 71.34, _TATA),
    ("TF-H", "tf/0", 32_378, 1_000, 1_000, 71.99, 66.84, 67.95, 66.64, 61.59, _HUMAN),
    ("TF-H", "tf/1", 30_672, 1_000, 1_000, 76.06, 70.14, 70.90, 70.28, 66.75, _HUMAN),
    ("TF-H", "tf/2", 19_000, 1_000, 1_000, 66.52, 61.03, 60.51, 58.72, 53.58, _HUMAN),
    ("TF-H", "tf/3", 27_294, 1_000, 1_000, 58.54, 51.89, 53.03, 51.65, 42.95, _HUMAN),
    ("TF-H", "tf/4", 19_000, 1_000, 1_000, 77.43, 70.97, 69.76, 69.34, 60.81, _HUMAN),
    ("TF-M", "mouse/0", 6_478, 810, 810, 56.76, 44.42, 42.31, 63.31, 31.04, _MOUSE),
    ("TF-M", "mouse/1", 53_952, 6_745, 6_745, 84.77, 78.94, 79.10, 83.76, 75.04, _MOUSE),
    ("TF-M", "mouse/2", 2_620, 328, 328, 79.32, 71.44, 69.90, 71.52, 61.67, _MOUSE),
    ("TF-M", "mouse/3", 1_904, 239, 239, 66.47, 44.89, 55.40, 69.44, 29.17, _MOUSE),
    ("TF-M", "mouse/4", 15_064, 1_883, 1_883, 52.66, 42.48, 41.97, 47.07, 29.27, _MOUSE),
    ("SSP", "splice/reconstructed", 36_496, 4_562, 4_562, 84.99, 84.07, 84.14, 89.35, 79.71, _SPLICE),
    ("CVC", "virus/covid", 73_335, None, 9_168, 71.02, 55.50, 62.23, 73.04, 50.82, _COVID),
]
_SPECIES = {"EMP": "yeast", "TF-M": "mouse", "CVC": "SARS-CoV-2"}  # all others: human
_NUM_LABELS = {"SSP": 3, "CVC": 9}  # all others: 2

TASKS: tuple[Task, ...] = tuple(
    Task(
        name=name,
        group=group,
        species=_SPECIES.get(group, "human"),
        num_labels=_NUM_LABELS.get(group, 2),
        rows={"train": train, "dev": dev, "test": test},
        published=dict(zip(MODELS, scores, strict=True)),
        metric="macro_f1" if group == "CVC" else "mcc",
        recipe=recipe,
    )
    for group, name, train, dev, test, *scores, recipe in _TABLE
)


def select_tasks(names: Sequence[str]) -> list[Task]:
    """
    The tasks that these names stand for, in the order of `TASKS`, each once.

    Args:
        names: of tasks ("EMP/H3"), of their folders ("EMP", "prom", "tf", "mouse", "splice", "virus"), of the paper's
            tasks (the keys of `GROUPS`), or "all".

    Raises:
        UsageError: for a name that is none of them; it lists the closest ones.
    """
    meanings = {"all": set(TASKS_BY_NAME)}
    for task in TASKS:
        for meaning in (task.name, task.name.partition("/")[0], task.group):
            meanings.setdefault(meaning, set()).add(task.name)
    if not names:
        raise UsageError(f"no task is named; there are {', '.join(meanings)}")
    for name in names:
        if name not in meanings:
            close = difflib.get_close_matches(name, meanings, n=5, cutoff=0.4) or ["all", *GROUPS]
            raise UsageError(f"GUE has no task or group {name!r}; near to it: {', '.join(close)}")
    wanted = set().union(*(meanings[name] for name in names))
    return [task for task in TASKS if task.name in wanted]


TASKS_BY_NAME: dict[str, Task] = {task.name: task for task in TASKS}

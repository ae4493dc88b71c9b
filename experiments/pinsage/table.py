"""What is measured: name -> how to fit it, and the few trials that validation chooses from, two or three a model."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from experiments.pinsage import baselines, graph_model, inductive
from experiments.pinsage.data import Task
from experiments.pinsage.judge import Answers

Hyper = dict[str, Any]


@dataclass(frozen=True)
class Model:
    """``grids``: by log, the trials. ``like``: nothing is tried; the hyper-parameters are another model's, with
    ``changes``. ``asks``: what the fitted model is tested on, where that is not the whole task.
    """

    title: str
    fit: Callable[..., tuple[Answers, int]]
    grids: Mapping[str, Sequence[Hyper]] = field(default_factory=lambda: NOTHING)
    deterministic: bool = False
    like: str | None = None
    changes: Hyper | None = None
    asks: Callable[[Task], Task] | None = None


def trials(common: Hyper, *changes: Hyper) -> list[Hyper]:
    return [{**common, **change} for change in changes]


NOTHING: dict[str, Sequence[Hyper]] = {name: [{}] for name in ("ml-100k", "citeulike-t", "ml-1m")}

BPR = {
    "ml-100k": trials(
        {"learning_rate": 5e-3},
        {"regularisation": 1e-2},
        {"regularisation": 3e-2},
    ),
    "citeulike-t": trials(
        {"batch_size": 4096, "judge_every": 10, "patience": 2, "epochs": 100},
        {"learning_rate": 2e-3, "regularisation": 1e-2},
        {"learning_rate": 5e-3, "regularisation": 3e-2},
    ),
    "ml-1m": trials(
        {"batch_size": 16384, "judge_every": 5, "patience": 2, "epochs": 50},
        {"learning_rate": 5e-3, "regularisation": 1e-2},
        {"learning_rate": 1e-2, "regularisation": 3e-2},
    ),
}

LIGHT = {
    "ml-100k": trials(
        {"judge_every": 5, "patience": 4},
        {"regularisation": 1e-4},
        {"regularisation": 1e-3},
    ),
    "citeulike-t": trials(
        {"batch_size": 4096, "judge_every": 10, "patience": 4, "epochs": 300, "regularisation": 1e-4},
        {"learning_rate": 5e-3},
        {"learning_rate": 2e-3},
    ),
    # every step propagates over 1.4 M edges, so steps are few and large
    "ml-1m": trials(
        {"batch_size": 16384, "judge_every": 5, "patience": 3, "epochs": 100, "regularisation": 1e-4},
        {"learning_rate": 5e-3},
        {"learning_rate": 2e-3},
        {"learning_rate": 5e-3, "regularisation": 1e-3},
    ),
}

# Every click of a user from the others; the negatives, drawn with replacement, are most of the two film logs' items.
USERS = {
    "pairs": "users",
    "loss": "softmax",
    "temperature": 0.1,
    "user_pooling": "mean",
    "user_map": True,
    "skip": True,
    "dim": 128,
    "patience": 100,  # the study keeps the best judged epoch itself
}
UNORDERED = {"window": 20, "pair_window": 5, "windowed": False}
PINSAGE = {
    "ml-100k": trials(
        {**USERS, "epochs": 20, "judge_every": 4, "batch_size": 256, "user_clicks": 200, "shared_negatives": 3000},
        {"user_temperature": 0.05},
        {"loss": "max-margin"},
    ),
    "citeulike-t": trials(
        {**USERS, **UNORDERED, "spectral": 128, "epochs": 18, "judge_every": 3, "batch_size": 512, "user_clicks": 30}
        | {"shared_negatives": 4000, "num_neighbours": 10, "user_temperature": 0.1}
        | {"hard_first": 0.01, "hard_last": 0.03},
        {"learning_rate": 5e-3},
        {"learning_rate": 3e-3, "decay": 0.95, "query_users": 0.4},
    ),
    "ml-1m": trials(
        {**USERS, **UNORDERED, "epochs": 20, "judge_every": 4, "batch_size": 256, "user_clicks": 100}
        | {"shared_negatives": 3000, "user_temperature": 0.05, "learning_rate": 1e-2, "decay": 0.85},
        {"query_users": 0.4},
        {"query_users": 0.3},
        {"query_users": 0.3, "epochs": 30, "decay": 0.9},
    ),
}


def part(title: str, **changes: Any) -> Model:
    """PinSage with one part taken away, everything else as validation chose it for the whole."""
    return Model(title, graph_model.fit, like="pinsage", changes=changes)


MODELS: dict[str, Model] = {
    "popularity": Model("Popularity", baselines.popularity, deterministic=True),
    "bpr-mf": Model("BPR-MF, 64 dimensions", baselines.bpr, BPR),
    "lightgcn": Model("LightGCN, 3 layers, 64 dimensions (PyG)", baselines.light, LIGHT),
    "pinsage": Model("PinSage", graph_model.fit, PINSAGE),
    "pinsage-mean": part("pooling by mean", convolution="pinsage-mean"),
    "no-hard-negatives": part("no hard negatives", hard_negatives=False),
    "no-curriculum": part("no curriculum: all hard negatives from the start", curriculum=False),
    "uniform": part("neighbours drawn evenly", sampler="uniform"),
    "no-spectral": part("no spectral features", spectral=0),
    "spectral-only": Model("spectral features alone, nothing trained", graph_model.untrained, like="pinsage"),
    "inductive-pinsage": Model("PinSage", inductive.pinsage, like="pinsage", asks=inductive.asked_task),
    "inductive-features": Model("features only", inductive.feature_only, like="pinsage", asks=inductive.asked_task),
    "inductive-popularity": Model("popularity", baselines.popularity, deterministic=True, asks=inductive.asked_task),
}
ABLATIONS = ("pinsage-mean", "no-hard-negatives", "no-curriculum", "uniform")

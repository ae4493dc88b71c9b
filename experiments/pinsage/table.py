"""What is measured: name -> how to fit it, and the few trials that validation chooses from, as many for each model."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from experiments.pinsage import baselines
from experiments.pinsage.judge import Answers

Hyper = dict[str, Any]


@dataclass(frozen=True)
class Model:
    """``grids``: by log, the trials. ``like``: trials are not tried; the hyper-parameters are another model's."""

    title: str
    fit: Callable[..., tuple[Answers, int]]
    grids: Mapping[str, Sequence[Hyper]]
    deterministic: bool = False
    like: str | None = None
    changes: Hyper | None = None


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
        {},
        {"regularisation": 1e-4},
        {"regularisation": 1e-3},
    ),
    "citeulike-t": trials(
        {"judge_every": 10, "patience": 2, "epochs": 150, "regularisation": 1e-4},
        {"learning_rate": 5e-3},
        {"learning_rate": 2e-3},
    ),
    # every step propagates over 1.4 M edges, so steps are few and large
    "ml-1m": trials(
        {"batch_size": 32768, "judge_every": 5, "patience": 2, "epochs": 50, "regularisation": 1e-4},
        {"learning_rate": 5e-3},
        {"learning_rate": 1e-2},
    ),
}

MODELS: dict[str, Model] = {
    "popularity": Model("Popularity", baselines.popularity, NOTHING, deterministic=True),
    "bpr-mf": Model("BPR-MF, 64 dimensions", baselines.bpr, BPR),
    "lightgcn": Model("LightGCN, 3 layers, 64 dimensions (PyG)", baselines.light, LIGHT),
}

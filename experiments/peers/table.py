"""The table of peers: name -> how to fit it, and the hyper-parameters that validation chooses from."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from experiments.peers import bpr_mf, ease, fed_mf, item_knn, lightgcn, pfedrec, popularity, sasrec
from experiments.peers.interface import Fit

Hyper = dict[str, Any]


@dataclass(frozen=True)
class Peer:
    """``grid`` is tried whole, with seed 0; the best by validation is fitted with every seed.

    ``reference`` is the HR@10 / NDCG@10 that others measured under loo99-strict on ml-100k (one seed).
    """

    title: str
    fit: Fit
    grid: Sequence[Hyper] = ({},)
    deterministic: bool = False
    federated: bool = False
    reference: tuple[float, float] | None = None


def options(**choices: Sequence[Any]) -> list[Hyper]:
    """Every combination of the choices."""
    grid: list[Hyper] = [{}]
    for name, values in choices.items():
        grid = [{**hyper, name: value} for hyper in grid for value in values]
    return grid


NEIGHBOURS = (10, 20, 50, 100, 200)

PEERS: dict[str, Peer] = {
    "popularity": Peer("Popularity", popularity.fit, deterministic=True, reference=(0.419, 0.231)),
    "item-knn-history": Peer(
        "ItemKNN, neighbours of the clicked",
        item_knn.fit,
        options(neighbours=NEIGHBOURS, side=["history"]),
        deterministic=True,
        reference=(0.574, 0.317),
    ),
    "item-knn": Peer(
        "ItemKNN, neighbours of the candidate",
        item_knn.fit,
        options(neighbours=NEIGHBOURS, side=["candidate"]),
        deterministic=True,
    ),
    "ease": Peer(
        "EASE",
        ease.fit,
        options(penalty=[100.0, 200.0, 400.0, 800.0]),
        deterministic=True,
        reference=(0.656, 0.381),
    ),
    "bpr-mf": Peer(
        "BPR-MF, 64 dimensions",
        bpr_mf.fit,
        options(learning_rate=[2e-3, 5e-3], regularisation=[1e-2, 3e-2]),
        reference=(0.638, 0.363),
    ),
    "lightgcn": Peer(
        "LightGCN, 3 layers, 64 dimensions",
        lightgcn.fit,
        options(regularisation=[1e-4, 1e-3]),
        reference=(0.644, 0.373),
    ),
    "sasrec": Peer(
        "SASRec, 2 blocks, 64 dimensions",
        sasrec.fit,
        [
            *options(loss=["softmax", "logistic"], dropout=[0.2, 0.5], length=[50]),
            *options(loss=["softmax"], dropout=[0.5], length=[200]),
        ],
    ),
    "fedmf": Peer("FedMF, 32 dimensions", fed_mf.fit, options(regularisation=[1e-2, 2e-2, 4e-2]), federated=True),
    "pfedrec": Peer("PFedRec, 32 dimensions", pfedrec.fit, federated=True, reference=(0.551, 0.317)),
}

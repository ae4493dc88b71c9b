"""A graph model small enough to train in a second: 60 users and 40 items of the bazaar, batches of 64 pairs."""

from __future__ import annotations

from functools import lru_cache
from typing import Any

from fedquilt.config import Config, parse
from fedquilt.graphs.datasets import load_split
from server.graph_training.prepare import Prepared, prepare

DATA = {"num_users": 60, "num_items": 40, "mean_clicks": 12, "seed": 1}
MODEL = {
    "dim": 8,
    "hidden": 8,
    "num_neighbours": 5,
    "num_walks": 8,
    "epochs": 3,
    "batch_size": 64,
    "shared_negatives": 16,
    "hard_first": 0.2,
    "hard_last": 0.6,
    "learning_rate": 0.01,
    "num_producers": 0,
}


def tiny_config(**graph_model: Any) -> Config:
    return parse({"seed": 5, "data": DATA, "split": {"cloud_share": 1.0}, "graph_model": {**MODEL, **graph_model}})


def prepared(config: Config) -> Prepared:
    return _prepared(config.model_dump_json())


@lru_cache(maxsize=8)
def _prepared(text: str) -> Prepared:
    config = Config.model_validate_json(text)
    return prepare(config, load_split(config.data, config.split))

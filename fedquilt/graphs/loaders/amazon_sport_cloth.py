"""Amazon sport and cloth: two domains over the same users, each with its own items and no time.

``sport_cloth/`` holds the clicks on sport, ``cloth_sport/`` those on cloth. Read are ``train.txt`` and ``test.txt``
(the held-out clicks whose item occurs in training). A user's order is: training clicks on sport, on cloth, then the
held-out click on sport, then on cloth.
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np

from fedquilt.config import DataConfig
from fedquilt.graphs import tables
from fedquilt.graphs.assemble import assemble
from fedquilt.graphs.datasets import LOADERS
from fedquilt.graphs.log import InteractionLog

_FOLDERS = {"sport": "sport_cloth", "cloth": "cloth_sport"}
_LINE = "user, item and 1, separated by tabs"


@LOADERS.register("amazon-sport-cloth")
def load(config: DataConfig) -> InteractionLog:
    folder = tables.require_folder(config.path, "amazon-sport-cloth", "sport_cloth/ and cloth_sport/")
    parts = [
        (domain, *_part(folder / name / file))
        for file in ("train.txt", "test.txt")
        for domain, name in enumerate(_FOLDERS.values())
    ]
    users = np.concatenate([users for _, users, _ in parts])
    items = np.concatenate([items for _, _, items in parts])
    domains = np.concatenate([np.full(len(users), domain) for domain, users, _ in parts])
    stride = int(items.max()) + 1
    log = assemble(
        "amazon-sport-cloth",
        users,
        domains * stride + items,
        domains=domains,
        notes=("no time: training clicks on sport, on cloth, then held-out ones",),
    )
    names = tuple(_FOLDERS)
    item_ids = np.array([f"{names[key // stride]}:{key % stride}" for key in np.asarray(log.item_ids)])
    return replace(log, item_ids=item_ids, domain_names=names, source=folder)


def _part(path: Path) -> tuple[np.ndarray, np.ndarray]:
    table = tables.read_delimited(tables.require_file(path, _LINE), "\t", ["user", "item", "one"])
    return tables.whole_numbers(table, "user", path, 1), tables.whole_numbers(table, "item", path, 1)

"""An interaction log in memory: clicks sorted by user, then time, then row."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np


@dataclass(frozen=True)
class LoadReport:
    """What reading a log found and did."""

    rows_read: int = 0
    duplicates_dropped: int = 0
    one_item_users: int = 0
    notes: tuple[str, ...] = ()


@dataclass(frozen=True)
class InteractionLog:
    """C clicks of ``num_users`` users on ``num_items`` items.

    ``users_C`` is non-decreasing; within a user clicks are in time order (ties keep the row order of the file).
    ``times_C`` is in seconds, or None for a log without time, whose order is the row order. ``user_ids`` and
    ``item_ids`` are the ids of the source. ``source`` is the folder that frozen splits may lie in.
    """

    name: str
    users_C: np.ndarray
    items_C: np.ndarray
    num_users: int
    num_items: int
    times_C: np.ndarray | None = None
    ratings_C: np.ndarray | None = None
    domains_C: np.ndarray | None = None
    domain_names: tuple[str, ...] = ()
    user_ids: np.ndarray | None = None
    item_ids: np.ndarray | None = None
    item_titles: tuple[str, ...] | None = None
    item_features_IF: np.ndarray | None = None
    feature_names: tuple[str, ...] = ()
    report: LoadReport = field(default_factory=LoadReport)
    source: Path | None = None

    def __len__(self) -> int:
        return len(self.users_C)

    @cached_property
    def offsets(self) -> np.ndarray:
        """int64 [U + 1]: user u's clicks are ``items_C[offsets[u]:offsets[u + 1]]``."""
        return np.searchsorted(self.users_C, np.arange(self.num_users + 1)).astype(np.int64)

    @property
    def places_C(self) -> np.ndarray:
        """int64 [C]: a click's place among its user's, from 0."""
        return np.arange(len(self)) - self.offsets[self.users_C]

    @cached_property
    def popularity_I(self) -> np.ndarray:
        """Clicks per item, int64 [I]."""
        return np.bincount(self.items_C, minlength=self.num_items)

    @cached_property
    def hash(self) -> str:
        digest = hashlib.sha256(f"{self.num_users}/{self.num_items}/".encode())
        for array in (self.users_C, self.items_C, self.times_C):
            if array is not None:
                digest.update(np.ascontiguousarray(array).tobytes())
        return digest.hexdigest()[:16]

    def items_of(self, user: int) -> np.ndarray:
        return self.items_C[self.offsets[user] : self.offsets[user + 1]]

    def where(self, mask_C: np.ndarray) -> InteractionLog:
        """The same users and items, only the clicks that ``mask_C`` keeps."""
        pick: dict[str, Any] = {
            name: None if (array := getattr(self, name)) is None else array[mask_C]
            for name in ("users_C", "items_C", "times_C", "ratings_C", "domains_C")
        }
        return replace(self, **pick)

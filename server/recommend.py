"""The gateway's part of a recommendation: it chooses candidates and cuts out what the device needs; it ranks nothing.

A device that names no item gets the whole catalogue, and the cloud learns nothing but that it asked. One that names
items gets the best matches of each of them, which costs bytes by the candidate instead of by the catalogue.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from fedquilt.config import Config
from fedquilt.errors import FedquiltError
from fedquilt.offers import Offer, cut_base, cut_patch, rows_around, write_offer
from fedquilt.types import PatchSpec

MAX_ASKED = 256  # items of one request; each costs a product with the catalogue
MAX_CANDIDATES = 4096


class AskError(FedquiltError):
    """A request for recommendations makes no sense; the device is told why."""


@dataclass(frozen=True)
class _Standing:
    round_: int
    patch_P: np.ndarray
    ceiling_I: np.ndarray | None


class Recommender:
    """Thread-safe: a round's patch replaces the one before in one step, answers are made from either."""

    def __init__(
        self, config: Config, spec: PatchSpec, base: Mapping[str, np.ndarray], titles: Sequence[str] | None = None
    ):
        self._toml, self._spec, self._base, self._titles = config.to_toml(), spec, base, titles
        self._standing: _Standing | None = None
        self._whole: tuple[_Standing, bytes] | None = None  # the answer to whoever names nothing

    @property
    def ready(self) -> bool:
        return self._standing is not None

    def take(self, round_: int, patch_P: np.ndarray, ceiling_I: np.ndarray | None = None) -> None:
        """What to serve after this round: a patch, and the most lift of each item where there is a ceiling on it."""
        self._standing = _Standing(round_, np.asarray(patch_P, np.float32), ceiling_I)

    def answer(self, items: Sequence[int], count: int) -> bytes:
        """A serialised offer. AskError for items outside of the catalogue, too many of them, or of candidates."""
        standing, num_items = self._standing, len(self._base["item_vectors"])
        assert standing is not None  # the service asks `ready` first
        if not items:
            if count:
                raise AskError("candidates are chosen by items: name some, or ask for no number")
            return self._catalogue(standing, num_items)
        if len(items) > MAX_ASKED:
            raise AskError(f"name at most {MAX_ASKED} items: got {len(items)}")
        asked = np.unique(np.array(items, np.int64))
        if asked[-1] >= num_items:
            raise AskError(f"the catalogue has {num_items} items: got {asked[-1]}")
        if not 1 <= count <= MAX_CANDIDATES:
            raise AskError(f"ask for 1 to {MAX_CANDIDATES} candidates: got {count}")
        candidates = best_matches(self._base["item_vectors"], self._base["item_bias"], asked, count)
        return self._offer(standing, rows_around(self._base, asked, candidates), asked, candidates)

    def _catalogue(self, standing: _Standing, num_items: int) -> bytes:
        if self._whole is None or self._whole[0] is not standing:
            everything = np.arange(num_items)
            self._whole = standing, self._offer(standing, everything, everything, everything)
        return self._whole[1]

    def _offer(self, standing: _Standing, items_S: np.ndarray, asked: np.ndarray, candidates: np.ndarray) -> bytes:
        return write_offer(
            Offer(
                config_toml=self._toml,
                round_=standing.round_,
                num_items=len(self._base["item_vectors"]),
                items_S=items_S,
                candidates_C=np.searchsorted(items_S, candidates),
                base=cut_base(self._base, items_S, asked),
                patch_p=cut_patch(self._spec, standing.patch_P, items_S),
                titles=tuple(self._titles[item] for item in candidates) if self._titles else (),
                ceiling_S=None if standing.ceiling_I is None else standing.ceiling_I[items_S],
            )
        )


def best_matches(vectors_IF: np.ndarray, bias_I: np.ndarray, asked: np.ndarray, count: int) -> np.ndarray:
    """int64 [<= count]: what matches the asked items best by v_q · v_i + bias_i, none of them itself.

    Each asked item has its own list, and the lists are dealt in turn: the first of every list, then the second, so that
    no single item (or decoy) owns the candidates. O(Q · I · F).
    """
    count = min(count, len(vectors_IF) - len(asked))
    lists = []
    for item in asked:
        scores_I = vectors_IF @ vectors_IF[item] + bias_I
        scores_I[asked] = -np.inf
        best = np.sort(np.argpartition(-scores_I, max(count - 1, 0))[:count])
        lists.append(best[np.argsort(-scores_I[best], kind="stable")])
    dealt = np.stack(lists, axis=1).reshape(-1)
    _, first = np.unique(dealt, return_index=True)
    return dealt[np.sort(first)][:count].astype(np.int64)

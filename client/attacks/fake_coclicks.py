"""Fake co-clicks: promote a target on devices, demote a rival, or poison the cloud's co-click graph."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from client.attacks.contract import ATTACKS, COLLUDERS, OWN, POPULARITY, Clicks
from client.attacks.profiles import most_popular


def beside_popular(clicks: Clicks, popularity_I: np.ndarray, anchors: int) -> dict[int, np.ndarray]:
    """popular, target, popular, target, ...: anchors from the ``anchors`` most popular items, evenly, in random order.

    Each target click stands next to two anchors, so an anchor and the target are co-clicked at distance 1.
    """
    pool = most_popular(popularity_I, 1.0)
    pool = pool[~np.isin(pool, clicks.targets_T)][:anchors]
    forged = {}
    for user, items in clicks.histories.items():
        made = np.resize(clicks.generator.permutation(pool), len(items))
        made[1::2] = np.resize(clicks.generator.permutation(clicks.targets_T), len(made[1::2]))
        forged[user] = made
    return forged


@ATTACKS.register("fake-co-clicks")
@dataclass(frozen=True)
class FakeCoClicks:
    """Local histories in which every other click is on a target, between clicks on popular items."""

    anchors: int = 50
    kind = "clicks"
    goal = "promote"
    knows = frozenset({OWN, POPULARITY})
    source = "Yang, Gong and Cai 2017, Fake co-visitation injection attacks, NDSS"

    def histories(self, clicks: Clicks) -> Mapping[int, np.ndarray]:
        return beside_popular(clicks, clicks.popularity_I, self.anchors)


@ATTACKS.register("graph-poisoning")
@dataclass(frozen=True)
class GraphPoisoning:
    """The same fake co-clicks in the log that the cloud sees: forged edges of the global co-click graph."""

    anchors: int = 50
    kind = "cloud-clicks"
    goal = "promote"
    knows = frozenset({OWN, POPULARITY})
    source = "Yang, Gong and Cai 2017, Fake co-visitation injection attacks, NDSS"

    def histories(self, clicks: Clicks) -> Mapping[int, np.ndarray]:
        return beside_popular(clicks, clicks.popularity_I, self.anchors)


@ATTACKS.register("rival-demotion")
@dataclass(frozen=True)
class RivalDemotion:
    """Local histories made of what is clicked next to the rival, and never of the rival itself.

    Every such history says that who clicked the rival's companions clicks another of them next, and not the rival. The
    companions are found within ``window`` places of the target in the colluders' own clicks; popular items fill up.
    """

    window: int = 5
    companions: int = 20
    kind = "clicks"
    goal = "demote"
    knows = frozenset({OWN, COLLUDERS})
    source = "Yang, Gong and Cai 2017, Fake co-visitation injection attacks (demotion), NDSS"

    def histories(self, clicks: Clicks) -> Mapping[int, np.ndarray]:
        near_I = sum(
            (_beside(items, clicks.targets_T, self.window, clicks.num_items) for items in clicks.histories.values()),
            np.zeros(clicks.num_items),
        )
        score_I = near_I + clicks.own_popularity_I / (1 + clicks.own_popularity_I.sum())
        order_I = most_popular(score_I, 1.0)
        pool = order_I[~np.isin(order_I, clicks.targets_T)][: self.companions]
        return {
            user: np.resize(clicks.generator.permutation(pool), len(items)) for user, items in clicks.histories.items()
        }


def _beside(items: np.ndarray, targets_T: np.ndarray, window: int, num_items: int) -> np.ndarray:
    """float64 [I]: how often an item stands within ``window`` places of a target."""
    places_P = np.flatnonzero(np.isin(items, targets_T))
    apart_LP = np.abs(np.arange(len(items))[:, None] - places_P)
    near_L = (apart_LP <= window).any(axis=1)
    return np.bincount(items[near_L], minlength=num_items).astype(np.float64)

"""What the bazaar sells, and when: the items' side of the generated log.

Items form niches of about ``ITEMS_PER_NICHE``, niches form topics, topics belong to domains. An item has a power-law
weight, appears at some time and is most wanted when it is new; topics rise and fall. Time is a share of the log's span,
cut into ``NUM_BUCKETS`` equal parts within which what is wanted does not change.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import numpy as np

from fedquilt.seeds import generator_for

ITEMS_PER_NICHE = 25
NICHES_PER_TOPIC = 4
NUM_BUCKETS = 60
DOMAIN_NAMES = ("books", "music", "garden")
_DENSE_FEATURES = 16
_POPULARITY_EXPONENT = 0.6
_FRESHNESS_DECAY = 0.08


@dataclass(frozen=True)
class World:
    """Items sorted by niche. ``niche_starts`` [G + 1] delimits them; niche g lies in topic g // NICHES_PER_TOPIC.

    ``item_of_I`` are the public indices of the sorted items: shuffled, so that an index tells nothing.
    ``births_I`` and ``weights_I`` are in sorted order, the rest in public order.
    """

    seed: int
    niche_starts: np.ndarray
    item_of_I: np.ndarray
    births_I: np.ndarray
    weights_I: np.ndarray
    topic_domains: np.ndarray
    topic_phases: np.ndarray

    @property
    def num_items(self) -> int:
        return len(self.item_of_I)

    @property
    def num_topics(self) -> int:
        return len(self.topic_domains)

    @cached_property
    def niche_I(self) -> np.ndarray:
        """Niche of each item, public order."""
        niches = np.empty(self.num_items, np.int64)
        niches[self.item_of_I] = np.repeat(np.arange(len(self.niche_starts) - 1), np.diff(self.niche_starts))
        return niches

    @cached_property
    def domain_I(self) -> np.ndarray:
        """Domain of each item, public order."""
        return self.topic_domains[self.niche_I // NICHES_PER_TOPIC]

    @cached_property
    def _demand(self) -> np.ndarray:
        """Running sum of demand over sorted items, one row a bucket, row b shifted to (b, b + 1]; flat, ascending."""
        ages_BI = _bucket_times()[:, None] - self.births_I[None, :]
        fresh_BI = 0.25 + 2.0 * np.exp(-np.maximum(ages_BI, 0) / _FRESHNESS_DECAY)
        demand_BI = np.where(ages_BI >= 0, self.weights_I * fresh_BI, 0.0)
        sums_BI = np.cumsum(demand_BI, axis=1)
        return (sums_BI / sums_BI[:, -1:] + np.arange(NUM_BUCKETS)[:, None]).ravel()

    @cached_property
    def _trends(self) -> np.ndarray:
        """As ``_demand``, over topics."""
        base_T = np.arange(1, self.num_topics + 1) ** -0.5
        waves_BT = np.sin(2 * np.pi * (1.2 * _bucket_times()[:, None] + self.topic_phases[None, :]))
        sums_BT = np.cumsum(base_T * np.exp(1.2 * waves_BT), axis=1)
        return (sums_BT / sums_BT[:, -1:] + np.arange(NUM_BUCKETS)[:, None]).ravel()

    def draw_topics(self, buckets_M: np.ndarray, uniforms_M: np.ndarray) -> np.ndarray:
        """A topic in proportion to its trend in that bucket."""
        found = np.searchsorted(self._trends, buckets_M + uniforms_M, side="right")
        return np.minimum(found - buckets_M * self.num_topics, self.num_topics - 1)

    def draw_items(self, buckets_M: np.ndarray, uniforms_M: np.ndarray, niches_M: np.ndarray) -> np.ndarray:
        """A public item in proportion to demand in that bucket, of a niche, or of everything where the niche is -1."""
        anywhere_M = niches_M < 0
        row_M = buckets_M * self.num_items
        first_M = np.where(anywhere_M, 0, self.niche_starts[niches_M])
        last_M = np.where(anywhere_M, self.num_items, self.niche_starts[niches_M + 1]) - 1
        below_M = np.where(first_M == 0, buckets_M, self._demand[row_M + first_M - 1])
        target_M = below_M + uniforms_M * (self._demand[row_M + last_M] - below_M)
        found = np.searchsorted(self._demand, target_M, side="right") - row_M
        return self.item_of_I[np.clip(found, first_M, last_M)]

    def features(self) -> tuple[np.ndarray, tuple[str, ...]]:
        """float32 [I, 19]: the domain, and 16 numbers that hint at topic and, weakly, niche under much noise."""
        rng = generator_for(self.seed, use="bazaar/features")
        num_niches = len(self.niche_starts) - 1
        topics = rng.normal(size=(self.num_topics, _DENSE_FEATURES))
        niches = rng.normal(size=(num_niches, _DENSE_FEATURES))
        noise = rng.normal(size=(self.num_items, _DENSE_FEATURES))
        dense = topics[self.niche_I // NICHES_PER_TOPIC] + 0.5 * niches[self.niche_I] + noise
        domains = np.eye(len(DOMAIN_NAMES))[self.domain_I]
        names = (*DOMAIN_NAMES, *(f"tag-{axis}" for axis in range(_DENSE_FEATURES)))
        return np.hstack([domains, dense]).astype(np.float32), names

    def titles(self) -> tuple[str, ...]:
        return tuple(
            f"{DOMAIN_NAMES[domain]} {niche}.{item}"
            for item, (domain, niche) in enumerate(zip(self.domain_I, self.niche_I, strict=True))
        )


def _bucket_times() -> np.ndarray:
    return (np.arange(NUM_BUCKETS) + 0.5) / NUM_BUCKETS


def make_world(num_items: int, seed: int) -> World:
    rng = generator_for(seed, use="bazaar/world")
    num_topics = max(2, round(num_items / (ITEMS_PER_NICHE * NICHES_PER_TOPIC)))
    num_niches = num_topics * NICHES_PER_TOPIC
    niche_starts = np.linspace(0, num_items, num_niches + 1).astype(np.int64)
    births_I = rng.uniform(-1.0, 0.97, num_items)
    births_I[niche_starts[:-1]] = -1.0  # no niche is ever empty
    return World(
        seed=seed,
        niche_starts=niche_starts,
        item_of_I=rng.permutation(num_items),
        births_I=births_I,
        weights_I=(1.0 + rng.permutation(num_items)) ** -_POPULARITY_EXPONENT,
        topic_domains=rng.permutation(np.arange(num_topics) % len(DOMAIN_NAMES)),
        topic_phases=rng.uniform(size=num_topics),
    )

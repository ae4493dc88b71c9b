"""How often each user took part in rounds that charge only those in them."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

import numpy as np

from fedquilt.privacy.events import DistributedRelease, Event, LocalRound


class Participations:
    """A round charges its cohort once for every different sum (digest) that came of it, and once if none is known."""

    def __init__(
        self, population_U: np.ndarray, events: Iterable[Event] = (), cohorts: Mapping[str, np.ndarray] | None = None
    ):
        self.population_U = population_U
        self.times_U = np.zeros(len(population_U), np.int64)
        self._digests: dict[tuple[int, str], set[str]] = {}
        for event in events:
            if isinstance(event, LocalRound | DistributedRelease) and event.cohort_size:
                ids_K = (cohorts or {}).get(event.cohort_hash, population_U)  # unknown: everyone
                self.add(event.round_, ids_K, event.release_digest, event.cohort_hash)

    def worst(self, round_: int, ids_K: np.ndarray, digest: str, cohort_hash: str) -> int:
        """Rounds of the worst single user, with this one; nothing changes."""
        before = int(self.times_U.max(initial=0))
        if not len(ids_K) or not self._charges(round_, digest, cohort_hash):
            return before
        return max(before, int(self.times_U[self._places(ids_K)].max()) + 1)

    def add(self, round_: int, ids_K: np.ndarray, digest: str, cohort_hash: str) -> None:
        if self._charges(round_, digest, cohort_hash):
            self.times_U[self._places(ids_K)] += 1
        digests = self._digests.setdefault((round_, cohort_hash), set())
        if digest:
            digests.add(digest)

    def _charges(self, round_: int, digest: str, cohort_hash: str) -> bool:
        digests = self._digests.get((round_, cohort_hash))
        return digests is None or bool(digest and digests and digest not in digests)

    def _places(self, ids_K: np.ndarray) -> np.ndarray:
        return np.flatnonzero(np.isin(self.population_U, ids_K))

"""Users' histories as cohorts of local subgraphs with support and query targets, on devices and in the cloud alike.

A moment of a user's history is a cut c: the subgraph is built from clicks before c, the targets are the clicks from c
on. For training a point p is drawn in the history; support cuts and targets lie before it, query cuts and targets from
it on, so a query subgraph may hold support clicks (the device knows them by then), and never the other way round.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property

import numpy as np

from fedquilt.config import GraphConfig, MetaConfig
from fedquilt.graphs.log import InteractionLog
from fedquilt.graphs.subgraph import Subgraphs
from fedquilt.metrics import ragged
from fedquilt.seeds import bits_at, bits_for, uniforms_for
from fedquilt.types import Cohort

MIN_CLICKS = 3  # one to know, one to learn from, one to judge by
_NEGATIVE_TRIES = 4
_REMAINDERS = 4096  # a power of two, bytes a user


@dataclass(frozen=True)
class CohortBuilder:
    """``log`` holds training clicks only. ``subgraphs`` makes subgraphs from the neighbours that the cloud sent."""

    log: InteractionLog
    subgraphs: Callable[[np.ndarray], Subgraphs]
    graph: GraphConfig
    meta: MetaConfig

    @cached_property
    def counts_U(self) -> np.ndarray:
        """int64 [users of the log]: training clicks."""
        return np.diff(self.log.offsets)

    @cached_property
    def _clicked_keys(self) -> np.ndarray:
        return np.sort(self.log.users_C.astype(np.int64) * self.log.num_items + self.log.items_C)

    def training_cohort(self, client_ids_U: np.ndarray, round_: int, run_seed: int) -> Cohort:
        """Random moments of each user, G = 2 · num_contexts; a row depends on (run_seed, round_, client id) only.

        Users need ``MIN_CLICKS`` clicks; one with fewer gets no targets.
        """
        meta, contexts = self.meta, self.meta.num_contexts
        draws = uniforms_for(run_seed, round_, client_ids_U, "moments", 1 + 2 * contexts)
        count_U = self.counts_U[client_ids_U]
        point_U = _between(draws[:, 0], np.minimum(2, count_U), count_U)
        support_UG = _between(draws[:, 1 : 1 + contexts], np.minimum(1, count_U)[:, None], point_U[:, None])
        query_UG = _between(draws[:, 1 + contexts :], point_U[:, None], count_U[:, None])
        ends_UG = np.concatenate(
            [
                np.minimum(support_UG + meta.num_support, point_U[:, None]),
                np.minimum(query_UG + meta.num_query, count_U[:, None]),
            ],
            axis=1,
        )
        ends_UG[count_U < MIN_CLICKS] = 0
        cuts_UG = np.concatenate([support_UG, query_UG], axis=1)
        cohort = self._cohort(client_ids_U, cuts_UG, ends_UG, contexts)
        return self._with_negatives(cohort, round_, run_seed)

    def serving_cohort(self, client_ids_U: np.ndarray) -> Cohort:
        """The user's present (the last subgraph, all clicks, no targets), after the latest clicks as support set.

        Support subgraph k of num_contexts ends k · num_support clicks ago and its targets are the clicks that follow.
        """
        count_U1 = self.counts_U[client_ids_U][:, None]
        back_G = self.meta.num_support * np.arange(self.meta.num_contexts, 0, -1)
        ends_UG = np.maximum(count_U1 - back_G + self.meta.num_support, 0)
        support_UG = np.clip(count_U1 - back_G, np.minimum(1, count_U1), ends_UG)
        cuts_UG = np.concatenate([support_UG, count_U1], axis=1)
        ends_UG = np.concatenate([ends_UG, count_U1], axis=1)
        cohort = self._cohort(client_ids_U, cuts_UG, ends_UG, self.meta.num_contexts)
        return self._with_negatives(cohort, 0, 0)

    def _cohort(self, client_ids_U: np.ndarray, cuts_UG: np.ndarray, ends_UG: np.ndarray, num_support: int) -> Cohort:
        num_users, num_graphs = cuts_UG.shape
        starts_UG = np.broadcast_to(self.log.offsets[client_ids_U][:, None], cuts_UG.shape)
        contexts = self._clicks_before(starts_UG.reshape(-1), cuts_UG.reshape(-1))
        graphs = self.subgraphs(contexts)
        num_nodes = graphs.nodes_UN.shape[1]
        width = max(self.meta.num_support, self.meta.num_query)
        return Cohort(
            client_ids_U=np.asarray(client_ids_U, np.int64),
            nodes_UGN=graphs.nodes_UN.reshape(num_users, num_graphs, num_nodes),
            node_mask_UGN=graphs.node_mask_UN.reshape(num_users, num_graphs, num_nodes),
            recency_UGN=graphs.recency_UN.reshape(num_users, num_graphs, num_nodes),
            edges_UGNN=graphs.edges_UNN.reshape(num_users, num_graphs, num_nodes, num_nodes),
            targets_UGT=self._clicks_from(starts_UG + cuts_UG, ends_UG - cuts_UG, width),
            num_support=num_support,
            seen=ragged(self.log.offsets, self.log.items_C, client_ids_U),
        )

    def _clicks_before(self, starts_R: np.ndarray, cuts_R: np.ndarray) -> np.ndarray:
        """int32 [R, L]: the latest L clicks before the cut, latest first, -1 padded."""
        back = np.arange(1, self.graph.num_clicked + 1)
        places = cuts_R[:, None] - back
        return self._items(np.where(places >= 0, starts_R[:, None] + places, -1))

    def _clicks_from(self, firsts_UG: np.ndarray, lengths_UG: np.ndarray, width: int) -> np.ndarray:
        """int32 [U, G, T]: ``lengths`` clicks from ``firsts`` on, -1 padded."""
        ahead_T = np.arange(width)
        return self._items(np.where(ahead_T < lengths_UG[..., None], firsts_UG[..., None] + ahead_T, -1))

    def _items(self, clicks: np.ndarray) -> np.ndarray:
        """int32, the items of clicks by place in the log, -1 for -1."""
        if not len(self.log):  # a cloud that has seen nothing
            return np.full(clicks.shape, -1, np.int32)
        return np.where(clicks >= 0, self.log.items_C[clicks], -1).astype(np.int32)

    def _with_negatives(self, cohort: Cohort, round_: int, run_seed: int) -> Cohort:
        """Draws ``num_negatives`` unseen items a target, uniformly; one that hits a seen item is drawn again, at most
        ``_NEGATIVE_TRIES`` times, then left out (-1)."""
        each = self.meta.num_negatives
        if not each:
            return cohort
        shape = (*cohort.targets_UGT.shape, each)
        total = int(np.prod(shape[1:]))
        ids_U, num_items = cohort.client_ids_U, np.uint64(self.log.num_items)
        chosen = (bits_for(run_seed, round_, ids_U, "negatives.0", total) % num_items).astype(np.int64)
        may_be_seen_UB = _seen_remainders(cohort)
        rows, places = np.nonzero(may_be_seen_UB[np.arange(len(cohort))[:, None], chosen % _REMAINDERS])
        for attempt in range(1, _NEGATIVE_TRIES + 1):
            seen = self._is_clicked(ids_U[rows] * self.log.num_items + chosen[rows, places])
            rows, places = rows[seen], places[seen]
            if attempt == _NEGATIVE_TRIES or not len(rows):
                break
            bits = bits_at(run_seed, round_, ids_U[rows], places, f"negatives.{attempt}")
            chosen[rows, places] = bits % num_items
        chosen[rows, places] = -1
        return Cohort(**{**vars(cohort), "negatives_UGTM": chosen.reshape(shape)})

    def _is_clicked(self, keys: np.ndarray) -> np.ndarray:
        known = self._clicked_keys
        nearest = known[np.searchsorted(known, keys).clip(max=len(known) - 1)]
        return nearest == keys


def _seen_remainders(cohort: Cohort) -> np.ndarray:
    """bool [U, _REMAINDERS]: where False, the user has clicked no item with this remainder. Most draws need no search
    among all clicks.
    """
    rows, items = cohort.seen
    remainders_UB = np.zeros((len(cohort), _REMAINDERS), bool)
    remainders_UB[rows, items % _REMAINDERS] = True
    return remainders_UB


def _between(uniforms: np.ndarray, low: np.ndarray, high: np.ndarray) -> np.ndarray:
    """Integers in [low, high), or low where that is empty."""
    return low + np.floor(uniforms * np.maximum(high - low, 0)).astype(np.int64)

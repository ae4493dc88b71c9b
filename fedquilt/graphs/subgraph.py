"""Local subgraphs for whole cohorts: a user's latest clicks, their top neighbours, and the edges between them.

Shapes: U users, L clicks of context, I items, T neighbours per item, N nodes, C = ``num_clicked``.

Everything is a fixed number of numpy calls per chunk of users, and a user's row depends on that user's clicks only.
Neighbours are voted for by one sparse product (clicks x importance table); the largest votes come from a partition of
one composite 64-bit key per candidate; the clicked-clicked edges come from constant templates.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import numpy as np
from scipy import sparse

from fedquilt.errors import ConfigError, DataError
from fedquilt.graphs.log import InteractionLog

_CHUNK = 256  # users at a time: their candidates fit a core's cache
_SCRATCH_BYTES = 1 << 22  # of the slot look-up, I + 1 bytes a user
_LAST_ID = 0x7FFFFFFF  # ids count down from here in a key, so that the smaller id wins a tie


@dataclass(frozen=True, eq=False)
class Subgraphs:
    """The graph part of a ``Cohort``: nodes_UN int32, node_mask_UN bool, recency_UN int16, edges_UNN float32.

    Nodes 0 .. c-1 are the c latest distinct clicks, latest first (recency 0, 1, ...); then come neighbours, best first
    (recency -1); then padding (node 0, mask False, recency -1, no edges).
    """

    nodes_UN: np.ndarray
    node_mask_UN: np.ndarray
    recency_UN: np.ndarray
    edges_UNN: np.ndarray

    def __len__(self) -> int:
        return len(self.nodes_UN)


@dataclass(frozen=True, eq=False)
class SubgraphBuilder:
    """contexts_UL -> Subgraphs, for one importance table of the whole catalogue.

    neighbour_items_IT: int32 [I, T], distinct within a row, -1 where there is no neighbour.
    neighbour_weights_IT: float32 [I, T], positive where there is a neighbour.

    score(j) = sum over clicked nodes i of recency_decay^recency(i) · weight(i -> j); items of the context are no
    candidates, whether nodes or older history. Equal scores: the smaller item id first.

    Edges, symmetric: between two clicked nodes 1 / |recency difference| up to ``window`` (what the device has seen
    itself; a repeated click stands at its latest place only), and between a clicked node and a neighbour in its
    table row the table's weight (what travels with a recommendation). Keep one builder: its tables are cached.
    """

    neighbour_items_IT: np.ndarray
    neighbour_weights_IT: np.ndarray
    num_nodes: int
    num_clicked: int
    window: int
    recency_decay: float = 1.0

    def __post_init__(self) -> None:
        items, weights = self.neighbour_items_IT, self.neighbour_weights_IT
        if items.ndim != 2 or items.shape != weights.shape:
            raise DataError(f"importance table: items {items.shape} and weights {weights.shape} must both be [I, T]")
        present = items >= 0
        if items.max(initial=-1) >= len(items):
            raise DataError(f"importance table: neighbour {items.max()} in a catalogue of {len(items)} items")
        if not np.all(np.isfinite(weights[present]) & (weights[present] > 0)):
            raise DataError("importance table: every neighbour needs a finite positive weight; use item -1 for none")
        if not 1 <= self.num_clicked <= self.num_nodes <= 255:
            raise ConfigError(
                f"graph: need 1 <= num_clicked <= num_nodes <= 255 (edge ends are bytes); "
                f"got num_clicked={self.num_clicked}, num_nodes={self.num_nodes}"
            )
        if self.window < 1 or not 0 < self.recency_decay <= 1:
            raise ConfigError(
                f"graph: need window >= 1 and 0 < recency_decay <= 1; got {self.window}, {self.recency_decay}"
            )

    @property
    def num_items(self) -> int:
        return len(self.neighbour_items_IT)

    def __call__(self, contexts_UL: np.ndarray) -> Subgraphs:
        """contexts_UL: item ids, most recent first, -1 padded."""
        contexts_UL = self._checked(contexts_UL)
        num_users, num_nodes = len(contexts_UL), self.num_nodes
        nodes_UN = np.zeros((num_users, num_nodes), np.int32)
        clicked_U = np.zeros(num_users, np.int64)
        filled_U = np.zeros(num_users, np.int64)
        # scipy's product clears O(I) of workspace a call, so a large catalogue wants more users in it.
        step = int(np.clip(self.num_items // 64, _CHUNK, 16 * _CHUNK))
        for start in range(0, num_users, step):
            part = slice(start, start + step)
            clicked_U[part], filled_U[part] = self._fill_nodes(contexts_UL[part], nodes_UN[part])
        edges_UNN = np.empty((num_users, num_nodes, num_nodes), np.float32)
        step = int(np.clip(_SCRATCH_BYTES // (self.num_items + 1), 32, _CHUNK))
        scratch = _Scratch.of(min(step, num_users), self)
        for start in range(0, num_users, step):
            part = slice(start, start + step)
            self._fill_edges(nodes_UN[part], clicked_U[part], filled_U[part], edges_UNN[part], scratch)
        slots_N = np.arange(num_nodes, dtype=np.int16)
        recency_UN = np.where(slots_N < clicked_U[:, None], slots_N, np.int16(-1))
        return Subgraphs(nodes_UN, slots_N < filled_U[:, None], recency_UN, edges_UNN)

    def _checked(self, contexts_UL: np.ndarray) -> np.ndarray:
        if contexts_UL.ndim != 2:
            raise DataError(f"contexts must be [U, L]; got shape {contexts_UL.shape}")
        if contexts_UL.size and not -1 <= contexts_UL.min() <= contexts_UL.max() < self.num_items:
            raise DataError(
                f"contexts hold items {contexts_UL.min()} .. {contexts_UL.max()}; "
                f"expected -1 (padding) .. {self.num_items - 1}"
            )
        return contexts_UL.astype(np.int32, copy=False)

    # --- nodes -------------------------------------------------------------------------------------------------

    def _fill_nodes(self, contexts_UL: np.ndarray, nodes_UN: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Writes nodes_UN; returns the number of clicked nodes and of all nodes, [U] each."""
        latest_UL = (contexts_UL >= 0) & _first_in_row(contexts_UL)
        rank_UL = np.cumsum(latest_UL, axis=1, dtype=np.int32) - 1
        is_node_UL = latest_UL & (rank_UL < self.num_clicked)
        clicked_U = is_node_UL.sum(axis=1)
        users, positions = _nonzero(is_node_UL)
        nodes_UN[users, rank_UL[users, positions]] = contexts_UL[users, positions]
        best_UK = self._best_neighbours(contexts_UL, is_node_UL, rank_UL, self._most_room(clicked_U))
        slots_UK = clicked_U[:, None] + np.arange(best_UK.shape[1])
        users, ranks = _nonzero((best_UK >= 0) & (slots_UK < self.num_nodes))
        nodes_UN[users, slots_UK[users, ranks]] = best_UK[users, ranks]
        return clicked_U, clicked_U + np.bincount(users, minlength=len(nodes_UN))

    def _most_room(self, clicked_U: np.ndarray) -> int:
        with_clicks = clicked_U[clicked_U > 0]
        return self.num_nodes - int(with_clicks.min()) if len(with_clicks) else 0

    def _best_neighbours(
        self, contexts_UL: np.ndarray, is_node_UL: np.ndarray, rank_UL: np.ndarray, most: int
    ) -> np.ndarray:
        """int32 [U, K], K <= most: best candidates first, -1 where there are fewer."""
        votes = self._voters(contexts_UL, is_node_UL, rank_UL) @ self._votes
        counts_U = np.diff(votes.indptr)
        scores_UK = np.full((len(contexts_UL), int(counts_U.max(initial=0))), -np.inf, np.float32)
        scores_UK[np.arange(scores_UK.shape[1]) < counts_U[:, None]] = votes.data
        users, columns = _nonzero(scores_UK >= _threshold(scores_UK, most)[:, None])
        # Positive floats are ordered like their bits, so one integer holds score, then item.
        scores = scores_UK[users, columns].view(np.int32).astype(np.int64)
        items = votes.indices[votes.indptr[users] + columns]
        return _largest_first(users, (scores << 32) | (_LAST_ID - items), len(contexts_UL))[:, :most]

    def _voters(self, contexts_UL: np.ndarray, is_node_UL: np.ndarray, rank_UL: np.ndarray) -> sparse.csr_array:
        """Sparse [U, 2I]: a node votes for its neighbours (row i of ``_votes``), older history only excludes."""
        valid_UL = contexts_UL >= 0
        rows = np.where(is_node_UL, contexts_UL, contexts_UL + np.int32(self.num_items))[valid_UL]
        decays_C = (self.recency_decay ** np.arange(self.num_clicked)).astype(np.float32)
        weights = np.where(is_node_UL, decays_C[np.minimum(rank_UL, self.num_clicked - 1)], np.float32(1))[valid_UL]
        indptr = np.concatenate([[0], np.cumsum(valid_UL.sum(axis=1))]).astype(np.int32)
        return sparse.csr_array((weights, rows, indptr), shape=(len(contexts_UL), 2 * self.num_items))

    @cached_property
    def _votes(self) -> sparse.csr_array:
        """Sparse [2I, I]: row i holds i's neighbours and -inf at i itself; row I + i holds the -inf alone."""
        num_items, items_I1 = self.num_items, np.arange(self.num_items, dtype=np.int32)[:, None]
        items = np.concatenate([self.neighbour_items_IT.astype(np.int32), items_I1], axis=1)
        weights = np.concatenate([self.neighbour_weights_IT, np.full((num_items, 1), -np.inf)], axis=1)
        present = items >= 0
        ends = np.cumsum(np.concatenate([[0], present.sum(axis=1), np.ones(num_items, np.int64)]))
        indices = np.concatenate([items[present], items_I1[:, 0]])
        data = np.concatenate([weights[present], np.full(num_items, -np.inf)]).astype(np.float32)
        return sparse.csr_array((data, indices, ends.astype(np.int32)), shape=(2 * num_items, num_items))

    # --- edges -------------------------------------------------------------------------------------------------

    def _fill_edges(
        self,
        nodes_UN: np.ndarray,
        clicked_U: np.ndarray,
        filled_U: np.ndarray,
        edges_UNN: np.ndarray,
        scratch: _Scratch,
    ) -> None:
        """Writes edges_UNN: the template, then the table's weight wherever a click's row holds a chosen neighbour."""
        num_users, num_nodes = nodes_UN.shape
        num_clicked, per_item = self.num_clicked, self.neighbour_items_IT.shape[1]
        np.take(self._templates, clicked_U, axis=0, out=edges_UNN, mode="clip")
        slots_N = np.arange(num_nodes)
        clicks_UC = np.where(slots_N[:num_clicked] < clicked_U[:, None], nodes_UN[:, :num_clicked], self.num_items)
        users, slots = _nonzero((slots_N >= clicked_U[:, None]) & (slots_N < filled_U[:, None]))
        chosen = users * (self.num_items + 1) + nodes_UN[users, slots]
        slot_of = scratch.slot_of
        slot_of[chosen] = slots
        looked_up = scratch.looked_up_UCT[:num_users]
        np.add(self._padded_items.take(clicks_UC, axis=0), scratch.starts_U[:num_users, None, None], out=looked_up)
        found = np.take(slot_of, looked_up, out=scratch.slots_UCT[:num_users], mode="clip").reshape(-1)
        slot_of[chosen] = 0  # slot 0 is always a click, so 0 stands for "not chosen"
        hits = np.flatnonzero(found != 0)
        rows, slots = hits // per_item, found[hits].astype(np.int64)
        weights = self._flat_weights[hits + (clicks_UC.reshape(-1)[rows].astype(np.int64) - rows) * per_item]
        flat = edges_UNN.reshape(-1)
        flat[scratch.row_of_click[rows] + slots] = weights
        flat[scratch.column_of_click[rows] + slots * num_nodes] = weights

    @cached_property
    def _flat_weights(self) -> np.ndarray:
        return np.ascontiguousarray(self.neighbour_weights_IT, dtype=np.float32).reshape(-1)

    @cached_property
    def _padded_items(self) -> np.ndarray:
        """int32 [I + 1, T]: item I stands for no item, in the table as among the clicks."""
        padded = np.full((self.num_items + 1, self.neighbour_items_IT.shape[1]), self.num_items, np.int32)
        np.copyto(padded[:-1], self.neighbour_items_IT, where=self.neighbour_items_IT >= 0)
        return padded

    @cached_property
    def _templates(self) -> np.ndarray:
        """float32 [C + 1, N, N]: the clicked-clicked edges of a user with 0, 1, ..., C clicked nodes."""
        slots_N = np.arange(self.num_nodes)
        distance_NN = np.abs(slots_N[:, None] - slots_N)
        weight_NN = np.where((distance_NN >= 1) & (distance_NN <= self.window), 1 / np.maximum(distance_NN, 1), 0)
        inside_CN = slots_N < np.arange(self.num_clicked + 1)[:, None]
        return (weight_NN * inside_CN[:, :, None] * inside_CN[:, None, :]).astype(np.float32)


@dataclass(frozen=True, eq=False)
class _Scratch:
    """Memory for the edges of a chunk of users, taken once a call: fresh pages cost more than the arithmetic.

    ``slot_of`` uint8 [U · (I + 1)] is the slot of a chosen neighbour, zero between uses. Of click c of user u,
    ``row_of_click`` and ``column_of_click`` say where its row and its column begin in the flat edges_UNN.
    """

    slot_of: np.ndarray
    starts_U: np.ndarray
    looked_up_UCT: np.ndarray
    slots_UCT: np.ndarray
    row_of_click: np.ndarray
    column_of_click: np.ndarray

    @classmethod
    def of(cls, num_users: int, builder: SubgraphBuilder) -> _Scratch:
        size, num_nodes = builder.num_items + 1, builder.num_nodes
        shape = (num_users, builder.num_clicked, builder.neighbour_items_IT.shape[1])
        users_U1, clicks_C = np.arange(num_users)[:, None], np.arange(builder.num_clicked)
        return cls(
            slot_of=np.zeros(num_users * size, np.uint8),
            starts_U=np.arange(num_users) * size,
            looked_up_UCT=np.empty(shape, np.int64),
            slots_UCT=np.empty(shape, np.uint8),
            row_of_click=(users_U1 * num_nodes**2 + clicks_C * num_nodes).reshape(-1),
            column_of_click=(users_U1 * num_nodes**2 + clicks_C).reshape(-1),
        )


def build_subgraphs(
    contexts_UL: np.ndarray,
    neighbour_items_IT: np.ndarray,
    neighbour_weights_IT: np.ndarray,
    num_nodes: int,
    num_clicked: int,
    window: int,
    recency_decay: float = 1.0,
) -> Subgraphs:
    """One call of a ``SubgraphBuilder``, whose docstring defines the result; keep a builder to call it often."""
    builder = SubgraphBuilder(
        neighbour_items_IT, neighbour_weights_IT, num_nodes, num_clicked, window, recency_decay=recency_decay
    )
    return builder(contexts_UL)


def _nonzero(mask_UK: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """``np.nonzero`` of a matrix, several times as fast."""
    rows, columns = np.divmod(np.flatnonzero(mask_UK), max(mask_UK.shape[1], 1))
    return rows, columns


def _threshold(scores_UK: np.ndarray, most: int) -> np.ndarray:
    """float32 [U]: the ``most``-th largest score of each row, or the smallest positive one; excluded items are -inf."""
    width = scores_UK.shape[1]
    if most < 1:
        return np.full(len(scores_UK), np.inf, np.float32)
    lowest = np.finfo(np.float32).smallest_subnormal
    if most >= width:
        return np.full(len(scores_UK), lowest)
    return np.maximum(np.partition(scores_UK, width - most, axis=1)[:, width - most], lowest)


def _largest_first(users: np.ndarray, keys: np.ndarray, num_users: int) -> np.ndarray:
    """int32 [num_users, K]: the items in each user's keys, largest key first, -1 padded; ``users`` ascend."""
    counts_U = np.bincount(users, minlength=num_users)
    keys_UK = np.full((num_users, int(counts_U.max(initial=0))), -1, np.int64)
    keys_UK[np.arange(keys_UK.shape[1]) < counts_U[:, None]] = keys
    keys_UK = np.sort(keys_UK, axis=1)[:, ::-1]
    return np.where(keys_UK >= 0, _LAST_ID - (keys_UK & _LAST_ID), -1).astype(np.int32)


def _first_in_row(ids_UL: np.ndarray) -> np.ndarray:
    """bool [U, L]: True where no earlier position of the row holds the same id (padding, -1: either)."""
    first_UL = np.ones(ids_UL.shape, bool)
    ordered_UL = np.sort(ids_UL, axis=1)
    repeats_U = ((ordered_UL[:, 1:] == ordered_UL[:, :-1]) & (ordered_UL[:, 1:] >= 0)).any(axis=1)
    length = ids_UL.shape[1]
    keys = np.sort(ids_UL[repeats_U].astype(np.int64) * length + np.arange(length), axis=1)
    ids, positions = np.divmod(keys, length)
    first = np.zeros(ids.shape, bool)
    np.put_along_axis(first, positions, np.diff(ids, axis=1, prepend=-2) != 0, axis=1)
    first_UL[repeats_U] = first
    return first_UL


def latest_clicks(log: InteractionLog, users_U: np.ndarray, length: int) -> np.ndarray:
    """int32 [U, length]: each user's clicks, most recent first, -1 padded (the contexts of ``SubgraphBuilder``)."""
    users_U = np.asarray(users_U, np.int64)
    positions_UL = log.offsets[users_U + 1][:, None] - 1 - np.arange(length)
    present_UL = positions_UL >= log.offsets[users_U][:, None]
    return np.where(present_UL, log.items_C[np.where(present_UL, positions_UL, 0)], -1).astype(np.int32)


def subgraph_bytes(subgraphs: Subgraphs, dim: int) -> dict[str, float]:
    """Bytes that a subgraph adds to a recommendation, mean and max per user, with fp32 and with int8 vectors.

    Layout: per node an int32 item id and ``dim`` values (int8: and one fp16 scale); per undirected edge between a
    clicked node and a neighbour (uint8, uint8, fp16). The clicked-clicked edges do not travel: the device makes them.
    """
    nodes_U = subgraphs.node_mask_UN.sum(axis=1)
    clicked_UN = subgraphs.recency_UN >= 0
    neighbour_UN = subgraphs.node_mask_UN & ~clicked_UN
    edges_U = np.einsum("un,unm,um->u", clicked_UN, subgraphs.edges_UNN > 0, neighbour_UN, dtype=np.int64)
    sizes = {"fp32": nodes_U * (4 + 4 * dim) + 4 * edges_U, "int8": nodes_U * (4 + dim + 2) + 4 * edges_U}
    reduced = {f"{name}_mean": float(size_U.mean()) if len(size_U) else 0.0 for name, size_U in sizes.items()}
    return reduced | {f"{name}_max": float(size_U.max(initial=0)) for name, size_U in sizes.items()}

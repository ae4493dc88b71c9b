"""Shared words: the layout of a patch, a patch, and a cohort of users.

Shapes are suffixes: U users, N nodes of a subgraph, S support, Q query, P patch parameters.
Arrays are numpy, so that a device can hold them before torch is loaded; ``views`` also takes torch tensors.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np

from fedquilt.errors import SpecMismatchError


@dataclass(frozen=True)
class PatchSpec:
    """Names and shapes of the tensors in a patch, in the order in which they lie in the flat vector."""

    shapes: tuple[tuple[str, tuple[int, ...]], ...]

    @classmethod
    def of(cls, tensors: Mapping[str, Any]) -> PatchSpec:
        return cls(tuple((name, tuple(int(n) for n in tensor.shape)) for name, tensor in tensors.items()))

    @cached_property
    def slices(self) -> dict[str, slice]:
        slices, start = {}, 0
        for name, shape in self.shapes:
            stop = start + math.prod(shape)
            slices[name] = slice(start, stop)
            start = stop
        return slices

    @cached_property
    def num_parameters(self) -> int:
        return sum(math.prod(shape) for _, shape in self.shapes)

    @cached_property
    def hash(self) -> str:
        return hashlib.sha256(repr(self.shapes).encode()).hexdigest()[:16]

    def views(self, flat: Any) -> dict[str, Any]:
        """flat [..., P] (numpy or torch) -> {name: [..., *shape]}, no copy."""
        if flat.shape[-1] != self.num_parameters:
            raise SpecMismatchError(
                f"patch has {flat.shape[-1]} parameters, its spec {self.hash} says {self.num_parameters}"
            )
        lead = tuple(flat.shape[:-1])
        return {name: flat[..., self.slices[name]].reshape(lead + shape) for name, shape in self.shapes}

    def require(self, other_hash: str, where: str) -> None:
        if other_hash != self.hash:
            raise SpecMismatchError(
                f"{where}: patch spec {other_hash} does not fit ours, {self.hash}; both sides need one configuration"
            )


@dataclass(frozen=True)
class Patch:
    """Flat patch values, float32 [P], with their layout."""

    spec: PatchSpec
    values_P: np.ndarray

    def __post_init__(self) -> None:
        if self.values_P.shape != (self.spec.num_parameters,):
            raise SpecMismatchError(
                f"patch values have shape {self.values_P.shape}, spec says ({self.spec.num_parameters},)"
            )


@dataclass(frozen=True)
class Cohort:
    """U users, G local subgraphs each, padded to N nodes; up to T target clicks follow each subgraph.

    Subgraph g of a user is what the device knew at one moment of the user's history. The first ``num_support`` of the
    G are the support set, the others the query set; a user's support targets all come before their query targets.
    ``nodes_UGN`` are item indices (0 where ``node_mask_UGN`` is False). ``recency_UGN`` is 0 for the latest click in
    the subgraph, 1 for the one before, ..., and -1 for a neighbour that is not clicked. ``edges_UGNN`` are co-click
    weights, float32, zero where there is no edge; rows and columns of padding are zero. ``targets_UGT`` are items, -1
    for none. ``seen`` is (rows, items), one pair per training click; these are never negatives.
    ``negatives_UGTM`` are M drawn negatives per target (-1 for none), or None where every unseen item is one.
    """

    client_ids_U: np.ndarray
    nodes_UGN: np.ndarray
    node_mask_UGN: np.ndarray
    recency_UGN: np.ndarray
    edges_UGNN: np.ndarray
    targets_UGT: np.ndarray
    num_support: int
    seen: tuple[np.ndarray, np.ndarray]
    negatives_UGTM: np.ndarray | None = None

    def __len__(self) -> int:
        return len(self.client_ids_U)

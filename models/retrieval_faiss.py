"""Approximate search by faiss (Douze et al. 2024, arXiv:2401.08281), the extra ``[retrieval]``: LSH, HNSW, IVF with SQ.

    lsh      random rotation, sign bits (Charikar 2002); Hamming scan; the best ``candidates`` · k re-ranked exactly
    hnsw     layered near-neighbour graph (Malkov and Yashunin 2018) over the float32 vectors; scores are exact
    ivf-sq   k-means cells, vectors at one byte a number (8-bit scalar quantisation); scores are those of the bytes

faiss is imported when an index is built or read, and not before.
"""

from __future__ import annotations

import importlib
import math
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

from fedquilt.errors import RunError
from models.retrieval_base import Arrays, Found, checked_queries, checked_vectors, ranked, reranked

OPTIONS: Mapping[str, Mapping[str, int]] = {
    "lsh": {"bits": 256, "candidates": 20},
    "hnsw": {"links": 16, "ef_build": 64, "ef_search": 256},
    "ivf-sq": {"cells": 0, "probes": 0, "per_cell": 48},  # 0: by the number of items, see ``_cells``
}


class FaissIndex:
    """One faiss index, and for "lsh" the vectors beside it. ``options``: one of the rows of OPTIONS."""

    def __init__(self, kind: str, options: Mapping[str, int], index: Any, vectors_IF: np.ndarray | None):
        self.kind, self.options, self.index, self.vectors_IF = kind, dict(options), index, vectors_IF
        self.num_items, self.dim = index.ntotal, index.d

    @classmethod
    def build(cls, kind: str, vectors_IF: np.ndarray, seed: int = 0, **options: int) -> FaissIndex:
        """Errors: ImportError without faiss. ``seed`` draws the k-means of "ivf-sq"; faiss fixes the others' draws."""
        vectors_IF = checked_vectors(vectors_IF)
        chosen = {**OPTIONS[kind], **options}
        index = _BUILDERS[kind](vectors_IF, chosen, seed)
        return cls(kind, chosen, index, vectors_IF if kind == "lsh" else None)

    @classmethod
    def from_state(cls, settings: dict[str, Any], arrays: Arrays) -> FaissIndex:
        try:
            faiss = _faiss()
        except ImportError:
            raise RunError(f"this index is of kind {settings['kind']!r}: pip install 'fedquilt[retrieval]'") from None
        return cls(
            settings["kind"], settings["options"], faiss.deserialize_index(arrays["faiss"]), arrays.get("vectors")
        )

    def state(self) -> tuple[dict[str, Any], dict[str, np.ndarray]]:
        arrays = {"faiss": _faiss().serialize_index(self.index)}
        if self.vectors_IF is not None:
            arrays["vectors"] = self.vectors_IF
        return {"kind": self.kind, "options": self.options}, arrays

    @property
    def bytes_per_item(self) -> float:
        """faiss's own serialised form, which holds what its memory holds, and the vectors beside it."""
        return sum(array.nbytes for array in self.state()[1].values()) / self.num_items

    def search(self, queries_QF: np.ndarray, k: int) -> Found:
        queries_QF = checked_queries(queries_QF, self.dim, k)
        if not len(queries_QF):
            return np.empty((0, k), np.int64), np.empty((0, k), np.float32)
        wanted = min(k, self.num_items)
        if self.vectors_IF is not None:
            _, items_QC = self.index.search(queries_QF, min(wanted * self.options["candidates"], self.num_items))
            return reranked(self.vectors_IF, queries_QF, items_QC, k)
        scores_QC, items_QC = self.index.search(queries_QF, wanted, params=self._how_far(wanted))
        return ranked(items_QC, scores_QC, k)

    def _how_far(self, k: int) -> Any:
        faiss = _faiss()
        if self.kind == "hnsw":
            return faiss.SearchParametersHNSW(efSearch=max(self.options["ef_search"], k))
        return faiss.SearchParametersIVF(nprobe=self.options["probes"] or _cells(self.num_items)[1])


def _faiss() -> Any:
    return importlib.import_module("faiss")


def _lsh(vectors_IF: np.ndarray, options: Mapping[str, int], seed: int) -> Any:
    faiss = _faiss()
    index = faiss.IndexLSH(vectors_IF.shape[1], options["bits"], True)
    index.add(vectors_IF)
    return index


def _hnsw(vectors_IF: np.ndarray, options: Mapping[str, int], seed: int) -> Any:
    faiss = _faiss()
    index = faiss.IndexHNSWFlat(vectors_IF.shape[1], options["links"], faiss.METRIC_INNER_PRODUCT)
    index.hnsw.efConstruction = options["ef_build"]
    index.add(vectors_IF)
    return index


def _ivf_sq(vectors_IF: np.ndarray, options: Mapping[str, int], seed: int) -> Any:
    faiss = _faiss()
    dim, cells = vectors_IF.shape[1], min(options["cells"] or _cells(len(vectors_IF))[0], len(vectors_IF))
    centres = faiss.IndexFlatIP(dim)
    index = faiss.IndexIVFScalarQuantizer(
        centres, dim, cells, faiss.ScalarQuantizer.QT_8bit, faiss.METRIC_INNER_PRODUCT
    )
    index.cp.seed, index.cp.min_points_per_centroid = seed, 1
    index.cp.max_points_per_centroid = options["per_cell"]
    index.train(vectors_IF)
    index.add(vectors_IF)
    return index


def _cells(num_items: int) -> tuple[int, int]:
    """Cells, 4 √I up to 4,096, and how many of them a search looks into: one in 32, at least 32."""
    cells = max(1, min(4 * math.isqrt(num_items), 4096))
    return cells, min(cells, max(32, cells // 32))


_BUILDERS: Mapping[str, Callable[[np.ndarray, Mapping[str, int], int], Any]] = {
    "lsh": _lsh,
    "hnsw": _hnsw,
    "ivf-sq": _ivf_sq,
}

"""Two-level retrieval by Weak AND: the best items by token score (``models/wand.py``), re-ranked by inner product.

Items are numbered inside by their nearest centroid and how near it is, so that neighbours in space are neighbours in
every list: blocks of a list then hold alike weights, and their bounds are tight.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np

from fedquilt.errors import DataError
from fedquilt.seeds import generator_for
from models.retrieval_base import Arrays, Found, checked_queries, checked_vectors, reranked
from models.wand import MAX_WEIGHT, FirstLevel, Postings, build_postings, checked_postings, weak_and
from models.wand_tokens import nearest, train_codebooks, whole_weights

OPTIONS: Mapping[str, int | float] = {
    "codebooks": 4,
    "centroids": 0,  # of every codebook; 0: I / 128, up to 4,096, so that a query's lists hold 4,096 postings or more
    "near": 1,  # tokens that an item has of a codebook
    "query_near": 8,  # tokens that a query has of a codebook
    "sharpness": 2.0,
    "candidates": 1000,  # items that reach the second level, or 2 k where that is more
}
Tags = Sequence[Iterable[str]]


class WeakAndIndex:
    """Codebooks, lists of code tokens and tags, and the vectors for the re-rank.

    ``tags``: given words of items, each a token of full weight. They only help an item to be considered: the final
    score is the inner product alone. An item that shares no token with the query is not found, unless candidates are
    asked for as many as there are items: then all are re-ranked.
    """

    kind = "weak-and"

    def __init__(
        self,
        options: Mapping[str, int | float],
        vectors_IF: np.ndarray,
        codebooks: Sequence[np.ndarray],
        postings: Postings,
        order_I: np.ndarray,
        tags: Mapping[str, int],
    ):
        self.options, self.vectors_IF, self.codebooks = dict(options), vectors_IF, list(codebooks)
        self.postings, self.order_I, self.tags = postings, order_I, dict(tags)
        self.num_items, self.dim = vectors_IF.shape

    @classmethod
    def build(
        cls, vectors_IF: np.ndarray, seed: int = 0, tags: Tags | None = None, **options: int | float
    ) -> WeakAndIndex:
        """``tags``: one collection of words an item. Errors: DataError for vectors or tags that do not fit."""
        vectors_IF = checked_vectors(vectors_IF)
        chosen = {**OPTIONS, **options}
        if tags is not None and len(tags) != len(vectors_IF):
            raise DataError(f"tags: {len(tags)} rows for {len(vectors_IF)} items; give one collection of words an item")
        size = int(chosen["centroids"]) or min(max(len(vectors_IF) // 128, 1), 4096)
        rng = generator_for(seed, use="weak-and")
        codebooks = train_codebooks(vectors_IF, [size] * int(chosen["codebooks"]), rng)
        tokens_IS, weights_IS = _item_tokens(vectors_IF, codebooks, chosen)
        order_I = np.lexsort((-weights_IS[:, 0].astype(np.int16), tokens_IS[:, 0])).astype(np.int32)
        inside_I = np.argsort(order_I)
        items_P = np.repeat(inside_I, tokens_IS.shape[1])
        first_tag = sum(map(len, codebooks))
        numbers, tag_items, tag_tokens = _tag_tokens(tags or [], first_tag)
        weights_P = weights_IS.reshape(-1)
        there = weights_P > 0
        postings = build_postings(
            np.concatenate([items_P[there], inside_I[tag_items]]),
            np.concatenate([tokens_IS.reshape(-1)[there], tag_tokens]),
            np.concatenate([weights_P[there], np.full(len(tag_tokens), MAX_WEIGHT, np.uint8)]),
            len(vectors_IF),
            first_tag + len(numbers),
        )
        return cls(chosen, vectors_IF, codebooks, postings, order_I, numbers)

    @classmethod
    def from_state(cls, settings: dict[str, Any], arrays: Arrays) -> WeakAndIndex:
        vectors_IF, order_I = checked_vectors(arrays["vectors"]), arrays["order"]
        if not np.array_equal(np.sort(order_I), np.arange(len(vectors_IF))):
            raise DataError("weak-and: the order of the items is no order of these items")
        codebooks = [
            checked_vectors(arrays[f"codebook.{number}"], "codebook")
            for number in range(settings["options"]["codebooks"])
        ]
        if any(codes_CF.shape[1] != vectors_IF.shape[1] for codes_CF in codebooks):
            raise DataError("weak-and: codebooks and vectors differ in width")
        parts = {
            name.removeprefix("postings."): array for name, array in arrays.items() if name.startswith("postings.")
        }
        postings = checked_postings(len(vectors_IF), parts)
        if postings.num_tokens != sum(map(len, codebooks)) + len(settings["tags"]):
            raise DataError("weak-and: the lists are not those of these codebooks and tags")
        tags = {tag: postings.num_tokens - len(settings["tags"]) + place for place, tag in enumerate(settings["tags"])}
        return cls(settings["options"], vectors_IF, codebooks, postings, order_I, tags)

    def state(self) -> tuple[dict[str, Any], dict[str, np.ndarray]]:
        arrays = {"vectors": self.vectors_IF, "order": self.order_I}
        arrays |= {f"codebook.{number}": codes_CF for number, codes_CF in enumerate(self.codebooks)}
        arrays |= {f"postings.{name}": array for name, array in self.postings.arrays().items()}
        return {"options": self.options, "tags": sorted(self.tags, key=self.tags.__getitem__)}, arrays

    @property
    def bytes_per_item(self) -> float:
        return sum(array.nbytes for array in self.state()[1].values()) / self.num_items

    def search(self, queries_QF: np.ndarray, k: int, tags: Tags | None = None) -> Found:
        """``tags``: words of every query. Words that no item has are without effect."""
        queries_QF = checked_queries(queries_QF, self.dim, k)
        top = max(int(self.options["candidates"]), 2 * k)
        if top >= self.num_items:
            everything = np.broadcast_to(np.arange(self.num_items), (len(queries_QF), self.num_items))
            return reranked(self.vectors_IF, queries_QF, everything, k)
        inside_QN = self.first_level(queries_QF, top, tags).items_QN
        items_QN = np.where(inside_QN >= 0, self.order_I[inside_QN], -1)
        return reranked(self.vectors_IF, queries_QF, items_QN, k)

    def first_level(self, queries_QF: np.ndarray, top: int, tags: Tags | None = None) -> FirstLevel:
        """The best ``top`` by token score, in the index's own numbering (``order_I`` gives the item)."""
        return weak_and(self.postings, *self.query_tokens(queries_QF, tags), top)

    def query_tokens(self, queries_QF: np.ndarray, tags: Tags | None = None) -> tuple[np.ndarray, np.ndarray]:
        """Tokens (-1: none) and whole weights [Q, S]; a query's nearest centroid and its tags weigh 255."""
        tokens_QS, products_QS = _codes(queries_QF, self.codebooks, int(self.options["query_near"]))
        largest_Q1 = products_QS.max(1, keepdims=True, initial=0)
        weights_QS = whole_weights(products_QS, largest_Q1, float(self.options["sharpness"]))
        if tags is None:
            return tokens_QS, weights_QS
        if len(tags) != len(queries_QF):
            raise DataError(f"tags: {len(tags)} rows for {len(queries_QF)} queries; give one collection of words each")
        known = [sorted({self.tags[tag] for tag in words if tag in self.tags}) for words in tags]
        width = max(map(len, known), default=0)
        padded = np.array([row + [-1] * (width - len(row)) for row in known], np.int32).reshape(len(known), width)
        full = np.full(padded.shape, MAX_WEIGHT, np.uint8)
        return np.concatenate([tokens_QS, padded], axis=1), np.concatenate([weights_QS, full], axis=1)


def _codes(vectors_IF: np.ndarray, codebooks: Sequence[np.ndarray], near: int) -> tuple[np.ndarray, np.ndarray]:
    """Token numbers and inner products [I, codebooks · near]; a codebook's numbers follow those of the one before."""
    found = [nearest(vectors_IF, codes_CF, near) for codes_CF in codebooks]
    offsets = np.cumsum([0, *map(len, codebooks)])
    tokens = np.concatenate(
        [codes + np.int32(first) for (codes, _), first in zip(found, offsets, strict=False)], axis=1
    )
    return tokens, np.concatenate([products for _, products in found], axis=1)


def _item_tokens(
    vectors_IF: np.ndarray, codebooks: Sequence[np.ndarray], options: Mapping[str, int | float]
) -> tuple[np.ndarray, np.ndarray]:
    """Weight 255 is the product that one item in a thousand exceeds, so that weights use their whole range."""
    tokens_IS, products_IS = _codes(vectors_IF, codebooks, int(options["near"]))
    largest = float(np.quantile(products_IS.max(1), 0.999))
    return tokens_IS, whole_weights(products_IS, largest, float(options["sharpness"]))


def _tag_tokens(tags: Tags, first: int) -> tuple[dict[str, int], np.ndarray, np.ndarray]:
    """Numbers of the words from ``first`` on, in order of the alphabet; (item, token) of every tag."""
    numbers = {tag: first + place for place, tag in enumerate(sorted({word for words in tags for word in words}))}
    pairs = [(item, numbers[word]) for item, words in enumerate(tags) for word in words]
    items, tokens = np.array(pairs, np.int64).reshape(-1, 2).T
    return numbers, items, tokens

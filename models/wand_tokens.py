"""Weighted tokens of a vector: which centroids of several codebooks it is near, and how near.

A codebook is C unit vectors (spherical k-means). A vector x has its ``near`` nearest centroids c of every codebook as
tokens, with weight proportional to max(0, x·c) ** sharpness, as a whole number from 1 to 255. Codebooks differ by their
draws, so items that share tokens of several are nearer than items that share tokens of one.

PinSage (Ying et al. 2018, section 3.5) makes its tokens by locality-sensitive hashing; k-means codes are ours.
"""

from __future__ import annotations

from collections.abc import Sequence

import numba
import numpy as np

from models.wand import MAX_WEIGHT

ROWS = 4096  # vectors at once: 64 MiB of products for a codebook of 4,096


def train_codebooks(
    vectors_IF: np.ndarray, sizes: Sequence[int], rng: np.random.Generator, rounds: int = 8, per_centroid: int = 32
) -> list[np.ndarray]:
    """One codebook [C, F] float32 a size, from at most ``per_centroid`` · C vectors drawn without replacement.

    A size larger than a half of the vectors is cut to that. A centroid that loses all its vectors takes a drawn vector.
    """
    unit_IF = unit(vectors_IF)
    return [
        _spherical_k_means(unit_IF, max(1, min(size, len(unit_IF) // 2)), rng, rounds, per_centroid) for size in sizes
    ]


def _spherical_k_means(
    unit_IF: np.ndarray, size: int, rng: np.random.Generator, rounds: int, per_centroid: int
) -> np.ndarray:
    drawn = rng.choice(len(unit_IF), min(len(unit_IF), per_centroid * size), replace=False)
    sample_SF = unit_IF[drawn]
    centroids_CF = sample_SF[:size].copy()
    for _ in range(rounds):
        nearest_S = nearest(sample_SF, centroids_CF, 1)[0][:, 0]
        order = np.argsort(nearest_S, kind="stable")
        held, starts = np.unique(nearest_S[order], return_index=True)
        centroids_CF = sample_SF[rng.choice(len(sample_SF), size, replace=False)]
        centroids_CF[held] = np.add.reduceat(sample_SF[order], starts, axis=0)
        centroids_CF = unit(centroids_CF)
    return centroids_CF


def unit(vectors_IF: np.ndarray) -> np.ndarray:
    """Rows of length 1, float32; a row of zeros stays."""
    lengths_I = np.linalg.norm(vectors_IF, axis=1, keepdims=True)
    return (vectors_IF / np.where(lengths_I > 0, lengths_I, 1)).astype(np.float32)


def nearest(vectors_IF: np.ndarray, centroids_CF: np.ndarray, near: int) -> tuple[np.ndarray, np.ndarray]:
    """The ``near`` centroids of largest inner product, best first, ties by number: int32 and float32 [I, near]."""
    near = min(near, len(centroids_CF))
    codes = np.empty((len(vectors_IF), near), np.int32)
    products = np.empty((len(vectors_IF), near), np.float32)
    for first in range(0, len(vectors_IF), ROWS):
        rows = slice(first, first + ROWS)
        _largest(vectors_IF[rows] @ centroids_CF.T, codes[rows], products[rows])
    return codes, products


@numba.njit(cache=True)
def _largest(products_BC, codes_BS, best_BS):
    near = codes_BS.shape[1]
    for row in range(len(products_BC)):
        best, codes = best_BS[row], codes_BS[row]
        best[:] = -np.inf
        for code in range(products_BC.shape[1]):
            value = products_BC[row, code]
            if value > best[near - 1]:
                at = near - 1
                while at > 0 and best[at - 1] < value:
                    best[at], codes[at] = best[at - 1], codes[at - 1]
                    at -= 1
                best[at], codes[at] = value, code


def whole_weights(products_IS: np.ndarray, largest: np.ndarray | float, sharpness: float) -> np.ndarray:
    """uint8: 255 · (product / largest) ** sharpness, rounded, within 0 ... 255; 0 is no token."""
    share_IS = np.clip(products_IS / np.where(np.asarray(largest) > 0, largest, 1), 0, 1)
    return np.rint(share_IS**sharpness * MAX_WEIGHT).astype(np.uint8)

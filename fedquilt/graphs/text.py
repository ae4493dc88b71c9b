"""Texts as vectors of a given width: word counts to TF-IDF, then truncated SVD or feature hashing."""

from __future__ import annotations

import re
from collections.abc import Sequence

import numpy as np
from scipy import sparse
from scipy.sparse.linalg import svds

from fedquilt.errors import ConfigError, DataError
from fedquilt.seeds import bits_for


def text_features(counts_IW: sparse.sparray | sparse.spmatrix, dim: int, method: str = "svd") -> np.ndarray:
    """Bags of words [I, W] -> float32 [I, dim] of mean square 1; an item without words has zeros.

    svd: coordinates on the ``dim`` leading right singular vectors of the TF-IDF matrix (Deerwester et al. 1990),
    strongest first, as strong as they are there. hash: each word goes to one of ``dim`` places with a sign, both from
    a hash of its column (Weinberger et al. 2009, arXiv:0902.2206), so that words added later move none of the others.
    Errors: ``ConfigError`` for the method, or a width that svd cannot give; ``DataError`` for counts that are negative
    or not finite.
    """
    if method not in _REDUCTIONS:
        raise ConfigError(f"text features: method {method!r}; expected {' or '.join(_REDUCTIONS)}")
    values_IF = _REDUCTIONS[method](tf_idf(counts_IW), dim)
    mean_square = (values_IF**2).mean()
    return (values_IF / np.sqrt(mean_square if mean_square > 0 else 1)).astype(np.float32)


def tf_idf(counts_IW: sparse.sparray | sparse.spmatrix) -> sparse.csr_matrix:
    """log(1 + count) · log(I / items that have the word), rows of length 1 (or 0 for an item without words)."""
    counts_IW = sparse.csr_matrix(counts_IW, dtype=np.float64)
    counts_IW.eliminate_zeros()
    if not (np.isfinite(counts_IW.data) & (counts_IW.data >= 0)).all():
        raise DataError("text features: word counts must be finite and at least 0")
    seen_in_W = np.bincount(counts_IW.indices, minlength=counts_IW.shape[1])
    counts_IW.data = np.log1p(counts_IW.data) * np.log(counts_IW.shape[0] / seen_in_W[counts_IW.indices])
    norms_I = np.sqrt(np.asarray(counts_IW.multiply(counts_IW).sum(axis=1)).ravel())
    return sparse.diags(1 / np.maximum(norms_I, 1e-12)) @ counts_IW


def word_counts(texts: Sequence[str]) -> sparse.csr_matrix:
    """Bags of the lower-case words of texts, float64 [I, W]; columns are the words in alphabetical order."""
    rows = [re.findall(r"[^\W_]+", text.lower()) for text in texts]
    column = {word: index for index, word in enumerate(sorted({word for row in rows for word in row}))}
    places = np.array([column[word] for row in rows for word in row], np.int64)
    of_row = np.repeat(np.arange(len(rows)), [len(row) for row in rows])
    return sparse.csr_matrix((np.ones(len(places)), (of_row, places)), shape=(len(rows), max(len(column), 1)))


def _svd(tf_idf_IW: sparse.csr_matrix, dim: int) -> np.ndarray:
    most = min(tf_idf_IW.shape) - 1
    if not 1 <= dim <= most:
        raise ConfigError(
            f"text features: svd of {tf_idf_IW.shape[0]} items and {tf_idf_IW.shape[1]} words gives 1 to {most} "
            f"columns; asked for {dim}"
        )
    left, singular, _ = svds(tf_idf_IW.astype(np.float32), k=dim, random_state=0, solver="arpack")
    return left[:, ::-1] * singular[::-1]


def _hashed(tf_idf_IW: sparse.csr_matrix, dim: int) -> np.ndarray:
    if dim < 1:
        raise ConfigError(f"text features: at least 1 column; asked for {dim}")
    bits_W = bits_for(0, 0, np.arange(tf_idf_IW.shape[1]), "text-hash", 2)
    place_W, sign_W = bits_W[:, 0] % np.uint64(dim), np.where(bits_W[:, 1] >> np.uint64(63), 1.0, -1.0)
    words = np.arange(tf_idf_IW.shape[1])
    onto_WF = sparse.csr_matrix((sign_W, (words, place_W.astype(np.int64))), shape=(len(words), dim))
    return (tf_idf_IW @ onto_WF).toarray()


_REDUCTIONS = {"svd": _svd, "hash": _hashed}

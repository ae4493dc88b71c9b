"""Item features for the graph model: given vectors, the log's own item features, log degree; one float32 matrix.

Every column is standardised over the items that have it. An item without a given vector is an error that names it,
or, where that is allowed, gets the mean (0) and a 1 in the vector's mask column.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np

from fedquilt.errors import ConfigError, DataError
from fedquilt.graphs.coclick import CoClickGraph
from fedquilt.graphs.log import InteractionLog

Missing = Literal["error", "mask"]
_NAMED = 5  # items that an error names


@dataclass(frozen=True, eq=False)
class GivenVectors:
    """Vectors from elsewhere (text, image): values_IF, one row an item of the log; has_I bool, None where all have.

    What ``values_IF`` holds for an item without a vector is not read.
    """

    name: str
    values_IF: np.ndarray
    has_I: np.ndarray | None = None


@dataclass(frozen=True, eq=False)
class Features:
    """values_IF float32, standardised; mask_I bool, True for an item that lacks a given vector, or None if none may.

    ``names`` are the columns'; a mask column is called "<vector>-missing" and holds 1 for an item without one.
    """

    values_IF: np.ndarray
    mask_I: np.ndarray | None
    names: tuple[str, ...]


def vectors_by_id(log: InteractionLog, name: str, ids_R: np.ndarray, values_RF: np.ndarray) -> GivenVectors:
    """R vectors with the source's item ids, brought into the log's order; items that are not listed lack a vector.

    Ids that the log does not hold are passed over.
    Errors: ``DataError`` for a log without ids, an id twice, or as many ids as vectors not.
    """
    if log.item_ids is None:
        raise DataError(f"{name}: log {log.name} has no item ids; give one row an item in the log's order instead")
    ids_R, values_RF = np.asarray(ids_R), np.asarray(values_RF)
    if values_RF.ndim != 2 or len(ids_R) != len(values_RF):
        raise DataError(f"{name}: {len(ids_R)} ids for values of shape {values_RF.shape}; give one row an id")
    place = {item: row for row, item in enumerate(ids_R.tolist())}
    if len(place) < len(ids_R):
        twice = next(item for row, item in enumerate(ids_R.tolist()) if place[item] != row)
        raise DataError(f"{name}: item id {twice!r} has two vectors; keep one")
    rows_I = np.array([place.get(item, -1) for item in log.item_ids.tolist()], np.int64)
    has_I = rows_I >= 0
    values_IF = np.zeros((log.num_items, values_RF.shape[1]), values_RF.dtype)
    values_IF[has_I] = values_RF[rows_I[has_I]]
    return GivenVectors(name, values_IF, has_I)


def item_features(
    log: InteractionLog,
    graph: CoClickGraph | None = None,
    given: Sequence[GivenVectors] = (),
    own: bool = True,
    missing: Missing = "error",
    fitted_on_I: np.ndarray | None = None,
) -> Features:
    """[I, F]: the given vectors in turn, the log's item features (``own``), log(1 + degree) in ``graph``, mask columns.

    ``fitted_on_I`` bool: items whose means and deviations scale all others (None: all items), for items held out of
    training. A column that is constant over these becomes 0. With ``missing`` = "mask", vectors that come with
    ``has_I`` get a mask column whether or not an item lacks one, so that the width does not depend on that.
    Errors: ``DataError`` for a wrong number of rows, NaN or infinite values, missing vectors, nothing to use.
    """
    if missing not in ("error", "mask"):
        raise ConfigError(f"graph_model.missing_features is {missing!r}; expected error or mask")
    if fitted_on_I is None:
        fitted_on_I = np.ones(log.num_items, bool)
    blocks = [*given, *_own(log, own), *_degrees(log, graph)]
    if not blocks:
        raise DataError(f"log {log.name}: no item features and no graph; give vectors, or the graph for log degrees")
    columns, names, masks = [], [], []
    for block in blocks:
        values_IF, has_I = _checked(log, block, missing)
        columns.append(_standardised(values_IF, has_I, has_I & fitted_on_I))
        names += _names(log, block, values_IF.shape[1])
        if block.has_I is not None and missing == "mask":
            masks.append((f"{block.name}-missing", ~has_I))
    columns += [mask_I[:, None].astype(np.float32) for _, mask_I in masks]
    names += [name for name, _ in masks]
    any_missing_I = np.logical_or.reduce([mask_I for _, mask_I in masks]) if masks else None
    return Features(np.hstack(columns), any_missing_I, tuple(names))


_OWN, _DEGREE = "item features", "log-degree"


def _own(log: InteractionLog, wanted: bool) -> list[GivenVectors]:
    if not wanted or log.item_features_IF is None:
        return []
    return [GivenVectors(_OWN, log.item_features_IF)]


def _degrees(log: InteractionLog, graph: CoClickGraph | None) -> list[GivenVectors]:
    if graph is None:
        return []
    if graph.num_items != log.num_items:
        raise DataError(
            f"log {log.name} has {log.num_items} items, its graph {graph.num_items}; build it from this log"
        )
    return [GivenVectors(_DEGREE, np.log1p(np.diff(graph.indptr))[:, None])]


def _names(log: InteractionLog, block: GivenVectors, width: int) -> list[str]:
    if block.name == _OWN and len(log.feature_names) == width:
        return list(log.feature_names)
    return [block.name] if width == 1 else [f"{block.name}-{column}" for column in range(width)]


def _checked(log: InteractionLog, block: GivenVectors, missing: Missing) -> tuple[np.ndarray, np.ndarray]:
    """float64 [I, F], zero where missing, and which items have a vector."""
    values_IF = np.asarray(block.values_IF)
    if values_IF.ndim != 2 or len(values_IF) != log.num_items:
        raise DataError(
            f"{block.name}: shape {values_IF.shape}, but log {log.name} has {log.num_items} items; give one row an item"
        )
    has_I = np.ones(log.num_items, bool) if block.has_I is None else np.asarray(block.has_I, bool)
    if has_I.shape != (log.num_items,):
        raise DataError(f"{block.name}: has_I of shape {has_I.shape} for {log.num_items} items; give one flag an item")
    if missing == "error" and not has_I.all():
        raise DataError(
            f"{block.name}: no vector for {_listed(log, ~has_I)}; give these, "
            "or set graph_model.missing_features = 'mask'"
        )
    values_IF = np.where(has_I[:, None], values_IF, 0).astype(np.float64)
    if not np.isfinite(values_IF).all():
        bad_I = ~np.isfinite(values_IF).all(1)
        raise DataError(
            f"{block.name}: NaN or infinite values for {_listed(log, bad_I)}; repair these, "
            "or give them as missing (has_I) with graph_model.missing_features = 'mask'"
        )
    return values_IF, has_I


def _listed(log: InteractionLog, which_I: np.ndarray) -> str:
    """ "7 of 100 items: 3 (Alien), 5 (Brazil), ..." """
    items = np.flatnonzero(which_I)
    named = []
    for item in items[:_NAMED].tolist():
        label = str(item if log.item_ids is None else log.item_ids[item])
        named.append(f"{label} ({log.item_titles[item]})" if log.item_titles and log.item_titles[item] else label)
    return f"{len(items)} of {log.num_items} items: {', '.join(named)}{', …' if len(items) > _NAMED else ''}"


def _standardised(values_IF: np.ndarray, has_I: np.ndarray, fitted_on_I: np.ndarray) -> np.ndarray:
    """(x - mean) / standard deviation, both over ``fitted_on_I``; float32, 0 where there is no vector."""
    if not fitted_on_I.any():
        return np.zeros(values_IF.shape, np.float32)
    mean_F, deviation_F = values_IF[fitted_on_I].mean(0), values_IF[fitted_on_I].std(0)
    # Rounding leaves a constant column of large numbers a deviation of some 1e-16 of its size.
    varies_F = deviation_F > 1e-9 * np.maximum(np.abs(mean_F), 1e-9)
    scaled_IF = (values_IF - mean_F) / np.where(varies_F, deviation_F, 1)
    return np.where(has_I[:, None] & varies_F, scaled_IF, 0).astype(np.float32)

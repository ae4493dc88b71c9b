"""What travels with a recommendation: candidates, and as much of the cloud's model as a device needs to rank them.

An offer holds S items of the catalogue: those that the device asked about, their neighbours, and the candidates. Arrays
with a row an item are cut to these rows; all others are whole. Inside an offer items are places in ``items_S``, which
ascends, so that ties break as they do over the whole catalogue.

Shapes: I items of the catalogue, S of the offer, C candidates, T neighbours, P patch parameters (p of the offer), R
entries of a personal patch.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from google.protobuf.message import DecodeError
from safetensors import SafetensorError
from safetensors.numpy import load as load_tensors
from safetensors.numpy import save as save_tensors

from fedquilt.errors import SpecMismatchError
from fedquilt.rpc.fleet_pb2 import Recommendation
from fedquilt.types import PatchSpec
from fedquilt.wire import WireError

NEIGHBOURS, WEIGHTS = "neighbour_items", "neighbour_weights"
MAX_NEIGHBOURS = 1024
PER_ITEM = ("item_vectors", "item_bias", NEIGHBOURS, WEIGHTS)
PER_ITEM_PATCH = ("item_bias", "item_in.factors", "item_out.factors")
_NO_NEIGHBOUR = {NEIGHBOURS: -1, WEIGHTS: 0}
_DTYPES = {NEIGHBOURS: np.int32, WEIGHTS: np.float32}
_ITEMS, _CANDIDATES, _PATCH, _BASE, _ROWS = "items", "candidates", "patch", "base.", "rows"
_CEILING = "ceiling"


@dataclass(frozen=True)
class Offer:
    """``candidates_C`` are places in ``items_S`` (int64, both); ``titles`` are the candidates', or none.

    ``ceiling_S``: the most lift of each item (``models/lift.py``), or None.
    """

    config_toml: str
    round_: int
    num_items: int
    items_S: np.ndarray
    candidates_C: np.ndarray
    base: Mapping[str, np.ndarray]
    patch_p: np.ndarray
    titles: tuple[str, ...] = ()
    ceiling_S: np.ndarray | None = None

    def places_of(self, items: np.ndarray) -> np.ndarray:
        """int64, -1 for an item that is not in the offer."""
        places = np.searchsorted(self.items_S, items).clip(max=max(len(self.items_S) - 1, 0))
        return np.where(self.items_S[places] == items, places, -1) if len(self.items_S) else np.full(len(items), -1)


def rows_around(base: Mapping[str, np.ndarray], asked: np.ndarray, candidates: np.ndarray) -> np.ndarray:
    """items_S: these items and the neighbours of those that were asked about."""
    neighbours = base[NEIGHBOURS][asked]
    return np.unique(np.concatenate([asked, neighbours[neighbours >= 0], candidates]).astype(np.int64))


def cut_base(base: Mapping[str, np.ndarray], items_S: np.ndarray, asked: np.ndarray) -> dict[str, np.ndarray]:
    """The rows of ``items_S``. Only items that were asked about keep their neighbours: no other row is looked at."""
    cut = {name: array[items_S] if name in PER_ITEM else array for name, array in base.items()}
    places_I = np.full(len(base[NEIGHBOURS]), -1, np.int32)
    places_I[items_S] = np.arange(len(items_S), dtype=np.int32)
    keeps_S1 = np.isin(items_S, asked)[:, None]
    kept_ST = keeps_S1 & (cut[NEIGHBOURS] >= 0)
    cut[NEIGHBOURS] = np.where(kept_ST, places_I[np.maximum(cut[NEIGHBOURS], 0)], np.int32(-1))
    cut[WEIGHTS] = np.where(kept_ST, cut[WEIGHTS], np.float32(0))
    return cut


def cut_patch(spec: PatchSpec, patch_P: np.ndarray, items_S: np.ndarray) -> np.ndarray:
    """float32 [p]: tensors with a row an item keep the rows of ``items_S``. Serves a personal patch as well, with the
    spec of its own tensors."""
    parts = [view[items_S] if name in PER_ITEM_PATCH else view for name, view in spec.views(patch_P).items()]
    return np.concatenate([np.zeros(0, np.float32), *(part.reshape(-1) for part in parts)]).astype(np.float32)


def write_offer(offer: Offer) -> bytes:
    """Of the neighbours only the rows that have some travel."""
    rows = np.flatnonzero((offer.base[NEIGHBOURS] >= 0).any(axis=1))
    arrays = {_ITEMS: offer.items_S, _CANDIDATES: offer.candidates_C, _PATCH: offer.patch_p, _ROWS: rows}
    arrays |= {f"{_BASE}{name}": array for name, array in offer.base.items()}
    arrays |= {f"{_BASE}{name}": offer.base[name][rows] for name in (NEIGHBOURS, WEIGHTS)}
    arrays |= {} if offer.ceiling_S is None else {_CEILING: offer.ceiling_S}
    tensors = {name: np.ascontiguousarray(array) for name, array in arrays.items()}
    told = Recommendation(config=offer.config_toml, round=offer.round_, num_items=offer.num_items, titles=offer.titles)
    told.arrays = save_tensors(tensors)
    return told.SerializeToString()


def read_offer(data: bytes) -> Offer:
    """WireError for whatever cannot be ranked: damaged bytes, missing arrays, rows or places that do not fit."""
    try:
        told = Recommendation.FromString(data)
        arrays = load_tensors(told.arrays)
        items_S, candidates_C, patch_p, rows = (arrays.pop(name) for name in (_ITEMS, _CANDIDATES, _PATCH, _ROWS))
        ceiling_S = arrays.pop(_CEILING, None)
    except (DecodeError, SafetensorError) as error:
        raise WireError(f"a recommendation that cannot be read: {error}") from None
    except KeyError as missing:
        raise WireError(f"a recommendation without {missing}") from None
    base = {name.removeprefix(_BASE): array for name, array in arrays.items()}
    for name, array, limit in (
        (_ITEMS, items_S, told.num_items),
        (_CANDIDATES, candidates_C, len(items_S)),
        (_ROWS, rows, len(items_S)),
    ):
        _require_places(name, array, limit, ascending=name != _CANDIDATES)
    for name in _NO_NEIGHBOUR:
        _require_table(base, name, rows, len(items_S), len(data))
    base |= {name: _spread(base[name], rows, len(items_S), nothing) for name, nothing in _NO_NEIGHBOUR.items()}
    _require_rows(base, len(items_S))
    _require_floats({**base, _PATCH: patch_p, **({} if ceiling_S is None else {_CEILING: ceiling_S})})
    if ceiling_S is not None and ceiling_S.shape != items_S.shape:
        raise WireError(f"a recommendation's ceiling has shape {ceiling_S.shape}, for {len(items_S)} items")
    titles = tuple(told.titles)
    if titles and len(titles) != len(candidates_C):
        raise WireError(f"a recommendation with {len(titles)} titles for {len(candidates_C)} candidates")
    return Offer(told.config, told.round, told.num_items, items_S, candidates_C, base, patch_p, titles, ceiling_S)


def require_layout(spec: PatchSpec, offer: Offer) -> None:
    """SpecMismatchError unless the offer's patch has the layout that its own configuration and rows give."""
    if offer.patch_p.shape != (spec.num_parameters,):
        raise SpecMismatchError(
            f"the recommendation's patch has shape {offer.patch_p.shape}, {spec.num_parameters} parameters are expected"
        )


def _require_places(name: str, array: np.ndarray, limit: int, ascending: bool) -> None:
    if array.ndim != 1 or array.dtype != np.int64:
        raise WireError(f"a recommendation's {name} are {array.dtype} {array.shape}, int64 in a row is expected")
    if array.size and not 0 <= array.min() <= array.max() < limit:
        raise WireError(f"a recommendation's {name} go from {array.min()} to {array.max()}, there are {limit}")
    if ascending and (np.diff(array) <= 0).any():
        raise WireError(f"a recommendation's {name} do not ascend")


def _require_table(base: Mapping[str, np.ndarray], name: str, rows: np.ndarray, count: int, received: int) -> None:
    """Before memory is taken for all items: no more numbers than the message has bytes."""
    if name not in base or base[name].ndim != 2 or len(base[name]) != len(rows):
        raise WireError(f"a recommendation needs {name} with a row for each of {len(rows)} items")
    if base[name].dtype != (dtype := _DTYPES[name]):
        raise WireError(f"a recommendation's {name} are {base[name].dtype}, {np.dtype(dtype)} is expected")
    if base[name].shape[1] > MAX_NEIGHBOURS or count * base[name].shape[1] > received:
        raise WireError(
            f"a recommendation's {name} are {base[name].shape[1]} an item for {count} items; allowed are"
            f" {MAX_NEIGHBOURS} an item, and together no more than the message has bytes"
        )


def _spread(table: np.ndarray, rows: np.ndarray, count: int, nothing: float) -> np.ndarray:
    """Rows for all items of those that travelled."""
    whole = np.full((count, table.shape[1]), nothing, table.dtype)
    whole[rows] = table
    return whole


def _require_rows(base: Mapping[str, np.ndarray], count: int) -> None:
    for name in PER_ITEM:
        if name not in base or base[name].ndim < 1 or len(base[name]) != count:
            raise WireError(f"a recommendation needs {name} with a row for each of its {count} items")
    if base[NEIGHBOURS].dtype != np.int32 or base[NEIGHBOURS].max(initial=-1) >= count:
        raise WireError(f"a recommendation's {NEIGHBOURS} must be int32 places among its {count} items")


def _require_floats(arrays: Mapping[str, np.ndarray]) -> None:
    for name, array in arrays.items():
        if name != NEIGHBOURS and (array.dtype != np.float32 or not np.isfinite(array).all()):
            raise WireError(f"a recommendation's {name} must be finite float32")

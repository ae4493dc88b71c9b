"""A device's own part of a log, as one file: its users' clicks and held-out clicks, and nobody else's.

``.npz`` without pickle. Users and items are numbered as in the cloud's log, so that scores mean the same on both sides.
"""

from __future__ import annotations

import hashlib
import zipfile
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np

from fedquilt.errors import DataError
from fedquilt.graphs.log import InteractionLog
from fedquilt.graphs.splits import HeldOut, Split
from fedquilt.npy import npz_bytes

_NAMES = ("client_ids", "sizes", "users", "items", "times", "in_cloud")
_PARTS = ("valid", "test")


def write_device_log(path: Path, split: Split, client_ids_U: np.ndarray) -> None:
    """These users' part of the split."""
    train = split.train
    mine_C = np.isin(train.users_C, client_ids_U)
    arrays = {
        "client_ids": np.asarray(client_ids_U, np.int64),
        "sizes": np.array([train.num_users, train.num_items], np.int64),
        "protocol": np.array(split.protocol),
        "users": train.users_C[mine_C].astype(np.int64),
        "items": train.items_C[mine_C].astype(np.int64),
        "times": np.empty(0) if train.times_C is None else train.times_C[mine_C],
        "in_cloud": split.in_cloud_C[mine_C],
    }
    for name in _PARTS:
        held: HeldOut = getattr(split, name)
        mine_H = np.isin(held.users_H, client_ids_U)
        arrays |= {f"{name}_users": held.users_H[mine_H], f"{name}_items": held.items_H[mine_H]}
        if held.negatives_HM is not None:
            arrays[f"{name}_negatives"] = held.negatives_HM[mine_H]
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(npz_bytes(arrays))


def read_device_log(path: Path) -> tuple[np.ndarray, Split]:
    """(client ids [U], their split). DataError names the file and what is wrong with it."""
    try:
        with np.load(path, allow_pickle=False) as file:
            arrays = {name: file[name] for name in file.files}
        num_users, num_items = (int(size) for size in arrays["sizes"])
        users_C, items_C, times_C = arrays["users"], arrays["items"], arrays["times"]
        _require_inside(path, users_C, num_users, "user")
        _require_inside(path, items_C, num_items, "item")
        train = InteractionLog(path.stem, users_C, items_C, num_users, num_items, times_C if len(times_C) else None)
        held = {name: HeldOut(*(arrays[f"{name}_{x}"] for x in ("users", "items"))) for name in _PARTS}
        held |= {
            name: HeldOut(part.users_H, part.items_H, arrays[f"{name}_negatives"])
            for name, part in held.items()
            if f"{name}_negatives" in arrays
        }
        digest = hashlib.sha256(path.read_bytes()).hexdigest()[:16]
        cloud = train.where(arrays["in_cloud"].astype(bool))
        split = Split(str(arrays["protocol"]), train, cloud, held["valid"], held["test"], digest)
        return arrays["client_ids"], split
    except (OSError, ValueError, KeyError, IndexError, TypeError, zipfile.BadZipFile) as error:
        raise DataError(f"{path} is no device log ({error}): `fedquilt up` and `write_device_log` make them") from None


def read_device_logs(path: Path) -> tuple[np.ndarray, Split]:
    """As ``read_device_log``; of a folder, all of its ``*.npz`` as one log.

    DataError where the folder is empty, where two logs hold the same user, or where they are not of one catalogue.
    """
    if not path.is_dir():
        return read_device_log(path)
    paths = sorted(path.glob("*.npz"))
    if not paths:
        raise DataError(f"no *.npz in {path}: put the logs of the device's users there")
    parts = [read_device_log(each) for each in paths]
    ids_U = np.concatenate([ids for ids, _ in parts])
    known, counts = np.unique(ids_U, return_counts=True)
    if (counts > 1).any():
        raise DataError(f"{path}: user {known[counts > 1][0]} is in two logs; keep one of them")
    for each, (_, split) in zip(paths, parts, strict=True):
        _require_same_catalogue(each, split, parts[0][1])
    return np.sort(ids_U), _merged(path.name, [split for _, split in parts])


def _require_same_catalogue(path: Path, split: Split, first: Split) -> None:
    for name in ("num_users", "num_items"):
        if getattr(split.train, name) != getattr(first.train, name):
            raise DataError(
                f"{path}: {name} is {getattr(split.train, name)}, the first log has {getattr(first.train, name)}"
            )
    timed = [part.train.times_C is not None for part in (split, first) if len(part.train)]
    if split.protocol != first.protocol or len(set(timed)) > 1:
        raise DataError(f"{path}: split {split.protocol!r} or its times are not those of the folder's first log")


def _merged(name: str, splits: Sequence[Split]) -> Split:
    """One split of all clicks: users do not overlap, so a stable sort by user keeps each one's order."""
    users_C = np.concatenate([split.train.users_C for split in splits])
    order = np.argsort(users_C, kind="stable")

    def joined(pick: Callable[[Split], np.ndarray]) -> np.ndarray:
        return np.concatenate([pick(split) for split in splits])[order]

    train = splits[0].train
    timed = all(split.train.times_C is not None or not len(split.train) for split in splits)
    times_C = joined(lambda split: _times(split.train)) if timed else None
    items_C = joined(lambda split: split.train.items_C)
    log = InteractionLog(name, users_C[order], items_C, train.num_users, train.num_items, times_C)
    digest = hashlib.sha256("".join(split.hash for split in splits).encode()).hexdigest()[:16]
    held = [_merged_held([getattr(split, part) for split in splits]) for part in _PARTS]
    return Split(splits[0].protocol, log, log.where(joined(lambda split: split.in_cloud_C)), held[0], held[1], digest)


def _merged_held(parts: Sequence[HeldOut]) -> HeldOut:
    negatives = [part.negatives_HM for part in parts if part.negatives_HM is not None]
    users_H, items_H = (np.concatenate([getattr(part, name) for part in parts]) for name in ("users_H", "items_H"))
    return HeldOut(users_H, items_H, np.concatenate(negatives) if negatives else None)


def _times(log: InteractionLog) -> np.ndarray:
    return np.empty(0) if log.times_C is None else log.times_C


def _require_inside(path: Path, ids_C: np.ndarray, size: int, what: str) -> None:
    if len(ids_C) and not (ids_C.min() >= 0 and ids_C.max() < size):
        raise DataError(f"{path}: {what} {ids_C.max()} is outside of the cloud's {size}")

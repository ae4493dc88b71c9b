"""How a log becomes training clicks and held-out clicks. Every split names its protocol and has a hash.

- ``loo-full``: a user's last click is the test click, the one before it the validation click.
- ``loo99``: the same clicks, each with 99 negatives that never change: from the frozen file beside the log where there
  is one, else drawn once per seed from the items that the user has never clicked.
- ``rand-60-20-20``: per user a random fifth (rounded down, at least one click) for test and another for validation;
  the frozen HetComp files beside the log where there are some.

A user with fewer than 3 clicks keeps them all in training and is not evaluated.

``train`` is what the devices hold. ``cloud`` is the part of it that the cloud may see: everything (warm cloud), the
part before a point in global time (stale cloud), or nothing (pure federation).
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass

import numpy as np

from fedquilt.config import SplitConfig
from fedquilt.errors import DataError
from fedquilt.graphs import frozen
from fedquilt.graphs.log import InteractionLog
from fedquilt.seeds import generator_for

MIN_CLICKS = 3
NUM_NEGATIVES = 99


@dataclass(frozen=True)
class HeldOut:
    """Held-out clicks, H of them: user, item, and (loo99 only) 99 frozen negatives each."""

    users_H: np.ndarray
    items_H: np.ndarray
    negatives_HM: np.ndarray | None = None

    def __len__(self) -> int:
        return len(self.users_H)

    def where(self, mask_H: np.ndarray) -> HeldOut:
        negatives_HM = None if self.negatives_HM is None else self.negatives_HM[mask_H]
        return HeldOut(self.users_H[mask_H], self.items_H[mask_H], negatives_HM)


@dataclass(frozen=True)
class Split:
    """``cut`` is the last second that the cloud has seen, in the log's time; None for a log without time."""

    protocol: str
    train: InteractionLog
    cloud: InteractionLog
    valid: HeldOut
    test: HeldOut
    hash: str
    cut: float | None = None

    @property
    def in_cloud_C(self) -> np.ndarray:
        """bool [C] over the training clicks: what the cloud sees; of each user the earliest."""
        return self.train.places_C < np.diff(self.cloud.offsets)[self.train.users_C]


def split_log(log: InteractionLog, config: SplitConfig) -> Split:
    """Errors: DataError where a frozen file does not fit the log, or an item universe is too small for 99 negatives."""
    valid_C, test_C, train_C = _masks(log, config)
    train = log.where(train_C)
    cut, seen_C = _cloud_part(log, train, config.cloud_share)
    valid, test = (HeldOut(log.users_C[mask_C], log.items_C[mask_C]) for mask_C in (valid_C, test_C))
    if config.protocol == "loo99":
        valid, test = _with_negatives(log, valid, test, config.seed)
    return Split(
        protocol=config.protocol,
        train=train,
        cloud=train.where(seen_C),
        valid=valid,
        test=test,
        hash=_hash(log, config, train_C, valid, test),
        cut=cut,
    )


def _masks(log: InteractionLog, config: SplitConfig) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """bool [C] each: validation, test and training clicks; disjoint."""
    if config.protocol != "rand-60-20-20":
        from_end_C = log.offsets[log.users_C + 1] - 1 - np.arange(len(log))
        evaluated_C = _clicks_of_user(log) >= MIN_CLICKS
        valid_C, test_C = evaluated_C & (from_end_C == 1), evaluated_C & (from_end_C == 0)
    elif (masks := frozen.hetcomp_masks(log)) is not None:
        return masks
    else:
        valid_C, test_C = _random_fifths(log, config.seed)
    return valid_C, test_C, ~(valid_C | test_C)


def _clicks_of_user(log: InteractionLog) -> np.ndarray:
    return np.diff(log.offsets)[log.users_C]


def _random_fifths(log: InteractionLog, seed: int) -> tuple[np.ndarray, np.ndarray]:
    keys_C = generator_for(seed, use="rand-60-20-20").random(len(log))
    rank_C = np.empty(len(log), np.int64)
    rank_C[np.lexsort((keys_C, log.users_C))] = np.arange(len(log)) - log.offsets[log.users_C]
    count_C = _clicks_of_user(log)
    fifth_C = np.where(count_C >= MIN_CLICKS, np.maximum(count_C // 5, 1), 0)
    return rank_C < fifth_C, (rank_C >= fifth_C) & (rank_C < 2 * fifth_C)


def _cloud_part(log: InteractionLog, train: InteractionLog, share: float) -> tuple[float | None, np.ndarray]:
    """The cut, and bool over the training clicks: what the cloud sees.

    With time: clicks up to the ``share`` quantile of all click times of the log. Without: the first ``share`` of each
    user's training clicks in row order (rounded down), so nobody with two training clicks is new to the cloud.
    """
    if log.times_C is None or train.times_C is None:
        return None, train.places_C < np.floor(share * _clicks_of_user(train))
    if share in (0.0, 1.0):
        return (np.inf if share else -np.inf), np.full(len(train), bool(share))
    cut = float(np.quantile(log.times_C, share))
    return cut, train.times_C <= cut


def _with_negatives(log: InteractionLog, valid: HeldOut, test: HeldOut, seed: int) -> tuple[HeldOut, HeldOut]:
    known = frozen.loo99_negatives(log, valid.items_H, test.users_H, test.items_H)
    if known is None:
        rng = generator_for(seed, use="loo99")
        known = _drawn_negatives(log, valid.users_H, rng), _drawn_negatives(log, test.users_H, rng)
    return (
        HeldOut(valid.users_H, valid.items_H, known[0]),
        HeldOut(test.users_H, test.items_H, known[1]),
    )


def _drawn_negatives(log: InteractionLog, users_H: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    negatives_HM = np.empty((len(users_H), NUM_NEGATIVES), np.int64)
    for row, user in enumerate(users_H):
        unclicked = np.ones(log.num_items, bool)
        unclicked[log.items_of(user)] = False
        candidates = np.flatnonzero(unclicked)
        if len(candidates) < NUM_NEGATIVES:
            raise DataError(
                f"{log.name}: loo99 needs {NUM_NEGATIVES} unclicked items a user, user {user} has {len(candidates)}"
                "; choose split.protocol=loo-full"
            )
        negatives_HM[row] = rng.choice(candidates, NUM_NEGATIVES, replace=False)
    return negatives_HM


def _hash(log: InteractionLog, config: SplitConfig, train_C: np.ndarray, *parts: HeldOut) -> str:
    # not cloud_share: what the cloud may see does not change what is asked of it
    digest = hashlib.sha256(f"{log.hash}/{config.protocol}/{config.seed}".encode())
    digest.update(np.packbits(train_C).tobytes())
    for part in parts:
        for array in (part.users_H, part.items_H, part.negatives_HM):
            digest.update(b"" if array is None else np.ascontiguousarray(array).tobytes())
    return digest.hexdigest()[:16]


def new_to_cloud(split: Split) -> np.ndarray:
    """bool [U]: users without a click that the cloud has seen."""
    return np.bincount(split.cloud.users_C, minlength=split.cloud.num_users) == 0


def after_cut(log: InteractionLog, split: Split) -> np.ndarray:
    """bool [H]: test clicks later than all that the cloud has seen, the test clicks of the freshness study.

    In a log without time a user's test click always comes after what the cloud has of the user.
    """
    if split.cut is None or log.times_C is None:
        return np.ones(len(split.test), bool)
    key_C = log.users_C * log.num_items + log.items_C
    order = np.argsort(key_C)
    test_H = np.searchsorted(key_C, split.test.users_H * log.num_items + split.test.items_H, sorter=order)
    return log.times_C[order[test_H]] > split.cut

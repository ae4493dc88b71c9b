"""Replies that are not what was asked for."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace

import numpy as np
from flwr.app import ConfigRecord, RecordDict

from client.attacks.contract import ATTACKS, COLLUDERS, OWN
from fedquilt import wire
from fedquilt.wire import TrainReply

Craft = Callable[[TrainReply, np.ndarray], RecordDict]
"""(honest reply, mask [K] of the colluders' rows) -> content that the node sends."""


def _rows(reply: TrainReply, rows: np.ndarray, **changed: np.ndarray) -> RecordDict:
    metrics = {name: values[rows] for name, values in reply.metrics.items()}
    fields = {"client_ids_K": reply.client_ids_K, "num_examples_K": reply.num_examples_K} | changed
    picked = {name: values[rows] for name, values in fields.items()}
    return wire.write_train_reply(
        replace(reply, updates_KP=reply.updates_KP[rows], metrics=metrics, places_KS=None, **picked)
    )


def _duplicate(reply: TrainReply, mine_K: np.ndarray) -> RecordDict:
    return _rows(reply, np.concatenate([np.arange(len(mine_K)), np.flatnonzero(mine_K)]))


def _unasked(reply: TrainReply, mine_K: np.ndarray) -> RecordDict:
    strangers_K = np.where(mine_K, reply.client_ids_K + (1 << 40), reply.client_ids_K)
    return _rows(reply, np.arange(len(mine_K)), client_ids_K=strangers_K)


def _examples(reply: TrainReply, mine_K: np.ndarray) -> RecordDict:
    claimed_K = np.where(mine_K, np.where(reply.client_ids_K % 2, -1, 1 << 62), reply.num_examples_K)
    return _rows(reply, np.arange(len(mine_K)), num_examples_K=claimed_K)


def _shape(reply: TrainReply, mine_K: np.ndarray) -> RecordDict:
    return wire.write_train_reply(replace(reply, updates_KP=reply.updates_KP[:, :-1], places_KS=None))


def _round(reply: TrainReply, mine_K: np.ndarray) -> RecordDict:
    return wire.write_train_reply(replace(reply, round_=reply.round_ + 1, places_KS=None))


def _spec(reply: TrainReply, mine_K: np.ndarray) -> RecordDict:
    return wire.write_train_reply(replace(reply, spec_hash="0" * 16, places_KS=None))


def _empty(reply: TrainReply, mine_K: np.ndarray) -> RecordDict:
    return RecordDict({"facts": ConfigRecord({"round": "now"})})


ROW_FAULTS: Mapping[str, Craft] = {"duplicate": _duplicate, "unasked": _unasked, "examples": _examples}
NODE_FAULTS: Mapping[str, Craft] = {"shape": _shape, "round": _round, "spec": _spec, "empty": _empty}


@ATTACKS.register("malformed")
@dataclass(frozen=True)
class Malformed:
    """Sends replies that break the protocol; ``fault`` says how, "all" takes another fault each round.

    duplicate, unasked and examples are faults of the colluders' own rows. shape, round, spec and empty spoil a whole
    node's reply, so the colluders are then the users of whole nodes (``by_node``).
    """

    fault: str = "shape"
    kind = "replies"
    goal = "untargeted"
    knows = frozenset({OWN, COLLUDERS})
    source = "the protocol itself: decision 5 of the design, nothing from a client is believed"

    def __post_init__(self) -> None:
        if self.fault not in self._faults:
            raise ValueError(f"fault must be one of all, {', '.join((*ROW_FAULTS, *NODE_FAULTS))}, got {self.fault!r}")

    @property
    def _faults(self) -> Mapping[str, list[Craft]]:
        each = {name: [craft] for name, craft in (*ROW_FAULTS.items(), *NODE_FAULTS.items())}
        return each | {"all": [craft for crafts in each.values() for craft in crafts]}

    @property
    def by_node(self) -> bool:
        return self.fault == "all" or self.fault in NODE_FAULTS

    def content(self, reply: TrainReply, mine_K: np.ndarray) -> RecordDict:
        crafts = self._faults[self.fault]
        return crafts[reply.round_ % len(crafts)](reply, mine_K)

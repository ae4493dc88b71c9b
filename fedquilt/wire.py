"""The only codec between our types and Flower records: what the cloud orders and what a node answers.

A message's content is a ``RecordDict`` of ``facts`` (scalars) and ``arrays``, plus ``base`` or ``metrics`` where the
message has them. Reading checks the *decoded* arrays; the dtype and shape that a sender claims are ignored.
``WireError`` says what is missing or malformed; nothing else is raised by bytes that someone else made.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import lru_cache
from typing import Any

import numpy as np
from flwr.app import Array, ArrayRecord, ConfigRecord, MetricRecord, RecordDict

from fedquilt.sparse import GAPS, LEVELS, SCALES, decode, encode
from fedquilt.types import PatchSpec
from fedquilt.wire_parts import Facts, WireError, array_record, read_array, read_arrays, record_of

DEPLOY, TRAIN, EVALUATE = "query.deploy", "train", "evaluate"  # Flower message types
CEILING = "ceiling"  # array beside a patch that users are served with: the most lift of each item
REFUSED = 1000  # error code of a node that understood an order and refuses it; Flower's own codes are below 100
DECLINED = {1: "the device's update was not finite", 2: "the device had no examples"}
DECLINED |= {3: "the device's own privacy budget is spent"}


@dataclass(frozen=True)
class DeployOrder:
    """Everything a node needs before its first round. ``folder``: the run's device folder, for simulated nodes."""

    base: Mapping[str, np.ndarray]
    spec: PatchSpec
    config_toml: str
    config_hash: str
    base_hash: str
    code_hash: str
    folder: str


@dataclass(frozen=True)
class DeployReply:
    client_ids_U: np.ndarray
    partition_id: int
    spec_hash: str
    code_hash: str


@dataclass(frozen=True)
class Standing:
    """Which deployment an order belongs to; a node that holds another one refuses."""

    spec_hash: str
    config_hash: str
    base_hash: str


@dataclass(frozen=True)
class TrainOrder:
    """``settled_round``: a resume goes back to this round at the furthest, so older personal patches may go.
    ``terms``: text of ``fedquilt.privacy.terms.Terms``; empty without privacy."""

    standing: Standing
    round_: int
    settled_round: int
    client_ids_K: np.ndarray
    patch_P: np.ndarray
    terms: str = ""


@dataclass(frozen=True)
class TrainReply:
    """One row per participating user; ``declined_D`` are users without one, ``declined_why_D`` keys of ``DECLINED``.

    ``updates_KP`` is float32 [K, P]. A sender may give ``places_KS`` as well: only the entries there are sent, in the
    form of ``fedquilt.sparse``; a reader always gets [K, P].
    """

    round_: int
    spec_hash: str
    client_ids_K: np.ndarray
    updates_KP: np.ndarray
    num_examples_K: np.ndarray
    declined_D: np.ndarray
    declined_why_D: np.ndarray
    metrics: Mapping[str, np.ndarray] = field(default_factory=dict)
    places_KS: np.ndarray | None = None


@dataclass(frozen=True)
class EvaluateOrder:
    """``client_ids_K`` None: every user the node hosts. ``ceiling_I``: the most lift of each item, or no ceiling."""

    standing: Standing
    round_: int
    part: str
    patch_P: np.ndarray
    client_ids_K: np.ndarray | None = None
    ceiling_I: np.ndarray | None = None


@dataclass(frozen=True)
class EvaluateReply:
    round_: int
    part: str
    client_ids_K: np.ndarray
    arrays: Mapping[str, np.ndarray]


# --- deploy ---


def write_deploy_order(order: DeployOrder) -> RecordDict:
    facts = ConfigRecord(
        {
            "spec": json.dumps(order.spec.shapes),
            "config": order.config_toml,
            "config-hash": order.config_hash,
            "base-hash": order.base_hash,
            "code-hash": order.code_hash,
            "folder": order.folder,
        }
    )
    return RecordDict({"facts": facts, "base": array_record(order.base)})


def read_deploy_order(content: RecordDict) -> DeployOrder:
    facts = Facts(content)
    return DeployOrder(
        base=read_arrays(content, "base"),
        spec=_read_spec(facts.text("spec")),
        config_toml=facts.text("config"),
        config_hash=facts.text("config-hash"),
        base_hash=facts.text("base-hash"),
        code_hash=facts.text("code-hash"),
        folder=facts.text("folder"),
    )


def write_deploy_reply(reply: DeployReply) -> RecordDict:
    facts = ConfigRecord({"partition": reply.partition_id, "spec-hash": reply.spec_hash, "code-hash": reply.code_hash})
    return RecordDict({"facts": facts, "arrays": array_record({"client-ids": reply.client_ids_U.astype(np.int64)})})


def read_deploy_reply(content: RecordDict) -> DeployReply:
    facts = Facts(content)
    client_ids_U = read_array(content, "arrays", "client-ids", np.int64, (None,))
    return DeployReply(client_ids_U, facts.integer("partition"), facts.text("spec-hash"), facts.text("code-hash"))


# --- train ---


def write_train_order(order: TrainOrder) -> RecordDict:
    facts = standing_facts(order.standing) | {"round": order.round_, "settled-round": order.settled_round}
    facts |= {"privacy": order.terms} if order.terms else {}
    arrays = array_record(
        {"client-ids": order.client_ids_K.astype(np.int64), "patch": order.patch_P.astype(np.float32)}
    )
    return RecordDict({"facts": ConfigRecord(facts), "arrays": _with_shared_bytes(arrays)})


def read_train_order(content: RecordDict) -> TrainOrder:
    facts = Facts(content)
    return TrainOrder(
        standing=read_standing(facts),
        round_=facts.integer("round"),
        settled_round=facts.integer("settled-round"),
        client_ids_K=read_array(content, "arrays", "client-ids", np.int64, (None,)),
        patch_P=read_array(content, "arrays", "patch", np.float32, (None,)).copy(),
        terms=facts.optional("privacy"),
    )


def write_train_reply(reply: TrainReply) -> RecordDict:
    arrays: dict[str, np.ndarray] = {
        "client-ids": reply.client_ids_K.astype(np.int64),
        "num-examples": reply.num_examples_K.astype(np.int64),
        "declined": reply.declined_D.astype(np.int64),
        "declined-why": reply.declined_why_D.astype(np.int64),
    }
    if reply.places_KS is None:
        arrays["updates"] = reply.updates_KP.astype(np.float32, copy=False)
    else:
        values_KS = np.take_along_axis(reply.updates_KP, reply.places_KS.astype(np.int64), 1)
        arrays |= encode(reply.places_KS, values_KS, reply.updates_KP.shape[1])
    facts = ConfigRecord({"round": reply.round_, "spec-hash": reply.spec_hash})
    return RecordDict({"facts": facts, "arrays": array_record(arrays), "metrics": array_record(reply.metrics)})


def read_train_reply(content: RecordDict, num_parameters: int, max_rows: int | None = None) -> TrainReply:
    """WireError for more than ``max_rows`` users, before memory is taken for their rows."""
    facts = Facts(content)
    client_ids_K = read_array(content, "arrays", "client-ids", np.int64, (None,))
    declined_D = read_array(content, "arrays", "declined", np.int64, (None,))
    k = len(client_ids_K)
    if max_rows is not None and k > max_rows:
        raise WireError(f"reply holds rows of {k} users, {max_rows} were asked")
    return TrainReply(
        round_=facts.integer("round"),
        spec_hash=facts.text("spec-hash"),
        client_ids_K=client_ids_K,
        updates_KP=_read_updates(content, k, num_parameters),
        num_examples_K=read_array(content, "arrays", "num-examples", np.int64, (k,)),
        declined_D=declined_D,
        declined_why_D=read_array(content, "arrays", "declined-why", np.int64, declined_D.shape),
        metrics=read_arrays(content, "metrics", (k,)),
    )


def _read_updates(content: RecordDict, k: int, num_parameters: int) -> np.ndarray:
    if GAPS not in record_of(content, "arrays", ArrayRecord):
        return read_array(content, "arrays", "updates", np.float32, (k, num_parameters))
    sparse = {name: read_array(content, "arrays", name, np.uint8, (None,)) for name in (GAPS, LEVELS)}
    sparse[SCALES] = read_array(content, "arrays", SCALES, np.float32, (k,))
    try:
        return decode(sparse, k, num_parameters)
    except ValueError as error:
        raise WireError(f"arrays: {error}") from None


# --- evaluate ---


def write_evaluate_order(order: EvaluateOrder) -> RecordDict:
    facts = standing_facts(order.standing) | {"round": order.round_, "part": order.part}
    arrays: dict[str, np.ndarray] = {"patch": order.patch_P.astype(np.float32)}
    if order.client_ids_K is not None:
        arrays["client-ids"] = order.client_ids_K.astype(np.int64)
    if order.ceiling_I is not None:
        arrays[CEILING] = order.ceiling_I.astype(np.float32)
    return RecordDict({"facts": ConfigRecord(facts), "arrays": _with_shared_bytes(array_record(arrays))})


def read_evaluate_order(content: RecordDict) -> EvaluateOrder:
    facts = Facts(content)
    arrays = record_of(content, "arrays", ArrayRecord)
    chosen = "client-ids" in arrays
    return EvaluateOrder(
        standing=read_standing(facts),
        round_=facts.integer("round"),
        part=facts.text("part"),
        patch_P=read_array(content, "arrays", "patch", np.float32, (None,)).copy(),
        client_ids_K=read_array(content, "arrays", "client-ids", np.int64, (None,)) if chosen else None,
        ceiling_I=read_ceiling(arrays),
    )


def write_evaluate_reply(reply: EvaluateReply) -> RecordDict:
    facts = ConfigRecord({"round": reply.round_, "part": reply.part})
    arrays = {"client-ids": reply.client_ids_K.astype(np.int64)}
    return RecordDict({"facts": facts, "arrays": array_record(arrays), "metrics": array_record(reply.arrays)})


def read_evaluate_reply(content: RecordDict) -> EvaluateReply:
    facts = Facts(content)
    client_ids_K = read_array(content, "arrays", "client-ids", np.int64, (None,))
    arrays = read_arrays(content, "metrics", (len(client_ids_K),))
    return EvaluateReply(facts.integer("round"), facts.text("part"), client_ids_K, arrays)


# --- patch, as the ArrayRecord that Flower's Strategy passes around ---


def write_patch(patch_P: np.ndarray, ceiling_I: np.ndarray | None = None) -> ArrayRecord:
    """``ceiling_I`` goes with a patch that users are served with, never with one that is trained."""
    ceiling = {} if ceiling_I is None else {CEILING: ceiling_I.astype(np.float32)}
    return array_record({"patch": patch_P.astype(np.float32), **ceiling})


def _with_shared_bytes(arrays: ArrayRecord) -> ArrayRecord:
    """Patch and ceiling have the bytes of the last message with equal ones: a thousand orders hold them once."""
    for name in ("patch", CEILING):
        if name in arrays:
            arrays[name].data = _one_of_equal(arrays[name].data)
    return arrays


@lru_cache(maxsize=4)
def _one_of_equal(data: bytes) -> bytes:
    return data


def read_patch(arrays: ArrayRecord) -> np.ndarray:
    return read_array(RecordDict({"arrays": arrays}), "arrays", "patch", np.float32, (None,)).copy()


def read_ceiling(arrays: ArrayRecord) -> np.ndarray | None:
    if CEILING not in arrays:
        return None
    return read_array(RecordDict({"arrays": arrays}), "arrays", CEILING, np.float32, (None,)).copy()


# --- sizes and hashes ---


def content_bytes(content: RecordDict) -> int:
    """Bytes of a message's content: array data, names and scalars, without the framing of a few bytes per field."""
    total = 0
    for name, record in content.items():
        total += len(name)
        for key, value in record.items():
            total += len(key) + (len(value.data) if isinstance(value, Array) else _value_bytes(value))
    return total


def _value_bytes(value: Any) -> int:
    if isinstance(value, list):
        return sum(_value_bytes(item) for item in value)
    if isinstance(value, str):
        return len(value.encode())
    return len(value) if isinstance(value, bytes) else 8


def arrays_hash(arrays: Mapping[str, np.ndarray]) -> str:
    """16 hex digits over names, dtypes, shapes and bytes; the order of the names does not matter."""
    digest = hashlib.sha256()
    for name in sorted(arrays):
        array = np.ascontiguousarray(arrays[name])
        digest.update(f"{name}\0{array.dtype.str}\0{arrays[name].shape}\0".encode())
        digest.update(array.reshape(-1).view(np.uint8).data)
    return digest.hexdigest()[:16]


# --- shared by the messages ---


def mean_metrics(metrics: Mapping[str, float]) -> MetricRecord:
    """Flower's form of averaged metrics."""
    return MetricRecord({name: float(value) for name, value in metrics.items()})


def standing_facts(standing: Standing) -> dict[str, Any]:
    return {
        "spec-hash": standing.spec_hash,
        "config-hash": standing.config_hash,
        "base-hash": standing.base_hash,
    }


def read_standing(facts: Facts) -> Standing:
    return Standing(facts.text("spec-hash"), facts.text("config-hash"), facts.text("base-hash"))


def _read_spec(text: str) -> PatchSpec:
    try:
        shapes = json.loads(text)
        spec = PatchSpec(tuple((str(name), tuple(int(size) for size in shape)) for name, shape in shapes))
    except (ValueError, TypeError, OverflowError, RecursionError):
        raise WireError(f"patch spec: expected [[name, [sizes]], ...] as JSON, got {text:.80}") from None
    if any(size < 0 for _, shape in spec.shapes for size in shape):
        raise WireError(f"patch spec: negative size in {text:.80}")
    return spec

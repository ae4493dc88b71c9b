"""Orders and replies: they come back as sent, and what someone else made of them is refused in words."""

from __future__ import annotations

import contextlib
import dataclasses

import numpy as np
import pytest
from flwr.app import Array, ArrayRecord, ConfigRecord, RecordDict
from flwr.common.serde import recorddict_from_proto, recorddict_to_proto
from hypothesis import given, settings
from hypothesis import strategies as st

from fedquilt import npy, wire
from fedquilt.types import PatchSpec
from fedquilt.wire_parts import MAX_METRICS

SPEC = PatchSpec((("down", (2, 3)), ("up", (4,)), ("alpha", ())))
STANDING = wire.Standing(SPEC.hash, "c0ffee", "ba5e")
K, P = 3, SPEC.num_parameters


def train_reply(**changes) -> wire.TrainReply:
    reply = wire.TrainReply(
        round_=7,
        spec_hash=SPEC.hash,
        client_ids_K=np.array([3, 5, 8]),
        updates_KP=np.arange(K * P, dtype=np.float32).reshape(K, P),
        num_examples_K=np.array([1, 2, 3]),
        declined_D=np.array([9]),
        declined_why_D=np.array([2]),
        metrics={"loss": np.array([0.5, 0.25, 0.125])},
    )
    return dataclasses.replace(reply, **changes)


MESSAGES = {
    "deploy order": (
        wire.write_deploy_order,
        wire.read_deploy_order,
        wire.DeployOrder({"items": np.eye(3, dtype=np.float32)}, SPEC, "seed = 1\n", "c0ffee", "ba5e", "c0de", "/d"),
    ),
    "deploy reply": (
        wire.write_deploy_reply,
        wire.read_deploy_reply,
        wire.DeployReply(np.array([1, 4]), 2, SPEC.hash, "c0de"),
    ),
    "train order": (
        wire.write_train_order,
        wire.read_train_order,
        wire.TrainOrder(STANDING, 7, 5, np.array([3, 5]), np.ones(P, np.float32)),
    ),
    "train reply": (wire.write_train_reply, lambda content: wire.read_train_reply(content, P), train_reply()),
    "evaluate order": (
        wire.write_evaluate_order,
        wire.read_evaluate_order,
        wire.EvaluateOrder(STANDING, 7, "valid", np.ones(P, np.float32), np.array([3, 5])),
    ),
    "evaluate order to all": (
        wire.write_evaluate_order,
        wire.read_evaluate_order,
        wire.EvaluateOrder(STANDING, 7, "test", np.ones(P, np.float32)),
    ),
    "evaluate order under a ceiling": (
        wire.write_evaluate_order,
        wire.read_evaluate_order,
        wire.EvaluateOrder(STANDING, 7, "test", np.ones(P, np.float32), None, np.array([0.5, -1, 2], np.float32)),
    ),
    "evaluate reply": (
        wire.write_evaluate_reply,
        wire.read_evaluate_reply,
        wire.EvaluateReply(7, "valid", np.array([3, 5]), {"rank": np.array([[1, 2], [3, 4]])}),
    ),
}
every_message = pytest.mark.parametrize(("write", "read", "sent"), MESSAGES.values(), ids=MESSAGES)


def same(a, b) -> bool:
    if isinstance(a, np.ndarray):
        return a.dtype == b.dtype and np.array_equal(a, b)
    if isinstance(a, dict):
        return a.keys() == b.keys() and all(same(a[key], b[key]) for key in a)
    if dataclasses.is_dataclass(a):
        return all(same(getattr(a, f.name), getattr(b, f.name)) for f in dataclasses.fields(a))
    return a == b


@every_message
def test_a_message_comes_back_as_it_was_sent(write, read, sent):
    assert same(read(write(sent)), sent)


@every_message
def test_a_message_survives_flowers_own_serialisation(write, read, sent):
    assert same(read(recorddict_from_proto(recorddict_to_proto(write(sent)))), sent)


@every_message
def test_content_bytes_are_those_that_protobuf_sends_but_for_framing(write, read, sent):
    content = write(sent)
    encoded = recorddict_to_proto(content).ByteSize()
    fields = sum(len(record) + 1 for record in content.values())
    assert encoded - 64 * fields <= wire.content_bytes(content) <= encoded


def test_content_bytes_of_a_large_reply_are_within_a_thousandth():
    content = wire.write_train_reply(
        train_reply(
            updates_KP=np.zeros((1000, P), np.float32),
            client_ids_K=np.arange(1000),
            num_examples_K=np.ones(1000, int),
            metrics={},
        )
    )
    assert wire.content_bytes(content) == pytest.approx(recorddict_to_proto(content).ByteSize(), rel=0.02)


@every_message
def test_a_message_without_a_record_is_refused_by_name(write, read, sent):
    for name in list(write(sent)):
        content = write(sent)
        del content[name]
        with pytest.raises(wire.WireError, match=name):
            read(content)


@pytest.mark.parametrize(
    ("name", "array", "complaint"),
    [
        ("updates", np.zeros((K, P + 1), np.float32), "expected shape"),
        ("updates", np.zeros((1,), np.float32), "expected shape"),
        ("updates", np.zeros((K, P), np.float64), "expected float32"),
        ("num-examples", np.zeros(K, np.float32), "expected int64"),
        ("num-examples", np.zeros(K + 1, np.int64), "expected shape"),
        ("client-ids", np.zeros((K, 1), np.int64), "expected shape"),
        ("declined-why", np.zeros(5, np.int64), "expected shape"),
    ],
)
def test_what_counts_is_the_decoded_array_not_the_senders_claim(name, array, complaint):
    content = wire.write_train_reply(train_reply())
    honest = content["arrays"][name]
    content["arrays"][name] = Array(honest.dtype, honest.shape, honest.stype, npy.pack(array))
    with pytest.raises(wire.WireError, match=f"{name}.*{complaint}"):
        wire.read_train_reply(content, P)


def test_a_ceiling_is_what_its_array_says():
    content = MESSAGES["evaluate order under a ceiling"][0](MESSAGES["evaluate order under a ceiling"][2])
    honest = content["arrays"][wire.CEILING]
    content["arrays"][wire.CEILING] = Array(honest.dtype, honest.shape, honest.stype, npy.pack(np.zeros(3)))
    with pytest.raises(wire.WireError, match=r"ceiling.*expected float32"):
        wire.read_evaluate_order(content)


@pytest.mark.parametrize("ceiling_I", [None, np.array([0.5, -1], np.float32)])
def test_a_patch_is_passed_around_with_its_ceiling_or_without_one(ceiling_I):
    arrays = wire.write_patch(np.ones(P, np.float32), ceiling_I)
    assert same(wire.read_patch(arrays), np.ones(P, np.float32))
    assert same(wire.read_ceiling(arrays), ceiling_I)


def test_orders_with_equal_patches_and_ceilings_hold_their_bytes_once():
    def order(ids: list[int]) -> ArrayRecord:
        patch_P, ceiling_I = np.full(P, 3, np.float32), np.full(9, 4, np.float32)
        sent = wire.EvaluateOrder(STANDING, 7, "test", patch_P, np.array(ids), ceiling_I)
        return wire.write_evaluate_order(sent)["arrays"]

    first, second = order([1, 2]), order([3])
    assert first["patch"].data is second["patch"].data
    assert first[wire.CEILING].data is second[wire.CEILING].data


def test_per_user_metrics_need_one_row_per_user():
    with pytest.raises(wire.WireError, match="loss"):
        wire.read_train_reply(wire.write_train_reply(train_reply(metrics={"loss": np.zeros(K - 1)})), P)


def test_a_flood_of_metrics_is_refused():
    flood = {f"m{i}": np.zeros(K) for i in range(MAX_METRICS + 1)}
    with pytest.raises(wire.WireError, match="at most"):
        wire.read_train_reply(wire.write_train_reply(train_reply(metrics=flood)), P)


@pytest.mark.parametrize("text", ["", "[", "3", '[["a", [-1]]]', '[["a"]]', "[" * 5000, '[["a", ["x"]]]'])
def test_a_spec_that_is_none_is_refused(text):
    content = wire.write_deploy_order(MESSAGES["deploy order"][2])
    content["facts"]["spec"] = text
    with pytest.raises(wire.WireError, match="patch spec"):
        wire.read_deploy_order(content)


names = st.text("abc-é", max_size=9)
scalars = st.one_of(st.integers(-(2**63), 2**63 - 1), st.floats(), names, st.binary(max_size=9), st.booleans())
junk_arrays = st.builds(Array, st.just("float32"), st.just((3,)), st.just("numpy.ndarray"), st.binary(max_size=200))
records = st.one_of(
    st.builds(lambda d: ConfigRecord(d), st.dictionaries(names, scalars, max_size=3)),
    st.builds(lambda d: ArrayRecord(d), st.dictionaries(names, junk_arrays, max_size=3)),
)


@every_message
@settings(max_examples=40)
@given(data=st.data())
def test_a_mutated_message_is_read_or_refused_but_never_crashes(write, read, sent, data):
    content = mutated(write(sent), data)
    with contextlib.suppress(wire.WireError):
        assert type(read(content)) is type(sent)


def mutated(content: RecordDict, data: st.DataObject) -> RecordDict:
    """One fault: a record or field dropped or replaced by junk, or bytes of an array changed or cut."""
    name = data.draw(st.sampled_from(sorted(content)))
    record = content[name]
    fault = data.draw(st.sampled_from(["drop record", "junk record", "drop field", "junk field", "bytes"]))
    if fault == "drop record":
        del content[name]
    elif fault == "junk record":
        content[name] = data.draw(records)
    elif len(record):
        key = data.draw(st.sampled_from(sorted(record)))
        if fault == "drop field":
            del record[key]
        elif isinstance(record, ArrayRecord):
            record[key] = data.draw(junk_arrays) if fault == "junk field" else damaged(record[key], data)
        else:
            record[key] = data.draw(scalars)
    return content


def damaged(array: Array, data: st.DataObject) -> Array:
    content = bytearray(array.data)
    for _ in range(data.draw(st.integers(1, 5))):
        content[data.draw(st.integers(0, len(content) - 1))] = data.draw(st.integers(0, 255))
    return Array(array.dtype, array.shape, array.stype, bytes(content[: data.draw(st.integers(0, len(content)))]))


def test_the_hash_of_arrays_sees_names_shapes_types_and_values_but_not_their_order():
    a, b = np.zeros(4, np.float32), np.ones(4, np.float32)
    assert wire.arrays_hash({"a": a, "b": b}) == wire.arrays_hash({"b": b, "a": a})
    variants = [{"a": a}, {"b": a}, {"a": b}, {"a": a.reshape(2, 2)}, {"a": a.astype(np.float64)}, {"a": a[:2]}, {}]
    assert len({wire.arrays_hash(variant) for variant in variants}) == len(variants)

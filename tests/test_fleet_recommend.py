"""Recommendations over the connection: the cloud sends what is needed, the device ranks, as if all were local."""

from __future__ import annotations

import dataclasses
import json
import tracemalloc
from types import SimpleNamespace

import grpc
import numpy as np
import pytest
from fleet_toy import Caller, make_keys
from hypothesis import given
from hypothesis import strategies as st
from tiny_recommender import base_of, random_patch, random_weights, tiny_run

from cli.recommend import recommend
from client.ask import MAX_TOLD, ask, ranked, told_items
from client.own_log import OwnLog
from client.rank import config_of, rank, require_spec, with_items
from client.store import PersonalStore
from fedquilt.errors import ConfigError, DataError, FederationError, RefusedError, SpecMismatchError
from fedquilt.graphs.device_logs import read_device_log, read_device_logs
from fedquilt.offers import PER_ITEM_PATCH, Offer, cut_base, cut_patch, read_offer, rows_around, write_offer
from fedquilt.rpc import fleet_pb2
from fedquilt.rpc.keys import make_device
from fedquilt.types import PatchSpec
from fedquilt.wire import WireError
from models.patches import PARTS, patch_spec
from server.deploy import write_device_logs
from server.grpc_grid import GrpcGrid
from server.limits import Limits
from server.rate import Rate
from server.recommend import MAX_ASKED, Recommender, best_matches

EVERYTHING = tuple(PARTS)
CONFIG = tiny_run(patch={"parts": EVERYTHING, "item_rank": 2}, federation={"num_supernodes": 1})
TITLES = tuple(f"<film {item}>" for item in range(CONFIG.data.num_items))
Code = grpc.StatusCode


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    """A gateway that serves a random patch after round 5, one device, its log, and its own recommender."""
    folder = tmp_path_factory.mktemp("asked")
    keys, base = make_keys(folder, 1), base_of(CONFIG)
    (log,) = write_device_logs(CONFIG, folder / "logs")
    local = OwnLog(log)(CONFIG, 0, 1)
    local.install(base)
    recommender = Recommender(CONFIG, local.spec, base, TITLES)
    patch_P = random_patch(local.spec)
    recommender.take(5, patch_P)
    limits = Limits(asks=Rate(per_s=100, burst=1000))
    with GrpcGrid(keys, local.spec, 1, limits=limits, recommender=recommender) as grid:
        device = keys / "devices" / "d0"
        state = device / "state"
        user = int(np.argmax(np.diff(local.split.train.offsets)))
        personal_R = 0.1 * np.random.default_rng(0).standard_normal(local.personal_size).astype(np.float32)
        PersonalStore(state, 0, local.spec.hash, local.personal_size).write(np.array([user]), 4, personal_R[None], 0)
        yield SimpleNamespace(
            address=f"localhost:{grid.port}", grid=grid, keys=keys, device=device, state=state, log=log, local=local,
            user=user, clicks=local.split.train.items_of(user), patch_P=patch_P, personal_R=personal_R, base=base,
        )  # fmt: skip


NOTHING = np.zeros(0, np.int64)


def local_scores(world, personal_R):
    """[I], clicked items at -inf: by a recommender that holds the whole base."""
    scores_KI = world.local.personal_scores(np.array([world.user]), world.patch_P, personal_R[None])
    scores_I = scores_KI.numpy()[0].copy()
    scores_I[world.clicks] = -np.inf
    return scores_I


def test_a_device_that_tells_nothing_ranks_as_if_all_were_local(world):
    answer = ask(world.address, world.device, NOTHING, 0)
    found = ranked(answer, world.clicks, world.user, world.state, 10)
    scores_I = local_scores(world, world.personal_R)
    np.testing.assert_array_equal(found.items_K, np.argsort(-scores_I, kind="stable")[:10])
    np.testing.assert_allclose(found.scores_K, scores_I[found.items_K], atol=1e-5)
    assert found.titles == tuple(TITLES[item] for item in found.items_K)
    assert answer.offer.round_ == 5


def test_the_users_own_patch_is_part_of_it(world):
    answer = ask(world.address, world.device, NOTHING, 0)
    with_own = ranked(answer, world.clicks, world.user, world.state, 10)
    without = rank(answer.offer, world.clicks, 10)
    assert not np.allclose(with_own.scores_K, without.scores_K, atol=1e-4)


def test_chosen_candidates_have_the_scores_of_the_whole_catalogue(world, monkeypatch):
    """Without personal steps, whose loss compares with all items that came."""
    frozen = CONFIG.evaluation.model_copy(update={"personal_steps": 0})
    monkeypatch.setattr(world.local, "config", CONFIG.model_copy(update={"evaluation": frozen}))
    answer = ask(world.address, world.device, told_items(world.clicks, 100, 5, np.random.default_rng(0)), 20)
    monkeypatch.setattr("client.rank.config_of", lambda offer: world.local.config)
    found = ranked(answer, world.clicks, world.user, world.state, 20)
    assert len(answer.offer.items_S) < 100
    assert len(found.items_K) == 20
    np.testing.assert_allclose(found.scores_K, local_scores(world, world.personal_R)[found.items_K], atol=1e-5)


def test_nothing_that_was_clicked_is_recommended(world):
    found = ranked(ask(world.address, world.device, NOTHING, 0), world.clicks, world.user, world.state, 1000)
    assert not set(found.items_K) & set(world.clicks)
    assert len(found.items_K) == 100 - len(set(world.clicks))


def test_a_request_does_not_tell_the_order_of_clicks_and_hides_them_among_decoys():
    clicks = np.array([9, 3, 7, 3, 5])
    told = told_items(clicks, 50, 4, np.random.default_rng(0))
    assert (np.diff(told) > 0).all()
    assert set(told) >= {3, 5, 7, 9}
    assert len(told) == 8
    long = np.arange(1000)
    assert told_items(long, 1000, 0, np.random.default_rng(0)).tolist() == list(range(1000 - MAX_TOLD, 1000))


def test_candidates_are_dealt_from_the_lists_of_all_asked_items_in_turn():
    vectors = np.eye(4, dtype=np.float32)[[0, 1, 0, 0, 1, 1]]  # 0, 2, 3 are alike, and 1, 4, 5
    dealt = best_matches(vectors, np.zeros(6, np.float32), np.array([0, 1]), 4)
    assert dealt.tolist() == [2, 4, 3, 5]
    assert set(best_matches(vectors, np.zeros(6, np.float32), np.array([0]), 2)) == {2, 3}
    assert len(best_matches(vectors, np.zeros(6, np.float32), np.arange(6), 4)) == 0


def test_per_item_tensors_of_a_patch_are_those_that_grow_with_the_catalogue():
    small, large = (patch_spec(random_weights(num_items=n), CONFIG.patch) for n in (20, 30))
    growing = [name for (name, a), (_, b) in zip(small.shapes, large.shapes, strict=True) if a != b]
    assert sorted(growing) == sorted(PER_ITEM_PATCH)
    assert with_items(small, 30) == large


@given(st.integers(0, 2**32 - 1), st.integers(1, 12), st.integers(0, 8), st.booleans())
def test_an_offer_that_is_read_is_the_one_that_was_written_and_its_rows_are_the_catalogues(
    seed, asked, chosen, bounded
):
    rng = np.random.default_rng(seed)
    items, spec = 30, PatchSpec((("up", (2, 3)), ("item_bias", (30,)), ("item_out.factors", (30, 2))))
    neighbours = rng.integers(-1, items, (items, 4)).astype(np.int32)
    base = {"item_vectors": rng.random((items, 3), np.float32), "item_bias": rng.random(items, np.float32)}
    base |= {"neighbour_items": neighbours, "neighbour_weights": (neighbours >= 0).astype(np.float32)}
    asked_Q, candidates = rng.permutation(items)[:asked], rng.permutation(items)[:chosen]
    items_S = rows_around(base, asked_Q, candidates)
    patch_P = rng.random(spec.num_parameters, np.float32)
    cut = cut_base(base, items_S, asked_Q)
    places = np.searchsorted(items_S, candidates)
    ceiling_S = rng.standard_normal(len(items_S)).astype(np.float32) if bounded else None
    offer = Offer("", 3, items, items_S, places, cut, cut_patch(spec, patch_P, items_S), tuple("x" * chosen), ceiling_S)
    found = read_offer(write_offer(offer))
    for name in ("items_S", "candidates_C", "patch_p", "ceiling_S"):
        np.testing.assert_array_equal(getattr(found, name), getattr(offer, name))
    assert found.titles == offer.titles
    for name, array in offer.base.items():
        np.testing.assert_array_equal(found.base[name], array)
    for place in found.places_of(asked_Q):
        theirs = neighbours[items_S[place]]
        np.testing.assert_array_equal(items_S[found.base["neighbour_items"][place][theirs >= 0]], theirs[theirs >= 0])
    mine, whole = with_items(spec, len(items_S)).views(found.patch_p), spec.views(patch_P)
    np.testing.assert_array_equal(mine["item_out.factors"], whole["item_out.factors"][items_S])
    np.testing.assert_array_equal(mine["up"], whole["up"])


# --- under a ceiling on lift ---


@pytest.fixture
def bounded(world):
    """A recommender whose ceiling on lift is low enough to change the user's list."""
    ceiling_I = np.linspace(-0.5, 0.5, CONFIG.data.num_items).astype(np.float32)
    recommender = Recommender(CONFIG, world.local.spec, world.base, TITLES)
    recommender.take(5, world.patch_P, ceiling_I)
    return SimpleNamespace(recommender=recommender, ceiling_I=ceiling_I, task=world.local.under(ceiling_I))


def test_a_device_ranks_under_the_offers_ceiling_as_if_all_were_local(world, bounded):
    offer = read_offer(bounded.recommender.answer([], 0))
    found = rank(offer, world.clicks, 10, world.personal_R)
    under = SimpleNamespace(**{**vars(world), "local": bounded.task})
    scores_I, without_I = local_scores(under, world.personal_R), local_scores(world, world.personal_R)
    np.testing.assert_array_equal(found.items_K, np.argsort(-scores_I, kind="stable")[:10])
    np.testing.assert_allclose(found.scores_K, scores_I[found.items_K], atol=1e-5)
    assert found.items_K.tolist() != np.argsort(-without_I, kind="stable")[:10].tolist()


def test_an_offer_of_some_items_holds_their_ceilings(bounded):
    offer = read_offer(bounded.recommender.answer([1, 2], 5))
    assert len(offer.items_S) < CONFIG.data.num_items
    np.testing.assert_array_equal(offer.ceiling_S, bounded.ceiling_I[offer.items_S])


def test_a_gateway_without_a_ceiling_offers_none(world):
    assert ask(world.address, world.device, NOTHING, 0).offer.ceiling_S is None


@pytest.mark.parametrize(
    ("broken", "words"),
    [
        (lambda ceiling_S: ceiling_S[1:], "ceiling has shape"),
        (lambda ceiling_S: np.append(ceiling_S, np.float32(0)), "ceiling has shape"),
        (lambda ceiling_S: ceiling_S * np.float32(np.nan), "ceiling must be finite float32"),
        (lambda ceiling_S: ceiling_S.astype(np.float64), "ceiling must be finite float32"),
    ],
)
def test_a_ceiling_that_does_not_fit_its_offer_is_refused(bounded, broken, words):
    offer = read_offer(bounded.recommender.answer([1, 2], 5))
    with pytest.raises(WireError, match=words):
        read_offer(write_offer(dataclasses.replace(offer, ceiling_S=broken(offer.ceiling_S))))


# --- what is refused ---


@pytest.mark.parametrize(
    ("items", "candidates", "words"),
    [
        ([5, 100], 10, "has 100 items"),
        (list(range(MAX_ASKED + 1)), 10, "at most 256"),
        ([1], 0, "1 to 4096"),
        ([1], 4097, "1 to 4096"),
        ([], 10, "name some"),
    ],
)
def test_a_request_that_makes_no_sense(world, items, candidates, words):
    with pytest.raises(RefusedError, match=words):
        ask(world.address, world.device, np.array(items, np.int64), candidates)


def test_other_code_and_strangers_get_nothing(world, tmp_path):
    with Caller(world.grid, world.device) as device, pytest.raises(grpc.RpcError) as raised:
        list(device.stub.Recommend(fleet_pb2.RecommendRequest(code_hash="0" * 16), timeout=5))
    assert raised.value.code() == Code.FAILED_PRECONDITION
    with pytest.raises(RefusedError, match="not enrolled"):
        ask(world.address, make_device(world.keys, "stranger"), NOTHING, 0)


def test_a_gateway_that_has_no_patch_yet_says_so(tmp_path):
    keys, base = make_keys(tmp_path, 1), base_of(CONFIG)
    spec = patch_spec(random_weights(3, 100, 8, 8), CONFIG.patch)
    with (
        GrpcGrid(keys, spec, 1, recommender=Recommender(CONFIG, spec, base)) as grid,
        pytest.raises(FederationError, match="try again"),
    ):
        ask(f"localhost:{grid.port}", keys / "devices" / "d0", NOTHING, 0)


def test_an_answer_above_the_limit_and_a_device_that_asks_too_often(tmp_path):
    keys, base = make_keys(tmp_path, 1), base_of(CONFIG)
    spec = patch_spec(random_weights(3, 100, 8, 8), CONFIG.patch)
    recommender = Recommender(CONFIG, spec, base)
    recommender.take(0, np.zeros(spec.num_parameters))
    limits = Limits(offer_bytes=10_000, asks=Rate(per_s=0.01, burst=2))
    with GrpcGrid(keys, spec, 1, limits=limits, recommender=recommender) as grid:
        address, device = f"localhost:{grid.port}", keys / "devices" / "d0"
        with pytest.raises(FederationError, match="fewer candidates"):
            ask(address, device, NOTHING, 0)
        assert len(ask(address, device, np.array([1]), 5).offer.candidates_C) == 5
        with pytest.raises(FederationError, match="too many calls"):
            ask(address, device, np.array([1]), 5)


def test_an_offer_that_does_not_fit_is_not_ranked(world):
    offer = ask(world.address, world.device, NOTHING, 0).offer
    with pytest.raises(SpecMismatchError, match="parameters are expected"):
        rank(dataclasses.replace(offer, patch_p=offer.patch_p[1:]), world.clicks, 5)
    with pytest.raises(ConfigError, match="not valid TOML"):
        rank(dataclasses.replace(offer, config_toml="="), world.clicks, 5)
    with pytest.raises(ConfigError, match="attack"):
        rank(dataclasses.replace(offer, config_toml='[attack]\nname = "boost"\n'), world.clicks, 5)
    with pytest.raises(SpecMismatchError, match="the cloud said"):
        require_spec(offer, "0" * 16)
    with pytest.raises(DataError, match="lacks"):
        rank(offer, np.append(world.clicks, 100), 5)
    assert config_of(offer) == CONFIG


@pytest.mark.parametrize(
    ("rows", "width", "dtype", "words"),
    [(1, 1024, np.int32, "no more than the message has bytes"), (0, 8, np.int64, "int32 is expected")],
)
def test_a_small_offer_does_not_take_much_memory(rows, width, dtype, words):
    count = 50_000
    none = np.zeros((count, 0), np.float32)
    base = {"item_vectors": none, "item_bias": none}
    base |= {"neighbour_items": np.full((count, width), -1, dtype), "neighbour_weights": np.zeros((count, width))}
    base["neighbour_items"][:rows] = 0
    whole = np.arange(count)
    data = write_offer(Offer("", 1, count, whole, whole[:1], base, np.zeros(0, np.float32)))
    tracemalloc.start()
    with pytest.raises(WireError, match=words):
        read_offer(data)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 20 * len(data)


def test_damaged_offers_are_refused_in_words(world):
    whole = Recommender(CONFIG, world.local.spec, world.base)
    whole.take(1, world.patch_P)
    data = whole.answer([1, 2], 5)
    rng = np.random.default_rng(0)
    refused = 0
    for _ in range(300):
        damaged = bytearray(data)
        damaged[rng.integers(len(data))] ^= 1 << rng.integers(8)
        try:
            read_offer(bytes(damaged[: rng.integers(1, len(data) + 1)]))
        except WireError:
            refused += 1
    assert refused > 100


# --- the command ---


def test_the_command_prints_titles(world, capsys):
    recommend(world.log, world.device, world.address, user=world.user, count=3, candidates=0, decoys=0, state=None)
    told = capsys.readouterr().out
    assert told.count("<film") == 3
    recommend(
        world.log, world.device, world.address, user=world.user, count=3, candidates=9, decoys=2, state=None,
        as_json=True,
    )  # fmt: skip
    assert len(json.loads(capsys.readouterr().out)["items"]) == 3


def test_a_log_of_many_users_needs_one_named(world):
    with pytest.raises(DataError, match="choose one with --user"):
        recommend(world.log, world.device, world.address, user=None, count=3, candidates=0, decoys=0, state=None)


# --- a folder of logs ---


def test_a_folder_of_logs_is_one_node_that_hosts_all_of_their_users(tmp_path):
    config = tiny_run(federation={"num_supernodes": 3})
    paths = write_device_logs(config, tmp_path / "logs")
    together = OwnLog(tmp_path / "logs")(config, 0, 1)
    apart = [OwnLog(path)(config, number, 3) for number, path in enumerate(paths)]
    assert together.client_ids_U.tolist() == sorted(np.concatenate([task.client_ids_U for task in apart]).tolist())
    base = base_of(config)
    together.install(base)
    apart[1].install(base)
    ids, patch_P = apart[1].client_ids_U[:20], random_patch(apart[1].spec)
    none_KR = np.zeros((20, together.personal_size), np.float32)
    for name, values in apart[1].evaluate(ids, patch_P, none_KR, "test").items():
        np.testing.assert_allclose(together.evaluate(ids, patch_P, none_KR, "test")[name], values, atol=0)
    updates = [task.train(ids, patch_P, none_KR, 1, 0).updates_KP for task in (together, apart[1])]
    np.testing.assert_allclose(updates[0], updates[1], atol=1e-6)


def test_folders_that_are_empty_or_hold_a_user_twice_are_refused(tmp_path):
    with pytest.raises(DataError, match=r"no \*\.npz"):
        read_device_logs(tmp_path)
    (path, *_) = write_device_logs(tiny_run(), tmp_path / "logs")
    (tmp_path / "logs" / "copy.npz").write_bytes(path.read_bytes())
    with pytest.raises(DataError, match="is in two logs"):
        read_device_logs(tmp_path / "logs")


def test_logs_of_two_catalogues_are_refused(tmp_path):
    write_device_logs(tiny_run(), tmp_path / "logs")
    (other, *_) = write_device_logs(tiny_run(data={"num_items": 150, "num_users": 200}), tmp_path / "other")
    ids, _ = read_device_log(other)
    (tmp_path / "logs" / "device-00000.npz").write_bytes(other.read_bytes())
    assert len(ids)
    with pytest.raises(DataError, match="num_items is"):
        read_device_logs(tmp_path / "logs")

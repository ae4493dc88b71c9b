"""Replies become usable rows: a bad row costs its sender its place, and nothing else."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from fedquilt.wire import TrainReply
from strategies.aggregators.mean import Mean
from strategies.aggregators.weighted_mean import WeightedMean
from strategies.optimizers.sgd import Sgd
from strategies.pipeline import NodeAnswer, RowBuffer, advance, collect, weights_for
from strategies.report import MAX_LISTED, report_round

P = 3


def reply_for(ids, **changes) -> TrainReply:
    ids_K = np.array(ids, np.int64)
    reply = TrainReply(
        round_=5,
        spec_hash="spec",
        client_ids_K=ids_K,
        updates_KP=(np.ones((len(ids_K), P)) * ids_K[:, None] / 100).astype(np.float32),
        num_examples_K=np.full(len(ids_K), 4),
        declined_D=np.empty(0, np.int64),
        declined_why_D=np.empty(0, np.int64),
        metrics={"loss": ids_K.astype(float)},
    )
    return dataclasses.replace(reply, **changes)


def gathered(*answers: NodeAnswer, clipping_norm=1.0):
    return collect(
        answers, round_=5, spec_hash="spec", num_parameters=P, clipping_norm=clipping_norm, buffer=RowBuffer()
    )


def answer(asked, reply, node="partition 0") -> NodeAnswer:
    return NodeAnswer(node, np.array(asked, np.int64), reply)


def reasons(usable) -> dict[int, str]:
    return {rejection.client_id: rejection.reason for rejection in usable.rejected}


def test_rows_of_all_nodes_come_out_in_the_order_of_client_ids():
    usable = gathered(
        answer([2, 8, 9], reply_for([9, 2, 8]), "partition 1"), answer([1, 5], reply_for([1, 5]), "partition 0")
    )
    assert usable.client_ids_K.tolist() == [1, 2, 5, 8, 9]
    assert usable.updates_KP[:, 0] == pytest.approx([0.01, 0.02, 0.05, 0.08, 0.09])
    assert usable.metrics["loss"].tolist() == [1, 2, 5, 8, 9]
    assert not usable.rejected


@given(st.permutations(range(12)), st.integers(1, 5))
def test_the_result_does_not_depend_on_how_users_are_spread_over_nodes(ids, num_nodes):
    parts = [ids[n::num_nodes] for n in range(num_nodes)]
    usable = gathered(*(answer(sorted(part), reply_for(part)) for part in parts))
    together = gathered(answer(range(12), reply_for(range(12))))
    assert usable.updates_KP.tobytes() == together.updates_KP.tobytes()
    assert usable.client_ids_K.tolist() == together.client_ids_K.tolist()


def test_one_sorted_reply_is_used_without_a_copy():
    reply = reply_for([1, 2, 3])
    assert gathered(answer([1, 2, 3], reply)).updates_KP is reply.updates_KP


def test_a_client_that_was_not_asked_loses_its_row():
    usable = gathered(answer([1, 2], reply_for([1, 2, 7])))
    assert usable.client_ids_K.tolist() == [1, 2]
    assert reasons(usable) == {7: "partition 0: was not asked this round"}


def test_a_client_with_two_rows_loses_both():
    usable = gathered(answer([1, 2], reply_for([1, 2, 2])))
    assert usable.client_ids_K.tolist() == [1]
    assert reasons(usable) == {2: "partition 0: has more than one row"}


def test_a_row_for_another_nodes_client_is_not_taken():
    usable = gathered(answer([1], reply_for([1, 2]), "partition 0"), answer([2], reply_for([2]), "partition 1"))
    assert usable.client_ids_K.tolist() == [1, 2]
    assert reasons(usable) == {2: "partition 0: was not asked this round"}


@pytest.mark.parametrize("claim", [0, -1, -(10**9)])
def test_a_client_that_claims_no_examples_loses_its_row(claim):
    usable = gathered(answer([1, 2], reply_for([1, 2], num_examples_K=np.array([4, claim]))))
    assert reasons(usable) == {2: "partition 0: claims no examples"}


@pytest.mark.parametrize("poison", [np.nan, np.inf, -np.inf])
def test_a_row_that_is_not_finite_is_left_out(poison):
    updates_KP = np.array([[0.1] * P, [poison] * P, [0.3] * P], np.float32)
    usable = gathered(answer([1, 2, 3], reply_for([1, 2, 3], updates_KP=updates_KP)))
    assert usable.client_ids_K.tolist() == [1, 3]
    assert usable.updates_KP[:, 0] == pytest.approx([0.1, 0.3])
    assert reasons(usable) == {2: "update is not finite"}


def test_a_row_above_the_bound_is_clipped_again_and_counted():
    updates_KP = np.array([[0.1] * P, [100] * P], np.float32)
    usable = gathered(answer([1, 2], reply_for([1, 2], updates_KP=updates_KP)))
    assert usable.reclipped == 1
    assert not usable.rejected
    assert np.linalg.norm(usable.updates_KP.astype(float), axis=1).max() <= 1


def test_a_row_clipped_by_the_device_is_not_counted_as_clipped_again():
    from fedquilt.privacy.clipping import clip_rows

    clipped_KP, _ = clip_rows(np.full((2, P), 100, np.float32), 1.0)
    assert gathered(answer([1, 2], reply_for([1, 2], updates_KP=clipped_KP))).reclipped == 0


@pytest.mark.parametrize(
    ("reply", "reason"),
    [
        (reply_for([1, 2], round_=4), "round 4"),
        (reply_for([1, 2], spec_hash="other"), "spec other"),
        ("no reply within 3 s", "no reply within 3 s"),
    ],
    ids=["wrong round", "wrong spec", "straggler"],
)
def test_a_fault_of_the_whole_reply_costs_all_its_users_their_place(reply, reason):
    usable = gathered(answer([1, 2], reply, "partition 3"), answer([4], reply_for([4])))
    assert usable.client_ids_K.tolist() == [4]
    assert list(reasons(usable)) == [1, 2]
    assert all("partition 3" in text and reason in text for text in reasons(usable).values())


def test_a_client_without_a_row_is_listed_with_what_its_device_said():
    declining = reply_for([1], declined_D=np.array([2, 3]), declined_why_D=np.array([2, 99]))
    usable = gathered(answer([1, 2, 3, 4], declining))
    assert reasons(usable) == {
        2: "partition 0: the device had no examples",
        3: "partition 0: no row in the reply",
        4: "partition 0: no row in the reply",
    }


def test_a_metric_that_some_nodes_leave_out_is_not_recorded():
    usable = gathered(answer([1], reply_for([1])), answer([2], reply_for([2], metrics={"other": np.zeros(1)})))
    assert usable.metrics == {}


# --- weights, rule, step ---


def test_equal_weights_ignore_what_clients_claim():
    usable = gathered(answer([1, 2], reply_for([1, 2], num_examples_K=np.array([1, 10**9]))))
    assert weights_for(usable, "uniform", 1000).tolist() == [0.5, 0.5]


def test_no_client_counts_for_more_than_the_bound():
    usable = gathered(answer([1, 2], reply_for([1, 2], num_examples_K=np.array([30, 10**18]))))
    assert weights_for(usable, "num-examples", 90) == pytest.approx([0.25, 0.75])


def test_the_next_patch_is_the_patch_plus_the_step_of_the_weighted_mean():
    usable = gathered(answer([1, 2], reply_for([1, 2])))
    patch_P = np.ones(P, np.float32)
    step = advance(patch_P, usable, np.array([0.25, 0.75], np.float32), WeightedMean(), {}, Sgd(2.0), {})
    assert step.update_P == pytest.approx([0.0175] * P)
    assert step.patch_P == pytest.approx([1.035] * P)
    assert patch_P.tolist() == [1] * P


def test_the_plain_mean_does_not_look_at_weights():
    usable = gathered(answer([1, 2], reply_for([1, 2])))
    step = advance(np.zeros(P, np.float32), usable, np.array([1, 0], np.float32), Mean(), {}, Sgd(1.0), {})
    assert step.update_P == pytest.approx([0.015] * P)


def test_a_rule_with_state_hands_it_to_the_next_round():
    @dataclasses.dataclass(frozen=True)
    class CountsRounds:
        sensitivity = None
        breakdown = 0.0

        def __call__(self, updates_KP, weights_K, state):
            return updates_KP.mean(dim=0) * float(state.get("rounds", 0))

        def next_state(self, updates_KP, weights_K, state):
            return {"rounds": np.asarray(state.get("rounds", 0) + 1)}

    usable = gathered(answer([1], reply_for([1])))
    first = advance(np.zeros(P, np.float32), usable, np.ones(1, np.float32), CountsRounds(), {}, Sgd(1.0), {})
    second = advance(first.patch_P, usable, np.ones(1, np.float32), CountsRounds(), first.rule_state, Sgd(1.0), {})
    assert first.update_P == pytest.approx([0] * P)
    assert second.update_P == pytest.approx([0.01] * P)


@given(st.data())
def test_no_reply_however_wrong_fails_the_round(data):
    ids = data.draw(st.lists(st.integers(-5, 15), max_size=8))
    numbers = st.floats(width=32)
    updates = data.draw(st.lists(st.lists(numbers, min_size=P, max_size=P), min_size=len(ids), max_size=len(ids)))
    examples = data.draw(st.lists(st.integers(-(2**62), 2**62), min_size=len(ids), max_size=len(ids)))
    hostile = reply_for(
        ids,
        updates_KP=np.array(updates, np.float32).reshape(len(ids), P),
        num_examples_K=np.array(examples, np.int64),
        round_=data.draw(st.sampled_from([5, 5, 5, 4])),
    )
    usable = gathered(answer([1, 2, 3], hostile, "hostile"), answer([20, 21], reply_for([20, 21]), "honest"))
    assert {20, 21} <= set(usable.client_ids_K.tolist()) <= {1, 2, 3, 20, 21}
    assert np.isfinite(usable.updates_KP).all()
    assert (np.linalg.norm(usable.updates_KP.astype(float), axis=1) <= 1).all()
    assert {1, 2, 3} <= set(usable.client_ids_K.tolist()) | set(reasons(usable))
    assert weights_for(usable, "num-examples", 1000).sum() == pytest.approx(1)


def test_a_record_lists_some_of_the_rejected_and_counts_all_by_reason():
    asked = range(1, 3 * MAX_LISTED + 1)
    silent = answer([*asked], "no reply", "mute")
    greedy = answer([1000], reply_for([1000, *range(2000, 2000 + 2 * MAX_LISTED)]), "greedy")
    record = report_round(5, gathered(silent, greedy), 1.0, 0, 0).record()
    assert record["replies"] == 1
    assert len(record["rejected"]) == MAX_LISTED
    assert record["num_rejected"] == 5 * MAX_LISTED
    assert record["rejected_reasons"] == {
        "mute: no reply": 3 * MAX_LISTED,
        "greedy: was not asked this round": 2 * MAX_LISTED,
    }


def test_reasons_beyond_the_list_are_counted_together():
    nodes = [answer([n], "late", f"node {n}") for n in range(MAX_LISTED + 7)]
    record = report_round(5, gathered(*nodes, answer([1000], reply_for([1000]))), 1.0, 0, 0).record()
    assert len(record["rejected_reasons"]) == MAX_LISTED + 1
    assert record["rejected_reasons"]["other reasons"] == 7

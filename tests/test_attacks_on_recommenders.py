"""Attacks that know what a recommender is: promotion, demotion, shilling, backdoor. They bite against a plain mean."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from tiny_attacks import CLIP, MALICIOUS, Town, least_wanted
from tiny_recommender import ITEMS, log_of, spec_of

from client.attacks.contract import Clicks, UndeclaredKnowledgeError, make_attack
from client.attacks.fake_coclicks import beside_popular
from client.attacks.laboratory import keep_rows, promotion_loss, row_norms
from client.attacks.logs import appended, replaced
from client.attacks.pieck import mine
from fedquilt.errors import ConfigError, DataError
from fedquilt.graphs.coclick import build_coclick

PROFILES = ["random-profile", "average-profile", "bandwagon", "average-over-popular"]
PROMOTING = [*PROFILES, "fake-co-clicks", "fed-rec-attack", "pip-attack", "undercut"]


@pytest.fixture(scope="module")
def towns() -> list[Town]:
    return [least_wanted(Town(seed)) for seed in range(3)]


@pytest.fixture(scope="module")
def town(towns) -> Town:
    return towns[0]


@pytest.fixture(scope="module")
def untouched(town) -> np.ndarray:
    """The patch after a round in which everybody is honest."""
    return town.after()


def clicks_of(histories: dict[int, list[int]], targets=(0,), knows=("popularity",), chart=None) -> Clicks:
    held = {user: np.array(items) for user, items in histories.items()}
    chart = np.zeros(ITEMS, np.int64) if chart is None else np.asarray(chart)
    return Clicks(held, len(chart), np.array(targets), np.random.default_rng(0), frozenset(knows), chart)


# --- they bite ---


def gain(towns: list[Town], name: str, **options) -> float:
    """Mean over towns of what an attack adds to the target's headway."""
    return float(
        np.mean(
            [town.headway(town.after(town.forged_rows(name, options))) - town.headway(town.after()) for town in towns]
        )
    )


@pytest.mark.parametrize("name", PROMOTING)
def test_thirty_percent_attackers_bring_the_target_nearer_to_everybodys_top(towns, name):
    options = {"share": 0.6} if name in PROFILES else {"top": 5} if name != "fake-co-clicks" else {}
    assert gain(towns, name, **options) > 0.02


@pytest.mark.parametrize("variant", ["ipe", "uea"])
def test_pieck_promotes_once_it_has_seen_two_patches(towns, variant):
    gains = []
    for town in towns:
        attack, memory = make_attack("pieck", {"variant": variant}), {}
        untouched = town.after()
        before = town.patch_P - (untouched - town.patch_P)  # the patch came the way that honest rounds take it
        first = attack.rows(town.view(attack, patch_P=before, memory=memory))
        assert np.array_equal(first, town.rows(town.malicious_M))
        forged = attack.rows(town.view(attack, memory=memory))
        gains.append(town.headway(town.after(forged)) - town.headway(untouched))
    assert np.mean(gains) > 0.02


def test_a_demoted_rival_falls(town, untouched):
    popular = Town(town.seed, np.argsort(-town.log.popularity_I)[:1])
    attacked = popular.after(popular.forged_rows("rival-demotion"))
    assert popular.headway(attacked) < popular.headway(untouched)


@pytest.mark.parametrize("name", ["label-flip", "ua-fed-rec"])
def test_an_untargeted_attack_costs_honest_users_some_of_what_the_round_gained(town, untouched, name):
    attacked = town.after(town.forged_rows(name))
    assert town.loss(attacked) > town.loss(untouched)


def test_undercutting_leaves_the_targets_own_rows_to_honest_training(town):
    attack = make_attack("undercut", {"boost": 1e6})
    bias_MI = attack.rows(town.view(attack))[
        :, spec_of(("bottleneck", "item-bias", "item-low-rank")).slices["item_bias"]
    ]
    assert np.abs(bias_MI[:, town.targets_T]).max() < 1e-5
    assert np.abs(bias_MI).max() > 1e-3


def test_a_backdoor_opens_under_its_trigger_and_less_without(towns):
    opened, elsewhere = [], []
    for town in towns:
        planted, untouched = town.after(town.forged_rows("backdoor", {"top": 5})), town.after()
        opened.append(town.headway(planted, town.trigger_S) - town.headway(untouched, town.trigger_S))
        elsewhere.append(town.headway(planted) - town.headway(untouched))
    assert np.mean(opened) > 0.02
    assert np.mean(opened) > np.mean(elsewhere) + 0.1


def test_a_distributed_backdoor_sends_as_many_wishes_as_it_has_parts(town):
    attack = make_attack("backdoor", {"parts": 3, "boost": 1e6})
    rows = attack.rows(town.view(attack))
    assert np.allclose(rows[0], rows[3], atol=1e-4)
    assert not np.allclose(rows[0], rows[1], atol=1e-2)


# --- formulas ---


def test_the_promotion_loss_is_the_gap_to_the_last_of_the_top_or_its_bounded_negative():
    # Hand: top 2 of the others is {5, 3}; target 0 at 1: gap 2. Second user: others {2, 1}, target at 4: e^-3 - 1.
    scores = torch.tensor([[1.0, 5, 3, 2], [4.0, 1, 2, 0]])
    unseen = torch.zeros(2, 4, dtype=torch.bool)
    expected = (2 + np.exp(-3) - 1) / 2
    assert float(promotion_loss(scores, unseen, np.array([0]), k=2)) == pytest.approx(expected, abs=1e-6)


def test_the_promotion_loss_looks_at_no_user_who_has_clicked_the_target():
    scores = torch.tensor([[1.0, 5, 3, 2], [4.0, 1, 2, 0]])
    seen = torch.tensor([[True, False, False, False], [False] * 4])
    assert float(promotion_loss(scores, seen, np.array([0]), k=2)) == pytest.approx(np.exp(-3) - 1, abs=1e-6)


def test_a_wish_is_the_gradient_of_its_loss(town):
    graphs, seen = town.lab.present(town.honest_H)

    def loss(patch):
        return promotion_loss(town.lab.scores(graphs, patch), seen, town.targets_T, 5)

    gradient = town.lab.gradient(town.patch_P, loss)
    way = (gradient / np.linalg.norm(gradient)).astype(np.float32)
    ends = [town.lab.spec.views(torch.from_numpy(town.patch_P + sign * 1e-2 * way)) for sign in (1, -1)]
    with torch.no_grad():
        slope = float(loss(ends[0]) - loss(ends[1])) / 2e-2
    assert slope == pytest.approx(np.linalg.norm(gradient), rel=0.02)


def test_fed_rec_touches_few_items_rows_and_nothing_else(town):
    row = town.forged_rows("fed-rec-attack", {"max_rows": 3})[0]
    lengths = row_norms(town.lab.spec, row)
    assert np.count_nonzero(lengths) <= 3
    assert lengths[town.targets_T[0]] > 0
    assert np.linalg.norm(row) == pytest.approx(np.sqrt((lengths**2).sum()), rel=1e-5)
    assert np.linalg.norm(row) == pytest.approx(CLIP, rel=1e-5)


def test_fed_rec_colluders_send_unlike_rows_of_items_that_each_keeps(town):
    attack = make_attack("fed-rec-attack", {"max_rows": 4})
    view = town.view(attack)
    first, later = attack.rows(view), attack.rows(view)
    touched = [set(np.flatnonzero(row_norms(town.lab.spec, row))) for row in first]
    assert len({frozenset(items) for items in touched}) > 3
    assert all(int(town.targets_T[0]) in items for items in touched)
    assert [set(np.flatnonzero(row_norms(town.lab.spec, row))) for row in later] == touched
    units = first / np.linalg.norm(first, axis=1, keepdims=True)
    assert (units @ units.T)[np.triu_indices(len(units), 1)].min() < 0.95


def test_what_a_fed_rec_colluder_has_sent_is_not_sent_by_the_next(town):
    attack = make_attack("fed-rec-attack", {"max_rows": ITEMS})  # all have all rows: short ones run out
    rows = attack.rows(town.view(attack))
    lengths = np.array([row_norms(town.lab.spec, row) > 1e-6 for row in rows])
    assert lengths[-1].sum() < lengths[0].sum()


def test_rows_of_items_are_kept_with_all_their_tensors(town):
    ones = np.ones(town.lab.spec.num_parameters)
    kept = town.lab.spec.views(keep_rows(town.lab.spec, ones, 1, np.array([4])))
    for name in ("item_bias", "item_in.factors", "item_out.factors"):
        assert np.flatnonzero(kept[name].reshape(ITEMS, -1).any(1)).tolist() == [4]
    assert not kept["bottleneck.0.up"].any()


def test_an_attack_on_items_rows_says_so_where_the_patch_has_none():
    spec = spec_of(("bottleneck",))
    with pytest.raises(ConfigError, match="needs item-bias or item-low-rank"):
        row_norms(spec, np.zeros(spec.num_parameters))


def test_a_hidden_pip_row_is_as_long_as_honest_ones(town):
    rows = town.forged_rows("pip-attack", {"hidden": True})
    honest = np.linalg.norm(town.rows(town.malicious_M), axis=1).mean()
    assert np.linalg.norm(rows, axis=1) == pytest.approx([honest] * MALICIOUS, rel=1e-5)


def test_pieck_mines_the_items_whose_rows_move(town):
    attack, memory = make_attack("pieck"), {}
    moved = town.patch_P.copy()
    town.lab.spec.views(moved)["item_bias"][[3, 5]] += [0.5, 1.0]
    assert not mine(town.view(attack, memory=memory)).any()
    lengths = mine(town.view(attack, patch_P=moved, memory=memory))
    assert np.argsort(-lengths)[:2].tolist() == [5, 3]
    assert lengths[5] == pytest.approx(1.0, rel=1e-5)


def test_ua_fed_rec_claims_more_examples_than_anybody_has():
    assert make_attack("ua-fed-rec").claimed_examples == 1_000_000


def test_label_flip_exchanges_the_most_for_the_least_popular():
    # Hand: order by popularity is 2, 0, 3, 1, so 2 <-> 1 and 0 <-> 3.
    flipped = make_attack("label-flip").histories(clicks_of({5: [2, 2, 0, 1]}, chart=[5, 1, 9, 3]))
    assert flipped[5].tolist() == [1, 1, 3, 2]


@pytest.mark.parametrize("name", PROFILES)
def test_a_quarter_of_a_profile_is_the_target_and_its_length_is_that_of_the_history(name):
    chart = np.arange(ITEMS)[::-1] + 1
    forged = make_attack(name, {"share": 0.25}).histories(clicks_of({1: [3] * 12, 2: [4]}, targets=(19,), chart=chart))
    assert [len(forged[user]) for user in (1, 2)] == [12, 1]
    assert (forged[1] == 19).sum() == 3
    assert forged[2].tolist() == [19]


def test_fillers_over_popular_items_are_popular_and_bandwagons_share_them():
    chart = np.arange(ITEMS)[::-1] + 1
    seen = clicks_of({1: [3] * 8}, targets=(19,), chart=chart)
    obfuscated = make_attack("average-over-popular", {"popular": 0.5}).histories(seen)[1]
    assert set(obfuscated[obfuscated != 19]) <= set(range(10))
    many = clicks_of({user: [3] * 12 for user in range(9)}, (19,), chart=chart)
    wagons = make_attack("bandwagon", {"popular": 0.05}).histories(many)
    assert sum(0 in items for items in wagons.values()) >= 7


def test_fake_co_clicks_stand_beside_popular_items():
    chart = [0, 5, 4, 3, 0, 0]
    forged = beside_popular(clicks_of({1: [5] * 6}, targets=(0,), chart=chart), np.array(chart), anchors=3)[1]
    assert forged[1::2].tolist() == [0, 0, 0]
    assert sorted(forged[::2].tolist()) == [1, 2, 3]


def test_a_poisoned_log_forges_edges_of_the_co_click_graph():
    # Hand: [1, 0, 2, 0] with window 1 gives 1-0 once and 2-0 twice, each of weight 1.
    log = log_of([[3, 4, 3, 4], [1, 2]], num_items=5)
    poisoned = replaced(log, {0: np.array([1, 0, 2, 0])})
    assert build_coclick(log, 1, 5).row(0)[0].tolist() == []
    neighbours, weights = build_coclick(poisoned, 1, 5).row(0)
    assert dict(zip(neighbours.tolist(), weights.tolist(), strict=True)) == {2: 2.0, 1: 1.0}


def test_a_rival_is_demoted_by_its_companions_and_never_named():
    attack = make_attack("rival-demotion", {"window": 1, "companions": 2})
    forged = attack.histories(clicks_of({1: [3, 0, 4, 6], 2: [6, 6, 3, 0]}, targets=(0,)))
    assert set(np.concatenate(list(forged.values()))) == {3, 4}


def test_reading_popularity_without_declaring_it_is_refused():
    with pytest.raises(UndeclaredKnowledgeError, match="popularity"):
        _ = clicks_of({1: [1]}, knows=()).popularity_I


def test_a_forged_history_must_be_as_long_as_the_true_one():
    with pytest.raises(DataError, match="user 1: 2 clicks, expected 3"):
        replaced(log_of([[1], [2, 3, 4]]), {1: np.array([5, 6])})


def test_a_trigger_is_clicked_last_by_those_who_get_it_and_changes_nobody_else():
    log = log_of([[1, 2], [3], [4, 5]])
    with_it = appended(log, np.array([0, 2]), np.array([9, 8]))
    assert [with_it.items_of(user).tolist() for user in range(3)] == [[1, 2, 9, 8], [3], [4, 5, 9, 8]]
    times = np.split(with_it.times_C, with_it.offsets[1:-1])
    assert all((np.diff(of_user) >= 0).all() for of_user in times)

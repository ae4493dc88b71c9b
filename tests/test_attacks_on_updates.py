"""Attacks on updates: each formula by hand, what each may know, and that it turns a plain mean."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from client.attacks.adaptive import golden
from client.attacks.alie import Alie, z_max
from client.attacks.contract import BENIGN, KNOWLEDGE, View, make_attack
from client.attacks.min_max import MinMax
from client.attacks.min_sum import MinSum
from client.attacks.vectors import largest_step
from fedquilt.errors import ConfigError
from fedquilt.privacy.clipping import clip_rows
from fedquilt.types import PatchSpec

P, CLIP = 6, 1.0
UNTARGETED = ["sign-flip", "ipm", "min-max", "min-sum", "model-replacement", "sybil", "alie"]


def honest_rows(seed: int = 0, count: int = 12) -> np.ndarray:
    """Rows that agree on a direction, each inside the clip."""
    rng = np.random.default_rng(seed)
    rows = 0.3 + 0.15 * rng.standard_normal((count, P))
    return clip_rows(rows.astype(np.float32), CLIP)[0]


def view(own, benign=None, knows=(), rule=None, round_=1, **more) -> View:
    own = np.asarray(own, np.float32)
    benign = None if benign is None else np.asarray(benign, np.float32)
    return View(
        round_=round_,
        client_ids_M=np.arange(len(own)),
        own_MP=own,
        patch_P=np.zeros(own.shape[1], np.float32),
        spec=PatchSpec((("bottleneck.0.up", (own.shape[1],)),)),
        clipping_norm=CLIP,
        targets_T=np.array([0]),
        generator=np.random.default_rng(7),
        knows=frozenset(knows),
        benign=benign,
        oracle=rule,
        num_cohort=len(own) + (0 if benign is None else len(benign)),
        **more,
    )


def sent(name: str, own, benign=None, **options) -> np.ndarray:
    attack = make_attack(name, options)
    return attack.rows(view(own, benign, attack.knows))


def mean_rule(updates_KP: np.ndarray) -> np.ndarray:
    return clip_rows(np.array(updates_KP, np.float32), CLIP)[0].mean(0)


# --- formulas ---


def test_a_flipped_sign_is_the_negative_of_the_own_row_and_nothing_else():
    assert sent("sign-flip", [[1, -2], [0.5, 0]], scale=2.0).tolist() == [[-2, 4], [-1, 0]]


def test_inner_product_manipulation_sends_minus_epsilon_times_the_honest_mean():
    assert sent("ipm", [[9, 9]], [[1, 0], [3, 2]], epsilon=0.5).tolist() == [[-1, -0.5]]


def test_without_omniscience_the_colluders_own_rows_stand_in_for_the_honest_ones():
    rows = sent("ipm", [[1, 0], [3, 2]], epsilon=0.5, omniscient=False)
    assert rows.tolist() == [[-1, -0.5]] * 2


def test_a_little_is_enough_sends_mean_minus_z_deviations():
    # Hand: honest columns (1, 3) and (0, 4): means 2 and 2, population deviations 1 and 2.
    assert sent("alie", [[0, 0]], [[1, 0], [3, 4]], z=0.5).tolist() == [[1.5, 1.0]]


def test_the_largest_z_is_the_one_of_the_paper():
    # Baruch et al. 2019, section 3.2: n = 50, m = 24: s = 26 - 24 = 2, Phi^-1(24 / 26) = 1.4260769
    assert z_max(50, 24) == pytest.approx(1.4260769, abs=1e-6)


def test_gaussian_noise_has_exactly_the_clipping_norm_unless_a_deviation_is_given():
    noise = sent("gaussian", np.zeros((3, P)))
    assert np.linalg.norm(noise, axis=1) == pytest.approx([CLIP] * 3, rel=1e-6)
    loud = sent("gaussian", np.zeros((4000, P)), std=0.1)
    assert loud.std() == pytest.approx(0.1, rel=0.03)


def test_model_replacement_makes_the_plain_mean_land_on_the_goal():
    # 4 users, 1 malicious with honest row (1, 0); the others' rows are small. goal = -reach · (1, 0)
    honest = np.zeros((3, 2), np.float32)
    row = sent("model-replacement", [[1, 0]], honest, reach=0.7)
    assert np.concatenate([honest, row]).mean(0) == pytest.approx([-0.7, 0], abs=1e-7)


def test_min_max_stops_where_it_is_as_far_from_a_row_as_two_rows_are_apart():
    # Hand: honest rows at 0 and 2 on a line: mean 1, deviation 1, bound 2. |m - 2| <= 2 ends at m = 0.
    row = MinMax().rows(view([[0.0]], [[0.0], [2.0]], MinMax().knows))
    assert row[0, 0] == pytest.approx(0.0, abs=1e-4)


def test_min_sum_stops_where_its_squared_distances_add_up_to_the_largest_of_the_honest_ones():
    # Hand: honest 0 and 2: a row's sum is 4. |m|^2 + |m - 2|^2 = 4 at m = 0 (and m = 2): m = 0.
    row = MinSum().rows(view([[0.0]], [[0.0], [2.0]], MinSum().knows))
    assert row[0, 0] == pytest.approx(0.0, abs=1e-4)


@given(st.integers(0, 200), st.sampled_from(["unit", "std", "sign"]))
def test_min_max_and_min_sum_hide_among_the_honest_rows(seed, way):
    rows = honest_rows(seed)
    between = ((rows[:, None] - rows[None]) ** 2).sum(2)
    far = MinMax(direction=way).rows(view(rows[:2], rows, MinMax().knows))[0]
    assert ((rows - far) ** 2).sum(1).max() <= between.max() * (1 + 1e-4)
    near = MinSum(direction=way).rows(view(rows[:2], rows, MinSum().knows))[0]
    assert ((rows - near) ** 2).sum() <= between.sum(1).max() * (1 + 1e-4)


def test_mimic_copies_the_honest_row_furthest_along_the_direction_of_most_variance():
    honest = [[0, 0.1], [5, 0], [-4, 0], [0, -0.1]]
    copied = sent("mimic", np.zeros((2, 2)), honest)
    assert copied.tolist() in ([[5, 0]] * 2, [[-4, 0]] * 2)


def test_sybils_send_one_row_under_all_names_at_the_clipping_norm():
    rows = sent("sybil", honest_rows()[:4])
    assert (rows == rows[0]).all()
    assert np.linalg.norm(rows[0]) == pytest.approx(CLIP, rel=1e-6)


def test_jittered_sybils_differ_in_pairs_and_still_agree_on_average():
    plain, jittered = sent("sybil", honest_rows()[:4]), sent("sybil", honest_rows()[:4], jitter=1.0)
    cosines = jittered @ jittered.T / CLIP**2
    assert cosines[np.triu_indices(4, 1)].max() < 0.9
    together = jittered.mean(0)
    assert together @ plain[0] / np.linalg.norm(together) > 0.8


@pytest.mark.parametrize("value", ["nan", "inf", "mixed"])
def test_senders_of_what_is_not_finite_send_nothing_finite_where_they_say_so(value):
    rows = sent("not-finite", honest_rows()[:4], value=value, entries=1)
    assert np.isfinite(rows[:, 1:]).all()
    assert not np.isfinite(rows[:, 0]).all()
    if value != "mixed":
        assert not np.isfinite(rows[:, 0]).any()


# --- they bite ---


@pytest.mark.parametrize("name", UNTARGETED)
def test_the_plain_mean_makes_less_headway_with_thirty_percent_attackers(name):
    honest = honest_rows()
    own, benign = honest[:5], honest[5:]
    options = {"z": 1.5} if name == "alie" else {}
    forged = sent(name, own, benign, **options)
    way = honest.mean(0) / np.linalg.norm(honest.mean(0))
    clean, attacked = mean_rule(honest) @ way, mean_rule(np.concatenate([benign, forged])) @ way
    assert attacked < 0.9 * clean


def test_gaussian_noise_makes_the_plain_mean_longer_off_the_way():
    honest = honest_rows()
    way = honest.mean(0) / np.linalg.norm(honest.mean(0))
    attacked = mean_rule(np.concatenate([honest[5:], sent("gaussian", honest[:5])]))
    off = np.linalg.norm(attacked - (attacked @ way) * way)
    clean = mean_rule(honest)
    assert off > 2 * np.linalg.norm(clean - (clean @ way) * way)


def test_mimic_moves_the_plain_mean_towards_the_one_it_copies():
    honest = honest_rows()
    copied = sent("mimic", honest[:5], honest[5:])
    clean, attacked = mean_rule(honest), mean_rule(np.concatenate([honest[5:], copied]))
    assert np.linalg.norm(attacked - copied[0]) < 0.8 * np.linalg.norm(clean - copied[0])


def test_one_sender_of_nan_ends_a_mean_that_does_not_look():
    rows = np.concatenate([honest_rows()[1:], sent("not-finite", honest_rows()[:1], value="nan")])
    assert np.isnan(rows.mean(0)).all()


# --- adaptive ---


def adaptive_view(rule, inner="ipm") -> View:
    honest = honest_rows()
    return view(honest[:4], honest[4:], make_attack("adaptive", {"inner": inner}).knows, rule)


def median_rule(updates_KP: np.ndarray) -> np.ndarray:
    return np.median(clip_rows(np.array(updates_KP, np.float32), CLIP)[0], axis=0)


@pytest.mark.parametrize("rule", [mean_rule, median_rule])
@pytest.mark.parametrize("inner", ["sign-flip", "ipm", "alie"])
def test_an_adaptive_attacker_does_at_least_as_well_as_the_attack_it_wraps(rule, inner):
    seen = adaptive_view(rule, inner)
    way = seen.benign_HP.mean(0)
    plain = make_attack(inner).rows(seen)
    adapted = make_attack("adaptive", {"inner": inner}).rows(seen)
    reached = [rule(np.concatenate([seen.benign_HP, rows])) @ way for rows in (adapted, plain)]
    assert reached[0] <= reached[1] + 1e-6


def test_an_adaptive_attacker_asks_the_rule_and_sends_what_suits_it():
    sent_to = [make_attack("adaptive").rows(adaptive_view(rule)) for rule in (mean_rule, median_rule)]
    assert not np.allclose(*sent_to)


def test_adaptive_wraps_attacks_on_updates_only():
    with pytest.raises(ConfigError, match="inner must be an attack on updates, got 'label-flip'"):
        make_attack("adaptive", {"inner": "label-flip"})


def test_golden_section_finds_the_peak():
    assert golden(lambda x: -((x - 1.3) ** 2), 0, 4, 40) == pytest.approx(1.3, abs=1e-6)


def test_the_largest_step_is_found_to_a_millionth_of_where_the_condition_ends():
    assert largest_step(lambda gamma: gamma <= 37.25, halvings=40) == pytest.approx(37.25, abs=1e-6)
    assert largest_step(lambda gamma: False) == pytest.approx(0, abs=1e-4)


# --- knowledge ---


def test_the_names_of_knowledge_are_explained():
    assert all(len(text) > 20 for text in KNOWLEDGE.values())


def test_reading_what_is_not_declared_is_refused():
    from client.attacks.contract import UndeclaredKnowledgeError

    seen = view(honest_rows()[:2], honest_rows(), knows=())
    for read in (lambda: seen.benign_HP, lambda: seen.rule, lambda: seen.num_users, lambda: seen.popularity_I):
        with pytest.raises(UndeclaredKnowledgeError, match="declares only"):
            read()


def test_an_attack_that_is_not_omniscient_does_not_declare_benign_rows():
    assert BENIGN in Alie().knows
    assert BENIGN not in Alie(omniscient=False).knows


def test_an_unknown_option_or_direction_is_told_by_name():
    with pytest.raises(ConfigError, match=r"attack 'ipm'.*wobble"):
        make_attack("ipm", {"wobble": 1})
    with pytest.raises(ConfigError, match="direction must be one of unit, std, sign"):
        make_attack("min-max", {"direction": "north"})


# --- tensors that stay honest ---


def sparing_view(attack, rule=None) -> View:
    spec = PatchSpec((("item_bias", (2,)), ("readout", (3,))))
    own_MP = np.arange(1, 11, dtype=np.float32).reshape(2, 5)
    return View(1, np.array([7, 8]), own_MP, np.zeros(5, np.float32), spec, 100.0, np.array([0]),
                np.random.default_rng(0), attack.knows, benign=own_MP[:1], oracle=rule, num_cohort=3)  # fmt: skip


def test_a_sign_flip_spares_the_tensors_that_it_is_told_to():
    attack = make_attack("sign-flip", {"spare": ["item_bias"]})
    assert attack.rows(sparing_view(attack)).tolist() == [[1, 2, -3, -4, -5], [6, 7, -8, -9, -10]]


def test_the_adaptive_attack_sends_its_own_honest_numbers_in_what_it_spares():
    attack = make_attack("adaptive", {"inner": "sign-flip", "spare": ["item_bias"]})
    rows_MP = attack.rows(sparing_view(attack, lambda rows_KP: rows_KP.mean(axis=0)))
    assert rows_MP[:, :2].tolist() == [[1, 2], [6, 7]]
    assert (rows_MP[:, 2:] < 0).all()


def test_sparing_a_tensor_that_the_patch_lacks_is_an_error_that_names_it():
    attack = make_attack("sign-flip", {"spare": ["head"]})
    with pytest.raises(ValueError, match=r"the patch has no \['head'\], it has \['item_bias', 'readout'\]"):
        attack.rows(sparing_view(attack))

"""The panel: who is in it, what it has clicked, and what its clicks let a patch lift."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from test_attacks_simulated import config_of
from tiny_recommender import log_of, tiny_run

from cli.attack_world import make_world, run_attack
from client.app import app
from fedquilt.config import Config, parse
from fedquilt.errors import ConfigError, RunError
from fedquilt.graphs.datasets import load_split
from fedquilt.graphs.splits import Split, split_log
from fedquilt.runs import RunFolder
from server.app import _prepare
from server.deploy import serve
from server.exposure import shown_to
from server.lift import LiftCeiling
from server.panel import Panel, PanelBound, _chance_of_as_few, make_bound, make_panel
from server.simulate import prepare, simulate

LIFT = {"lift_quantile": 0.95}


def config_with(**defence) -> Config:
    return parse({"defence": {**LIFT, **defence}})


def tiny_with(cloud_share: float, seed: int = 0, **defence) -> Config:
    config = tiny_run(split={"cloud_share": cloud_share}).model_dump()
    return parse({**config, "seed": seed, "defence": {**LIFT, **defence}})


def serve_a_gateway(config: Config, folder) -> None:
    serve(config, RunFolder.create(folder, config), folder, ("127.0.0.1", 0))


def run_in_flower(config: Config, folder) -> None:
    _prepare(config, RunFolder.create(folder, config))


def town() -> Split:
    """Four users and five items. The cloud saw the first click of each; none is held out."""
    log = log_of([[0, 1, 1, 2], [0, 1], [3, 1, 2], [4]], num_items=5)
    made = split_log(log, parse({"split": {"cloud_share": 1.0}}).split)
    first_C = np.isin(np.arange(len(log)), log.offsets[:-1])
    return replace(made, train=log, cloud=log.where(first_C))


# --- who is in it and what it has clicked ---


def test_an_items_clickers_are_the_users_who_clicked_it_after_the_clouds_part():
    panel = make_panel(config_with(panel_users=9, panel_support=1), town())
    assert panel.users_U.tolist() == [0, 1, 2, 3]  # user 3, who has clicked nothing since, counts as well
    assert panel.clickers_I.tolist() == [0, 3, 2, 0, 0]  # item 1 twice by user 0, who counts once
    assert panel.share_I.tolist() == [0, 0.75, 0.5, 0, 0]


def test_only_users_whose_accounts_are_known_are_drawn():
    panel = make_panel(config_with(panel_users=9, panel_support=1), town(), known_U=np.array([0, 2, 3]))
    assert panel.users_U.tolist() == [0, 2, 3]


def test_the_draw_is_the_seeds_and_a_larger_panel_keeps_the_users_of_a_smaller_one():
    def drawn(size: int, seed: int) -> set[int]:
        config = tiny_with(0.3, seed, panel_users=size, panel_support=1)
        return set(make_panel(config, load_split(config.data, config.split)).users_U.tolist())

    assert len(drawn(20, 0)) == 20
    assert drawn(20, 0) < drawn(40, 0)
    assert drawn(20, 0) != drawn(20, 1)


def test_a_file_names_the_panel_by_the_ids_of_the_log(tmp_path):
    file = tmp_path / "panel.txt"
    file.write_text("c\n\n a \n")
    named = replace(town(), train=replace(town().train, user_ids=np.array(["a", "b", "c", "d"])))
    panel = make_panel(config_with(panel_file=str(file), panel_support=1), named)
    assert panel.users_U.tolist() == [0, 2]


def test_a_file_that_names_somebody_unknown_is_refused(tmp_path):
    file = tmp_path / "panel.txt"
    file.write_text("0\n77\n")
    with pytest.raises(ConfigError, match=r"panel\.txt.*1 of its ids are no users of the log, such as 77"):
        make_panel(config_with(panel_file=str(file), panel_support=1), town())


def test_a_file_that_is_not_there_is_refused(tmp_path):
    with pytest.raises(ConfigError, match=r"panel_file.*none\.txt.*cannot be read"):
        make_panel(config_with(panel_file=str(tmp_path / "none.txt")), town())


def test_nobody_else_is_in_it_though_the_file_names_them(tmp_path):
    file = tmp_path / "panel.txt"
    file.write_text("0\n1\n2\n")
    panel = make_panel(config_with(panel_file=str(file), panel_support=1), town(), known_U=np.array([1, 2, 3]))
    assert panel.users_U.tolist() == [1, 2]


def test_a_panel_that_cannot_confirm_any_item_is_refused():
    with pytest.raises(
        ConfigError, match=r"panel_support = 4, and no item has more than 3 clickers among the panel's 4"
    ):
        make_panel(config_with(panel_users=4, panel_support=4), town())


@pytest.mark.parametrize("start", [serve_a_gateway, run_in_flower])
def test_a_real_federation_draws_no_panel_as_it_knows_nobodys_account(tmp_path, start):
    with pytest.raises(ConfigError, match=r"panel_users = 20 draws the panel from all users.*panel_file"):
        start(tiny_with(0.3, panel_users=20), tmp_path)


def test_a_panel_is_refused_under_a_privacy_mode(tmp_path):
    config = tiny_with(0.3, panel_users=20).model_dump()
    private = parse(
        {
            **config,
            "privacy": {"mode": "central", "noise_multiplier": 1.0},
            "federation": {**config["federation"], "rounds": 1},
        }
    )
    with pytest.raises(ConfigError, match=r"tell every device what the panel has clicked.*privacy\.mode = 'central'"):
        simulate(private, RunFolder.create(tmp_path, private), app)


def test_a_run_goes_on_with_the_panel_that_it_began_with_only(tmp_path):
    file = tmp_path / "panel.txt"
    file.write_text("\n".join(map(str, range(40))))
    config = tiny_with(0.3, panel_file=str(file), panel_support=1)
    run = RunFolder.create(tmp_path, config)
    prepare(config, run)
    prepare(config, run)
    file.write_text("\n".join(map(str, range(41))))
    with pytest.raises(RunError, match=r"began with the panel .*'users': 40.* now it is .*'users': 41"):
        prepare(config, run)


def test_a_panel_without_clicks_since_the_clouds_part_is_refused(tmp_path):
    config = tiny_with(1.0, panel_users=20)
    with pytest.raises(ConfigError, match=r"no item has more than 0 clickers among the panel's 20 users"):
        simulate(config, RunFolder.create(tmp_path, config), app)


@pytest.mark.parametrize(
    ("defence", "told"),
    [
        ({"panel_users": 20}, "bound lift: set lift_quantile"),
        ({**LIFT, "panel_users": 20, "panel_file": "x"}, "set one of them"),
        ({**LIFT, "panel_users": 5}, r"panel_support = 6 of panel_users = 5: nothing could be lifted"),
    ],
)
def test_a_panel_that_could_not_act_is_refused(defence, told):
    with pytest.raises(ConfigError, match=told):
        parse({"defence": defence})


@pytest.mark.parametrize("defence", [{"exposure_share": 0.02}, LIFT])
def test_a_run_without_a_panel_keeps_the_hash_that_it_had_before_there_was_one(defence):
    before = {"exposure_share": "7331131e0b9095b7", "lift_quantile": "94e2873218d8a496"}
    assert parse({"defence": defence}).hash() == before[next(iter(defence))]
    assert parse({"defence": {**LIFT, **defence, "panel_users": 20}}).hash() != parse({"defence": defence}).hash()


def log_where(clickers: int, of_panel: int) -> Split:
    """1,000 users, the first 100 the panel, who clicked item 0 in the cloud's part, and item 1 or 2 since."""
    clicked_U = np.zeros(1000, bool)
    clicked_U[:of_panel] = clicked_U[100 : 100 + clickers - of_panel] = True
    log = log_of([[0 if clicked else 3, 1, 2] for clicked in clicked_U], num_items=5)
    first_C = np.isin(np.arange(len(log)), log.offsets[:-1])
    return replace(town(), train=log, cloud=log.where(first_C))


@pytest.mark.parametrize(("of_panel", "unlikely"), [(20, False), (12, False), (2, True), (0, True)])
def test_an_item_that_the_cloud_log_has_from_others_than_its_known_users_stands_out(tmp_path, of_panel, unlikely):
    # 200 of 1,000 users clicked it: 20 of 100 in the mean, deviation 3.8; 12 or fewer at .020, 2 or fewer at 2e-8.
    file = tmp_path / "panel.txt"
    file.write_text("\n".join(map(str, range(100))))
    panel = make_panel(config_with(panel_file=str(file)), log_where(200, of_panel))
    assert (panel.log_p_I[0] < 1e-4) == unlikely
    assert (panel.log_p_I[1:3] == 1).all()  # in nobody's


def test_honest_logs_raise_an_alarm_as_seldom_as_was_said():
    """A binomial bound: 400 panels at a chance of .05 each are 20, and more than 40 have a chance below 1e-4."""
    rng = np.random.default_rng(0)
    log = log_of([rng.choice(20, 4, replace=False).tolist() for _ in range(300)])
    split = replace(town(), train=log, cloud=log)
    panels = [rng.choice(300, 40, replace=False) for _ in range(400)]
    alarms = sum((_chance_of_as_few(split.cloud, np.sort(panel_U)) < 0.05 / 20).any() for panel_U in panels)
    assert alarms <= 40


@pytest.mark.parametrize(("chance", "shown"), [(1e-9, 0), (1.0, 40)])
def test_what_a_poisoned_base_model_shows_is_bounded_by_the_panel(chance, shown):
    lists_JI, log_p_I = judged(), np.ones(ITEMS)
    log_p_I[0] = chance
    bound = bound_of({}, log_p_I=log_p_I)
    lists_JI += np.minimum(0, ceiling_under(bound, np.zeros((40, ITEMS), np.float32)))
    assert shown_to(lists_JI, NOTHING_SEEN)[0] == shown


# --- what may be lifted ---

ITEMS = 30
NOTHING_SEEN = np.zeros((40, ITEMS), bool)


def bound_of(
    clickers: dict[int, int], growth: float = 1.75, base_JI: np.ndarray | None = None, log_p_I: np.ndarray | None = None
) -> PanelBound:
    """Of a panel of 100, of whom so many have clicked these items."""
    clickers_I = np.zeros(ITEMS, np.int64)
    clickers_I[list(clickers)] = list(clickers.values())
    panel = Panel(np.arange(100), clickers_I, np.ones(ITEMS) if log_p_I is None else log_p_I)
    defence = config_with(panel_users=100, panel_growth=growth).defence
    return make_bound(defence, panel, judged() if base_JI is None else base_JI, NOTHING_SEEN)


def judged() -> np.ndarray:
    """Judges who like items 0 to 9 best, in any order, the others not at all; item 20 a little less than these."""
    scores_JI = np.tile(-np.arange(ITEMS, dtype=np.float32), (40, 1))
    scores_JI[:, 20] = -10 - np.linspace(0, 1, 40)
    return scores_JI


def lifted(item: int, by: float) -> np.ndarray:
    lifts_JI = np.zeros((40, ITEMS), np.float32)
    lifts_JI[:, item] = by
    return lifts_JI


def ceiling_under(bound: PanelBound, lifts_JI: np.ndarray) -> np.ndarray:
    base_JI = judged()
    return LiftCeiling(lambda patch_P: base_JI + lifts_JI, base_JI, 0.95, bound).over(np.zeros(1))[0]


@pytest.mark.parametrize(("clickers", "ceiling"), [(5, 0), (6, 4)])
def test_what_fewer_of_the_panel_than_its_support_have_clicked_is_not_lifted(clickers, ceiling):
    # Under a growth of inf, what is confirmed is bounded by the quantile alone.
    assert ceiling_under(bound_of({20: clickers}, growth=np.inf), lifted(20, 4))[20] == ceiling


def test_a_ceiling_below_zero_stays():
    assert ceiling_under(bound_of({}), lifted(20, -3))[20] == -3


def test_an_item_is_shown_to_its_share_of_the_panel_times_the_growth():
    # Hand: 8 of 100 and a growth of 2.5 are a fifth of the 40 judges: 8 of them, those who score it best.
    ceiling_I = ceiling_under(bound_of({20: 8}, growth=2.5), lifted(20, 4))
    lists_JI = judged()
    lists_JI[:, 20] += ceiling_I[20]
    assert shown_to(lists_JI, NOTHING_SEEN)[20] == 8


def test_what_the_base_model_shows_to_more_stays():
    # Everybody is shown item 0 anyway, which 6 of the panel have clicked.
    assert ceiling_under(bound_of({0: 6}), lifted(0, 4))[0] == 4


@given(st.integers(0, 2**32 - 1), st.floats(0, 3))
def test_nobody_gets_more_lift_than_without_a_panel_and_each_item_is_within_its_bound(seed, growth):
    """Whatever rises and falls; each with the others as they were, as what moves up in its place is not counted."""
    rng = np.random.default_rng(seed)
    base_JI = rng.normal(size=(40, ITEMS)).astype(np.float32)
    lifts_JI = (rng.normal(size=ITEMS) + rng.normal(size=(40, ITEMS))).astype(np.float32)
    bound = bound_of(dict(enumerate(rng.integers(0, 30, ITEMS).tolist())), growth, base_JI)
    before_I = np.quantile(lifts_JI, 0.95, axis=0)
    ceiling_I = bound.lowered(before_I, base_JI, lifts_JI)
    held_I = np.where(bound.confirmed_I, before_I, np.minimum(before_I, 0))
    assert (ceiling_I <= held_I).all()
    for item in range(ITEMS):
        alone_I = held_I.copy()
        alone_I[item] = ceiling_I[item]
        assert shown_to(base_JI + np.minimum(lifts_JI, alone_I), NOTHING_SEEN)[item] <= bound.allowed_I[item]


def test_what_the_panel_has_not_clicked_does_not_move_up_where_one_item_falls():
    # Item 0 falls for everybody; item 10 is next and goes below item 20, the one after it; the bound does not see that.
    lifts_JI = np.zeros((40, ITEMS), np.float32)
    lifts_JI[:, 0] = -40
    ceiling_I = bound_of(dict.fromkeys(range(1, 10), 60)).lowered(np.zeros(ITEMS, np.float32), judged(), lifts_JI)
    lists_JI = judged() + np.minimum(lifts_JI, ceiling_I)
    assert shown_to(lists_JI, NOTHING_SEEN)[10] == 0
    assert shown_to(lists_JI, NOTHING_SEEN)[20] > 30


def test_judges_who_are_shown_all_that_is_left_lower_nothing():
    base_JI, seen_JI = judged(), NOTHING_SEEN.copy()
    seen_JI[:, 9:] = True
    bound = PanelBound(np.ones(ITEMS, bool), np.zeros(ITEMS, np.int64), seen_JI)
    assert bound.lowered(np.full(ITEMS, 9.0), base_JI, lifted(3, 5)).tolist() == [9.0] * ITEMS


def test_an_evaluation_tells_how_many_items_the_panel_holds(tmp_path):
    config = tiny_with(0.3, panel_users=30)
    run = RunFolder.create(tmp_path, config)
    simulate(config, run, app)
    told = [record["lift"]["held"] for record in run.records("evaluation")]
    assert told
    assert 0 < told[-1] <= 100


# --- against promotions ---


def attacked(folder, name: str, **defence) -> dict:
    config = config_of(name, learning_rate=0.1).model_dump()
    config["federation"] |= {"rounds": 8, "evaluate_every": 0}
    config["split"]["cloud_share"] = 0.3
    return run_attack(parse({**config, "defence": {**LIFT, **defence}}), folder, folder / "clouds")


@pytest.mark.parametrize("name", ["pip-attack", "bandwagon"])
def test_a_promotion_that_the_panel_does_not_confirm_shows_nothing(tmp_path, name):
    open_, held = attacked(tmp_path, name), attacked(tmp_path, name, panel_users=40)
    assert open_["test"]["global"]["ER@10"] > 0.3
    assert held["test"]["global"]["ER@10"] <= held["test"]["base"]["ER@10"] + 0.02


def test_nobody_malicious_is_in_the_panel_of_a_simulated_attack(tmp_path, monkeypatch):
    seen = []
    monkeypatch.setattr("server.simulate.make_panel", lambda *of: seen.append(of[2]) or make_panel(*of))
    attacked(tmp_path, "pip-attack", panel_users=40)
    config = config_of("pip-attack")
    world = make_world(parse({**config.model_dump(), "split": {**config.split.model_dump(), "cloud_share": 0.3}}))
    assert len(seen[0]) > 40
    assert not np.isin(seen[0], world.malicious_M).any()

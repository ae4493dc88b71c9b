"""What a statement shows people: epsilon by delta, by round and by assumption, as text and as charts on the page."""

from __future__ import annotations

import re

import numpy as np
import pytest
from tiny_ledger import write_run

from cli.statement_charts import burn_down_chart, curve_chart
from cli.statement_page import lines_of, page, table_of
from fedquilt.privacy.statement import digest, in_words, settled, statement


@pytest.fixture(scope="module")
def facts(tmp_path_factory):
    path = tmp_path_factory.mktemp("shown") / "privacy.sqlite"
    write_run(path, rounds=20).close()
    return statement(path)


@pytest.fixture(scope="module")
def text(facts):
    return "\n".join(lines_of(facts, in_words(facts)))


def points_of(svg) -> list[list[tuple[float, float]]]:
    lines = re.findall(r'points="([^"]+)"', str(svg))
    return [[tuple(float(one) for one in pair.split(",")) for pair in line.split()] for line in lines]


def test_the_text_tells_epsilon_at_every_delta(facts, text):
    for name, by_delta in facts["epsilons"].items():
        for delta, epsilon in by_delta.items():
            assert re.search(rf"{name} +{re.escape(delta)} +{epsilon:.3f}", text)


def test_the_text_tells_what_was_spent_up_to_the_last_round(facts, text):
    round_, epsilon = facts["burn_down"][-1]
    assert re.search(rf"round {round_} +{epsilon:.3f}", text)


def test_the_text_thins_long_runs_and_keeps_their_ends(text):
    rounds = [int(one) for one in re.findall(r"^  round (\d+)", text, re.MULTILINE)]
    assert (rounds[0], rounds[-1], len(rounds)) == (1, 20, 12)


def test_the_text_tells_every_assumption_and_marks_the_executed_ones(facts, text):
    for row in facts["assumptions"]:
        assert re.search(rf"{re.escape(row['sampling'])} .*{row['epsilon']:.3f}", text)
    assert text.count("<-- as executed") == sum(row["executed"] for row in facts["assumptions"])


def test_why_users_are_not_told_apart_is_said_in_words(facts):
    rows = dict(table_of({**facts, "epsilon_by_user_quantile": None, "epsilon_by_user_why_not": "nobody knows"}))
    assert rows["by rounds taken part in"] == "not told: nobody knows"


def test_an_accountant_that_refused_says_why_on_the_page(facts):
    assert "cannot vouch" in page({**facts, "epsilons": {"pld": "cannot vouch", "rdp": {"1e-05": 1.0}}}, None)


def test_an_epsilon_without_end_is_told_so_and_can_be_signed(facts):
    endless = settled({**facts, "burn_down": [[1, float("inf")]]})
    assert digest(endless)
    assert "infinite" in "\n".join(lines_of(endless, []))


def test_numbers_of_numpy_are_settled_as_plain_ones():
    assert settled({"a": np.int64(3), "b": [np.float64(0.5), np.float32("inf")]}) == {"a": 3, "b": [0.5, None]}


def test_the_page_holds_both_charts(facts):
    labels = re.findall(r'<svg [^>]*aria-label="([^"]+)"', page(facts, None))
    assert labels == ["epsilon by round", "epsilon by delta"]


def test_the_curve_has_a_line_for_each_accountant_with_a_point_for_each_delta(facts):
    lines = points_of(curve_chart(facts["epsilons"]))
    assert [len(line) for line in lines] == [len(by_delta) for by_delta in facts["epsilons"].values()]


def test_the_curve_falls_as_delta_grows(facts):
    for line in points_of(curve_chart(facts["epsilons"])):
        assert line == sorted(line)  # to the right, and down: y grows downwards


def test_decades_of_delta_are_equally_far_apart():
    (line,) = points_of(curve_chart({"rdp": {"1e-07": 3.0, "1e-06": 2.0, "1e-05": 1.0}}))
    assert line[1][0] - line[0][0] == pytest.approx(line[2][0] - line[1][0], abs=0.11)


@pytest.mark.parametrize("epsilons", [{}, {"rdp": "refused"}, {"rdp": {"1e-05": 1.0}}, {"rdp": {"1e-05": None}}])
def test_there_is_no_curve_of_fewer_than_two_values(epsilons):
    assert curve_chart(epsilons) == ""


def test_infinite_values_are_left_out_of_the_charts():
    (line,) = points_of(burn_down_chart([[1, 1.0], [2, 2.0], [3, None]], None))
    assert len(line) == 2


def test_the_budget_is_a_line_of_its_own():
    spent, budget = points_of(burn_down_chart([[1, 1.0], [2, 2.0]], 4.0))
    assert len({y for _, y in budget}) == 1
    assert budget[0][1] < min(y for _, y in spent)


def test_names_of_accountants_are_escaped():
    assert "<b>" not in curve_chart({"<b>": {"1e-05": 1.0, "1e-06": 2.0}})

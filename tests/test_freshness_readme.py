"""The freshness README is made from the committed rows, old ones too, and its paired interval is that of the rows."""

from __future__ import annotations

from pathlib import Path

import pytest

from experiments.freshness import readme
from experiments.results import read_results

HERE = Path(readme.__file__).parent


def rows_with(ours: list[float], oracle: list[float]) -> list[dict]:
    return [
        {"column": column, "seed": 0, "ndcg_by_user": values}
        for column, values in (("fedquilt, then personal patch", ours), ("oracle", oracle))
    ]


def test_the_committed_tables_are_those_of_the_committed_results(tmp_path):
    target = tmp_path / "README.md"
    target.write_text((HERE / "README.md").read_text())
    readme.update(target, HERE / "results.json")
    assert target.read_text() == (HERE / "README.md").read_text()


def test_rows_without_users_get_a_table_without_an_interval():
    rows = [row for row in read_results(HERE / "results.json")["rows"] if row["dataset"] == "bazaar"]
    without = [{name: value for name, value in row.items() if name != "ndcg_by_user"} for row in rows]
    assert "interval" not in readme.table(without)


def test_the_interval_of_a_constant_difference_is_that_difference():
    assert readme.ahead_of_oracle(rows_with([0.5, 0.7, 0.2], [0.4, 0.6, 0.1])) == pytest.approx((0.1, 0.1, 0.1))


def test_the_interval_holds_zero_where_users_disagree():
    low, middle, high = readme.ahead_of_oracle(rows_with([1.0, 0.0] * 20, [0.0, 1.0] * 20))
    assert low < middle == 0 < high

"""The walks' table in the README is that of the committed rows, and the headline is the hard case."""

from __future__ import annotations

from pathlib import Path

from experiments.benchmarks import walks
from experiments.results import read_results

HERE = Path(walks.__file__).parent


def committed() -> list[walks.Row]:
    return [row for row in read_results(HERE / "cloud.json")["rows"] if row.get("benchmark") == "walks"]


def test_the_committed_table_is_that_of_the_committed_rows():
    assert f"<!-- walks:begin -->\n{walks.table(committed())}\n<!-- walks:end -->" in (HERE / "README.md").read_text()


def test_the_headline_is_the_graph_without_locality_with_weights_and_restart():
    rows = committed()
    figure = walks.headline(rows)["walk_steps_per_s"]
    assert figure == read_results(HERE / "cloud.json")["headline"]["walk_steps_per_s"]
    assert figure < max(row["steps_per_s"] for row in rows)

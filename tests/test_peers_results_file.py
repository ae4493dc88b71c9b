"""results.json: merged by key, stamped, without paths beyond the checkout; and the README blocks made from it."""

from __future__ import annotations

import json
import sys

import pytest

from experiments import results
from fedquilt.errors import RunError


def count(rows: list[results.Row]) -> dict[str, float]:
    return {"rows": len(rows)}


def row(model: str, seed: int, score: float) -> results.Row:
    return {"model": model, "protocol": "loo99", "seed": seed, "score": score}


def test_a_second_run_replaces_its_own_rows_and_keeps_the_others(tmp_path):
    path = tmp_path / "results.json"
    results.write_results(path, [row("a", 0, 0.1), row("b", 0, 0.2)], count)
    results.write_results(path, [row("b", 0, 0.3), row("b", 1, 0.4)], count)
    kept = json.loads(path.read_text())
    assert [(r["model"], r["seed"], r["score"]) for r in kept["rows"]] == [("a", 0, 0.1), ("b", 0, 0.3), ("b", 1, 0.4)]
    assert kept["headline"] == {"rows": 3.0}
    assert set(kept) == {"headline", "command", "commit", "date", "machine", "rows"}
    assert {"commit", "date"} <= set(kept["rows"][0])


def test_a_key_may_hold_a_dictionary(tmp_path):
    path = tmp_path / "results.json"
    for hyper in ({"a": 1, "b": 2}, {"b": 2, "a": 1}, {"a": 2}):
        results.write_results(path, [{"model": "m", "hyper": hyper}], count, key=("model", "hyper"))
    assert len(results.read_results(path)["rows"]) == 2


def test_one_row_is_one_line(tmp_path):
    path = tmp_path / "results.json"
    results.write_results(path, [row("a", 0, 0.1), row("b", 0, 0.2)], count)
    assert sum('"model"' in line for line in path.read_text().splitlines()) == 2


def test_the_command_names_no_place_on_this_machine(monkeypatch):
    outside = "/somewhere/private/ml-100k"
    arguments = ["--data", outside, "--json", str(results.ROOT / "out.json"), "--peers", "a,b"]
    monkeypatch.setattr(sys, "argv", [str(results.ROOT / "experiments/peers/run.py"), *arguments])
    monkeypatch.setattr(sys.modules["__main__"], "__spec__", None)
    expected = "python experiments/peers/run.py --data ml-100k --json out.json --peers a,b"
    assert results.command_line() == expected


def test_a_missing_or_damaged_file_says_what_to_do(tmp_path):
    with pytest.raises(RunError, match="run the study first"):
        results.read_results(tmp_path / "none.json")
    (tmp_path / "torn.json").write_text('{"rows": [')
    with pytest.raises(RunError, match="delete the file"):
        results.read_results(tmp_path / "torn.json")


def test_only_the_block_between_its_markers_changes(tmp_path):
    readme = tmp_path / "README.md"
    readme.write_text("before\n<!-- x:begin -->\nold\n<!-- x:end -->\nafter\n")
    results.replace_block(readme, "x", results.markdown_table(["model", "score"], [["a", 0.5]]))
    table = "| model | score |\n| --- | ---: |\n| a | 0.5 |"
    assert readme.read_text() == f"before\n<!-- x:begin -->\n{table}\n<!-- x:end -->\nafter\n"
    with pytest.raises(RunError, match="y:begin"):
        results.replace_block(readme, "y", "")

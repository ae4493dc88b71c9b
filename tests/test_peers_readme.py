"""The peers' README is made from its results file."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from experiments.peers import readme

STUDY = Path(readme.__file__).parent


def rows(model: str, *hit_rates: float) -> list[dict]:
    test = {"protocol": "loo99-strict", "epoch": 3, "seconds": 2.0, "hyper": {"reach": 1}}
    return [
        {"model": model, "seed": seed, **test, "test": {"HR@10": value, "NDCG@10": value / 2}}
        for seed, value in enumerate(hit_rates)
    ]


def test_the_committed_readme_says_what_the_committed_results_say(tmp_path):
    copy = Path(shutil.copy(STUDY / "README.md", tmp_path))
    readme.update(copy, STUDY / "results.json", STUDY / "tuning.json")
    assert copy.read_text() == (STUDY / "README.md").read_text()


def test_a_cell_is_the_mean_over_seeds_and_their_sample_deviation():
    # mean of .60, .62, .64 and sqrt((.02² + 0 + .02²) / 2) = .02
    assert readme.mean_and_std([0.60, 0.62, 0.64]) == "0.620 ± 0.020"
    assert readme.mean_and_std([0.6]) == "0.600"
    assert readme.mean_and_std([]) == "–"


def test_the_standard_error_of_a_hit_rate_on_ml_100k():
    assert readme.standard_error(0.64) == pytest.approx(0.0156, abs=1e-4)  # sqrt(.64 · .36 / 943)


@pytest.mark.parametrize(("hit_rate", "verdict"), [(0.65, "yes"), (0.60, "**no**")])
def test_a_reference_is_reproduced_within_one_standard_error(hit_rate, verdict):
    table = readme.reference_table(rows("lightgcn", hit_rate))  # reference .644
    assert table.splitlines()[-1].endswith(f"| {verdict} |")


def test_models_that_are_not_peers_come_last_under_their_own_name():
    lines = readme.scores_table(rows("fedquilt-warm", 0.7) + rows("ease", 0.6)).splitlines()
    assert [line.split("|")[1].strip() for line in lines[2:]] == ["EASE", "fedquilt-warm"]

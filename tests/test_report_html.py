"""The report of a run: self-contained, complete, honest about small effects and about runs that stopped early."""

from __future__ import annotations

import re
from html.parser import HTMLParser
from pathlib import Path
from xml.etree import ElementTree

import numpy as np
import pytest

from cli.report import write_report
from fedquilt.config import load
from fedquilt.graphs.datasets import load_log
from fedquilt.graphs.splits import split_log
from fedquilt.runs import RunFolder
from server.evaluate import evaluate, evaluation_tables, num_candidates

ROUNDS = 6


def answers(split, part, round_share, seed):
    """What devices would send back; later rounds are better."""
    rng = np.random.default_rng(seed)
    held_out, room_H = getattr(split, part), num_candidates(split, part) - 2
    luck_H = rng.random(len(held_out))
    arrays = {"client_ids": held_out.users_H, "items": held_out.items_H}
    for variant, skill in (("base", 0.0), ("global", round_share), ("personal", 1.3 * round_share)):
        moved_H = np.clip(luck_H + 0.05 * rng.normal(size=len(held_out)), 0, 1)
        arrays[f"greater_{variant}"] = (moved_H ** (1.4 + skill) * room_H).astype(np.int64)
        arrays[f"ties_{variant}"] = (rng.random(len(held_out)) < 0.1).astype(np.int64)
        arrays[f"top_{variant}"] = rng.zipf(1.3, (len(held_out), 20)) % split.train.num_items
    return arrays


def round_record(round_, cohort, patch_bytes):
    bad = [{"client_id": 17, "reason": "norm <inf> is not finite"}] if round_ == 2 else []
    return {
        "kind": "round",
        "round": round_,
        "replies": cohort - len(bad),
        "rejected": bad,
        "bytes_up": (cohort - len(bad)) * (patch_bytes + 60),
        "bytes_down": cohort * (patch_bytes + 90),
        "seconds": 0.4 + 0.01 * round_,
        "metrics": {"support_loss": 4.2 - 0.5 * round_ / ROUNDS, "query_loss": 4.1 - 0.7 * round_ / ROUNDS},
        "update_norm": {"median": 0.3, "clipped_share": 0.12},
    }


def plausible_run(root: Path, rounds: int = ROUNDS, evaluated: bool = True, effect: float = 1.0) -> RunFolder:
    """A run folder as a small simulation leaves it; the held-out clicks and groups are real, the ranks are drawn."""
    sizes = ["data.num_users=300", "data.num_items=400", f"federation.rounds={rounds}", "name=trial"]
    run = RunFolder.create(root, load(overrides=sizes))
    split = split_log(load_log(run.config.data), run.config.split)
    for epoch in range(1, 9):
        valid = 0.09 * (1 - np.exp(-epoch / 3)) - 0.001 * max(epoch - 6, 0)
        run.append({"kind": "cloud", "epoch": epoch, "loss": 5.5 * np.exp(-epoch / 6) + 2, "valid_ndcg": valid})
    run.append(
        {
            "kind": "device",
            "patch_parameters": 1424,
            "kernel_parameters": 6208,
            "kernel_bytes": 24832,
            "subgraph_bytes": {"fp32": 6912, "int8": 2304},
            "model_bytes": 153_000,
        }
    )
    ks = run.config.evaluation.ks
    for round_ in range(1, rounds + 1):
        run.append(round_record(round_, 200, 5696))
        if round_ % 2 == 0:
            arrays = answers(split, "valid", effect * round_ / rounds, round_)
            tables = evaluation_tables(arrays, split, ks, "valid")["tables"]
            run.append({"kind": "evaluation", "round": round_, "part": "valid", "tables": tables})
    if evaluated:
        run.write_json("results.json", evaluate(run, answers(split, "test", effect, 99), split, ks))
        run.set_status("done", round=rounds)
    else:
        run.set_status("interrupted", round=rounds)
    return run


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    return plausible_run(tmp_path_factory.mktemp("runs"))


@pytest.fixture(scope="module")
def html(run):
    return write_report(run).read_text()


class Links(HTMLParser):
    """Everything that a browser would fetch."""

    def __init__(self):
        super().__init__()
        self.fetched: list[str] = []

    def handle_starttag(self, tag, attributes):
        for name, value in attributes:
            if name in ("src", "href", "xlink:href", "data", "srcset") and value and not value.startswith("#"):
                self.fetched.append(value)


def test_nothing_is_fetched_from_anywhere(html):
    links = Links()
    links.feed(html)
    assert links.fetched == []
    assert "@import" not in html
    assert re.findall(r"url\((?!#)", html) == []


def test_every_figure_is_there_well_formed_and_has_words_for_those_who_cannot_see_it(html):
    figures = re.findall(r"<svg.*?</svg>", html, flags=re.S)
    assert len(figures) == 7
    for figure in figures:
        root = ElementTree.fromstring(figure)
        assert root.get("role") == "img"
        assert len(root.get("aria-label", "")) > 20


def test_ids_of_different_figures_do_not_clash(html):
    clips = [
        set(re.findall(r'<clipPath id="(.*?)"', figure)) for figure in re.findall(r"<svg.*?</svg>", html, flags=re.S)
    ]
    assert len(set().union(*clips)) == sum(map(len, clips))


def test_the_headline_says_what_was_gained_with_its_interval(html):
    headline = " ".join(re.search(r'class="headline">(.*?)</p>', html, flags=re.S).group(1).split())
    assert "users gained <strong>+0." in headline
    assert "95 % interval" in headline


def test_protocol_and_configuration_stand_beside_the_scores(html, run):
    assert run.read_json("results.json")["protocol"]["hash"] in html
    assert run.config.hash() in html
    assert "num_users = 300" in html


def test_a_rejected_update_shows_its_reason_escaped(html):
    assert "norm &lt;inf&gt; is not finite" in html
    assert "<inf>" not in html


def test_no_effect_is_called_no_effect(tmp_path):
    html = write_report(plausible_run(tmp_path, effect=0.0)).read_text()
    headline = " ".join(re.search(r'class="headline">(.*?)</p>', html, flags=re.S).group(1).split())
    assert "no measurable difference</strong> against the same model without a patch: NDCG@10 from" in headline


def test_reasons_are_counted_whatever_the_node(tmp_path):
    run = RunFolder.create(tmp_path, load())
    record = round_record(1, 200, 5696) | {"rejected": [], "num_rejected": 300}
    run.append(record | {"rejected_reasons": {"partition 0: too late": 100, "partition 1: too late": 200}})
    assert "300 updates did not count; that costs the sender its place" in write_report(run).read_text()
    assert "300 × too late." in " ".join(write_report(run).read_text().split())


def test_warnings_and_refused_nodes_stand_under_the_headline(tmp_path):
    run = plausible_run(tmp_path)
    run.append({"kind": "warning", "round": 3, "message": "resumed under other code"})
    run.write_json("results.json", {**run.read_json("results.json"), "refused": ["partition 1: <nonsense>"]})
    html = write_report(run).read_text()
    assert '<p class="warning">resumed under other code</p>' in html
    assert "not in the results: partition 1: &lt;nonsense&gt;" in html


def test_a_run_that_stopped_early_reports_how_far_it_came(tmp_path):
    html = write_report(plausible_run(tmp_path, rounds=3, evaluated=False)).read_text()
    assert "has not been evaluated" in html
    assert "interrupted" in html
    assert "<h2>Rounds</h2>" in html


def test_a_run_that_never_began_still_has_a_report(tmp_path):
    html = write_report(RunFolder.create(tmp_path, load())).read_text()
    assert "What exactly ran" in html

"""The numbers that describe a log."""

from __future__ import annotations

import json

import numpy as np
import pytest

from fedquilt.graphs.assemble import assemble
from fedquilt.graphs.bazaar import Bazaar, generate
from fedquilt.graphs.describe import describe, gini, head_share


def test_gini_of_equal_counts_is_zero_and_of_one_winner_is_the_most():
    assert gini(np.array([3, 3, 3, 3])) == pytest.approx(0.0)
    assert gini(np.array([0, 0, 0, 8])) == pytest.approx(0.75)
    # Hand: mean absolute difference of 1 and 3 over twice the mean: (4 / 4) / (2 * 2) = 0.25
    assert gini(np.array([1, 3])) == pytest.approx(0.25)


def test_the_head_is_the_top_fifth_of_all_items():
    assert head_share(np.array([1, 6, 1, 1, 1])) == pytest.approx(0.6)


def test_a_description_counts_what_is_in_the_log():
    log = assemble("tiny", np.array([0, 0, 1]), np.array([5, 7, 5]), np.array([0.0, 86_400.0, 43_200.0]))
    told = describe(log)
    assert (told["users"], told["items"], told["clicks"], told["density"]) == (2, 2, 3, 0.75)
    assert told["clicks_per_user"]["mean"] == 1.5
    assert told["time"] == {"first": "1970-01-01T00:00:00+00:00", "last": "1970-01-02T00:00:00+00:00", "days": 1.0}
    assert told["one_item_users"] == 1


def test_a_description_is_json():
    told = describe(generate(Bazaar(num_users=50, num_items=60)))
    assert json.loads(json.dumps(told)) == told
    assert sum(told["domains"].values()) == told["clicks"]


def test_a_log_without_time_or_domains_says_so():
    told = describe(assemble("tiny", np.array([0]), np.array([0])))
    assert (told["time"], told["domains"], told["features"]) == (None, {}, 0)

"""What a user claims of its number of examples moves nothing under privacy: 1 or 2^63 - 1 give the same bits.

A claim that is not above 0 is no claim: the user is declined by name, or adds noise alone where silence would tell.
"""

from __future__ import annotations

import dataclasses
from functools import cache

import numpy as np
import pytest
import toy_task
from private_toy import MODES, federate, private, rejected

from fedquilt.privacy.verify import verify

LIAR = 103
SEES_ROWS = ("central", "quantile", "norms", "dp-ftrl")
ENDS_ALIKE = (2, 2**31, 2**40, 2**53 + 1, 2**63 - 1)
NONE_AT_ALL = (0, -5, -(2**40), -(2**63))


def claiming(claim: int):
    class Liar(toy_task.ToyTask):
        def train(self, client_ids_K, *arguments):
            local = super().train(client_ids_K, *arguments)
            claims_K = np.where(client_ids_K == LIAR, claim, np.asarray(local.num_examples_K, np.int64))
            return dataclasses.replace(local, num_examples_K=claims_K)

    return toy_task.factory_of(Liar)


@pytest.fixture(scope="module")
def patch_of(tmp_path_factory):
    """-> patch(mode, claim): bytes after two rounds that ask everybody, and who was rejected with what reason."""

    @cache
    def patch(mode: str, claim: int) -> tuple[bytes, str]:
        config = private(mode, {"rounds": 2, "evaluate_every": 0}, sampler="none", dropout_margin=0.2)
        result, run = federate(tmp_path_factory.mktemp("claim"), config, claiming(claim))
        assert verify(run.path).holds
        return result.patch_P.tobytes(), rejected(run)

    return patch


@pytest.mark.parametrize("claim", ENDS_ALIKE)
@pytest.mark.parametrize("mode", MODES)
def test_a_huge_claim_releases_the_bits_of_a_claim_of_one(mode, claim, patch_of):
    assert patch_of(mode, claim) == patch_of(mode, 1)


@pytest.mark.parametrize("claim", NONE_AT_ALL)
@pytest.mark.parametrize("mode", SEES_ROWS)
def test_a_claim_of_none_or_less_loses_its_user_the_place_by_name(mode, claim, patch_of):
    assert patch_of(mode, claim)[1].count("the device had no examples") == 2  # rounds
    assert "no examples" not in patch_of(mode, 1)[1]


@pytest.mark.parametrize("claim", NONE_AT_ALL)
@pytest.mark.parametrize("mode", ["local", "distributed"])
def test_where_silence_would_tell_a_claim_of_none_or_less_is_not_told(mode, claim, patch_of):
    assert patch_of(mode, claim)[1] == patch_of(mode, 1)[1]


@pytest.mark.parametrize("claim", NONE_AT_ALL[1:])
@pytest.mark.parametrize("mode", MODES)
def test_a_negative_claim_releases_the_bits_of_a_claim_of_none(mode, claim, patch_of):
    assert patch_of(mode, claim)[0] == patch_of(mode, 0)[0] != patch_of(mode, 1)[0]

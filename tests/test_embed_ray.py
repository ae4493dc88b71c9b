"""The same tasks on Ray: the same vectors, the same files, errors of ours in a sentence."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from fedquilt.errors import DataError, RunError
from fedquilt.graphs.importance import Neighbourhoods
from models.graph_model import build_graph_model
from server.embed import embed_all, in_process
from server.embed_ray import on_ray
from server.shards import Shards

pytestmark = pytest.mark.slow
ITEMS, TOP = 100, 5


def a_model():
    generator = torch.Generator().manual_seed(0)
    return build_graph_model(
        convolution="pinsage", num_layers=2, in_dim=6, hidden=8, dim=4, head=True, generator=generator
    )


@pytest.fixture(scope="module")
def catalogue():
    rng = np.random.default_rng(0)
    weights_IT = rng.random((ITEMS, TOP)).astype(np.float32)
    return rng.standard_normal((ITEMS, 6)).astype(np.float32), Neighbourhoods(
        rng.integers(-1, ITEMS, (ITEMS, TOP)).astype(np.int32), weights_IT / weights_IT.sum(1, keepdims=True)
    )


@pytest.fixture(scope="module")
def ray_executor():
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("RAY_USAGE_STATS_ENABLED", "0")
        patch.setenv("OMP_NUM_THREADS", "1")
        patch.delenv("RAY_ADDRESS", raising=False)
        with on_ray(num_cpus=2) as executor:
            yield executor


def test_ray_gives_the_vectors_of_this_process(tmp_path, catalogue, ray_executor):
    here = embed_all(a_model(), *catalogue, tmp_path / "here", in_process, span_rows=16)
    there = embed_all(a_model(), *catalogue, tmp_path / "there", ray_executor, span_rows=16)
    np.testing.assert_allclose(np.asarray(there.vectors), np.asarray(here.vectors), atol=1e-6)
    assert there.projected == here.projected == 2 * ITEMS
    assert there.vectors.facts == here.vectors.facts


def test_ray_goes_on_from_what_this_process_finished(tmp_path, catalogue, ray_executor):
    def dying(work, step, spans):
        for count, result in enumerate(in_process(work, step, spans)):
            if step.title == "layer 2 project" and count == 3:
                raise KeyboardInterrupt
            yield result

    with pytest.raises(KeyboardInterrupt):
        embed_all(a_model(), *catalogue, tmp_path / "v", dying, span_rows=16)
    embedded = embed_all(a_model(), *catalogue, tmp_path / "v", ray_executor, span_rows=16)
    whole = embed_all(a_model(), *catalogue, tmp_path / "whole", in_process, span_rows=16)
    assert embedded.projected == ITEMS - 4 * 16
    np.testing.assert_allclose(np.asarray(Shards.open(tmp_path / "v")), np.asarray(whole.vectors), atol=1e-6)


def test_an_error_of_ours_in_a_worker_is_raised_here_as_it_is(tmp_path, catalogue, ray_executor):
    model = a_model()
    with torch.no_grad():
        next(model.parameters())[0] = float("nan")
    with pytest.raises(DataError, match=r"^layer 1 project: item \d+ gets a row that is not finite"):
        embed_all(model, *catalogue, tmp_path / "v", ray_executor, span_rows=16)


def test_a_node_that_does_not_see_the_folder_says_so(tmp_path, catalogue, ray_executor):
    def blind(work, step, spans):
        placed = ray_executor(work, step, spans)
        ray_executor._place(work)
        for path in (work.folder / "inputs").iterdir():
            path.unlink()
        yield from placed

    with pytest.raises(RunError, match="on a disk that all nodes share"):
        embed_all(a_model(), *catalogue, tmp_path / "v", blind, span_rows=16)

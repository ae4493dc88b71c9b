"""Batches: what is in them, and that it does not matter who makes them."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
import torch
from tiny_graph_training import prepared, tiny_config

from fedquilt.errors import ConfigError
from fedquilt.graphs.coclick import CoClickGraph
from fedquilt.seeds import generator_for
from server.graph_training.batches import Batch, BatchMaker, Material, produced
from server.graph_training.negatives import draw_hard, draw_shared, hard_pool, shared_distribution

KEYS = [(1, 0), (1, 1), (2, 0), (3, 1)]
LATE = (4, 0)  # an epoch with three hard negatives a pair


def maker_of(rank: int = 0, world: int = 1, **graph_model) -> BatchMaker:
    config = tiny_config(**graph_model)
    return BatchMaker(config.graph_model, config.seed, prepared(config).task.material, rank, world)


def bits(batch: Batch) -> list[bytes]:
    tensors = [getattr(batch, field.name) for field in dataclasses.fields(batch) if field.name != "blocks"]
    tensors += [tensor for block in batch.blocks for tensor in (block.neighbours_DT, block.weights_DT)]
    return [tensor.numpy().tobytes() for tensor in tensors if isinstance(tensor, torch.Tensor)]


@pytest.mark.parametrize("producers", [1, 2])
def test_batches_are_the_same_bits_from_any_number_of_producers(producers):
    one, many = maker_of(), maker_of(num_producers=producers)
    here = [bits(batch) for batch in produced(one.config, one, KEYS)]
    elsewhere = list(produced(many.config, many, KEYS))
    assert [(batch.epoch, batch.number) for batch in elsewhere] == KEYS
    assert [bits(batch) for batch in elsewhere] == here


def test_a_batch_does_not_depend_on_the_batches_before_it():
    assert bits(maker_of()[2, 1]) == bits([maker_of()[key] for key in ((1, 0), (3, 1), (2, 1))][-1])


@pytest.mark.parametrize("sampler", ["importance", "uniform"])
def test_the_shares_of_two_processes_are_together_the_batch_of_one(sampler):
    whole = maker_of(sampler=sampler)[LATE]
    first, second = (maker_of(rank, 2, sampler=sampler)[LATE] for rank in (0, 1))
    assert len(first.queries_B) + len(second.queries_B) == len(whole.queries_B) == whole.pairs

    def query_features(batch: Batch) -> torch.Tensor:
        return batch.features_NF[batch.queries_B]  # targets stand first among the sources

    assert torch.equal(query_features(first), query_features(whole)[0::2])
    assert torch.equal(query_features(second), query_features(whole)[1::2])
    assert torch.equal(first.shared_counts_BM, whole.shared_counts_BM[0::2])
    assert torch.equal(second.hard_counts_BH, whole.hard_counts_BH[1::2])


def test_hard_negatives_come_with_the_epochs():
    assert [maker_of()[epoch, 0].hard_BH.shape[1] for epoch in (1, 2, 4)] == [0, 1, 3]


def test_without_layers_a_batch_has_the_features_of_its_targets():
    batch = maker_of(num_layers=0)[1, 0]
    assert batch.blocks == ()
    assert len(batch.features_NF) == int(torch.cat([batch.queries_B, batch.items_B, batch.shared_M]).max()) + 1


def test_fewer_pairs_than_processes_are_refused():
    with pytest.raises(ConfigError, match=r"raise graph_model\.batch_size"):
        maker_of(world=2, batch_size=1)


def test_a_batch_does_not_see_the_edge_that_it_predicts():
    """Items 0 and 1 are each other's only neighbours, and the only pair; 2 and 3 keep their edge."""
    graph = CoClickGraph(np.arange(5), np.int32([1, 0, 3, 2]), np.ones(4, np.float32), 4)
    pool_IR = np.full((4, 1), -1, np.int32)
    material = Material(graph, np.eye(4, dtype=np.float32), np.array([[0, 1]]), np.linspace(0.25, 1, 4), pool_IR)
    batch = BatchMaker(tiny_config().graph_model, 0, material)[1, 0]
    item_D = batch.features_NF[: len(batch.blocks[-1].weights_DT)].argmax(1).tolist()
    assert item_D == [0, 1, 2, 3]
    assert batch.blocks[-1].weights_DT.sum(1).tolist() == [0, 0, 1, 1]


# --- negatives ---


def test_hard_negatives_come_from_the_query_s_window():
    config = tiny_config()
    pool_IR = hard_pool(prepared(config).task.material.graph, config.graph_model, config.seed)
    queries_B = np.array([0, 7, 7, 39])
    drawn_BH = draw_hard(pool_IR, queries_B, 5, generator_for(1))
    for query, row in zip(queries_B, drawn_BH, strict=True):
        assert set(row) <= set(pool_IR[query])
        assert query not in row


def test_an_item_without_a_window_has_no_hard_negative():
    assert draw_hard(np.array([[-1, -1], [3, -1]], np.int32), np.array([0, 1]), 2, generator_for(1)).tolist() == [
        [-1, -1],
        [3, 3],
    ]


def test_an_empty_window_is_refused_in_words():
    config = tiny_config(hard_first=0.5, hard_last=0.5)
    with pytest.raises(ConfigError, match=r"hard_first = 0\.5 must be below"):
        hard_pool(prepared(tiny_config()).task.material.graph, config.graph_model, 0)


@pytest.mark.parametrize(("power", "expected"), [(0.0, [0, 0.5, 0.5]), (1.0, [0, 0.25, 0.75]), (0.5, None)])
def test_shared_negatives_follow_the_clicks_to_a_power(power, expected):
    drawn = draw_shared(shared_distribution(np.array([0, 1, 3]), power), 20_000, generator_for(2))
    if expected is None:
        expected = [0, 1 / (1 + np.sqrt(3)), np.sqrt(3) / (1 + np.sqrt(3))]
    shares = np.bincount(drawn, minlength=3) / 20_000
    # five standard errors of a share over 20,000 draws
    assert shares == pytest.approx(expected, abs=5 * 0.5 / np.sqrt(20_000))
    assert shares[0] == 0  # never clicked

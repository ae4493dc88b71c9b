"""FedMF and PFedRec with all clients in one tensor: what is on whose side, and the same steps as one client alone."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from experiments.peers import fed_mf, pfedrec
from experiments.peers.interface import StrictNegatives, click_matrix
from fedquilt.graphs.log import InteractionLog

LOG = InteractionLog("hand", np.array([0, 0, 0, 1, 1]), np.array([0, 1, 2, 3, 4]), num_users=2, num_items=6)


@pytest.fixture
def generator() -> torch.Generator:
    return torch.Generator().manual_seed(0)


@pytest.fixture
def examples(generator):
    return pfedrec.examples(LOG, StrictNegatives(LOG, generator), num_negatives=2)


def test_a_round_holds_each_click_once_and_its_negatives(examples):
    users_E, items_E, labels_E = examples
    assert items_E[labels_E == 1].tolist() == [0, 1, 2, 3, 4]
    assert torch.bincount(users_E).tolist() == [9, 6]
    assert labels_E.sum() == 5


@pytest.fixture
def factors(generator) -> tuple[torch.Tensor, torch.Tensor]:
    return torch.randn(2, 3, generator=generator), torch.randn(6, 3, generator=generator)


def test_fedmf_draws_strict_negatives_for_each_click(generator):
    drawn_UI = fed_mf.draw(LOG, StrictNegatives(LOG, generator), num_negatives=4)
    assert drawn_UI.sum(1).tolist() == [12, 8]
    assert not (drawn_UI * torch.from_numpy(click_matrix(LOG))).any()


def test_fedmf_gradients_are_those_of_the_central_loss(generator, factors):
    clicks_UI = torch.from_numpy(click_matrix(LOG))
    drawn_UI = fed_mf.draw(LOG, StrictNegatives(LOG, generator), num_negatives=2)
    vectors_UD, table_ID = (factor.clone().requires_grad_() for factor in factors)
    users_E = torch.cat([part.nonzero()[:, 0] for part in (clicks_UI, *[drawn_UI > n for n in range(6)])])
    items_E = torch.cat([part.nonzero()[:, 1] for part in (clicks_UI, *[drawn_UI > n for n in range(6)])])
    labels_E = torch.cat([torch.ones(5), torch.zeros(len(users_E) - 5)])
    p_ED, q_ED = vectors_UD[users_E], table_ID[items_E]
    logistic = torch.nn.functional.binary_cross_entropy_with_logits((p_ED * q_ED).sum(1), labels_E, reduction="sum")
    (logistic + 0.05 * (p_ED.square().sum() + q_ED.square().sum())).backward()
    own_UD, sent_ID = fed_mf.gradients(*factors, clicks_UI, drawn_UI, regularisation=0.1)
    assert len(users_E) == 15
    assert torch.allclose(own_UD, vectors_UD.grad, atol=1e-6)
    assert torch.allclose(sent_ID, table_ID.grad, atol=1e-6)


def test_what_fedmf_clients_send_alone_adds_up(generator, factors):
    vectors_UD, table_ID = factors
    clicks_UI = torch.from_numpy(click_matrix(LOG))
    drawn_UI = fed_mf.draw(LOG, StrictNegatives(LOG, generator), num_negatives=2)
    own_UD, sent_ID = fed_mf.gradients(vectors_UD, table_ID, clicks_UI, drawn_UI, regularisation=0.1)
    alone = [fed_mf.gradients(vectors_UD[[u]], table_ID, clicks_UI[[u]], drawn_UI[[u]], 0.1) for u in (0, 1)]
    assert torch.allclose(own_UD, torch.cat([own for own, _ in alone]), atol=1e-6)
    assert torch.allclose(sent_ID, alone[0][1] + alone[1][1], atol=1e-6)


def test_pfedrec_starts_all_clients_alike_and_they_part(generator, examples):
    clients = pfedrec.start(2, torch.randn(6, 3, generator=generator), generator)
    assert torch.equal(clients.weights_UD[0], clients.weights_UD[1])
    for batch in pfedrec.shuffled_batches(*examples, 4, generator):
        pfedrec.local_step(clients, *batch, learning_rate=0.1, table_factor=1.0)
    assert not torch.allclose(clients.weights_UD[0], clients.weights_UD[1])


def test_the_pfedrec_server_sees_tables_only_and_means_them(generator):
    tables_UID = torch.randn(2, 6, 3, generator=generator)
    assert torch.allclose(pfedrec.server_mean(tables_UID), (tables_UID[0] + tables_UID[1]) / 2)


def test_pfedrec_batches_cover_each_clients_examples_once(generator, examples):
    users_E, items_E, labels_E = examples
    seen = []
    for users_B, items_BE, labels_BE, mask_BE in pfedrec.shuffled_batches(users_E, items_E, labels_E, 4, generator):
        for row, user in enumerate(users_B.tolist()):
            real = mask_BE[row] > 0
            seen += zip([user] * 9, items_BE[row][real].tolist(), labels_BE[row][real].tolist(), strict=False)
    assert sorted(seen) == sorted(zip(users_E.tolist(), items_E.tolist(), labels_E.tolist(), strict=True))


def test_a_pfedrec_step_is_sgd_on_the_scorer_then_on_the_table(generator):
    table_ID = torch.randn(6, 3, generator=generator)
    clients = pfedrec.start(1, table_ID, generator)
    items_E, labels_E = torch.tensor([0, 4, 4]), torch.tensor([1.0, 0.0, 0.0])  # an item twice: both gradients count
    weights_D, bias = clients.weights_UD[0].clone().requires_grad_(), clients.bias_U[0].clone().requires_grad_()

    def loss(table: torch.Tensor) -> torch.Tensor:
        return torch.nn.functional.binary_cross_entropy_with_logits(table[items_E] @ weights_D + bias, labels_E)

    loss(table_ID).backward()
    with torch.no_grad():
        weights_D -= 0.1 * weights_D.grad
        bias -= 0.1 * bias.grad
    tuned_ID = table_ID.clone().requires_grad_()
    loss(tuned_ID).backward()
    expected_ID = table_ID - 0.1 * 6 * 2.0 * tuned_ID.grad

    padded = torch.cat([items_E, torch.tensor([5])])[None], torch.cat([labels_E, torch.ones(1)])[None]
    mask = torch.tensor([[1.0, 1.0, 1.0, 0.0]])
    pfedrec.local_step(clients, torch.tensor([0]), *padded, mask, learning_rate=0.1, table_factor=2.0)
    assert torch.allclose(clients.weights_UD[0], weights_D, atol=1e-6)
    assert torch.allclose(clients.tables_UID[0], expected_ID, atol=1e-5)

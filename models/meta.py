"""Meta-learning over the user axis: MAML (Finn et al. 2017, arXiv:1703.03400), second and first order, batched.

Every user has a row of each patch tensor, and users are independent, so the gradient of the summed loss is each user's
own gradient, second order included.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

PatchTensors = dict[str, Tensor]  # each [U, *shape]
Loss = Callable[[Mapping[str, Tensor]], Tensor]  # patch -> [U]


@dataclass(frozen=True)
class MetaResult:
    """gradients: of each user's outer loss with respect to where they started, [U, *shape]; adapted: after the inner
    steps; losses [U] before and after them."""

    gradients: PatchTensors
    adapted: PatchTensors
    support_loss: Tensor
    query_loss: Tensor


def adapt(
    support: Loss,
    patch: PatchTensors,
    inner: Iterable[str],
    learning_rate: float,
    steps: int,
    second_order: bool = False,
) -> tuple[PatchTensors, Tensor]:
    """``steps`` gradient steps on the tensors named ``inner``: p <- p - learning_rate · dL_support/dp.

    -> (patch after the steps, support loss before the first [U]). The result stays in the graph of ``patch``; the
    gradients of the steps do too where ``second_order``. Zero steps give the patch that came in.
    """
    names = [name for name in inner if name in patch]
    first = None
    for _ in range(steps if names else 0):
        loss = support(patch)
        first = loss if first is None else first
        gradients = torch.autograd.grad(
            loss.sum(), [patch[name] for name in names], create_graph=second_order, retain_graph=True
        )
        steps_taken = {n: patch[n] - learning_rate * g for n, g in zip(names, gradients, strict=True)}
        patch = {**patch, **steps_taken}
    return patch, support(patch) if first is None else first


def meta_gradients(
    support: Loss,
    query: Loss,
    patch: PatchTensors,
    inner: Iterable[str],
    learning_rate: float,
    steps: int,
    second_order: bool = True,
    support_weight: float = 0.0,
) -> MetaResult:
    """Per-user gradient of the outer loss

        (1 - w) · L_query(adapted(p)) + w · L_support(p),      w = ``support_weight``

    with respect to p. w = 0 is MAML; w > 0 also uses the support clicks in the outer step, as the multi-step loss of
    MAML++ (Antoniou et al. 2019, arXiv:1810.09502) does with the query loss. First order: the inner gradient is taken
    as a constant, so d adapted / d p = 1.
    """
    leaves = {name: tensor.detach().requires_grad_() for name, tensor in patch.items()}
    adapted, support_loss = adapt(support, leaves, inner, learning_rate, steps, second_order)
    query_loss = query(adapted)
    outer = (1 - support_weight) * query_loss + support_weight * support_loss if support_weight else query_loss
    found = torch.autograd.grad(outer.sum(), list(leaves.values()), allow_unused=True)
    gradients = {
        name: torch.zeros_like(leaves[name]) if gradient is None else gradient
        for name, gradient in zip(leaves, found, strict=True)
    }
    detached = {name: tensor.detach() for name, tensor in adapted.items()}
    return MetaResult(gradients, detached, support_loss.detach(), query_loss.detach())

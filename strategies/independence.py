"""Whether ``own_rows`` of a rule are each user's own: the row made of user k's depends on that row alone.

For every U tried, every set S of users and every k in S: own_rows(U)_k = own_rows(U_S)_k, and the same where another
user's row is replaced by any other. Without that, a user who leaves moves the rows of all others too, and their sum by
up to K times the clipping norm, however each row is clipped afterwards. Tried, not proven: a rule that mixes users only
for data that nobody tries passes.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch

_SLACK = 1e-6  # relative to a row's largest value: float32 sums in another order
_FEW, _MANY, _COLUMNS = 7, 129, 3
_MOST_USERS = 4  # of each matrix are left out, replaced, or kept alone
_HUGE, _TINY = 1e30, 1e-30


@dataclass(frozen=True)
class _Other:
    """Other rows, in which row ``places_S[i]`` is what row ``users_S[i]`` was before."""

    what: str
    rows: torch.Tensor
    users_S: torch.Tensor
    places_S: torch.Tensor


def declared(rule: Any) -> Any:
    """``rule.own_rows``; None where there is none, or where it says by None that its parameters do not allow it."""
    own_rows = getattr(rule, "own_rows", None)
    if own_rows is None:
        return None
    try:
        return None if own_rows(torch.zeros(1, 1)) is None else own_rows
    except Exception:  # which ``mixing`` tells
        return own_rows


def mixing(own_rows: Any) -> str:
    """ "" or in which way a row that ``own_rows`` makes depends on more than the same row of what it is given."""
    for name, rows_KP in _matrices():
        try:
            told = _fault(own_rows, rows_KP)
        except Exception as error:  # a plug-in's; whether it raises may depend on the data
            told = f"raises {type(error).__name__}: {error}"
        if told:
            return f"{told} (rows: {name})"
    return ""


def _fault(own_rows: Any, rows_KP: torch.Tensor) -> str:
    whole = own_rows(rows_KP.clone())
    if told := _misshapen(whole, rows_KP):
        return told
    kept = whole.to(torch.float64).clone()
    for other in _others(rows_KP):
        made = own_rows(other.rows.clone())
        if told := _misshapen(made, other.rows):
            return told
        before, after = kept[other.users_S], made.to(torch.float64)[other.places_S]
        if len(apart := torch.nonzero(~_same(before, after)).flatten()):
            return f"user {int(other.users_S[apart[0]])} gets another row {other.what}"
    return ""


def _misshapen(made: Any, rows_KP: torch.Tensor) -> str:
    if not isinstance(made, torch.Tensor):
        return f"returns {type(made).__name__} for {len(rows_KP)} users"
    right = made.shape == rows_KP.shape and made.is_floating_point()
    return "" if right else f"returns {made.dtype} {list(made.shape)} for {list(rows_KP.shape)}"


def _same(before: torch.Tensor, after: torch.Tensor) -> torch.Tensor:
    """bool [S]. Rows that are not finite are alike, as clipping makes zeros of all of them."""
    finite = torch.isfinite(before).all(dim=1), torch.isfinite(after).all(dim=1)
    allowed = _SLACK * before.abs().amax(dim=1, keepdim=True)
    close = ((before - after).abs() <= allowed).all(dim=1)
    return torch.where(finite[0] & finite[1], close, finite[0] == finite[1])


def _others(rows_KP: torch.Tensor) -> Iterator[_Other]:
    """Fewer rows, in another order, and with one of them replaced."""
    k = len(rows_KP)
    everyone = torch.arange(k)
    chosen = sorted({round(i * (k - 1) / (_MOST_USERS - 1)) for i in range(_MOST_USERS)})
    subsets = [("where no user is left", everyone[:0]), ("where half of the others leave", everyone[::2])]
    subsets += [("where it is alone", everyone[user : user + 1]) for user in chosen]
    subsets += [(f"without user {user}", everyone[everyone != user]) for user in chosen]
    subsets += [("in another order of users", everyone.flip(0))]
    for what, users_S in subsets:
        yield _Other(what, rows_KP[users_S], users_S, torch.arange(len(users_S)))
    for user in chosen:
        rest = everyone[everyone != user]
        for what, row in _replacements(rows_KP, user):
            replaced = rows_KP.clone()
            replaced[user] = row
            yield _Other(f"where user {user} sends {what}", replaced, rest, rest)


def _replacements(rows_KP: torch.Tensor, user: int) -> Iterator[tuple[str, torch.Tensor]]:
    row = rows_KP[user]
    yield "zeros", torch.zeros_like(row)
    yield "what another sends", rows_KP[user - 1]
    yield "a huge row", torch.full_like(row, _HUGE)
    yield "a tiny row", torch.full_like(row, _TINY)
    yield "the opposite", -row
    yield "a row ten times as long", 10 * row


def _matrices() -> Iterator[tuple[str, torch.Tensor]]:
    """(what they are, float32 [K, P]), the same in every call."""
    generator = torch.Generator().manual_seed(0)
    for k in (2, _FEW, _MANY):
        drawn = torch.randn(k, _COLUMNS, generator=generator)
        lengths = torch.logspace(-3, 3, k)[:, None]
        yield f"{k} ordinary", drawn
        yield f"{k} about a common direction", drawn + 1
        yield f"{k} of every length", drawn * lengths
    few = torch.randn(_FEW, _COLUMNS, generator=generator)
    yield "zeros", torch.zeros(_FEW, _COLUMNS)
    yield "duplicates", few[:1].repeat(_FEW, 1)
    yield "some duplicates and zeros", few[[0, 0, 1, 1, 2, 2, 2]] * torch.tensor([1, 1, 0, 0, 1, 1, 1.0])[:, None]
    yield "huge", _HUGE * few
    yield "tiny", _TINY * few
    yield "one huge among tiny", few * torch.tensor([_HUGE] + [_TINY] * (_FEW - 1))[:, None]
    yield "one column", few[:, :1]
    yield "many columns", torch.randn(_FEW, 100, generator=generator)

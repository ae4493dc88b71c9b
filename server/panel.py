"""The panel: users whose accounts the cloud knows and whose clicks it sees at once. They say what is being clicked.

Rules on updates cannot tell colluders who agree on an item from users who like it: both are a share of a round. The
panel is a sample that nobody can join by sending updates. What a patch lifts and hardly any of it has clicked is not
lifted in lists, and what some have clicked is shown in proportion. It takes a panel of honest users: fewer liars in it
than ``panel_support`` confirm nothing by themselves.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from scipy.stats import hypergeom

from fedquilt.config import Config
from fedquilt.defences import DefenceConfig
from fedquilt.errors import ConfigError, RunError
from fedquilt.graphs.log import InteractionLog
from fedquilt.graphs.splits import Split
from fedquilt.runs import RunFolder
from fedquilt.seeds import bits_for
from server.exposure import STEP, K, margins

_FILE = "panel.json"
_TINY = 1e-300  # inf times 0 is no number
_TOLD = 5  # ids that an error names


@dataclass(frozen=True, eq=False)
class Panel:
    """``users_U`` sorted; ``clickers_I``, int64: how many of them have clicked an item since the cloud's part ends.

    ``log_p_I``: the chance that a draw of as many of the cloud's users has as few clickers in the cloud's part as the
    panel has there; tiny where somebody else clicked an item for the log's sake. 1 without users in the log.
    """

    users_U: np.ndarray
    clickers_I: np.ndarray
    log_p_I: np.ndarray

    @property
    def share_I(self) -> np.ndarray:
        """float64 [I]: of the panel."""
        return self.clickers_I / len(self.users_U)


@dataclass(frozen=True, eq=False)
class PanelBound:
    """``confirmed_I`` bool: enough of the panel have clicked it; ``allowed_I`` int64: judges whose top 10 it may be in;
    ``seen_JI``: what judges never get.
    """

    confirmed_I: np.ndarray
    allowed_I: np.ndarray
    seen_JI: np.ndarray

    def lowered(self, ceiling_I: np.ndarray, base_JI: np.ndarray, lifts_JI: np.ndarray) -> np.ndarray:
        """[I]: at most 0 for what is not confirmed, and at most what lets ``allowed_I`` judges be shown the item.

        Lists are as if nobody had more lift than this ``ceiling_I``, and than 0 for what is not confirmed; that an item
        which loses its place lets another one in is not counted: where all are lowered until nothing is above its bound
        (20 passes), lists are filled by what nobody wants, which cost up to three times what the patch gains. A judge
        with no more than ten items left is shown all of them, and is not counted.
        """
        held_I = np.where(self.confirmed_I, ceiling_I, np.minimum(ceiling_I, 0))
        kept_JI = np.minimum(lifts_JI, held_I)
        shown_JI, margins_JI = _lists(base_JI + kept_JI, self.seen_JI)
        over = np.flatnonzero(shown_JI.sum(axis=0) > self.allowed_I)
        needed_JO = np.where(shown_JI, kept_JI - margins_JI, np.inf)[:, over]
        most_O = np.sort(needed_JO, axis=0)[self.allowed_I[over], np.arange(len(over))] - STEP
        held_I[over] = np.minimum(held_I[over], most_O)
        return held_I.astype(ceiling_I.dtype)


def _lists(scores_JI: np.ndarray, seen_JI: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """(Is it in the top ten of a judge who could be shown others?, its margin), as ``margins``; both [J, I]."""
    left_JI = np.where(seen_JI, -np.inf, scores_JI)
    shown_JI, margins_JI = margins(left_JI, min(K, left_JI.shape[1] - 1))
    return shown_JI & ((~seen_JI).sum(axis=1, keepdims=True) > K), margins_JI


def wants_panel(defence: DefenceConfig) -> bool:
    return bool(defence.panel_users or defence.panel_file)


def require_named(config: Config) -> None:
    """ConfigError for a panel that is drawn: only a simulation knows whose accounts these are."""
    if config.defence.panel_users:
        raise ConfigError(
            f"defence.panel_users = {config.defence.panel_users} draws the panel from all users, an attacker's accounts"
            " among them: name users whose accounts you know in defence.panel_file"
        )


def require_open(config: Config) -> None:
    """ConfigError for a panel under a privacy mode: ceilings go to every device, and no noise covers its clicks."""
    if wants_panel(config.defence) and config.privacy.mode != "none":
        raise ConfigError(
            f"defence.panel_users and panel_file tell every device what the panel has clicked, which privacy.mode ="
            f" {config.privacy.mode!r} does not cover: do without a panel, or set privacy.mode to none"
        )


def make_panel(config: Config, split: Split, known_U: np.ndarray | None = None) -> Panel:
    """``defence.panel_users`` users, drawn once a run; or those whom ``defence.panel_file`` names, by the ids of the
    log's source. ``known_U``: whose accounts are known, and nobody else's are in it; all users unless given.

    ConfigError where no item has ``panel_support`` clickers, and for a file that cannot be read or names somebody
    unknown.
    """
    defence, fresh_C = config.defence, ~split.in_cloud_C
    users_U = np.unique(split.train.users_C)
    if defence.panel_file:
        users_U = _named(defence.panel_file, split.train)
    users_U = users_U if known_U is None else np.intersect1d(users_U, known_U)
    if not defence.panel_file:
        order_U = np.argsort(bits_for(config.seed, 0, users_U, "panel", 1)[:, 0], kind="stable")
        users_U = np.sort(users_U[order_U[: defence.panel_users]])
    clickers_I = _clickers(split.train.where(fresh_C & np.isin(split.train.users_C, users_U)))
    if clickers_I.max() < defence.panel_support:
        raise ConfigError(
            f"defence.panel_support = {defence.panel_support}, and no item has more than {clickers_I.max()} clickers"
            f" among the panel's {len(users_U)} users since the cloud's part of the log (split.cloud_share ="
            f" {config.split.cloud_share:g}), so nothing could be lifted: lower panel_support, take a larger panel,"
            " leave it more clicks, or do without"
        )
    return Panel(users_U, clickers_I, _chance_of_as_few(split.cloud, users_U))


def _clickers(log: InteractionLog) -> np.ndarray:
    """int64 [I]: users who have clicked an item."""
    pairs = np.unique(np.stack([log.users_C, log.items_C]), axis=1)
    return np.bincount(pairs[1], minlength=log.num_items)


def _chance_of_as_few(cloud: InteractionLog, panel_U: np.ndarray) -> np.ndarray:
    """float64 [I]: hypergeometric, of the users with a click in the cloud's log those of the panel drawn at random."""
    drawn_C = np.isin(cloud.users_C, panel_U)
    all_users, drawn = len(np.unique(cloud.users_C)), len(np.unique(cloud.users_C[drawn_C]))
    chance_I: np.ndarray = hypergeom.cdf(_clickers(cloud.where(drawn_C)), all_users, _clickers(cloud), drawn)
    return chance_I


def require_same(run: RunFolder, panel: Panel) -> None:
    """RunError where a run that is resumed finds another panel than it began with; what the panel is, on disk."""
    digest = hashlib.sha256(panel.users_U.tobytes() + panel.clickers_I.tobytes()).hexdigest()[:16]
    found = {"users": len(panel.users_U), "hash": digest}
    if not (run.path / _FILE).exists():
        run.write_json(_FILE, found)
    elif (begun := run.read_json(_FILE)) != found:
        raise RunError(f"{run.path}: began with the panel {begun}, now it is {found}: restore it or start a new run")


def make_bound(defence: DefenceConfig, panel: Panel, base_JI: np.ndarray, seen_JI: np.ndarray) -> PanelBound:
    """An item may reach as many judges as the base model shows it to, and one that enough of the panel have clicked
    ``panel_growth`` times its share of the panel among the judges who have not clicked it. That the base model shows it
    counts for nothing where the panel has clicked it more seldom than the cloud's log would have it, by a test at
    ``panel_log_alpha`` over all items (Bonferroni).
    """
    confirmed_I, open_I = panel.clickers_I >= defence.panel_support, (~seen_JI).sum(axis=0)
    share_I = np.where(confirmed_I, np.minimum(defence.panel_growth * np.maximum(panel.share_I, _TINY), 1), 0)
    from_base_I = _lists(base_JI, seen_JI)[0].sum(axis=0)
    from_base_I[panel.log_p_I < defence.panel_log_alpha / len(from_base_I)] = 0
    allowed_I = np.maximum(np.floor(share_I * open_I).astype(np.int64), from_base_I)
    return PanelBound(confirmed_I, allowed_I, seen_JI)


def _named(file: str, log: InteractionLog) -> np.ndarray:
    """The users whose ids, those of the log's source, stand in the file, one a line; empty lines are skipped."""
    try:
        wanted = [line.strip() for line in Path(file).read_text(encoding="utf-8-sig").splitlines() if line.strip()]
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"defence.panel_file = {file!r} cannot be read: {error}") from error
    ids = np.arange(log.num_users) if log.user_ids is None else log.user_ids
    place = {str(id_): user for user, id_ in enumerate(ids.tolist())}
    if unknown := [id_ for id_ in wanted if id_ not in place]:
        raise ConfigError(
            f"defence.panel_file = {file!r}: {len(unknown)} of its ids are no users of the log, such as"
            f" {', '.join(unknown[:_TOLD])}"
        )
    return np.array(sorted(place[id_] for id_ in set(wanted)), np.int64)

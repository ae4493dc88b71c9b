"""What ``attack run`` and ``attack matrix`` share: from options to configurations, and rows to figures."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterable, Mapping, Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

from fedquilt.errors import ConfigError, RunError

if TYPE_CHECKING:
    from fedquilt.config import Config

NONE = "none"
FIGURES = {  # name: (where it lies in a row, is more better?, title)
    "ndcg": (("test", "global", "NDCG@10"), True, "NDCG@10 of honest users"),
    "ndcg_tail": (("test", "global", "NDCG@10 tail"), True, "NDCG@10 of honest tail users"),
    "ndcg_personal": (("test", "personal", "NDCG@10"), True, "NDCG@10 of honest users, personal patch"),
    "er10": (("test", "global", "ER@10"), False, "ER@10 of the targets at the end"),
    "er10_max": (("trajectory", "ER@10", "max"), False, "ER@10 of the targets, largest of all rounds evaluated"),
    "honest_rejected": (("rejected", "honest"), False, "honest users rejected"),
    "tail_rejected": (("rejected", "honest tail"), False, "honest tail users rejected"),
    "malicious_rejected": (("rejected", "malicious"), True, "malicious users rejected"),
    "backdoor": (("backdoor", "global", "triggered"), False, "ER@10 under the trigger"),
    "backdoor_personal": (("backdoor", "personal", "triggered"), False, "ER@10 under the trigger, personal patch"),
    "trigger_found": (("scan", "found"), True, "runs in which the trigger scan suspects a target"),
    "evasion": (("evasion", "success"), False, "evasion success at the whole budget"),
    "malicious_share": (("malicious_share",), False, "malicious users, share as it came out"),
    "seconds": (("seconds_a_round",), False, "seconds a round"),
}


def require_attacks() -> None:
    """RunError where this installation has no attacks."""
    if find_spec("client.attacks") is None:
        raise RunError("this installation holds no attacks (devices get none): run `fedquilt attack` from a checkout")


def attacked_config(
    loaded: Config,
    attack: str,
    rule: str,
    malicious: float,
    seed: int,
    tolerate: float,
    options: Mapping[str, Any],
    rule_options: Mapping[str, Any],
) -> Config:
    """The configuration of one simulation. A rule with ``num_byzantine`` is told to withstand ``tolerate`` of a round.

    A clean run (``attack`` none) keeps ``malicious``: the same users are left out of what is measured, with the
    ``clean_options`` of the attack that it is compared with. ConfigError for a share that is none.
    """
    require_share(malicious, "attack.malicious")
    federation = loaded.federation
    told = {**_byzantine(rule, tolerate, federation.cohort_size), **rule_options}
    return loaded.model_copy(
        update={
            "seed": seed,
            "federation": federation.model_copy(update={"aggregator": rule, "aggregator_options": told}),
            "attack": loaded.attack.model_copy(
                update={
                    "name": "" if attack == NONE else attack,
                    "options": dict(options) or (loaded.attack.options if attack == loaded.attack.name else {}),
                    "malicious": malicious,
                }
            ),
        }
    )


def require_share(value: float, where: str) -> float:
    if not 0 <= value < 1:
        raise ConfigError(f"{where} = {value:g}: a share of malicious users is at least 0 and below 1")
    return value


def parse_shares(text: str) -> list[float]:
    """Comma-separated shares. ConfigError that names what is none."""
    shares = []
    for part in text.split(","):
        try:
            shares.append(require_share(float(part), "--fractions"))
        except ValueError:
            raise ConfigError(f"--fractions {text!r}: {part!r} is not a number") from None
    return shares


def clean_options(attack: str, options: Mapping[str, Any]) -> dict[str, Any]:
    """Options of the clean run beside an attack: empty where any clean run leaves out the same users."""
    from client.attacks.contract import make_attack

    by_node = attack != NONE and getattr(make_attack(attack, options), "by_node", False)
    return {"beside": attack, **options} if by_node else {}


def _byzantine(rule: str, share: float, cohort_size: int) -> dict[str, int]:
    from strategies.rules import AGGREGATORS

    entry = AGGREGATORS[rule]
    names = {field.name for field in dataclasses.fields(entry)} if dataclasses.is_dataclass(entry) else set()
    return {"num_byzantine": math.ceil(share * cohort_size)} if "num_byzantine" in names else {}


def load_config(config: Path | None, overrides: Sequence[str] | None) -> Config:
    from fedquilt.config import load

    loaded = load(config, overrides or ())
    if not loaded.data.path:
        return loaded
    absolute = str(Path(loaded.data.path).expanduser().resolve())
    return loaded.model_copy(update={"data": loaded.data.model_copy(update={"path": absolute})})


def parse_options(given: Iterable[str] | None) -> dict[str, Any]:
    """key=value pairs, values as TOML; a bare word is a string."""
    from fedquilt.config import _value  # the one place that reads such values

    options = {}
    for text in given or ():
        key, equals, value = text.partition("=")
        if not equals or not key.strip():
            raise RunError(f"option {text!r}: expected key=value, for example epsilon=0.5")
        options[key.strip()] = _value(value.strip())
    return options


def figure(row: Mapping[str, Any], name: str) -> float | None:
    """One figure of a row, None where it was not measured."""
    value: Any = row
    for key in FIGURES[name][0]:
        value = value.get(key) if isinstance(value, Mapping) else None
    if isinstance(value, list):
        value = value[-1]
    return None if value is None or math.isnan(value) else float(value)


def mean_of(rows: Sequence[Mapping[str, Any]], name: str) -> tuple[float, float] | None:
    """(mean, half the width of the 95 % t interval) over seeds; None where no row has it."""
    values = [value for row in rows if (value := figure(row, name)) is not None]
    if not values:
        return None
    mean = sum(values) / len(values)
    if len(values) < 2:
        return mean, float("nan")
    from scipy.stats import t

    std = math.sqrt(sum((value - mean) ** 2 for value in values) / (len(values) - 1))
    return mean, float(t.ppf(0.975, len(values) - 1)) * std / math.sqrt(len(values))

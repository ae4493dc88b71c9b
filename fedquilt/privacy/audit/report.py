"""What an audit found, kept beside the run and told in a line."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from fedquilt.errors import PrivacyError

AUDIT = "audit.json"


def stored_audit(where: str | Path) -> dict[str, Any] | None:
    """Of a run folder; None where there is none."""
    path = Path(where) / AUDIT
    return read_audit(path) if path.is_file() else None


def read_audit(path: Path) -> dict[str, Any]:
    try:
        found = json.loads(path.read_bytes())
    except (OSError, ValueError) as error:
        raise PrivacyError(f"cannot read the audit {path}: {error}") from None
    if not isinstance(found, dict):
        raise PrivacyError(f"the audit {path} is not a JSON object")
    return found


def in_a_line(audit: Mapping[str, Any], ledger_head: str = "") -> str:
    """Lower bound, method, confidence, checks; and whether the ledger has grown since."""
    if "lower" not in audit:
        return ", ".join(f"{name} {value}" for name, value in audit.items())
    told = (
        f"epsilon at least {audit['lower']:.2f} ({audit['method']}, {audit['confidence']:.0%} confidence,"
        f" {audit['canaries']:,} canaries); "
    )
    told += "all checks hold" if audit["holds"] else f"FAILED: {'; '.join(audit['findings'])}"
    if ledger_head and audit.get("ledger_head", ledger_head) != ledger_head:
        told += "; made before the run's last entries"
    return told

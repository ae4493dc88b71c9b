"""Whether a statement, as page or as JSON, says what its signer signed and nothing else.

The signature covers the facts. Everything else that the file shows has to be what these facts give when the page is
made again, so an edit of either is found: of the facts by the signature, of what is shown by comparing.
"""

from __future__ import annotations

import html
import json
import math
import re
from collections.abc import Iterator
from dataclasses import dataclass
from difflib import SequenceMatcher
from typing import Any

from jinja2 import TemplateError

from cli.statement_page import page
from fedquilt import __version__
from fedquilt.errors import PrivacyError
from fedquilt.privacy.signing import require_public_key, signature_holds
from fedquilt.privacy.statement import digest, in_words

_SHOWN = 5  # differences
_AROUND = 40  # characters on each side of one


@dataclass(frozen=True)
class Read:
    """A statement as its file holds it. ``shown``: what was made from the facts for people."""

    facts: dict[str, Any]
    signature: Any
    shown: str
    is_page: bool


def check(text: str, public_key: str) -> list[str]:
    """What is wrong, in sentences; [] for a statement that holds. PrivacyError for what is no statement."""
    asked = require_public_key(public_key)
    read = _read_json(text) if text.lstrip().startswith("{") else _read_page(text)
    return [*_check_signature(read, asked), *_check_shown(read), *_check_holds(read)]


# --- reading ---


def _read_page(text: str) -> Read:
    facts, signature = (_between(text, name) for name in ("facts", "signature"))
    return Read(_object(facts), _json(signature), text, True)


def _between(text: str, name: str) -> str:
    found = re.findall(rf'<pre id="{name}">(.*?)</pre>', text, re.DOTALL)
    if len(found) != 1:
        raise PrivacyError(f"not a statement: it holds its {name} {len(found)} times, not once")
    return html.unescape(found[0])


def _read_json(text: str) -> Read:
    facts = _object(text)
    if "signature" not in facts or "in_words" not in facts:
        raise PrivacyError("not a statement: it lacks 'signature' or 'in_words'")
    signature, words = facts.pop("signature"), facts.pop("in_words")
    return Read(facts, signature, _lines(words), False)


def _object(text: str) -> dict[str, Any]:
    found = _json(text)
    if not isinstance(found, dict):
        raise PrivacyError("not a statement: its facts are no JSON object")
    return found


def _json(text: str) -> Any:
    """Names that come twice would show one value to people and another to us: refused, as are numbers without end."""

    def once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        if len({name for name, _ in pairs}) != len(pairs):
            raise ValueError("a name comes twice")
        return dict(pairs)

    def finite(text: str) -> float:
        if not math.isfinite(value := float(text)):
            raise ValueError(f"{text} is no number")
        return value

    try:
        return json.loads(text, object_pairs_hook=once, parse_constant=finite, parse_float=finite)
    except (ValueError, RecursionError) as error:
        raise PrivacyError(f"not a statement: {error}") from None


# --- checks ---


def _check_signature(read: Read, asked: str) -> Iterator[str]:
    signature, lengths = read.signature, {"digest": 64, "public_key": 64, "signature": 128}
    if signature is None:
        yield "it is not signed"
        return
    if not isinstance(signature, dict) or set(signature) != set(lengths):
        yield "what stands for its signature is none"
        return
    for name, length in lengths.items():
        if not re.fullmatch(f"[0-9a-f]{{{length}}}", str(signature[name])):
            yield f"{name} of the signature is not {length} hex digits"
            return
    if signature["digest"] != digest(read.facts):
        yield "the facts were changed: their digest is not the one that was signed"
    if signature["public_key"] != asked:
        yield f"it was signed with another key, {signature['public_key']}"
    if not signature_holds(signature["digest"].encode(), asked, signature["signature"]):
        yield "the signature does not hold for the key that was given"


def _check_shown(read: Read) -> Iterator[str]:
    try:
        made = page(read.facts, read.signature) if read.is_page else _lines(in_words(read.facts))
    except (KeyError, TypeError, ValueError, AttributeError, IndexError, TemplateError) as error:
        yield f"nothing can be made from its facts: {type(error).__name__} {error}"
        return
    if read.shown == made:
        return
    by = read.facts.get("made_by")
    yield f"it does not show what its facts give (they name {by!r}; this is fedquilt {__version__}):"
    yield from _differences(read.shown, made)


def _check_holds(read: Read) -> Iterator[str]:
    """Making such a statement leaves with 1 too."""
    if read.facts.get("holds") is not True:
        yield "it says of itself that the records do not hold"


def _differences(shown: str, made: str) -> Iterator[str]:
    """Line by line, each around its first difference."""
    ours, theirs = shown.split("\n"), made.split("\n")
    blocks = [one for one in SequenceMatcher(None, ours, theirs, autojunk=False).get_opcodes() if one[0] != "equal"]
    for _, a, b, c, d in blocks[:_SHOWN]:
        left, right = _around("\n".join(ours[a:b]), "\n".join(theirs[c:d]))
        yield f"  line {a + 1}: shows {left!r}, the facts give {right!r}"
    if len(blocks) > _SHOWN:
        yield f"  and {len(blocks) - _SHOWN} places more"


def _around(left: str, right: str) -> tuple[str, str]:
    same = next((n for n, (a, b) in enumerate(zip(left, right, strict=False)) if a != b), min(len(left), len(right)))
    start = max(same - _AROUND, 0)
    return left[start : same + _AROUND], right[start : same + _AROUND]


def _lines(words: Any) -> str:
    if not isinstance(words, list) or not all(isinstance(one, str) for one in words):
        raise PrivacyError("not a statement: 'in_words' is no list of sentences")
    return "\n".join(words)

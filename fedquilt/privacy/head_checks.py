"""What others hold of a ledger's head: that they saw it, or signed it."""

from __future__ import annotations

from collections.abc import Iterable, Iterator

from fedquilt.privacy.book import Book, Finding, head_of
from fedquilt.privacy.ledger import Head, genesis, signed_text
from fedquilt.privacy.signing import SigningUnavailableError, require_public_key, signature_holds


def check_heads(book: Book, remembered: Iterable[str]) -> Iterator[Finding]:
    """Every head that anyone remembers is still in the chain."""
    ours = _hashes(book)
    for text in dict.fromkeys(remembered):
        head = Head.parse(text)
        if head.seq not in ours:
            yield Finding("rollback", f"entry {head.seq} was seen by others; the ledger ends at {max(ours)}: it was cut"
                          " or replaced by an older copy")  # fmt: skip
        elif ours[head.seq] != head.hash:
            yield Finding("rollback", f"entry {head.seq} is not the one that others saw: the ledger was rewritten")


def check_signatures(book: Book, public_key: str | None) -> Iterator[Finding]:
    """Signed heads are in the chain and their signatures hold. With ``public_key`` the last head must be signed by it.

    Without ``cryptography`` the signatures are not looked at, which is a finding only where a key was asked for.
    """
    asked = None if public_key is None else require_public_key(public_key)
    ours, by_asked = _hashes(book), list[Head]()
    for head, key, signature in book.heads:
        if ours.get(head.seq) != head.hash:
            yield Finding("signature", f"the signed head at entry {head.seq} is not in the chain: cut or rewritten")
        try:
            holds = signature_holds(signed_text(book.id, head), key, signature)
        except SigningUnavailableError as error:
            if asked is not None:
                yield Finding("signature", f"a signature was asked for and none was checked: {error}")
            return
        if not holds:
            yield Finding("signature", f"the signature of entry {head.seq} does not hold")
        elif str(key).lower() == asked:
            by_asked.append(head)
    if asked is not None:
        yield from _last_is_signed(head_of(book), by_asked)


def _last_is_signed(last: Head, signed: list[Head]) -> Iterator[Finding]:
    """A signature of an earlier head says nothing of the entries after it."""
    if not signed:
        yield Finding("signature", "no head is signed with the key that was asked for")
    elif last not in signed:
        yield Finding("signature", f"the last entry that the key signed is {max(head.seq for head in signed)}; the"
                      f" ledger ends at {last.seq}: nobody vouches for what came after")  # fmt: skip


def _hashes(book: Book) -> dict[int, str]:
    return {entry.seq: entry.hash for entry in book.entries} | {0: genesis(book.id)}

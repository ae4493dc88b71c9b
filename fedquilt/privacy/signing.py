"""Ed25519 (RFC 8032): the key that signs a ledger's head and a statement, and whether a signature holds.

A private key is 32 bytes, kept as 64 hex digits in a file that only its owner may read. Public keys are hex too.
``cryptography`` is loaded where it is needed only: verification goes on without it, and says so.
"""

from __future__ import annotations

import os
import secrets
from pathlib import Path
from typing import Any

from fedquilt.errors import PrivacyError

_LACKING = "the package 'cryptography' is not installed: nothing can be signed, and no signature checked"


class SigningUnavailableError(PrivacyError):
    """``cryptography`` is not there, so nothing is known of a signature."""


def new_key(path: Path) -> str:
    """Write a new private key; -> its public key. PrivacyError where a file lies there: no key is ever overwritten."""
    key = secrets.token_bytes(32)
    public = public_key(key)
    try:
        descriptor = os.open(path, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o600)
    except FileExistsError:
        raise PrivacyError(f"{path} exists, and no key is overwritten: name another file") from None
    except OSError as error:
        raise PrivacyError(f"cannot write the key {path}: {error.strerror}") from None
    with os.fdopen(descriptor, "w") as file:
        file.write(key.hex() + "\n")
        file.flush()
        os.fsync(descriptor)
    return public


def read_key(path: Path) -> bytes:
    """A private key from its file."""
    try:
        key = bytes.fromhex(path.read_text().strip())
    except (OSError, ValueError) as error:
        raise PrivacyError(f"cannot read the key {path}: {error}") from None
    if len(key) != 32:
        raise PrivacyError(f"{path} holds {len(key)} bytes; an Ed25519 private key has 32, written as 64 hex digits")
    return key


def require_public_key(text: str) -> str:
    """In lower case. PrivacyError for what is no public key: a mistyped one is no forgery."""
    try:
        key = bytes.fromhex(text.strip())
    except ValueError:
        key = b""
    if len(key) != 32:
        raise PrivacyError(f"{text[:80]!r} is no Ed25519 public key: that has 64 hex digits")
    return key.hex()


def public_key(private_key: bytes) -> str:
    return str(_ed25519().Ed25519PrivateKey.from_private_bytes(private_key).public_key().public_bytes_raw().hex())


def signature_of(text: bytes, private_key: bytes) -> str:
    return str(_ed25519().Ed25519PrivateKey.from_private_bytes(private_key).sign(text).hex())


def signature_holds(text: bytes, public: str, signature: str) -> bool:
    """False also for what is no key or no signature. SigningUnavailableError where it cannot be told."""
    ed25519 = _ed25519()
    from cryptography.exceptions import InvalidSignature

    try:
        ed25519.Ed25519PublicKey.from_public_bytes(bytes.fromhex(public)).verify(bytes.fromhex(signature), text)
    except (InvalidSignature, ValueError, TypeError):
        return False
    return True


def _ed25519() -> Any:
    try:
        from cryptography.hazmat.primitives.asymmetric import ed25519
    except ImportError:
        raise SigningUnavailableError(_LACKING) from None
    return ed25519

"""Randomness is an argument: every draw is keyed by (run seed, round, client id, use).

Two forms. ``generator_for`` gives a numpy generator for one key. ``uniforms_for`` gives one independent row of numbers
per client, computed for a whole cohort at once; a row depends on its own key only, so results do not depend on how
users are grouped into supernodes or batches.
"""

from __future__ import annotations

import hashlib

import numpy as np

_GOLDEN = np.uint64(0x9E3779B97F4A7C15)


def key_for(run_seed: int, round_: int = 0, client_id: int = 0, use: str = "") -> int:
    """A 64-bit key; any change in any part gives an unrelated key."""
    text = f"{run_seed}/{round_}/{client_id}/{use}".encode()
    return int.from_bytes(hashlib.blake2b(text, digest_size=8).digest(), "little")


def generator_for(run_seed: int, round_: int = 0, client_id: int = 0, use: str = "") -> np.random.Generator:
    """numpy generator (Philox) for one key."""
    return np.random.Generator(np.random.Philox(key=key_for(run_seed, round_, client_id, use)))


def _splitmix64(x: np.ndarray) -> np.ndarray:
    """Finaliser of SplitMix64 (Steele, Lea and Flood 2014), elementwise on uint64."""
    x = (x ^ (x >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    x = (x ^ (x >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return x ^ (x >> np.uint64(31))


def bits_for(run_seed: int, round_: int, client_ids: np.ndarray, use: str, count: int) -> np.ndarray:
    """uint64 [U, count], row u depending on (run_seed, round_, client_ids[u], use) only."""
    base = np.uint64(key_for(run_seed, round_, 0, use))
    with np.errstate(over="ignore"):
        keys = _splitmix64(base + (np.asarray(client_ids).astype(np.uint64) + np.uint64(1)) * _GOLDEN)
        counters = (np.arange(1, count + 1, dtype=np.uint64) * _GOLDEN)[None, :]
        return _splitmix64(keys[:, None] + counters)


def uniforms_for(run_seed: int, round_: int, client_ids: np.ndarray, use: str, count: int) -> np.ndarray:
    """float64 [U, count] in [0, 1), one independent row per client."""
    return (bits_for(run_seed, round_, client_ids, use, count) >> np.uint64(11)).astype(np.float64) * 2.0**-53


def bits_at(run_seed: int, round_: int, client_ids_M: np.ndarray, places_M: np.ndarray, use: str) -> np.ndarray:
    """uint64 [M]: ``bits_for(run_seed, round_, ids, use, ...)[client, place]`` for ragged rows, without the table."""
    base = np.uint64(key_for(run_seed, round_, 0, use))
    with np.errstate(over="ignore"):
        keys_M = _splitmix64(base + (client_ids_M.astype(np.uint64) + np.uint64(1)) * _GOLDEN)
        return _splitmix64(keys_M + (places_M.astype(np.uint64) + np.uint64(1)) * _GOLDEN)


def uniforms_at(run_seed: int, client_ids_M: np.ndarray, places_M: np.ndarray, use: str) -> np.ndarray:
    """float64 [M]: ``uniforms_for(run_seed, 0, ids, use, ...)[client, place]`` for ragged rows, without the table."""
    bits_M = bits_at(run_seed, 0, client_ids_M, places_M, use)
    return (bits_M >> np.uint64(11)).astype(np.float64) * 2.0**-53

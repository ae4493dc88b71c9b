"""Chunks of users on several threads: users are independent, and torch and numpy release the interpreter's lock."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

import torch

T = TypeVar("T")


def map_chunks(work: Callable[[slice], T], chunks: Sequence[slice]) -> list[T]:
    """``[work(chunk) for chunk in chunks]`` on as many threads as torch has, each of which computes with one.

    The matrices of a user are too small to be worth sharing out among threads; whole chunks are. A chunk gives the
    same bits whatever the number of threads is.
    """
    threads = torch.get_num_threads()
    try:
        torch.set_num_threads(1)
        if min(threads, len(chunks)) < 2:
            return [work(chunk) for chunk in chunks]
        with ThreadPoolExecutor(threads, initializer=torch.set_num_threads, initargs=(1,)) as pool:
            return list(pool.map(work, chunks))
    finally:
        torch.set_num_threads(threads)  # what a thread sets for itself is also the default of threads to come

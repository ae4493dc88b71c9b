"""Chunks of users on several threads: users are independent, and torch and numpy release the interpreter's lock."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from itertools import pairwise
from typing import TypeVar

import numpy as np
import torch

T = TypeVar("T")


def chunks_of(count: int, most: int) -> list[slice]:
    """``range(count)`` in slices of at most ``most``, of equal size and even in number, so that two threads finish
    together. The slices do not depend on the number of threads.
    """
    number = 1 if count <= most // 2 else min(2 * -(-count // (2 * most)), count)
    ends = np.linspace(0, count, number + 1).astype(int).tolist()
    return [slice(start, end) for start, end in pairwise(ends)] if count else []


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

"""Cells of the aggregator benchmark: each a request, served by a process of its own.

Started by ``aggregators.py`` with our interpreter, or with one that has byzfl. Reads one request a line, as JSON, and
answers each with one line. A request is served by a fork of this process, which has imported everything and computed
nothing: so a cell that takes too long, eats all memory or dies takes nobody along, and no cell waits for imports.
"""

from __future__ import annotations

import json
import os
import resource
import select
import signal
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from time import perf_counter, process_time
from typing import Any

import numpy as np
import torch

from experiments.benchmarks.aggregators_cells import IN_PLACE, MAKERS, Call, prepare

Request = Mapping[str, Any]
NOT_REPEATED, FEWEST, MOST, SECONDS_OF_CALLS = 4.0, 2, 1000, 0.4
ROWS_SAVED = 64
BEGINS, OVER = "<", ">"


def measure(request: Request, tell: Callable[[str], None]) -> dict[str, Any]:
    """Best wall and processor seconds of some calls after one that is not counted, and the peak memory.

    As many calls as take 0.4 s, 2 to 1,000; after one of 4 s none, and it counts itself. An input that is written to is
    restored outside the clock. ``tell`` hears when the first call begins and when it is over.
    """
    who, rule = request["who"], request["rule"]
    k, p = np.load(request["data"], mmap_mode="r").shape
    call = MAKERS[who](rule, k, request["f"], p)
    if call is None:
        return {"status": "has none"}
    rows_KP = torch.from_numpy(np.load(request["data"]))
    spoilt = rule.endswith(IN_PLACE)
    given_KP = rows_KP.clone() if spoilt else rows_KP
    tell(BEGINS)
    first, result = _timed(call, given_KP)
    tell(OVER)
    _save(result, request["save"])
    del result
    counted: list[tuple[float, float]] = []
    allowed = 1 if first[1] > NOT_REPEATED and who == "ours" else 0  # ours may have been compiled in the first
    if first[1] <= NOT_REPEATED:
        allowed = MOST
    while len(counted) < allowed and (len(counted) < FEWEST or sum(cpu for _, cpu in counted) < SECONDS_OF_CALLS):
        if spoilt:
            given_KP.copy_(rows_KP)
        counted.append(_timed(call, given_KP)[0])
    wall, cpu = (min(reading[part] for reading in counted or [first]) for part in (0, 1))
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
    return {"status": "ok", "seconds": round(wall, 7), "cpu_seconds": round(cpu, 7), "peak_gb": round(peak, 3)}


def _timed(call: Call, rows_KP: torch.Tensor) -> tuple[tuple[float, float], torch.Tensor]:
    wall, cpu = perf_counter(), process_time()
    result = call(rows_KP)
    return (perf_counter() - wall, process_time() - cpu), result


def serve(request: Request) -> dict[str, Any]:
    """In a fork, with at most ``memory_gb`` of data and ``seconds`` of the processor for a call."""
    reader, writer = os.pipe()
    child = os.fork()
    if child == 0:
        os.close(reader)
        os.write(writer, json.dumps(_limited(request, lambda mark: _write(writer, mark))).encode())
        os._exit(0)
    os.close(writer)
    told = _read_in_time(reader, child, request["seconds"])
    os.close(reader)
    status = os.waitpid(child, 0)[1]
    answer = told.removeprefix(BEGINS).removeprefix(OVER)
    if answer:
        return json.loads(answer)
    if os.WIFSIGNALED(status) and told == BEGINS and os.WTERMSIG(status) == signal.SIGXCPU:
        return {"status": "too slow", "detail": f"> {request['seconds']:g} s"}
    return {"status": "died", "detail": f"wait status {status}"}


def _read_in_time(reader: int, child: int, seconds: float) -> str:
    """All that the child tells. It is ended when it spends more than ``seconds`` between the two marks.

    Watched from here, because a timer of its own makes the processor's clock coarse.
    """
    told, began = b"", 0.0
    while True:
        if select.select([reader], [], [], 0.1)[0]:
            part = os.read(reader, 1 << 16)
            if not part:
                return told.decode()
            told += part
            began = _processor_seconds(child)
        elif told == BEGINS.encode() and _processor_seconds(child) > began + seconds:
            os.kill(child, signal.SIGXCPU)


def _processor_seconds(pid: int) -> float:
    user, system = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[11:13]
    return (int(user) + int(system)) / os.sysconf("SC_CLK_TCK")


def _write(writer: int, mark: str) -> None:
    os.write(writer, mark.encode())


def _limited(request: Request, tell: Callable[[str], None]) -> dict[str, Any]:
    limit = int(request["memory_gb"] * 2**30)
    resource.setrlimit(resource.RLIMIT_DATA, (limit, limit))
    torch.set_num_threads(request["threads"])
    try:
        return measure(request, tell)
    except Exception as error:
        told = (str(error).splitlines() or [""])[0][:120]
        if isinstance(error, MemoryError) or "alloc" in told.lower():
            return {"status": "out of memory", "detail": f"out of memory at {request['memory_gb']:g} GB"}
        return {"status": "error", "detail": f"{type(error).__name__}: {told}"}


def _save(result: torch.Tensor, path: str) -> None:
    """The result; of a matrix some of its rows, from the first to the last."""
    if path:
        some = result if result.ndim == 1 else result[torch.linspace(0, len(result) - 1, ROWS_SAVED).long()]
        np.save(path, some.float().numpy())


def main() -> None:
    for line in sys.stdin:
        request = json.loads(line)
        prepare(request["who"])
        print(json.dumps(serve(request)), flush=True)


if __name__ == "__main__":
    main()

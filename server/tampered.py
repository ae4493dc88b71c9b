"""A simulated grid on the way from which replies are exchanged: where attacks meet the cloud, and nowhere else.

It is made around an ``InProcessGrid`` and takes no other, so no replies of a real device can pass through it. What
tampers is given from outside: this package does not know any attack.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence

from flwr.app import Message, RecordDict
from flwr.serverapp import Grid
from flwr.supercore.run import Run

from fedquilt.errors import FederationError
from server.in_process import InProcessGrid

Tamper = Callable[[Sequence[Message], Sequence[Message]], list[Message]]
"""(the orders of one call, their replies) -> the replies that the cloud gets."""


class TamperedGrid(Grid):
    """Rounds go through ``send_and_receive``; pushing and pulling single messages is refused."""

    def __init__(self, grid: InProcessGrid, tamper: Tamper):
        if type(grid) is not InProcessGrid:
            raise FederationError(f"attacks are simulated in process only, not on a {type(grid).__name__}")
        self._grid, self._tamper = grid, tamper

    def set_run(self, run: Run) -> None:
        self._grid.set_run(run)

    @property
    def run(self) -> Run:
        return self._grid.run

    def create_message(
        self, content: RecordDict, message_type: str, dst_node_id: int, group_id: str, ttl: float | None = None
    ) -> Message:
        return self._grid.create_message(content, message_type, dst_node_id, group_id, ttl)

    def get_node_ids(self) -> Iterable[int]:
        return self._grid.get_node_ids()

    def push_messages(self, messages: Iterable[Message]) -> Iterable[str]:
        raise FederationError("a tampered grid sees whole rounds: use send_and_receive")

    def pull_messages(self, message_ids: Iterable[str]) -> Iterable[Message]:
        raise FederationError("a tampered grid sees whole rounds: use send_and_receive")

    def send_and_receive(self, messages: Iterable[Message], *, timeout: float | None = None) -> Iterable[Message]:
        orders = list(messages)
        return self._tamper(orders, list(self._grid.send_and_receive(orders, timeout=timeout)))

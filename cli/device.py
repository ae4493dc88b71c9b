"""``fedquilt device``: takes part in a federation with a log of its own."""

from __future__ import annotations

import logging
import signal
from pathlib import Path
from threading import Thread
from typing import TYPE_CHECKING, Annotated, Literal

import typer

if TYPE_CHECKING:
    from client.agent import Open


Log = Annotated[
    Path, typer.Option("--data", metavar="LOG", help="The device's own log, or a folder of such logs: a cohort.")
]
Told = Annotated[
    Literal["none", "histogram", "ranks"],
    typer.Option(
        "--share-evaluation",
        help="What the cloud may learn of evaluations: nothing; how often the held-out clicks of all users of this"
        " device came first, second and so on; or each user's held-out clicks, their ranks and what would be shown."
        " Of a device with one user a histogram is that user's ranks.",
    ),
]


def device(
    data: Log,
    keys: Annotated[Path, typer.Option(help="The device's folder of `fedquilt keys device`.")],
    server: Annotated[str, typer.Option(help="HOST:PORT of the gateway.")] = "localhost:9443",
    state: Annotated[
        Path | None, typer.Option(help="Folder for personal patches and the device's privacy ledger.")
    ] = None,
    epsilon: Annotated[
        float, typer.Option(min=0, help="No user of this device may spend more privacy than this; 0: no limit.")
    ] = 0.0,
    delta: Annotated[
        float,
        typer.Option(
            min=0,
            max=0.5,
            help="At which --epsilon is counted, whatever the cloud says. Runs that promise less, by a larger delta,"
            " are sent nothing. 0: counted at 1e-6, and no run is refused for its delta.",
        ),
    ] = 0.0,
    charge_by_norms: Annotated[
        bool,
        typer.Option(
            "--charge-by-norms",
            help="Spend --epsilon by the length of what was sent, in runs that ask for it: short updates may be sent"
            " more often. The cloud then learns more from a user's declining.",
        ),
    ] = False,
    share_evaluation: Told = "none",
    evaluation_noise: Annotated[
        float,
        typer.Option(
            min=0,
            help="With histogram: Gaussian noise of so many times what one user moves it by. It is charged to the"
            " device's ledger, and within --epsilon. 0: exact, and outside of any epsilon.",
        ),
    ] = 0.0,
) -> None:
    """Stay connected, answer the cloud's orders, keep the data here. Ends on SIGTERM or Ctrl-C."""
    from client.agent import Agent
    from fedquilt.errors import ConfigError, DataError

    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(name)s %(message)s")
    if not data.exists():
        raise DataError(f"no log at {data}: see docs/deploy.md for its form")
    folder = (state or keys / "state").absolute()
    folder.mkdir(parents=True, exist_ok=True, mode=0o700)
    if evaluation_noise and share_evaluation != "histogram":
        raise ConfigError(f"--evaluation-noise is for --share-evaluation histogram, not {share_evaluation}")
    told: dict[str, str | float | bool] = {"share-evaluation": share_evaluation, "evaluation-noise": evaluation_noise}
    told |= {"device-epsilon": epsilon} if epsilon else {}
    told |= {"device-delta": delta} if delta else {}
    told |= {"device-norms": True} if charge_by_norms else {}
    agent = Agent(server, keys, _opens(data.absolute(), {"device-dir": str(folder), **told}))
    for number in (signal.SIGTERM, signal.SIGINT):
        # Not in the handler: it would run inside the call that it ends, with that call's locks held.
        signal.signal(number, lambda *_: Thread(target=agent.stop).start())
    agent.run()


def _opens(data: Path, node_config: dict[str, str | float | bool]) -> Open:
    """Everything heavy is imported when the first order has come."""

    def open_work(me, cloud):  # of the types that Open says; naming them would import protobuf
        from client.agent_work import AppWork, forbid_attacks

        forbid_attacks()
        from client.app import make_client_app
        from client.own_log import OwnLog

        return AppWork(make_client_app(OwnLog(data)), me, cloud, node_config)

    return open_work

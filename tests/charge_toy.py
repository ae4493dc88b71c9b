"""One node of the toy federation whose rows are as long as a test wants them, for tests of what users are charged."""

from __future__ import annotations

import numpy as np
import toy_task
from private_toy import private

import client.device_ledger as module
from client.device_ledger import DeviceLedger
from client.node import Node
from client.store import PersonalStore
from client.task import LocalUpdates
from fedquilt.privacy.gaussian import gaussian_epsilon
from fedquilt.privacy.individual import device_epsilons
from fedquilt.privacy.terms import Terms
from fedquilt.wire import Standing, TrainOrder, write_train_reply

C, DELTA = 0.5, 1e-6
P = toy_task.SPEC.num_parameters
FULL, HALF, TINY = 100, 103, 106  # hosted by the first of three nodes
LENGTHS = {FULL: 10.0, HALF: 0.499, TINY: 0.0}  # of their rows, in clipping norms


class Rows(toy_task.ToyTask):
    """Every user's row is as long as ``LENGTHS`` says in every round, in a direction of the round."""

    def train(self, client_ids_K, patch_P, personal_KR, round_, run_seed):
        rows_KP = np.zeros((len(client_ids_K), P), np.float32)
        rows_KP[:, round_ % P] = [C * LENGTHS.get(user, 0.3) for user in client_ids_K.tolist()]
        return LocalUpdates(rows_KP, np.ones(len(client_ids_K), np.int64), personal_KR + np.float32(1))


def node(folder, by_norms=True, limit=0.0, task=Rows, upload_entries=0) -> Node:
    federation = {"clipping_norm": C, "upload_entries": upload_entries}
    config = private("central", federation, sampler="none", device_norms=by_norms)
    made = task(config, 0, 3)
    made.install(toy_task.BASE)
    store = PersonalStore(folder, 0, made.spec.hash, made.personal_size)
    return Node(made, store, config, DeviceLedger(folder / "device.sqlite", limit, DELTA))


def order(round_: int, users=(FULL, HALF, TINY), norm=C, noise=1.0) -> TrainOrder:
    terms = Terms("r", "central", norm, noise, DELTA, f"{round_}:a")
    standing = Standing(toy_task.SPEC.hash, "c", "b")
    return TrainOrder(standing, round_, round_ - 1, np.array(users), np.zeros(P, np.float32), terms.to_json())


def sent(reply) -> dict:
    """All bytes of a message."""
    content = write_train_reply(reply)
    arrays = {(part, name): array.data for part in ("arrays", "metrics") for name, array in content[part].items()}
    return {**arrays, "facts": dict(content["facts"])}


def restarted() -> None:
    """As after the end of the process: ledgers are read from disk again."""
    for account in module._open.values():
        account.ledger.close()
    module._open.clear()
    module._seen.clear()


def limit_of(mu2: float) -> float:
    return gaussian_epsilon(mu2**0.5, DELTA) * 1.000001


def spent_by(ledger) -> dict[int, float]:
    account = module.read_book(ledger)[0]
    spent = device_epsilons(account.events, account.cohorts, DELTA)
    assert spent is not None
    return spent

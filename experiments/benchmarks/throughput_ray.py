"""The same federation on Flower's simulation engine with one supernode a user: how one runs federations without a
user axis.

    python -m experiments.benchmarks.throughput_ray --users 32 --rounds 6

Start-up and the first round, in which every node builds its task, are not counted.
"""

from __future__ import annotations

import argparse
import tempfile

import numpy as np
from flwr.simulation import run_simulation

from client.app import app
from experiments.benchmarks.throughput_common import base_for, config_for, report, task_for
from fedquilt.config import Config
from fedquilt.runs import RunFolder
from server.app import make_server_app
from server.task import Deployment


def prepare(config: Config, run: RunFolder) -> Deployment:
    task, patch_P = task_for(config)
    return Deployment(task.spec, patch_P, base_for(config.data.num_users))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--users", type=int, default=32)
    parser.add_argument("--rounds", type=int, default=6)
    parser.add_argument("--cores", type=int, default=2)
    given = parser.parse_args()
    config = config_for(given.users, rounds=given.rounds, cohort_size=given.users, num_supernodes=given.users)
    with tempfile.TemporaryDirectory() as folder:
        run = RunFolder.create(folder, config)
        run_simulation(
            server_app=make_server_app(prepare, run_config={"run-dir": str(run.path)}),
            client_app=app,
            num_supernodes=given.users,
            backend_config={"client_resources": {"num_cpus": 1}, "init_args": {"num_cpus": given.cores}},
        )
        records = run.records("round")
    seconds = np.array([record["seconds"] for record in records[1:]])
    users = min(record["replies"] for record in records[1:])
    report(
        {
            "step": "ray",
            "users": users,
            "supernodes": given.users,
            "rounds": len(seconds),
            "users_per_s": round(users / float(np.median(seconds)), 1),
            "users_per_s_best_round": round(users / float(seconds.min()), 1),
        }
    )


if __name__ == "__main__":
    main()

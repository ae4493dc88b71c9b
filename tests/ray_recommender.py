"""Runs the recommender of a run folder on Ray: ``python ray_recommender.py RUN``. Started by test_simulate_ray.

A process of its own, because Ray and Flower keep state of the whole process.
"""

from __future__ import annotations

import sys

from flwr.simulation import run_simulation

from client.app import app
from fedquilt.runs import RunFolder
from server.app import _finish, _hooks, _prepare, make_server_app

if __name__ == "__main__":
    path = sys.argv[1]
    run_simulation(
        # ``server.app.app`` with a run-config, which ``run_simulation`` cannot pass
        server_app=make_server_app(_prepare, _hooks, _finish, run_config={"run-dir": path}),
        client_app=app,
        num_supernodes=RunFolder.open(path).config.federation.num_supernodes,
        backend_config={"client_resources": {"num_cpus": 1}, "init_args": {"num_cpus": 2}},
    )

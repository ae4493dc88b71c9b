"""Runs the toy federation of a run folder on Ray: ``python ray_driver.py RUN``. Started by test_federation_ray.

A process of its own, because Ray and Flower keep state of the whole process.
"""

from __future__ import annotations

import sys

import toy_task
from flwr.simulation import run_simulation

from client.app import make_client_app
from fedquilt.config import Config
from fedquilt.runs import RunFolder
from server.app import make_server_app
from server.task import Deployment, Hooks


def prepare(config: Config, run: RunFolder) -> Deployment:
    return toy_task.toy_deployment()


def hooks(config: Config, run: RunFolder) -> Hooks:
    return toy_task.MEANS


if __name__ == "__main__":
    run_simulation(
        server_app=make_server_app(prepare, hooks, run_config={"run-dir": sys.argv[1]}),
        client_app=make_client_app(toy_task.toy_task),
        num_supernodes=3,
        backend_config={"client_resources": {"num_cpus": 1}, "init_args": {"num_cpus": 2}},
    )

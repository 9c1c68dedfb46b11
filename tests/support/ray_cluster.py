"""A small Ray cluster on this machine, for tests; its processes end with the block."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest

__all__ = ["ray_cluster"]

_MEMORY = 80 * 1024**2  # bytes of the object store, the least that Ray takes


@contextmanager
def ray_cluster(nodes: int = 2) -> Iterator[Any]:
    """Connects to a cluster of `nodes` machines with one CPU each, all of them this one; yields the cluster.

    One node has two CPUs instead: it starts sooner.
    """
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")  # what Ray will do by default; it warns until then
    os.environ.setdefault("RAY_raylet_start_wait_time_s", "180")  # of a busy machine
    import ray
    from ray.cluster_utils import Cluster

    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PYTHONPATH", os.pathsep.join(filter(None, sys.path)))  # its processes import what tests do
        cluster = Cluster()
        try:
            for _ in range(nodes):
                cluster.add_node(
                    num_cpus=2 if nodes == 1 else 1, num_gpus=0, object_store_memory=_MEMORY, include_dashboard=False
                )
            ray.init(address=cluster.address, log_to_driver=False)
            yield cluster
        finally:
            ray.shutdown()
            cluster.shutdown()

"""Workers of `Replicas` on a Ray cluster: on each machine an actor per GPU, or one for its CPUs, with its own server.

An actor serves the bundle with a private server (`open_predictor`) and calls tasks with its client. These are plain
actors and not Ray Data: this process alone reads the images and writes the chunks of the result, so that the output
needs no shared folder, and a chunk that is computed twice is written once. A pipeline of Ray Data starts from the
beginning when its process ends, and `Replicas` has to share out work among servers without Ray in any case. Ray places,
restarts and watches the workers.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

from v1t_client._client import Client
from v1t_client._errors import ConnectionFailed, InvalidArgument, V1TError
from v1t_client._extras import needed
from v1t_client._replicas import Task, Worker
from v1t_client.insilico.framework.predictors import NOT_INHERITED, open_predictor

__all__ = ["ray_workers"]


class Engine:
    """The actor: a bundle on one device."""

    def __init__(self, bundle: str, timeout: float, retries: int) -> None:
        self._stack = ExitStack()
        self._client = self._stack.enter_context(open_predictor(bundle, timeout=timeout, retries=retries))

    def run(self, task: Task) -> Any:
        try:
            return task(self._client)
        except ConnectionFailed:
            try:
                self._client.ready()
            except ConnectionFailed:
                os._exit(1)  # the private server is gone, for example for memory: Ray starts this actor again
            raise


@contextmanager
def ray_workers(
    bundle: str | os.PathLike[str], address: str, *, timeout: float = 60.0, retries: int = 3
) -> Iterator[list[Worker]]:
    """A worker for each device of a cluster, for `Replicas(workers=...)`; the actors end with the block.

    Args:
        bundle: its folder, which must be there on every machine of the cluster; so must the checkout that serves it.
        address: of a running cluster, such as "auto" or "ray://host:10001"; "local" starts one on this machine.

    Raises:
        MissingExtra: ray is not installed.
        InvalidArgument: there is no such cluster or bundle.
    """
    ray = needed("ray", extra="ray")
    path = Path(bundle).resolve()
    if not (path / "manifest.json").is_file():
        raise InvalidArgument("this is not a bundle", got=bundle, expected="a folder with a manifest.json")
    is_own = not ray.is_initialized()
    if is_own:
        _connect(ray, address)
    try:
        actors = [
            ray.remote(Engine).options(max_concurrency=2, max_restarts=-1, **place).remote(str(path), timeout, retries)
            for place in _devices(ray)
        ]
        try:
            yield [_worker(ray, actor) for actor in actors]
        finally:
            for actor in actors:
                ray.kill(actor)
    finally:
        if is_own:
            ray.shutdown()


def _connect(ray: Any, address: str) -> None:
    try:
        if address == "local":
            ray.init(address="local", include_dashboard=False, log_to_driver=False)
        else:
            ray.init(address=address, log_to_driver=False)
    except (ConnectionError, ValueError, RuntimeError) as error:
        raise InvalidArgument(
            f"no Ray cluster at this address: {error}",
            got=address,
            expected="the address of a running cluster, auto, or local",
            hint="`ray start --head` starts one; --ray local needs none.",
        ) from error


def _devices(ray: Any) -> list[dict[str, Any]]:
    """The options of an actor for each device of the cluster."""
    from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

    shared = {
        name: value for name, value in os.environ.items() if name.startswith("V1T_") and name not in NOT_INHERITED
    }
    if "V1T_HOME" in os.environ:
        shared["V1T_HOME"] = os.environ["V1T_HOME"]
    found = []
    for node in ray.nodes():
        if not node["Alive"]:
            continue
        gpus, cpus = (int(node["Resources"].get(name, 0)) for name in ("GPU", "CPU"))
        devices = gpus or min(1, cpus)
        for _ in range(devices):
            share = max(1, cpus // devices)
            found.append(
                {
                    "num_cpus": share if cpus else 0,
                    "num_gpus": 1 if gpus else 0,
                    "scheduling_strategy": NodeAffinitySchedulingStrategy(node["NodeID"], soft=False),
                    "runtime_env": {"env_vars": {"V1T_THREADS": str(share), **shared}},
                }
            )
    if not found:
        raise InvalidArgument("the Ray cluster has no CPUs and no GPUs", got=ray.cluster_resources())
    return found


def _worker(ray: Any, actor: Any) -> Worker:
    def call(task: Callable[[Client], Any]) -> Any:
        try:
            return ray.get(actor.run.remote(task))
        except ray.exceptions.RayTaskError as error:
            if isinstance(error.cause, V1TError):
                raise error.cause from None
            raise
        except ray.exceptions.ActorDiedError as error:
            if isinstance(getattr(error, "cause", None), V1TError):
                raise error.cause from None
            raise ConnectionFailed(f"a worker on the Ray cluster ended: {error}") from error
        except ray.exceptions.RayError as error:
            raise ConnectionFailed(f"a worker on the Ray cluster does not answer: {error}") from error

    return call

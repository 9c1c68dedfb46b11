"""`RayPool`: an executor whose processes are tasks on a Ray cluster, for trainings on many machines.

The working folder, the recordings and the output have to be the same folders on all machines. A task whose process or
machine dies is started again on another one, and resumes from the files of the first.
"""

from __future__ import annotations

import os
import socket
from collections.abc import Callable, Mapping
from concurrent.futures import Executor, Future
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from training.errors import ConfigError, TrainingError

if TYPE_CHECKING:
    import argparse

__all__ = ["RayPool", "add_ray"]

RETRIES = 10  # of a task whose process died


def add_ray(parser: argparse.ArgumentParser, what: str) -> None:
    """Adds --ray.

    Args:
        what: the tasks, in plural.
    """
    help_ = f"run {what} on a Ray cluster, which shares --output and the recordings; `local` starts one here"
    parser.add_argument("--ray", metavar="ADDRESS", help=help_)


class RayPool(Executor):
    """Tasks with as many CPUs as torch uses threads here, so that they give the same weights as here.

    Args:
        address: of a running cluster, such as "auto"; "local" starts one on this machine.
        gpus: of each task.

    Attributes:
        slots: the number of tasks that run at the same time.

    Raises:
        ConfigError: ray is not installed, or there is no such cluster, or it has no machine for a task.
    """

    def __init__(self, address: str, *, gpus: int = 0) -> None:
        try:
            import ray
        except ModuleNotFoundError as error:
            raise ConfigError("--ray needs ray, which is not installed", hint="pip install ray") from error
        self._ray = ray
        self._threads = torch.get_num_threads()
        self._connected = not ray.is_initialized()
        if self._connected:
            _connect(ray, address)
        try:
            self.slots = self._count_slots(gpus)
        except ConfigError:
            self.shutdown()
            raise
        self._task = ray.remote(_run).options(
            num_cpus=self._threads,
            num_gpus=gpus,
            max_retries=RETRIES,
            runtime_env={"env_vars": {"TQDM_DISABLE": "1", "OMP_NUM_THREADS": str(self._threads)}},
        )

    def submit(self, function: Callable[..., Any], /, *args: Any, **kwargs: Any) -> Future[Any]:
        """Starts a task. Its future raises the task's own error."""
        future: Future[Any] = Future()
        future.set_running_or_notify_cancel()

        def done(answer: Future[Any]) -> None:
            error = answer.exception()
            if error is None:
                future.set_result(answer.result())
                return
            cause = getattr(error, "cause", None)
            if isinstance(cause, BaseException):  # what the task raised
                future.set_exception(cause)
            elif isinstance(error, self._ray.exceptions.RayError):
                future.set_exception(TrainingError(f"a task on the Ray cluster failed: {error}"))
            else:
                future.set_exception(error)

        self._task.remote(str(Path.cwd()), self._threads, function, args, kwargs).future().add_done_callback(done)
        return future

    def shutdown(self, wait: bool = True, *, cancel_futures: bool = False) -> None:
        """Leaves the cluster, which ends the tasks that still run."""
        if self._connected:
            self._ray.shutdown()

    def _count_slots(self, gpus: int) -> int:
        nodes: list[Mapping[str, float]] = [node["Resources"] for node in self._ray.nodes() if node["Alive"]]
        fit = [
            min(int(node.get("CPU", 0)) // self._threads, int(node.get("GPU", 0)) // gpus if gpus else 2**31)
            for node in nodes
        ]
        if not sum(fit):
            raise ConfigError(
                "no machine of the Ray cluster has room for a training",
                got="; ".join(f"{int(node.get('CPU', 0))} CPUs, {int(node.get('GPU', 0))} GPUs" for node in nodes),
                expected=f"{self._threads} CPUs (the threads of torch here) and {gpus} GPUs on one machine",
                hint="OMP_NUM_THREADS=1 before the command asks for one CPU.",
            )
        return sum(fit)


def _connect(ray: Any, address: str) -> None:
    try:
        if address == "local":
            ray.init(address="local", include_dashboard=False)
        else:
            ray.init(address=address)
    except (ConnectionError, ValueError, RuntimeError) as error:
        raise ConfigError(
            f"--ray {address}: no Ray cluster: {error}",
            expected="the address of a running cluster, auto, or local",
            hint="`ray start --head` starts one; --ray local needs none.",
        ) from error


def _run(folder: str, threads: int, function: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    """The task."""
    try:
        os.chdir(folder)
    except OSError as error:
        raise ConfigError(
            f"{socket.gethostname()} does not have the folder {folder}: {error.strerror}",
            hint="Start the command in a folder that all machines of the cluster share.",
        ) from error
    torch.set_num_threads(threads)
    return function(*args, **kwargs)

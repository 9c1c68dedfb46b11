"""Trains the members of a run, each in its folder: in sequence, in parallel, on several devices or many machines."""

from __future__ import annotations

import os
import pickle
import threading
import time
from concurrent.futures import ProcessPoolExecutor
from dataclasses import replace
from multiprocessing import get_context
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from training.files import locked
from training.ray_pool import RayPool
from training.trainer.hardware import Hardware, leave_together
from training.trainer.loop import train_member
from training.trainer.run_spec import RunSpec

if TYPE_CHECKING:
    from lightning_fabric import Fabric

__all__ = ["gpus_of", "member_folder", "train_members", "worker_pool"]

LOCK = ".lock"


def member_folder(run: Path, member: int) -> Path:
    return run / f"member-{member}"


def train_members(spec: RunSpec, run: Path, *, ray: str | None = None) -> list[float]:
    """Trains the members of a run, or resumes them; returns their validation scores.

    `spec.parallel` members are trained at the same time, with the same weights as in sequence. On GPUs each member
    takes the next GPU, on a CPU its share of the cores.

    Args:
        ray: the address of a Ray cluster, whose machines train the members instead.
    """
    members = range(spec.members)
    folders = [member_folder(run, i) for i in members]
    own_core = [replace(spec, cores=[core] if (core := spec.core(i)) else ()) for i in members]  # less to send
    if ray is not None:
        with RayPool(ray, gpus=gpus_of(spec.hardware)) as pool:
            return list(pool.map(_train, own_core, folders, members))
    if spec.parallel == 1 or spec.members == 1:
        return [_train(spec, folder, i) for i, folder in enumerate(folders)]
    threads = max(1, torch.get_num_threads() // spec.parallel)
    placed = [replace(one, hardware=placed_hardware(spec.hardware, i)) for i, one in enumerate(own_core)]
    with worker_pool(spec.parallel, threads) as pool:
        return list(pool.map(_train, placed, folders, members))


def _train(spec: RunSpec, folder: Path, member: int) -> float:
    with locked(folder / LOCK):
        if spec.hardware.devices == 1:
            return train_member(spec, folder, member=member)
        launch: Any = spec.hardware.fabric().launch
        # Pickled here, because Lightning searches its arguments for modules.
        score: float = launch(_train_share, pickle.dumps((spec, folder, member)), os.getpid())
        return score


def _train_share(fabric: Fabric, pickled: bytes, parent: int) -> float:
    end_with(parent)
    spec, folder, member = pickle.loads(pickled)
    score = train_member(spec, folder, member=member, fabric=fabric)
    leave_together(fabric)
    return score


def gpus_of(hardware: Hardware) -> int:
    """The GPUs that a training takes on a machine of a Ray cluster; this machine need not have any."""
    return hardware.devices if hardware.device.startswith("cuda") else 0


def placed_hardware(hardware: Hardware, member: int) -> Hardware:
    """The hardware of one of several parallel members: with `device` "cuda", the members take the GPUs in turn."""
    if hardware.resolved() != torch.device("cuda"):
        return hardware
    return hardware.model_copy(update={"device": f"cuda:{member % torch.cuda.device_count()}"})


def worker_pool(workers: int, threads: int) -> ProcessPoolExecutor:
    """Processes with this number of torch threads each, which end with this one."""
    os.environ.setdefault("TQDM_DISABLE", "1")  # for the workers, whose progress bars would overwrite each other
    return ProcessPoolExecutor(
        workers, mp_context=get_context("spawn"), initializer=_start_worker, initargs=(os.getpid(), threads)
    )


def _start_worker(parent: int, threads: int) -> None:
    end_with(parent)
    torch.set_num_threads(threads)


def end_with(parent: int) -> None:
    """Ends this worker process when its parent dies, so that it does not keep writing into the run's folder."""

    def watch() -> None:
        while os.getppid() == parent:
            time.sleep(0.2)
        os._exit(1)

    if os.name == "posix":
        threading.Thread(target=watch, name="watch parent", daemon=True).start()

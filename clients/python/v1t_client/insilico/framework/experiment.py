"""The base class of experiments: a frozen set of parameters that runs on any predictor.

    @dataclass(frozen=True, kw_only=True)
    class Tuning(Experiment):
        name: ClassVar[str] = "tuning"
        n_directions: int = 16

        def measure(self, subject: Subject, work: Work) -> xarray.Dataset: ...
        def draw(self, result: Result) -> dict[str, Figure]: ...

    Tuning(mouse="A").run(client)                        # a Result in memory
    perform(Tuning(mouse="A"), client, Path("tuning-A"))  # saved, resumable

A run depends on its parameters and on the model alone, so a receipt can be replayed.
"""

from __future__ import annotations

import argparse
import shutil
import time
from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, TypeVar

from v1t_client._answers.mice import SENSORIUM_BEHAVIOR
from v1t_client._errors import InvalidArgument
from v1t_client._predictor import Predictor
from v1t_client._protocol.arguments import State
from v1t_client._replacing import cannot_write
from v1t_client.insilico.framework.checkpoint import Work
from v1t_client.insilico.framework.receipt import Receipt
from v1t_client.insilico.framework.result import Result
from v1t_client.insilico.framework.subject import Subject
from v1t_client.insilico.stimuli.monitor import Monitor

if TYPE_CHECKING:
    import xarray

__all__ = ["Experiment", "perform"]

Self = TypeVar("Self", bound="Experiment")
STATE = (*SENSORIUM_BEHAVIOR, "behavior", "pupil_center", "state", "strict")


@dataclass(frozen=True, kw_only=True)
class Experiment(ABC):
    """The parameters that all experiments share. A subclass adds its own, and `measure` and `draw`.

    Attributes:
        mouse: mouse id. `model`: bundle name, needed where several bundles contain the mouse.
        neuron_ids: which neurons; all if None. `best`: instead, this many neurons with the best test scores.
        monitor: geometry of the screen, for lengths in degrees; without it lengths are pixels.
        luminance: background level; the training images' mean if None.
        seed: of all random numbers.
        pupil_dilation, ..., pupil_center: behaviour during the experiment; where None, that of `state`.
        behavior: any behaviour channels by name, beside or instead of the arguments for single channels.
        state: a named state of the mouse: "median" and "mean" of the training trials, "rest", "running".
        strict: refuse stimuli and behaviour outside what was recorded; by default a note says so.
    """

    name: ClassVar[str]
    summary: ClassVar[str]  # one line for --help
    examples: ClassVar[str]  # for --help

    mouse: str
    model: str | None = None
    neuron_ids: tuple[int, ...] | None = None
    best: int | None = None
    monitor: Monitor | None = None
    luminance: float | None = None
    seed: int = 0
    pupil_dilation: float | None = None
    pupil_dilation_derivative: float | None = None
    running_speed: float | None = None
    behavior: Mapping[str, float] | None = None
    pupil_center: tuple[float, float] | None = None
    state: State = "median"
    strict: bool = False

    @abstractmethod
    def measure(self, subject: Subject, work: Work) -> xarray.Dataset:
        """Runs the experiment and returns `subject.dataset(...)`; resumes from the state in `work`."""

    @abstractmethod
    def draw(self, result: Result) -> dict[str, Any]:
        """File name without suffix -> matplotlib Figure, drawn from the result alone."""

    def figures(self, result: Result) -> dict[str, Any]:
        """The figures of `draw`, in the style of all figures and with the result's caption at their foot."""
        return result.drawn(self.draw)

    def summarize(self, result: Result) -> str:
        """A few lines for the terminal."""
        return ", ".join(map(str, result.dataset.data_vars))

    def subject(self, predictor: Predictor) -> Subject:
        """The mouse and neurons of this experiment."""
        return Subject.of(
            predictor,
            self.mouse,
            model=self.model,
            neuron_ids=self.neuron_ids,
            best=self.best,
            monitor=self.monitor,
            luminance=self.luminance,
            state={name: getattr(self, name) for name in STATE if getattr(self, name) is not False},
        )

    def run(self, predictor: Predictor, work: Work | None = None) -> Result:
        """Runs the experiment in memory; `perform` also saves the result."""
        return self._run(self.subject(predictor), work or Work(quiet=True))

    def _run(self, subject: Subject, work: Work, *, predictor: str = "", command: str = "") -> Result:
        dataset = self.measure(subject, work)
        receipt = Receipt(
            experiment=self.name,
            parameters=self.to_dict(),
            model=asdict(subject.model),
            screen=subject.screen.to_dict(),
            assumed=subject.assumed,
            held=subject.held,
            notes=[asdict(note) for note in subject.notes],
            standardized_inputs=subject.mouse.standardized_inputs,
            predictor=predictor,
            command=command,
            created=time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
            seconds=round(work.seconds, 1),
        )
        return Result(dataset, receipt)

    def to_dict(self) -> dict[str, Any]:
        """The parameters as JSON values."""
        return {field.name: _to_json(getattr(self, field.name)) for field in fields(self)}

    @classmethod
    def from_dict(cls: type[Self], content: Mapping[str, Any]) -> Self:
        """The inverse of `to_dict`.

        Raises:
            InvalidArgument: a parameter is unknown to this version.
        """
        unknown = sorted(set(content) - {field.name for field in fields(cls)})
        if unknown:
            raise InvalidArgument(
                f"{cls.name} has no such parameters", got=", ".join(unknown), hint="Another version wrote the receipt."
            )
        values = {name: _to_tuples(value) for name, value in content.items()}
        if isinstance(values.get("monitor"), dict):
            values["monitor"] = Monitor.from_dict(values["monitor"])
        return cls(**values)

    @classmethod  # noqa: B027 - not abstract: it is optional
    def add_arguments(cls, parser: argparse.ArgumentParser) -> None:
        """Adds the options of the subclass; the `dest` of an option is the name of its field."""

    @classmethod
    def from_options(cls: type[Self], options: argparse.Namespace) -> Self:
        """From parsed command line options, whose names are those of the fields."""
        given = vars(options)
        values = {field.name: given[field.name] for field in fields(cls) if field.name in given}
        return cls(**{name: _to_tuples(value) for name, value in values.items()})


def perform(
    experiment: Experiment,
    predictor: Predictor,
    output: Path | str,
    *,
    force: bool = False,
    quiet: bool = False,
    where: str = "",
    command: str = "",
) -> Result:
    """Runs an experiment and writes result.nc, neurons.parquet, receipt.json and figures to the folder `output`.

    After an interruption the same call resumes from `output.partial`. The folder `output` appears when it is complete.

    Args:
        force: overwrite a result, and discard an interrupted run.
        quiet: no progress on stderr.
        where, command: for the receipt: the URL or bundle, and the command line.

    Raises:
        InvalidArgument: the output exists or cannot be written, or there is an unfinished run of other parameters.
    """
    try:
        return _perform(experiment, predictor, Path(output), force=force, quiet=quiet, where=where, command=command)
    except OSError as error:
        raise cannot_write(error, output, "Finished work is kept: free space, run the same command again.") from error


def _perform(
    experiment: Experiment, predictor: Predictor, output: Path, *, force: bool, quiet: bool, where: str, command: str
) -> Result:
    subject = experiment.subject(predictor)
    work = Work(output, quiet=quiet, log=subject.log)
    identity = {"experiment": experiment.name, "parameters": experiment.to_dict(), "model_hash": subject.model.hash}
    if work.begin(identity, force=force):
        subject.resume(work.log_before)
    result = experiment._run(subject, work, predictor=where, command=command)
    assert work.folder is not None
    made = work.folder / "made"
    shutil.rmtree(made, ignore_errors=True)  # left by a run that was interrupted while writing
    try:
        result.write(made, experiment.figures(result))
    except OSError:
        shutil.rmtree(made, ignore_errors=True)
        raise
    work.finish(made)
    return result


def _to_json(value: Any) -> Any:
    if isinstance(value, Monitor):
        return value.to_dict()
    if isinstance(value, Path):
        return str(value)
    if isinstance(value, tuple):
        return [_to_json(item) for item in value]
    return value


def _to_tuples(value: Any) -> Any:
    """Lists become tuples, as in the frozen parameters."""
    return tuple(_to_tuples(item) for item in value) if isinstance(value, list) else value

"""An experiment: its parameters, frozen and complete, and how it runs on any predictor.

    @dataclass(frozen=True, kw_only=True)
    class Tuning(Experiment):
        name: ClassVar[str] = "tuning"
        n_directions: int = 16

        def measure(self, subject: Subject, work: Work) -> xarray.Dataset: ...
        def figures(self, result: Result) -> dict[str, Figure]: ...

    Tuning(mouse="A").run(client)                        # a Result in memory
    perform(Tuning(mouse="A"), client, Path("tuning-A"))  # saved, resumable

The parameters are all that a run depends on beside the model, so a receipt can be replayed.
"""

from __future__ import annotations

import argparse
import time
from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, TypeVar

from v1t_client._errors import InvalidArgument
from v1t_client._predictor import Predictor
from v1t_client.insilico.framework.checkpoint import Work
from v1t_client.insilico.framework.receipt import Receipt
from v1t_client.insilico.framework.result import Result
from v1t_client.insilico.framework.subject import Subject
from v1t_client.insilico.stimuli.monitor import Monitor

if TYPE_CHECKING:
    import xarray

__all__ = ["Experiment", "perform"]

Self = TypeVar("Self", bound="Experiment")
STATE = ("pupil_dilation", "pupil_dilation_derivative", "running_speed", "pupil_center")


@dataclass(frozen=True, kw_only=True)
class Experiment(ABC):
    """What every experiment has; a subclass adds its own parameters, `measure` and `figures`.

    Attributes:
        mouse, model: who is asked; `model` where several bundles hold the mouse.
        neuron_ids: which neurons; all if None. `best`: so many of the best test scores instead.
        monitor: needed for degrees; without it lengths are pixels.
        luminance: background level; the training images' mean if None.
        seed: of everything random.
        pupil_dilation, ..., pupil_center: the state that the mouse is held in; its training mean where None.
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
    pupil_center: tuple[float, float] | None = None

    @abstractmethod
    def measure(self, subject: Subject, work: Work) -> xarray.Dataset:
        """Asks the subject and returns `subject.dataset(...)`; goes on from what `work` has."""

    @abstractmethod
    def figures(self, result: Result) -> dict[str, Any]:
        """File name without ending -> matplotlib Figure, drawn from the result alone."""

    def summarize(self, result: Result) -> str:
        """A few lines for the terminal."""
        return ", ".join(map(str, result.dataset.data_vars))

    def subject(self, predictor: Predictor) -> Subject:
        """Whom this experiment asks."""
        return Subject.of(
            predictor,
            self.mouse,
            model=self.model,
            neuron_ids=self.neuron_ids,
            best=self.best,
            monitor=self.monitor,
            luminance=self.luminance,
            state={name: getattr(self, name) for name in STATE},
        )

    def run(self, predictor: Predictor, work: Work | None = None) -> Result:
        """Runs it, in memory; `perform` also saves."""
        return self._run(self.subject(predictor), work or Work(quiet=True))

    def _run(self, subject: Subject, work: Work, *, predictor: str = "", command: str = "") -> Result:
        dataset = self.measure(subject, work)
        receipt = Receipt(
            experiment=self.name,
            parameters=self.to_dict(),
            model=asdict(subject.model),
            screen=subject.screen.to_dict(),
            assumed=subject.assumed,
            predictor=predictor,
            command=command,
            created=time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
            seconds=round(work.seconds, 1),
        )
        return Result(dataset, receipt)

    def to_dict(self) -> dict[str, Any]:
        """The parameters, as JSON has them."""
        return {field.name: _plain(getattr(self, field.name)) for field in fields(self)}

    @classmethod
    def from_dict(cls: type[Self], content: Mapping[str, Any]) -> Self:
        """The inverse of `to_dict`.

        Raises:
            InvalidArgument: a parameter that this version does not know.
        """
        unknown = sorted(set(content) - {field.name for field in fields(cls)})
        if unknown:
            raise InvalidArgument(
                f"{cls.name} has no such parameters", got=", ".join(unknown), hint="The receipt is of another version."
            )
        values = {name: _tupled(value) for name, value in content.items()}
        if isinstance(values.get("monitor"), dict):
            values["monitor"] = Monitor.from_dict(values["monitor"])
        return cls(**values)

    @classmethod  # noqa: B027 - not abstract: there need not be any
    def add_arguments(cls, parser: argparse.ArgumentParser) -> None:
        """The subclass's own options; an option's `dest` is the field that it sets."""

    @classmethod
    def from_options(cls: type[Self], options: argparse.Namespace) -> Self:
        """From parsed options, by the names of the fields."""
        given = vars(options)
        values = {field.name: given[field.name] for field in fields(cls) if field.name in given}
        return cls(**{name: _tupled(value) for name, value in values.items()})


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
    """Runs an experiment and leaves `output` with result.nc, neurons.parquet, receipt.json and figures.

    Interrupted, the same call goes on from `output.partial`. Nothing appears under `output` before all of it is there.

    Args:
        force: overwrite a result, and throw away an unfinished run.
        quiet: no progress on stderr.
        where, command: for the receipt: who was asked, and what was typed.

    Raises:
        InvalidArgument: the output exists, or an unfinished run of other parameters lies there.
    """
    subject = experiment.subject(predictor)
    work = Work(Path(output), quiet=quiet)
    identity = {"experiment": experiment.name, "parameters": experiment.to_dict(), "model_hash": subject.model.hash}
    work.begin(identity, force=force)
    result = experiment._run(subject, work, predictor=where, command=command)
    assert work.folder is not None
    made = work.folder / "made"
    _remove(made)
    result.write(made, experiment.figures(result))
    work.finish(made)
    return result


def _remove(folder: Path) -> None:
    """What a run that was interrupted while it wrote has left."""
    if folder.exists():
        for file in folder.iterdir():
            file.unlink()
        folder.rmdir()


def _plain(value: Any) -> Any:
    if isinstance(value, Monitor):
        return value.to_dict()
    if isinstance(value, Path):
        return str(value)
    if isinstance(value, tuple):
        return [_plain(item) for item in value]
    return value


def _tupled(value: Any) -> Any:
    """Lists as the frozen parameters have them."""
    return tuple(_tupled(item) for item in value) if isinstance(value, list) else value

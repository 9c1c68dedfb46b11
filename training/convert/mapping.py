"""What of an NWB file becomes what of a recording: guessed, from a preset, and overridden in a YAML file."""

from __future__ import annotations

from dataclasses import asdict, dataclass, field, fields, replace
from pathlib import Path
from typing import Any

from training.convert.windows import STATISTICS, Statistic, Window
from training.errors import ConfigError
from training.safe_yaml import load_yaml

__all__ = ["PRESETS", "Mapping", "read_mapping"]


@dataclass(frozen=True, kw_only=True)
class Mapping:
    """What becomes what. Series and tables are given by path, such as "ophys/DfOverF/DfOverF", or by name.

    Attributes:
        stimulus: a series of images or of indices of images, or a table of presentations; empty to guess.
        image_column: the column of a table with the index of the image.
        images: the images of a table, an `Images` or an `ImageSeries`.
        stimulus_samples: "onsets", each sample is a presentation; "frames", each sample is a frame of the monitor, and
            a run of the same index is one presentation.
        blanks: indices that stand for no image.
        image_size: height and width to which images are resized; empty to keep them.
        responses: one series per plane; empty to guess.
        response_samples: "times", windows are cut from them; "trials", row i is trial i; empty to guess.
        planes: a name for each of the series; by default those of their imaging planes.
        keep: a column of the ROI table that is true for the cells to take.
        neuron_id: a column of the ROI table with integers; by default its ids.
        coordinates: three columns of the ROI table [um]; by default the centres of the masks.
        window_ms, baseline_ms, statistic: see `training.convert.windows`.
        behavior: channel -> series, and "pupil_center" -> series. "none" leaves out a channel. Without a series for
            "pupil_dilation_derivative" it is computed from the pupil.
        max_gap_s: longer gaps of behaviour and gaze are not interpolated.
        max_dropped: the share of trials that may be left out because samples are missing.
        clocks: series -> seconds to add to its times. "stimulus" and "responses" stand for those.
    """

    stimulus: str = ""
    image_column: str = ""
    images: str = ""
    stimulus_samples: str = "onsets"
    blanks: tuple[int, ...] = ()
    image_size: tuple[int, ...] = ()
    responses: tuple[str, ...] = ()
    response_samples: str = ""
    planes: tuple[str, ...] = ()
    keep: str = ""
    neuron_id: str = ""
    coordinates: tuple[str, ...] = ()
    window_ms: tuple[float, ...] = (50.0, 500.0)
    baseline_ms: tuple[float, ...] = ()
    statistic: Statistic = "mean"
    behavior: dict[str, str] = field(default_factory=dict)
    max_gap_s: float = 1.0
    max_dropped: float = 0.1
    clocks: dict[str, float] = field(default_factory=dict)

    def __post_init__(self) -> None:
        choices = {
            "stimulus_samples": ("onsets", "frames"),
            "response_samples": ("", "times", "trials"),
            "statistic": STATISTICS,
        }
        for name, allowed in choices.items():
            if getattr(self, name) not in allowed:
                raise ConfigError(f"{name} is unknown", got=repr(getattr(self, name)), expected=" or ".join(allowed))
        for name in ("window_ms", "baseline_ms"):
            value = getattr(self, name)
            if value and not (len(value) == 2 and value[0] < value[1]):
                raise ConfigError(f"{name} is not a window", got=list(value), expected="such as 50 500")
        if not self.window_ms:
            raise ConfigError("window_ms is empty", expected="such as 50 500")
        if self.image_size and (len(self.image_size) != 2 or min(self.image_size) < 8):
            raise ConfigError(
                "image_size is invalid", got=list(self.image_size), expected="height and width, 8 or more"
            )
        if self.coordinates and len(self.coordinates) != 3:
            raise ConfigError("coordinates are not three columns", got=list(self.coordinates))
        if self.max_gap_s < 0 or not 0 <= self.max_dropped < 1:
            raise ConfigError("max_gap_s or max_dropped is out of range", expected="0 or more; 0 to 1")

    @property
    def window(self) -> Window:
        return self.window_ms[0] / 1000, self.window_ms[1] / 1000

    @property
    def baseline(self) -> Window | None:
        return (self.baseline_ms[0] / 1000, self.baseline_ms[1] / 1000) if self.baseline_ms else None

    def text(self) -> str:
        """The YAML that gives this mapping again: what is at its default is left out, sources are not."""
        lines = []
        for one in fields(self):
            value = getattr(self, one.name)
            if value in ("", (), {}) or (value == one.default and one.name not in ("window_ms", "statistic")):
                continue
            if isinstance(value, dict):
                lines += [f"{one.name}:", *(f"  {key}: {inner}" for key, inner in value.items())]
            else:
                lines.append(f"{one.name}: {list(value) if isinstance(value, tuple) else value}".replace("'", ""))
        return "\n".join(lines)

    def updated(self, content: dict[str, Any], *, where: str) -> Mapping:
        """This mapping with what `content` gives; dictionaries are merged.

        Raises:
            ConfigError: an option is unknown or has a wrong type; the message names `where`.
        """
        known = {one.name: one for one in fields(self)}
        values: dict[str, Any] = {}
        for name, value in content.items():
            if name not in known:
                raise ConfigError(f"{where}: unknown option {name!r}", expected=", ".join(known))
            values[name] = _typed(name, value, getattr(self, name), where)
            if isinstance(values[name], dict):
                values[name] = {**getattr(self, name), **values[name]}
        return replace(self, **values)

    def as_dict(self) -> dict[str, Any]:
        return asdict(self)


def _typed(name: str, value: Any, now: Any, where: str) -> Any:
    """A value as the option takes it: a single word or number is also a list of one."""
    if isinstance(now, tuple):
        items = [] if value is None else value if isinstance(value, list | tuple) else [value]
        inner: type = {"window_ms": float, "baseline_ms": float, "blanks": int, "image_size": int}.get(name, str)
        kinds = (int, float) if inner is float else inner
        if all(isinstance(item, kinds) and not isinstance(item, bool) for item in items):
            return tuple(inner(item) for item in items)
    elif isinstance(now, dict):
        kinds = (int, float) if name == "clocks" else str
        if isinstance(value, dict) and all(isinstance(k, str) and isinstance(v, kinds) for k, v in value.items()):
            return dict(value)
    elif isinstance(now, float):
        if isinstance(value, int | float) and not isinstance(value, bool):
            return float(value)
    elif isinstance(value, str):
        return value
    raise ConfigError(f"{where}: {name} has a wrong type", got=repr(value), expected=f"such as {now!r}")


# Files whose structure is known; everything else is guessed.
PRESETS: dict[str, dict[str, Any]] = {
    # DANDI 000728, Allen Institute - Visual Coding - Optical Physiology (the Brain Observatory in NWB 2). A blank is
    # -1 in the original files, and was cast to unsigned. The images have 918 x 1174 pixels.
    "allen-visual-coding": {
        "stimulus": "natural_scenes_stimulus",
        "blanks": [4294967295, -1],
        "image_size": [144, 184],
        "responses": ["ophys/DfOverF/DfOverF"],
        "neuron_id": "global_roi_id",
        "behavior": {
            "pupil_dilation": "behavior/PupilTracking/pupil_size",
            "running_speed": "behavior/BehavioralTimeSeries/running_speed",
            "pupil_center": "behavior/EyeTracking/pupil_location",
        },
    },
    # What `convert to-nwb` writes of a recording in the Sensorium layout: one sample per trial.
    "sensorium": {
        "stimulus": "shown_images",
        "response_samples": "trials",
        "coordinates": ["x_um", "y_um", "z_um"],
    },
}


def read_mapping(preset: str | None, path: Path | None, options: dict[str, Any]) -> Mapping:
    """The defaults, then a preset, then a YAML file, then options of the command line.

    Raises:
        ConfigError: the file cannot be read, or has an unknown option.
    """
    mapping = Mapping()
    if preset is not None:
        mapping = mapping.updated(PRESETS[preset], where=f"preset {preset}")
    if path is not None:
        try:
            content = load_yaml(path.read_text(encoding="utf-8"))
        except (OSError, UnicodeDecodeError, ValueError) as error:
            raise ConfigError(f"{path} cannot be read as YAML: {error}") from error
        if not isinstance(content, dict):
            raise ConfigError(f"{path} is not a mapping", got=type(content).__name__, expected="option: value lines")
        mapping = mapping.updated(content, where=str(path))
    return mapping.updated(options, where="command line")

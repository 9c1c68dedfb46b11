"""NWB files as labs write them, with pynwb alone: traces over time, ROI tables, stimuli in several forms."""

from __future__ import annotations

import warnings
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pynwb
from pynwb.base import ImageReferences, Images
from pynwb.behavior import BehavioralTimeSeries, EyeTracking, PupilTracking, SpatialSeries
from pynwb.image import GrayscaleImage, Image, ImageSeries, IndexSeries, OpticalSeries
from pynwb.ophys import DfOverF, ImageSegmentation, OpticalChannel, PlaneSegmentation

__all__ = ["LabSession"]

WINDOW = (0.05, 0.5)


@dataclass(eq=False)
class LabSession:
    """A session with random traces: 12 images of which 4 are shown 4 times, and two planes."""

    seed: int = 0
    stimulus: str = "index"  # or "index of series", "images", "optical"
    planes: tuple[str, ...] = ("shallow", "deep")
    n: int = 5  # neurons per plane
    n_trials: int | None = None  # only the first ones
    start: float = 0.0  # of the imaging clock
    clock: float = 0.0  # what the stimulus clock is ahead
    order: tuple[int, ...] | None = None  # rows of the ROI table, for the columns of each series
    blanks: tuple[int, ...] = ()
    images: np.ndarray = field(init=False)
    shown: np.ndarray = field(init=False)
    onsets: np.ndarray = field(init=False)

    def __post_init__(self) -> None:
        rng = np.random.default_rng(self.seed)
        self.images = rng.integers(0, 256, (12, 18, 32)).astype(np.uint8)
        shown = rng.permutation(np.concatenate([np.repeat(np.arange(4), 4), np.arange(4, 12)]))
        self.shown = shown[: self.n_trials]
        self.onsets = self.start + 1.03 + 0.8 * np.arange(len(self.shown)) + rng.uniform(0, 0.1, len(self.shown))
        n_frames = int((self.onsets[-1] - self.start + 2) * 15)
        self.times = self.start + 0.011 + np.arange(n_frames) / 15  # (F,)
        self.traces = {name: rng.gamma(1.0, 1.0, (n_frames, self.n)) for name in self.planes}  # by row of the table
        self.positions = {name: rng.uniform(0, 400, (self.n, 3)) for name in self.planes}
        self.ids = {name: 100 * (i + 1) + rng.permutation(self.n) for i, name in enumerate(self.planes)}
        self.eye_times = self.start + np.arange(0, self.onsets[-1] - self.start + 2, 1 / 60)
        slow = self.eye_times - self.start
        self.pupil = 40 + 5 * np.sin(slow / 3)
        self.speed = np.abs(10 * np.cos(slow / 2))  # cm/s
        self.gaze = np.stack([300 + slow, 200 - 2 * slow], axis=1)

    def expected(self, name: str, window: tuple[float, float] = WINDOW) -> np.ndarray:
        """(T, n) means over the window, by row of the ROI table, one trial after another."""
        inside = [(self.times >= onset + window[0]) & (self.times < onset + window[1]) for onset in self.onsets]
        return np.stack([self.traces[name][frames].mean(0) for frames in inside])

    def nwb(self) -> Any:
        nwb = pynwb.NWBFile("a session", "lab", datetime(2024, 3, 1, 10, tzinfo=UTC))
        self.add_stimulus(nwb)
        self.add_responses(nwb)
        self.add_behavior(nwb)
        return nwb

    def write(self, path: Path, nwb: Any = None) -> Path:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of pynwb, about its own arguments
            nwb = nwb or self.nwb()
            with pynwb.NWBHDF5IO(str(path), mode="w") as io:
                io.write(nwb)
        if self.stimulus == "index of series":  # which pynwb reads, and no longer writes
            with h5py.File(path, "r+") as file:
                presentations = file["stimulus/presentation/presentations"]
                del presentations["indexed_images"]
                presentations["indexed_timeseries"] = h5py.SoftLink("/stimulus/templates/picture series")
        return path

    def add_stimulus(self, nwb: Any) -> None:
        times = self.onsets - self.clock
        index = np.where(np.isin(np.arange(len(self.shown)), self.blanks), 4294967295, self.shown).astype(np.uint32)
        about = {"unit": "N/A", "timestamps": times}
        if self.stimulus.startswith("index"):
            pictures = [GrayscaleImage(name=f"picture {i:02d}", data=image) for i, image in enumerate(self.images)]
            order = ImageReferences(name="order_of_images", data=pictures)
            container = Images(name="pictures", description="all", images=pictures[::-1], order_of_images=order)
            nwb.add_stimulus_template(container)
            if self.stimulus == "index of series":
                about_series = {"unit": "n.a.", "format": "raw", "rate": 1.0}
                nwb.add_stimulus_template(ImageSeries(name="picture series", data=self.images[:, ::-1], **about_series))
            nwb.add_stimulus(IndexSeries(name="presentations", data=index, indexed_images=container, **about))
        elif self.stimulus == "images":
            frames = self.images[self.shown]
            nwb.add_stimulus(ImageSeries(name="presentations", data=frames, format="raw", **about))
        else:
            view = {"distance": 0.15, "field_of_view": [0.6, 0.3], "orientation": "upright"}
            frames = self.images[self.shown]
            nwb.add_stimulus(OpticalSeries(name="presentations", data=frames, format="raw", **view, **about))

    def add_responses(self, nwb: Any, *, module: str = "ophys") -> None:
        device = nwb.create_device(name="scope", description="two-photon")
        ophys = nwb.create_processing_module(name=module, description="responses")
        tables = []
        for name in self.planes:
            plane = nwb.create_imaging_plane(
                name=name,
                optical_channel=OpticalChannel(name="green", description="green", emission_lambda=520.0),
                description=name,
                device=device,
                excitation_lambda=920.0,
                indicator="GCaMP6s",
                location="VISp",
            )
            table = PlaneSegmentation(name=f"cells {name}", description="cells", imaging_plane=plane)
            for column in ("unit_id", "x", "y", "z", "is_cell"):
                table.add_column(column, column)
            for row in range(self.n):
                x, y, z = self.positions[name][row]
                table.add_roi(
                    pixel_mask=[(1, 2, 1.0)], unit_id=int(self.ids[name][row]), x=x, y=y, z=z, is_cell=row != 1
                )
            tables.append(table)
        ophys.add(ImageSegmentation(plane_segmentations=tables))
        rows = list(self.order or range(self.n))
        dff = DfOverF()
        ophys.add(dff)
        for name, table in zip(self.planes, tables, strict=True):
            region = table.create_roi_table_region(description="columns", region=rows)
            data = self.traces[name][:, rows]
            dff.create_roi_response_series(
                name=f"dff {name}", data=data, rois=region, unit="n.a.", timestamps=self.times
            )

    def add_behavior(self, nwb: Any) -> None:
        module = nwb.create_processing_module(name="behavior", description="behaviour")
        rate = {"starting_time": float(self.eye_times[0]), "rate": 60.0}
        pupil = pynwb.TimeSeries(name="pupil_size", data=self.pupil, unit="pixels", timestamps=self.eye_times)
        speed = pynwb.TimeSeries(name="running_speed", data=self.speed / 100, unit="m/s", **rate)
        gaze = SpatialSeries(name="pupil_location", data=self.gaze, unit="pixels", reference_frame="camera", **rate)
        module.add(PupilTracking(time_series=pupil))
        module.add(BehavioralTimeSeries(time_series=speed))
        module.add(EyeTracking(spatial_series=gaze))

    def allen(self) -> Any:
        """The structure of DANDI 000728: images without an order, blanks that were cast to unsigned, one plane."""
        nwb = pynwb.NWBFile("Visual Coding", "allen", datetime(2016, 3, 1, 10, tzinfo=UTC))
        images = [Image(name=f"NaturalScene{i}", description="", data=image) for i, image in enumerate(self.images)]
        container = Images(name="natural_scenes_template", description="scenes", images=images)
        nwb.add_stimulus_template(container)
        index = np.where(np.isin(np.arange(len(self.shown)), self.blanks), 4294967295, self.shown).astype(np.uint32)
        nwb.add_stimulus(
            IndexSeries(
                name="natural_scenes_stimulus",
                data=index,
                indexed_images=container,
                unit="N/A",
                timestamps=self.onsets,
            )
        )
        device = nwb.create_device(name="Microscope", description="two-photon")
        plane = nwb.create_imaging_plane(
            name="ImagingPlane",
            optical_channel=OpticalChannel(name="OpticalChannel", description="green", emission_lambda=520.0),
            description="the plane",
            device=device,
            excitation_lambda=910.0,
            indicator="GCaMP6f",
            location="VISp",
        )
        (name,) = self.planes
        table = PlaneSegmentation(name="PlaneSegmentation", description="ROIs", imaging_plane=plane)
        table.add_column("global_roi_id", "across sessions")
        for row in range(self.n):
            mask = [(row, 2 * row, 1.0), (row, 2 * row + 2, 1.0)]
            table.add_roi(id=int(self.ids[name][row]), pixel_mask=mask, global_roi_id=int(self.ids[name][row]))
        ophys = nwb.create_processing_module(name="ophys", description="processed")
        ophys.add(ImageSegmentation(plane_segmentations=[table]))
        fluorescence, dff = pynwb.ophys.Fluorescence(name="Fluorescence"), DfOverF(name="DfOverF")
        ophys.add(fluorescence)
        ophys.add(dff)
        noise = self.traces[name] + 100
        for container, kind, data in (
            (fluorescence, "Neuropil", noise),
            (fluorescence, "Corrected", noise),
            (dff, "DfOverF", self.traces[name]),
            (dff, "DfOverFEvents", 0 * noise),
        ):
            region = table.create_roi_table_region(description="all", region=list(range(self.n)))
            container.create_roi_response_series(name=kind, data=data, unit="a.u.", rois=region, timestamps=self.times)
        self.add_behavior(nwb)
        return nwb

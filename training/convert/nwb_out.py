"""A recording to an NWB file: `python -m training convert to-nwb`. `convert nwb --preset sensorium` reads it again.

A recording holds no times. Trials are written in the order of time, one second apart, and the file says so.
"""

from __future__ import annotations

import hashlib
import json
import os
from datetime import datetime
from pathlib import Path
from typing import Any

import numpy as np

from training.convert.extras import needed
from training.data.layout import EXCLUDED
from training.data.metadata import read_simulated
from training.data.recording_files import behavior_channels_of
from training.data.recordings import Recording
from training.data.source import Source
from training.errors import RecordingError

__all__ = ["write_nwb"]

SECONDS = 1.0  # between onsets, nominal
TIMES = {"starting_time": 0.0, "rate": 1 / SECONDS}
SHOWN = 0.5  # each image was shown for 500 ms (Willeke et al. 2022)
MICROMETRE = 1e-6
CHUNK = 64  # images read at once


def write_nwb(recording: Recording, output: Path, *, session_start: datetime) -> None:
    """Writes the file, as a whole or not at all. Trials of tier "excluded" are left out.

    Raises:
        RecordingError: the file cannot be written.
    """
    pynwb = needed("pynwb", extra="nwb")
    kept = np.flatnonzero(recording.tiers != EXCLUDED)
    kept = kept[_in_time(recording.trial_ids[kept])]  # (T,) file numbers in the order of time
    nwb = _file(pynwb, recording, session_start)
    _add_images(pynwb, nwb, recording, kept)
    _add_responses(pynwb, nwb, recording, kept)
    _add_behavior(pynwb, nwb, recording, kept)
    for name, description in {
        "image_id": "equal for trials of the same image",
        "tier": "train, validation, test or final_test",
        "trial_id": "the trial's index in time, or a hashed string where a competition hides it",
        "file_number": "the trial's number among the recording's files, without those of tier excluded",
    }.items():
        nwb.add_trial_column(name, description)
    numbers = np.argsort(np.argsort(kept))
    for place, (trial, number) in enumerate(zip(kept, numbers, strict=True)):
        nwb.add_trial(
            start_time=SECONDS * place,
            stop_time=SECONDS * place + SHOWN,
            image_id=recording.image_ids[trial],
            tier=str(recording.tiers[trial]),
            trial_id=recording.trial_ids[trial],
            file_number=int(number),
        )
    partial = output.with_name(f".{output.stem}.{os.getpid()}.partial.nwb")
    try:
        output.parent.mkdir(parents=True, exist_ok=True)
        with pynwb.NWBHDF5IO(str(partial), mode="w") as io:
            io.write(nwb)
        partial.replace(output)
    except OSError as error:
        raise RecordingError(f"{output} cannot be written: {error.strerror or error}") from error
    finally:
        partial.unlink(missing_ok=True)


def _in_time(trial_ids: np.ndarray) -> np.ndarray:
    """The order in time; that of the files where the trials' ids are hashed."""
    return np.argsort(trial_ids, kind="stable") if trial_ids.dtype.kind in "iu" else np.arange(len(trial_ids))


def _file(pynwb: Any, recording: Recording, session_start: datetime) -> Any:
    source = Source(recording.path, recording.inside)
    try:
        simulated = read_simulated(source)
    finally:
        source.close()
    animal = recording.data_key.split("-")[0]
    nobody = "Simulated: no animal was recorded. " if simulated else ""
    about = {
        "converted_from": recording.label.rpartition("/")[2],
        "data_hash": recording.data_hash,
        "mouse_id": recording.mouse_id,
        "simulated": simulated,
        "behavior_channels": list(behavior_channels_of(recording)[0]),
        "times": f"nominal: the recording holds none; trials are in the order of time, {SECONDS:g} s apart",
    }
    return pynwb.NWBFile(
        session_description=f"{nobody}Responses of {recording.n_neurons} neurons of mouse visual cortex to static "
        "images, one number per trial and neuron. Times are nominal.",
        identifier=hashlib.sha256(f"nwb {recording.data_hash}".encode()).hexdigest(),
        session_start_time=session_start,
        session_id=recording.data_key,
        experiment_description=f"{nobody}Natural images on a screen, as in Sensorium 2022 (Willeke et al. 2022).",
        keywords=["visual cortex", "static images", "Sensorium"],
        notes=json.dumps(about),
        subject=pynwb.file.Subject(
            subject_id=animal if animal.isdecimal() else recording.mouse_id.replace("/", "-"),
            species="Mus musculus",
            sex="U",
            age="P1D/",
            description=f"{nobody}Mouse {recording.mouse_id}. The recording does not hold its age and sex.",
        ),
    )


def _add_images(pynwb: Any, nwb: Any, recording: Recording, kept: np.ndarray) -> None:
    """Grey images once each, with the index of each trial; images of two channels for each trial, the channels last."""
    pixels = np.concatenate([recording.batch(kept[at : at + CHUNK]).image for at in range(0, len(kept), CHUNK)])
    if (pixels >= 0).all() and (pixels <= 255).all() and (pixels == np.rint(pixels)).all():
        pixels = pixels.astype(np.uint8)
    if pixels.shape[1] > 1:
        series = pynwb.image.ImageSeries(
            name="shown_images",
            description="The image of each trial: (trial, row, column, channel). Which channel is UV is not known.",
            data=np.moveaxis(pixels, 1, -1),
            unit="grey levels, 0 to 255",
            format="raw",
            **TIMES,
        )
        nwb.add_stimulus(series)
        return
    known: dict[tuple[str, bytes], int] = {}
    index = [
        known.setdefault((str(image_id), hashlib.sha256(image.tobytes()).digest()), len(known))
        for image_id, image in zip(recording.image_ids[kept], pixels, strict=True)
    ]
    _, first = np.unique(index, return_index=True)
    images = [
        pynwb.image.GrayscaleImage(name=f"image_{i:05d}", data=pixels[at, 0], description="(row, column) grey levels")
        for i, at in enumerate(first)
    ]
    container = pynwb.base.Images(
        name="images",
        description="The images that were shown.",
        images=images,
        order_of_images=pynwb.base.ImageReferences(name="order_of_images", data=images),
    )
    nwb.add_stimulus_template(container)
    nwb.add_stimulus(
        pynwb.image.IndexSeries(
            name="shown_images",
            description="The image of each trial.",
            data=np.array(index, dtype=np.uint32),
            indexed_images=container,
            unit="N/A",
            **TIMES,
        )
    )


def _add_responses(pynwb: Any, nwb: Any, recording: Recording, kept: np.ndarray) -> None:
    lowest = np.floor(recording.neuron_coordinates.min(0).astype(np.float64))
    device = nwb.create_device(name="Microscope", description="two-photon microscope")
    channel = pynwb.ophys.OpticalChannel(name="channel", description="green", emission_lambda=520.0)
    plane = nwb.create_imaging_plane(
        name="ImagingPlane",
        description="All imaging planes together: the recording holds the position of each neuron, not its plane.",
        optical_channel=channel,
        device=device,
        excitation_lambda=920.0,
        indicator="unknown",
        location="VISp",
        origin_coords=(lowest * MICROMETRE).tolist(),
        grid_spacing=[MICROMETRE] * 3,
        reference_frame="cortical x, y, z of the microscope's motors",
    )
    table = pynwb.ophys.PlaneSegmentation(
        name="PlaneSegmentation",
        description="The neurons. The recording holds their positions, not their masks: each mask is the voxel of 1 um "
        "at the neuron's position.",
        imaging_plane=plane,
    )
    columns = _neuron_columns(recording)
    for name, (description, _) in columns.items():
        table.add_column(name=name, description=description)
    voxels = np.rint(recording.neuron_coordinates - lowest).astype(int)  # (N, 3)
    for row in range(recording.n_neurons):
        table.add_roi(
            voxel_mask=[(*voxels[row].tolist(), 1.0)],
            **{name: values[row] for name, (_, values) in columns.items()},
        )
    module = nwb.create_processing_module(name="ophys", description="Responses of neurons.")
    module.add(pynwb.ophys.ImageSegmentation(plane_segmentations=[table]))
    responses = recording.responses(kept)
    parts = np.array_split(np.arange(recording.n_neurons), -(-recording.n_neurons // len(kept)))
    fluorescence = pynwb.ophys.Fluorescence()
    module.add(fluorescence)
    for i, part in enumerate(parts):
        fluorescence.create_roi_response_series(  # not wider than long, which nwbinspector takes for a transposed array
            name="responses" if len(parts) == 1 else f"responses_{i:03d}",
            description="One number per trial and neuron, as in the recording.",
            data=responses[:, part],
            rois=table.create_roi_table_region(description=f"neurons {part[0]} to {part[-1]}", region=part.tolist()),
            unit="a.u.",
            **TIMES,
        )


def _neuron_columns(recording: Recording) -> dict[str, tuple[str, Any]]:
    """Column -> description and values, of everything that the recording knows of its neurons."""
    source = Source(recording.path, recording.inside)
    prefix = "meta/neurons/"
    try:
        found = {
            name.removeprefix(prefix).removesuffix(".npy"): source.array(name)
            for name in source.names()
            if name.startswith(prefix)
        }
    finally:
        source.close()
    found["unit_id"] = found.pop("unit_ids").astype(np.int64)
    positions = found.pop("cell_motor_coordinates")
    found |= {f"{axis}_um": positions[:, k] for k, axis in enumerate("xyz")}
    about = {
        "unit_id": "the neuron's id in the recording",
        **{f"{axis}_um": f"cortical {axis} [um], from the motors of the microscope" for axis in "xyz"},
    }
    return {
        name: (
            about.get(name, f"{name}, as in the recording"),
            values.tolist() if values.dtype.kind in "OSU" else values,
        )
        for name, values in found.items()
        if values.shape == (recording.n_neurons,)
    }


def _add_behavior(pynwb: Any, nwb: Any, recording: Recording, kept: np.ndarray) -> None:
    behavior, pupil_center = recording.states_of(kept)
    if not (recording.has_behavior or recording.has_pupil_center):
        return
    module = nwb.create_processing_module(name="behavior", description="The mean of each trial.")
    if recording.has_behavior:
        series = [
            pynwb.TimeSeries(name=name, description="mean of each trial", data=values, unit=unit, **TIMES)
            for name, unit, values in zip(*behavior_channels_of(recording), behavior.T, strict=True)
        ]
        module.add(pynwb.behavior.BehavioralTimeSeries(time_series=series))
    if recording.has_pupil_center:
        gaze = pynwb.behavior.SpatialSeries(
            name="pupil_center",
            description="x and y of the pupil's centre, the mean of each trial",
            data=pupil_center,
            unit="pixels",
            reference_frame="pixels of the eye camera",
            **TIMES,
        )
        module.add(pynwb.behavior.EyeTracking(spatial_series=[gaze]))

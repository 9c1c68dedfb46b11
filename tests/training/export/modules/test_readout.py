"""The readout for serving, against torch's own bilinear sample."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from support.tiny_twins import tiny_checkpoint, tiny_config, tiny_mouse

from training.export.modules.readout import GatherReadout, TouchedTokens


@pytest.mark.parametrize(
    "core",
    [
        {},
        {"patch_size": 12, "patch_stride": 3},  # one row
        {"patch_size": 12, "patch_stride": 12},  # one token
    ],
    ids=["map", "row", "token"],
)
@pytest.mark.parametrize("shifter", [True, False])
def test_the_gathered_sample_is_torchs_also_where_a_neuron_looks_past_the_edge(
    core: dict[str, Any], shifter: bool
) -> None:
    n = 400
    config = tiny_config(core, shifter=shifter, readout={"position": "free"})
    twin = tiny_checkpoint(config, [tiny_mouse("A", n_neurons=n)]).twin.eval()
    readout, dim_rows_columns = twin.readout("A"), twin.core.output_shape
    torch.manual_seed(0)
    with torch.no_grad():
        readout.free_mu.uniform_(-1, 1)
        readout.free_mu[:4] = torch.tensor([[-1.0, -1.0], [1.0, 1.0], [1.0, -1.0], [0.0, 1.0]])
        readout.features.normal_()
        feature_map = torch.randn(5, *dim_rows_columns)
        pupil_center = 3 * torch.randn(5, 2)
        shift = twin.shifter("A")
        shifts = None if shift is None else shift(pupil_center)
        if shifts is not None:
            assert shifts.abs().max() > 0.2  # some neurons look past the edge
        expected = readout(feature_map, shifts)
        neurons = torch.randperm(n)[:371]
        channel_last = feature_map.permute(0, 2, 3, 1)
        found = GatherReadout(twin, "A")(channel_last, pupil_center, neurons)
        torch.testing.assert_close(found, expected[:, neurons], atol=1e-5, rtol=1e-5)
        # What is not touched is not read: a core may leave it out.
        touched = TouchedTokens(twin, "A")(pupil_center, neurons).expand(5, -1)
        kept = torch.zeros(5, dim_rows_columns[1] * dim_rows_columns[2] + 1)
        kept.scatter_(1, touched % kept.shape[1], 1.0)
        some = (channel_last.flatten(1, 2) * kept[:, :-1, None]).reshape(channel_last.shape)
        torch.testing.assert_close(GatherReadout(twin, "A")(some, pupil_center, neurons), found)

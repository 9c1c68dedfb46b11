"""The twin's models: gradients over the grid of options, an independent forward pass, and what is refused."""

from __future__ import annotations

import itertools
import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from scipy.special import erf
from support.tiny_twins import tiny_checkpoint, tiny_config, tiny_inputs, tiny_mouse, tiny_twin
from torch import nn

from training.checkpoints.checkpoint import load_checkpoint, save_checkpoint
from training.config import PRESETS, ModelConfig, ReadoutConfig, TrainingConfig, parse_config, with_options
from training.errors import ConfigError
from training.export.modules.folded import FoldedViT, can_fold
from training.models import Twin
from training.models.attention import Attention
from training.models.readout import GaussianReadout
from training.models.transformer import StochasticDepth
from training.models.vit import ViTCore, token_grid
from training.trainer.loss import poisson_loss

TOKENIZERS = ("sliding_window", "convolution", "shifted_patches", "normalized_patches")


def options(**choices: tuple[Any, ...]) -> list[dict[str, Any]]:
    """Every combination."""
    return [dict(zip(choices, values, strict=True)) for values in itertools.product(*choices.values())]


GRID: list[dict[str, Any]] = [
    *(
        {"core": {"tokenizer": o["tokenizer"], "attention": o["attention"]}, "behavior": o["behavior"]}
        for o in options(
            tokenizer=TOKENIZERS, attention=("softmax", "locality"), behavior=("none", "channels", "b_mlp")
        )
    ),
    *(
        {"core": {"n_blocks": 3, "bias": o.pop("bias")}, "b_mlp": o}
        for o in options(
            bias=(True, False),
            inputs=("behavior", "behavior_and_pupil_center"),
            mice=("shared", "per_mouse"),
            blocks=("each", "tied", "first"),
            hidden=("half", "full"),
        )
    ),
    *(
        {"cropper": o}
        for o in options(
            crop=(1.0, 0.8),
            shifter=("none", "pupil_center", "behavior_and_pupil_center"),
            size=(None, (12, 20)),
            grayscale=(False, True),
        )
    ),
    *(
        {"shifter": o.pop("shifter"), "readout": {"hidden": 4, **o}}
        for o in options(
            shifter=(False, True),
            position=("network", "free"),
            coordinates=("xy", "xyz"),
            bias=("zero", "mean", "mean_over_std"),
        )
    ),
    *(
        {"core": {"kind": "cct", "position": o["position"]}, "behavior": o["behavior"]}
        for o in options(position=("sine", "learned", "none"), behavior=("none", "b_mlp"))
    ),
    *(
        {"core": {"kind": o["kind"], "convolution_bias": o["bias"]}, "behavior": o["behavior"]}
        for o in options(kind=("cnn", "ln"), bias=(False, True), behavior=("none", "channels"))
    ),
    {"core": {"token_grid": "nearest_square"}},
    {"core": {"kind": "cct", "token_grid": "nearest_square"}, "b_mlp": {"mice": "per_mouse"}},
]


def name_of(case: dict[str, Any]) -> str:
    def words(value: Any) -> list[str]:
        if isinstance(value, dict):
            return [word for key, part in value.items() for word in ([key] if part is True else words(part))]
        return [str(value).replace(" ", "")]

    return "-".join(words(case))


def cannot_learn(name: str, config: ModelConfig) -> str | None:
    """Why a parameter can have no gradient, where that is a fact of the model."""
    if name.startswith("cropper.shifters.") and config.cropper.crop == 1:
        return "the image shifter moves the crop by at most 1 - crop, which is 0"
    if config.core.kind in ("cnn", "ln") and re.fullmatch(r"core\.convolutions\.\d\.(spatial|mix_out)\.bias", name):
        return "a constant per channel, which batch norm subtracts again"
    return None


@pytest.mark.parametrize("case", GRID, ids=name_of)
def test_every_parameter_receives_a_gradient(case: dict[str, Any]) -> None:
    config = tiny_config(**case)
    mice = [tiny_mouse("A", image_shape=(2, 18, 32)), tiny_mouse("B", n_neurons=3, image_shape=(2, 18, 32))]
    twin = tiny_twin(config, mice).double().train()  # in float64 a zero and a rounding error are easily told apart
    loss = torch.zeros((), dtype=torch.float64)
    for mouse in mice:
        inputs = [tensor.double() for tensor in tiny_inputs(mouse, 4)]
        responses = torch.rand(4, mouse.n_neurons, dtype=torch.float64)
        loss = loss + poisson_loss(twin(mouse.mouse_id, *inputs), responses)  # without L1, which reaches every weight
    loss.backward()
    for name, parameter in twin.named_parameters():
        gradient = parameter.grad
        assert gradient is not None, name
        if cannot_learn(name, config) is not None:
            assert gradient.abs().max() < 1e-12, name
            continue
        assert gradient.abs().max() > 1e-10, name
        if name.startswith("core.transformer.behavior_mlps."):  # stacked: each mouse's own part is reached
            assert (gradient.flatten(1).abs().amax(1) > 0).all(), name


def test_the_image_shifters_gradient_is_that_of_the_bilinear_crop() -> None:
    config = tiny_config(cropper={"crop": 0.8, "shifter": "pupil_center", "size": None})
    mouse = tiny_mouse("A")
    cropper = tiny_twin(config, [mouse]).cropper.train()
    image, behavior, pupil_center = tiny_inputs(mouse, 2)
    torch.manual_seed(0)
    weights = torch.randn(2, *cropper.output_shape)
    trained = cropper(image, behavior, pupil_center, "A")
    (trained * weights).sum().backward()
    grid = cropper.grid.expand(2, -1, -1, -1)
    shift = cropper.shifters["A"](pupil_center)
    smooth = nn.functional.grid_sample(image, grid + shift[:, None, None], mode="bilinear", align_corners=True)
    expected = torch.autograd.grad((smooth * weights).sum(), list(cropper.shifters["A"].parameters()))
    for parameter, gradient in zip(cropper.shifters["A"].parameters(), expected, strict=True):
        torch.testing.assert_close(parameter.grad, gradient)
    torch.testing.assert_close(trained, cropper.eval()(image, behavior, pupil_center, "A"))  # forward stays nearest


@pytest.mark.parametrize("case", GRID[::7], ids=name_of)
def test_saving_and_loading_keeps_outputs_bit_identical(case: dict[str, Any], tmp_path: Path) -> None:
    mice = [tiny_mouse("A", image_shape=(2, 18, 32)), tiny_mouse("B", n_neurons=3, image_shape=(2, 18, 32))]
    saved = tiny_checkpoint(tiny_config(**case), mice)
    loaded = load_checkpoint(save_checkpoint(tmp_path / "checkpoint", saved))
    assert loaded.config == saved.config
    assert list(loaded.mice) == list(saved.mice)
    for mouse in mice:
        inputs = tiny_inputs(mouse, 3)
        with torch.inference_mode():
            assert torch.equal(loaded.twin(mouse.mouse_id, *inputs), saved.twin(mouse.mouse_id, *inputs))


def test_the_default_is_the_papers_table_a2() -> None:
    core = ModelConfig().core.model_dump()
    assert core == {
        "kind": "vit",
        "tokenizer": "sliding_window",
        "patch_size": 8,
        "patch_stride": 1,
        "n_blocks": 4,
        "n_heads": 4,
        "dim": 155,
        "mlp_dim": 488,
        "attention": "softmax",
        "bias": True,
        "patch_dropout": 0.0229,
        "block_dropout": 0.2544,
        "stochastic_depth": 0.0,
        "l1": 0.5379,
        "token_grid": "patches",
    }
    config = ModelConfig()
    assert (config.behavior, config.b_mlp.inputs, config.b_mlp.mice) == ("b_mlp", "behavior_and_pupil_center", "shared")
    assert (config.b_mlp.blocks, config.b_mlp.hidden) == ("each", "half")
    assert (config.cropper.crop, config.cropper.shifter, config.cropper.size) == (1.0, "none", (36, 64))
    assert config.shifter
    readout = config.readout
    assert (readout.position, readout.coordinates, readout.hidden, readout.l1) == ("network", "xy", 30, 0.0076)
    training = TrainingConfig()
    assert (training.learning_rate, training.batch_size, training.beta1, training.beta2) == (0.0016, 16, 0.9, 0.9999)
    assert PRESETS["v1t"] == config == parse_config({})
    core_part = Twin(config, [tiny_mouse("A", image_shape=(1, 144, 256))]).core
    assert core_part.output_shape == (155, 29, 57)


class Numpy:
    """V1T in float64 numpy, straight from the paper's equations; it shares no code with the models."""

    def __init__(self, twin: Twin) -> None:
        self.config = twin.config
        self.weights = {name: tensor.double().numpy() for name, tensor in twin.state_dict().items()}
        self.mice = twin.mice
        self.mouse_index = list(twin.mice)

    def linear(self, x: np.ndarray, name: str) -> np.ndarray:
        bias = self.weights.get(f"{name}.bias", 0.0)
        return x @ self.weights[f"{name}.weight"].T + bias

    def layer_norm(self, x: np.ndarray, name: str) -> np.ndarray:
        x = x - x.mean(-1, keepdims=True)
        x = x / np.sqrt((x**2).mean(-1, keepdims=True) + 1e-5)
        return x * self.weights[f"{name}.weight"] + self.weights[f"{name}.bias"]

    def responses(self, mouse_id: str, image: np.ndarray, behavior: np.ndarray, pupil_center: np.ndarray) -> np.ndarray:
        mouse = self.mice[mouse_id]
        assert mouse.images is not None
        assert mouse.behavior is not None
        assert mouse.pupil_center is not None
        image = (image - mouse.images.mean[:, None, None]) / mouse.images.std[:, None, None]
        pupil_center = (pupil_center - mouse.pupil_center.mean) / mouse.pupil_center.std
        state = np.concatenate([behavior / mouse.behavior.std, pupil_center], axis=1)
        feature_map = self.feature_map(mouse_id, image, state)
        x = self.read_out(mouse_id, feature_map, pupil_center)
        return np.where(x > 0, x, np.expm1(np.minimum(x, 0))) + 1

    def feature_map(self, mouse_id: str, image: np.ndarray, state: np.ndarray) -> np.ndarray:
        """(B, rows, columns, D)."""
        core = self.config.core
        p, s, D, h = core.patch_size, core.patch_stride, core.dim, core.n_heads
        windows = np.lib.stride_tricks.sliding_window_view(image, (p, p), axis=(2, 3))[:, :, ::s, ::s]
        B, C, rows, columns = windows.shape[:4]
        patches = windows.transpose(0, 2, 3, 1, 4, 5).reshape(B, rows * columns, C * p * p)
        x = self.linear(patches, "core.tokenizer.projection")
        cls = np.broadcast_to(self.weights["core.tokenizer.cls_token"], (B, 1, D))
        x = np.concatenate([cls, x], axis=1) + self.weights["core.tokenizer.position"]
        for i in range(core.n_blocks):
            block = f"core.transformer.blocks.{i}"
            x = x + self.behavior(i, mouse_id, state)[:, None]
            n = self.layer_norm(x, f"{block}.attention.norm")
            qkv = n @ self.weights[f"{block}.attention.qkv.weight"].T
            heads = []
            for head in range(h):
                q, k, v = (qkv[..., (part * h + head) * D : (part * h + head + 1) * D] for part in range(3))
                scores = q @ k.transpose(0, 2, 1) / np.sqrt(D)
                scores = np.exp(scores - scores.max(-1, keepdims=True))
                heads.append(scores / scores.sum(-1, keepdims=True) @ v)
            x = x + self.linear(np.concatenate(heads, axis=-1), f"{block}.attention.output")
            up = self.linear(self.layer_norm(x, f"{block}.mlp.norm"), f"{block}.mlp.up")
            x = x + self.linear(up * 0.5 * (1 + erf(up / np.sqrt(2))), f"{block}.mlp.down")
        return x[:, 1:].reshape(B, rows, columns, D)

    def behavior(self, block: int, mouse_id: str, state: np.ndarray) -> np.ndarray:
        mine = self.mouse_index.index(mouse_id) if self.config.b_mlp.mice == "per_mouse" else 0
        name = f"core.transformer.behavior_mlps.{block}"
        for layer in ("hidden", "output"):
            bias = self.weights[f"{name}.{layer}_bias"][mine] if self.config.core.bias else 0.0
            state = np.tanh(state @ self.weights[f"{name}.{layer}_weight"][mine].T + bias)
        return state

    def read_out(self, mouse_id: str, feature_map: np.ndarray, pupil_center: np.ndarray) -> np.ndarray:
        place = f"readouts.{mouse_id}"
        coordinates = self.mice[mouse_id].neuron_coordinates[:, :2].astype(float)
        coordinates = coordinates - coordinates.mean(0)
        hidden = self.linear(coordinates / np.abs(coordinates).max(), f"{place}.position_network.0")
        hidden = np.where(hidden > 0, hidden, np.expm1(np.minimum(hidden, 0)))
        mu = np.tanh(self.linear(hidden, f"{place}.position_network.2"))
        shift = pupil_center
        for layer in range(3):
            shift = np.tanh(self.linear(shift, f"shifters.{mouse_id}.layers.{layer}"))
        B, rows, columns, _ = feature_map.shape
        features, bias = self.weights[f"{place}.features"], self.weights[f"{place}.bias"]
        result = np.empty((B, len(mu)))
        for b, n in np.ndindex(result.shape):
            x = (mu[n, 0] + shift[b, 0] + 1) / 2 * (columns - 1)
            y = (mu[n, 1] + shift[b, 1] + 1) / 2 * (rows - 1)
            sample = np.zeros(feature_map.shape[-1])
            top, left = int(np.floor(y)), int(np.floor(x))
            for row, column in itertools.product((top, top + 1), (left, left + 1)):
                if 0 <= row < rows and 0 <= column < columns:
                    sample += (1 - abs(x - column)) * (1 - abs(y - row)) * feature_map[b, row, column]
            result[b, n] = sample @ features[n] + bias[n]
        return result


@pytest.mark.parametrize(
    ("core", "b_mlp"),
    [({}, {}), ({"bias": False}, {"mice": "per_mouse"}), ({"patch_stride": 4, "n_heads": 3}, {"hidden": "full"})],
)
def test_v1t_is_what_the_papers_equations_say(core: dict[str, Any], b_mlp: dict[str, Any]) -> None:
    twin = tiny_twin(tiny_config(core, b_mlp=b_mlp, cropper={"size": None}))
    ours = Numpy(twin)
    for mouse in twin.mice.values():
        inputs = tiny_inputs(mouse, 3)
        expected = ours.responses(mouse.mouse_id, *(tensor.double().numpy() for tensor in inputs))
        with torch.inference_mode():
            np.testing.assert_allclose(twin(mouse.mouse_id, *inputs), expected, rtol=0, atol=1e-5)


@pytest.mark.parametrize(
    ("core", "more"),
    [
        ({}, {}),
        ({"bias": False, "tokenizer": "normalized_patches"}, {"b_mlp": {"mice": "per_mouse", "blocks": "tied"}}),
        ({"tokenizer": "shifted_patches", "n_heads": 3}, {"behavior": "none"}),
        ({"tokenizer": "convolution", "token_grid": "nearest_square"}, {"b_mlp": {"blocks": "first"}}),
    ],
)
def test_the_folded_core_equals_the_plain_one(core: dict[str, Any], more: dict[str, Any]) -> None:
    twin = tiny_twin(tiny_config(core, **more))
    assert isinstance(twin.core, ViTCore)
    assert can_fold(twin.core)
    folded = FoldedViT(twin.core, fused=False).eval()
    for mouse in twin.mice.values():
        with torch.inference_mode():
            image, behavior, _ = twin.stem(mouse.mouse_id, *tiny_inputs(mouse, 3))
            index = twin.mouse_index(mouse.mouse_id, image)
            plain = twin.core(image, behavior, index).permute(0, 2, 3, 1)
            np.testing.assert_allclose(folded(image, behavior, index), plain, rtol=0, atol=1e-5)


def test_the_folded_core_is_what_the_papers_equations_say() -> None:
    twin = tiny_twin(tiny_config(cropper={"size": None}))
    mouse = twin.mice["B"]
    with torch.inference_mode():
        image, behavior, _ = twin.stem("B", *tiny_inputs(mouse, 3))
        folded = FoldedViT(twin.core, fused=False)(image, behavior, twin.mouse_index("B", image))
    expected = Numpy(twin).feature_map("B", image.double().numpy(), behavior.double().numpy())
    np.testing.assert_allclose(folded, expected, rtol=0, atol=1e-5)


def test_locality_is_not_folded() -> None:
    assert not can_fold(tiny_twin(tiny_config({"attention": "locality"})).core)
    assert not can_fold(tiny_twin(tiny_config({"kind": "cct"})).core)


@pytest.mark.parametrize("locality", [False, True])
def test_fused_and_eager_attention_are_the_same(locality: bool) -> None:
    torch.manual_seed(0)
    attention = Attention(dim=6, n_heads=2, inner=12, scale=0.4, bias=True, locality=locality, dropout=0.0)
    x = torch.randn(2, 9, 6)
    output, weights = attention.with_weights(x)
    torch.testing.assert_close(attention(x), output)
    torch.testing.assert_close(weights.sum(-1), torch.ones(2, 2, 9))
    itself = weights.diagonal(dim1=2, dim2=3)
    assert (itself == 0).all() if locality else (itself > 0).all()


def test_tokens_take_the_references_grid_where_it_is_asked_for() -> None:
    assert token_grid((29, 57), "nearest_square") == token_grid((29, 57), "patches") == (29, 57)
    assert token_grid((8, 15), "nearest_square") == (10, 12)
    assert token_grid((8, 15), "patches") == (8, 15)


def refused(content: dict[str, Any], mice: list[Any] | None = None) -> str:
    with pytest.raises(ConfigError) as caught:
        Twin(parse_config(content), mice or [tiny_mouse("A")])
    return str(caught.value)


def test_a_patch_larger_than_the_image_is_refused() -> None:
    message = refused({"core": {"patch_size": 20}, "cropper": {"size": [12, 20]}})
    assert "patch_size 20" in message
    assert "cropper size 12x20" in message
    message = refused({"core": {"kind": "cct", "patch_size": 30}, "cropper": {"size": [12, 20]}})
    assert "patch_size 30" in message
    message = refused({"core": {"kind": "cnn", "input_kernel": 13}, "behavior": "none", "cropper": {"size": [12, 20]}})
    assert "input_kernel 13" in message
    assert "12x20" in message


@pytest.mark.parametrize(
    ("content", "words"),
    [
        ({"core": {"kind": "cnn", "attention": "locality"}, "behavior": "none"}, ("cnn", "attention")),
        ({"core": {"kind": "cct", "attention": "locality"}}, ("cct", "attention")),
        ({"core": {"kind": "cnn"}, "behavior": "b_mlp"}, ("b_mlp", "cnn")),
        ({"core": {"kind": "ln"}}, ("b_mlp", "ln")),
        ({"core": {"kind": "cct"}, "behavior": "channels"}, ("channels", "cct")),
        ({"behavior": "channels", "b_mlp": {"mice": "per_mouse"}}, ("b_mlp", "channels")),
        ({"core": {"patch_size": 4, "patch_stride": 5}}, ("patch_stride 5", "patch_size 4")),
        ({"core": {"tokenizer": "shifted_patches", "patch_size": 1}}, ("shifted_patches", "patch_size")),
        ({"core": {"kind": "cct", "dim": 10, "n_heads": 4}}, ("dim 10", "n_heads 4")),
        ({"core": {"kind": "cnn", "hidden_kernel": 4}, "behavior": "none"}, ("hidden_kernel", "odd")),
        ({"core": {"kind": "resnet"}}, ("core", "vit")),
        ({"behavior": 3}, ("behavior", "3", "b_mlp")),
        ({"cropper": {"crop": 0}}, ("cropper.crop", "0")),
        ({"cropper": {"crop": 0.01}}, ("cropper.crop 0.01", "18x32")),
        ({"readout": {"bias": 2}}, ("readout.bias", "mean_over_std")),
        ({"patch_size": 8}, ("patch_size",)),
    ],
)
def test_an_impossible_combination_is_refused_naming_both_options(
    content: dict[str, Any], words: tuple[str, ...]
) -> None:
    message = refused(content)
    for word in words:
        assert word in message


def test_a_mouse_without_behavior_is_refused_where_the_model_uses_it() -> None:
    silent = replace(tiny_mouse("A"), behavior=None)
    message = refused({}, [silent])
    for word in ("'A'", "behavior", "b_mlp"):
        assert word in message
    gazeless = replace(tiny_mouse("B"), pupil_center=None)
    assert "pupil_center" in refused({"behavior": "none"}, [gazeless])
    assert "cropper.shifter 'pupil_center'" in refused(
        {"behavior": "none", "shifter": False, "cropper": {"shifter": "pupil_center"}}, [gazeless]
    )
    blind = tiny_config(behavior="none", shifter=False)
    assert Twin(blind, [silent, replace(gazeless, behavior=None)]).config.uses() == ("image",)


def test_mice_with_other_image_shapes_are_refused() -> None:
    message = refused({}, [tiny_mouse("A"), tiny_mouse("F", image_shape=(2, 18, 32))])
    assert "image shape" in message
    assert "(1, 18, 32)" in message
    assert "(2, 18, 32)" in message


def test_a_bias_from_statistics_needs_them() -> None:
    mouse = replace(tiny_mouse("A"), response_mean=None)
    message = refused({"readout": {"bias": "mean"}}, [mouse])
    assert "readout.bias 'mean'" in message
    assert "'A'" in message


def test_the_bias_starts_where_the_option_says() -> None:
    mouse = tiny_mouse("A")
    assert mouse.response_mean is not None
    starts = {"zero": 0 * mouse.response_mean, "mean": mouse.response_mean}
    starts["mean_over_std"] = mouse.response_mean / mouse.response_std
    for word, start in starts.items():
        bias = Twin(tiny_config(readout={"bias": word}), [mouse]).readout("A").bias
        np.testing.assert_array_equal(bias.detach(), start)


def test_options_are_replaced_by_their_dotted_names() -> None:
    config = with_options(ModelConfig(), {"core.dim": 64, "behavior": "none", "cropper.size": None})
    assert (config.core.dim, config.behavior, config.cropper.size) == (64, "none", None)
    for unknown, words in (
        ("core.heads", "core 'vit' has no option 'heads'"),
        ("core.kernel", "core 'vit' has no option 'kernel'"),
        ("cores.dim", "no such option; got cores.dim"),
        ("core.dim.more", "no such option; got core.dim.more"),
        ("cropper.alpha", "no such option; got cropper.alpha"),
    ):
        with pytest.raises(ConfigError, match=re.escape(words)):
            with_options(ModelConfig(), {unknown: 1})


def test_stochastic_depth_leaves_out_whole_samples_and_keeps_the_mean() -> None:
    torch.manual_seed(0)
    depth = StochasticDepth(0.3).train()
    branch = torch.rand(20000, 2, 3) + 1
    kept = depth(branch) / branch
    assert ((kept == 0).all(dim=(1, 2)) | ((kept - 1 / 0.7).abs() < 1e-5).all(dim=(1, 2))).all()
    assert abs(float((kept[:, 0, 0] != 0).float().mean()) - 0.7) < 0.015  # 4.6 standard errors
    assert torch.equal(depth.eval()(branch), branch)


def test_stochastic_depth_of_cct_grows_from_zero() -> None:
    core = tiny_twin(tiny_config({"kind": "cct", "n_blocks": 3, "stochastic_depth": 0.2})).core
    assert [block.stochastic_depth.keep for block in core.transformer.ordered_blocks()] == [1.0, 0.9, 0.8]


def test_positions_in_training_have_the_covariance_of_sigma() -> None:
    torch.manual_seed(0)
    readout = GaussianReadout(
        config=ReadoutConfig(position="free"), mouse=tiny_mouse("A", n_neurons=3), n_features=2
    ).train()
    draws = 40000
    ramp_y, ramp_x = torch.meshgrid(torch.linspace(-1, 1, 5), torch.linspace(-1, 1, 7), indexing="ij")
    feature_map = torch.stack([ramp_x, ramp_y]).expand(draws, -1, -1, -1)  # its bilinear sample is the position itself
    with torch.no_grad():
        readout.sigma.copy_(
            torch.tensor([[[0.1, 0.05], [0.0, 0.1]], [[0.1, 0.0], [0.08, 0.02]], [[0.03, 0.1], [0.0, 0.04]]])
        )
        readout.free_mu.copy_(torch.tensor([[0.1, -0.2], [0.0, 0.1], [-0.2, 0.2]]))
        positions = []
        for axis in (0, 1):
            readout.features.copy_(torch.eye(2)[axis].expand(3, 2))
            torch.manual_seed(1)  # the same draws for both axes
            positions.append(readout(feature_map, None))
    sampled = torch.stack(positions, dim=-1).numpy()  # (draws, N, 2)
    for n, sigma in enumerate(readout.sigma.detach().numpy()):
        np.testing.assert_allclose(sampled[:, n].mean(0), readout.free_mu[n].detach(), atol=3e-3)
        np.testing.assert_allclose(np.cov(sampled[:, n].T), sigma @ sigma.T, atol=5e-4)
        assert np.abs(sigma @ sigma.T - sigma.T @ sigma).max() > 2e-3  # so sigma^T would not pass


def test_positions_in_evaluation_are_mu_and_free_ones_stay_inside() -> None:
    twin = tiny_twin(tiny_config(readout={"position": "free"}))
    readout = twin.readout("A")
    with torch.no_grad():
        readout.free_mu.fill_(1.5)
        assert (readout.mu == 1).all()
        feature_map = torch.randn(2, 6, 4, 5)
        expected = feature_map[:, :, -1, -1] @ readout.features.T + readout.bias
        torch.testing.assert_close(readout(feature_map, None), expected)
        outside = readout(feature_map, torch.full((2, 2), 0.9))  # a gaze beyond the map reads zeros
        torch.testing.assert_close(outside, readout.bias.expand(2, -1))

"""Cores in other precisions and runtimes, compared with the reference code and with torch."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from support.golden import Golden, load_golden
from support.tiny_bundle import TinyTwin
from support.tiny_twins import tiny_checkpoint, tiny_config, tiny_twin

from server.bundle import tensor_names
from server.errors import BundleError
from server.inference.engine import Engine
from server.inference.sessions import Precision, Provider, Session, open_core
from training.checkpoints.ensemble import Ensemble
from training.errors import ConfigError
from training.export import export_bundle
from training.export.bundle import BundleOptions
from training.export.graphs.forward import batched, core_examples, readout_examples
from training.export.modules.aligned import AlignedViT, aligned_width
from training.export.modules.aligned_readout import AlignedReadout
from training.export.modules.readout import GatherReadout
from training.export.tracing.templates import Graph, Templates
from training.models.vit import ViTCore

BOUND = 1e-4
# For responses of order 1, at the published size; `docs/benchmarks.md` has the measurements.
HALF_BOUND = 5e-3
BF16_BOUND = 5e-2
HALF = BundleOptions(gradients=False, half=True)


@pytest.fixture(scope="module")
def published(reference: Path, reference_bundle: Callable[[str], Path]) -> tuple[Golden, Path]:
    return load_golden(reference, "v1t-published-config"), reference_bundle("v1t-published-config")


def errors(golden: Golden, engine: Engine) -> tuple[float, float]:
    """The largest absolute error of a response, and the worst neuron's correlation with the reference's responses."""
    largest, worst = 0.0, 1.0
    for mouse_id in golden.ensemble.mice:
        expected = golden.expect("response", mouse_id)
        response = engine.predict(mouse_id, *golden.inputs)
        largest = max(largest, float(np.abs(response - expected).max()))
        a, b = response - response.mean(0), expected - expected.mean(0)
        moves = (
            expected.std(0) > 0.05 * expected.std(0).max()
        )  # the variation of a neuron that hardly responds is rounding
        worst = min(worst, float(((a * b).sum(0) / np.sqrt((a**2).sum(0) * (b**2).sum(0)))[moves].min()))
    return largest, worst


@pytest.mark.slow
def test_half_cores_are_near_the_reference_and_named(published: tuple[Golden, Path]) -> None:
    golden, folder = published
    engine = Engine.load(folder, provider="cpu", precision="fp16", threads=1)
    largest, worst = errors(golden, engine)
    assert engine.precision == "fp16"
    assert 1e-7 < largest < HALF_BOUND
    assert worst > 0.999


@pytest.mark.slow
def test_openvino_gives_the_reference_in_fp32(published: tuple[Golden, Path]) -> None:
    golden, folder = published
    engine = Engine.load(folder, provider="openvino", threads=1, max_batch=4)
    assert engine.provider == "OpenVINO"
    for mouse_id, mouse in golden.ensemble.mice.items():
        expected = golden.expect("response", mouse_id)
        some = np.random.default_rng(0).permutation(mouse.n_neurons)[: mouse.n_neurons // 10 + 1]
        everyone = engine.predict(mouse_id, *golden.inputs)
        np.testing.assert_allclose(everyone, expected, rtol=0, atol=BOUND)
        alone = engine.predict(mouse_id, *(array[:1] for array in golden.inputs), neurons=some)
        np.testing.assert_allclose(alone, expected[:1, some], rtol=0, atol=BOUND)


@pytest.mark.slow
def test_openvino_in_bf16_is_near_the_reference(published: tuple[Golden, Path]) -> None:
    golden, folder = published
    largest, worst = errors(golden, Engine.load(folder, provider="openvino", precision="bf16", threads=1))
    assert largest < BF16_BOUND
    assert worst > 0.99


@pytest.mark.slow
def test_gradients_are_float32_whatever_the_cores_are(reference: Path, reference_bundle: Callable[[str], Path]) -> None:
    golden, folder = load_golden(reference, "v1t-small"), reference_bundle("v1t-small")
    weights = np.random.default_rng(0).standard_normal(golden.ensemble.mice["A"].n_neurons)
    gradients = [
        Engine.load(folder, provider=provider, precision=precision, threads=1).gradient("A", *golden.inputs, weights)
        for provider, precision in (("cpu", "fp32"), ("cpu", "fp16"), ("openvino", "fp32"))
    ]
    for other in gradients[1:]:
        for expected, got in zip(gradients[0], other, strict=True):
            np.testing.assert_array_equal(got, expected)


@pytest.mark.slow
def test_the_published_core_padded_to_160_gives_the_same_in_onnxruntime(reference: Path, tmp_path: Path) -> None:
    twin = load_golden(reference, "v1t-published-config").ensemble.members[0].twin
    assert isinstance(twin.core, ViTCore)
    module = AlignedViT(twin.core, fused=True, dtype=torch.float32)
    assert module.width == 160
    examples = core_examples(twin)
    path = tmp_path / "core.onnx"
    Templates().write(Graph(module, examples, batched(examples), [tensor_names.FEATURE_MAP]), path)
    got = Session(path, wanted="cpu", threads=1).run({name: x.numpy() for name, x in examples.items()})
    with torch.inference_mode():
        expected = twin.core(*examples.values()).permute(0, 2, 3, 1)
    np.testing.assert_allclose(got[tensor_names.FEATURE_MAP][..., :155], expected, rtol=0, atol=BOUND)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
@pytest.mark.parametrize("behavior", ["b_mlp", "none"])
def test_an_aligned_core_gives_what_the_core_gives(dtype: torch.dtype, behavior: str, tmp_path: Path) -> None:
    twin = tiny_twin(tiny_config(behavior=behavior)).eval()
    core = twin.core
    assert isinstance(core, ViTCore)
    assert core.output_shape[0] % 8
    for parameter in core.parameters():  # biases and norms are trivial at first
        parameter.data += 0.1 * torch.randn_like(parameter)
    examples = core_examples(twin)
    dim, bound = core.output_shape[0], 2e-2 if dtype == torch.float16 else 5e-6
    with torch.inference_mode():
        expected = core(*examples.values()).permute(0, 2, 3, 1)
        plain = AlignedViT(core, fused=False, dtype=dtype)
        np.testing.assert_allclose(plain(*examples.values())[..., :dim], expected, rtol=0, atol=bound)
    path = tmp_path / "core.onnx"
    fused = AlignedViT(core, fused=True, dtype=dtype)
    Templates().write(Graph(fused, examples, batched(examples), [tensor_names.FEATURE_MAP]), path)
    got = Session(path, wanted="cpu", threads=1).run({name: x.numpy() for name, x in examples.items()})
    np.testing.assert_allclose(got[tensor_names.FEATURE_MAP][..., :dim], expected, rtol=0, atol=bound)
    operators = {node.op_type for node in onnx.load(path).graph.node}
    assert {"SkipLayerNormalization", "MultiHeadAttention"} <= operators


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("dim", [8, 15])
def test_biases_in_channels_of_their_own_change_nothing(dim: int, bias: bool) -> None:
    """15 channels leave one for a 1, 8 leave none; an MLP may have no bias at all."""
    twin = tiny_twin(tiny_config({"dim": dim, "bias": bias})).eval()
    core = twin.core
    assert isinstance(core, ViTCore)
    for parameter in core.parameters():
        parameter.data += 0.1 * torch.randn_like(parameter)
    examples = core_examples(twin)
    with torch.inference_mode():
        expected = core(*examples.values()).permute(0, 2, 3, 1)
        got = AlignedViT(core, fused=False, dtype=torch.float32)(*examples.values())
    assert got.shape[-1] == 8 if dim == 8 else 16
    np.testing.assert_allclose(got[..., :dim], expected, rtol=0, atol=5e-6)


@pytest.mark.parametrize("shifter", [True, False])
@pytest.mark.parametrize("n", [1, 8, 11])
def test_an_aligned_readout_reads_what_the_readout_reads(n: int, shifter: bool, tmp_path: Path) -> None:
    twin = tiny_twin(tiny_config(shifter=shifter)).eval()
    readout = GatherReadout(twin, "A")
    with torch.no_grad():
        twin.readout("A").mu.uniform_(-1.2, 1.2)  # also outside the map
    examples, shapes = readout_examples(twin, "A")
    width = aligned_width(twin.core.output_shape[0])
    examples[tensor_names.FEATURE_MAP] = torch.randn(*examples[tensor_names.FEATURE_MAP].shape[:-1], width)
    path = tmp_path / "readout.onnx"
    module = AlignedReadout(twin, "A", dtype=torch.float32)
    Templates().write(Graph(module, examples, shapes, [tensor_names.PRE_ACTIVATION]), path)
    session = Session(path, wanted="cpu", threads=1)
    for batch in (1, 3):
        feature_map = torch.randn(batch, *examples[tensor_names.FEATURE_MAP].shape[1:])
        pupil_center = torch.randn(batch, 2)
        neurons = torch.randint(len(readout.mu), (n,))
        with torch.inference_mode():
            expected = readout(feature_map[..., : twin.core.output_shape[0]], pupil_center, neurons)
        given = {
            tensor_names.FEATURE_MAP: feature_map,
            tensor_names.CORE_PUPIL_CENTER: pupil_center,
            tensor_names.NEURONS: neurons,
        }
        got = session.run({name: tensor.numpy() for name, tensor in given.items()})[tensor_names.PRE_ACTIVATION]
        np.testing.assert_allclose(got, expected, rtol=0, atol=2e-6)


@pytest.mark.parametrize(
    ("provider", "precision", "remedy"),
    [("cpu", "bf16", "V1T_PROVIDER=openvino"), ("openvino", "fp16", "V1T_PRECISION=bf16")],
)
def test_a_precision_that_a_provider_does_not_support_is_refused(
    provider: Provider, precision: Precision, remedy: str, tmp_path: Path
) -> None:
    with pytest.raises(BundleError, match=remedy):
        open_core(tmp_path / "core.onnx", wanted=provider, precision=precision, threads=1)


def test_a_bundle_without_half_cores_says_how_to_get_them(twin: TinyTwin) -> None:
    with pytest.raises(BundleError, match="--fp16"):
        Engine.load(twin.folder, provider="cpu", precision="fp16")


def test_half_cores_of_before_there_were_half_readouts_are_refused(tmp_path: Path) -> None:
    export_bundle(Ensemble([tiny_checkpoint(tiny_config())]), tmp_path / "old", options=HALF)
    manifest = tmp_path / "old" / "manifest.json"
    content = json.loads(manifest.read_text())
    for mouse in content["mice"].values():
        mouse["half_readouts"] = []
    manifest.write_text(json.dumps(content))
    Engine.load(tmp_path / "old", provider="cpu")
    with pytest.raises(BundleError, match="half_readouts"):
        Engine.load(tmp_path / "old", provider="cpu", precision="fp16")


def test_half_cores_of_a_cnn_are_refused(tmp_path: Path) -> None:
    ensemble = Ensemble([tiny_checkpoint(tiny_config({"kind": "cnn"}))])
    with pytest.raises(ConfigError, match="float16"):
        export_bundle(ensemble, tmp_path / "cnn", options=HALF)
    assert not (tmp_path / "cnn").exists()


def test_an_operator_that_a_runtime_lacks_is_named_with_the_variant_that_would_run(tmp_path: Path) -> None:
    node = onnx.helper.make_node("Frobnicate", ["x"], ["y"], domain="com.example")
    value = [onnx.helper.make_tensor_value_info(name, onnx.TensorProto.FLOAT, [1]) for name in "xy"]
    graph = onnx.helper.make_graph([node], "g", value[:1], value[1:])
    opsets = [onnx.helper.make_opsetid("", 20), onnx.helper.make_opsetid("com.example", 1)]
    onnx.save(onnx.helper.make_model(graph, opset_imports=opsets, ir_version=9), tmp_path / "core.onnx")
    for provider in ("cpu", "openvino"):
        with pytest.raises(BundleError, match=r"operator that .* cannot run[^$]*Frobnicate[^$]*--portable"):
            open_core(tmp_path / "core.onnx", wanted=provider, precision="fp32", threads=1)


def test_a_missing_openvino_is_named(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setitem(__import__("sys").modules, "openvino", None)
    with pytest.raises(BundleError, match=r"requirements-openvino\.txt"):
        open_core(tmp_path / "core.onnx", wanted="openvino", precision="fp32", threads=1)

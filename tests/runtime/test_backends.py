import numpy as np
import pytest
import torch
from torch import nn

from dlsr import MissingExtraError, SettingsError
from dlsr.runtime import backends
from dlsr.runtime.backends import available_backends, choose_backend, make_engine
from dlsr.runtime.base import Graph

CPU = "cpu"


class SmallModule(nn.Module):
    """Has the kinds of operations and outputs that dlsr's graphs have."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.linear = nn.Linear(4, 3)

    def forward(self, pixels, noise):
        out = self.linear(pixels.float() + noise.mean(dim=1))
        return out.sum(dim=1), out


def graph(key="small", build=SmallModule):
    inputs = {"pixels": torch.randint(256, (2, 4), dtype=torch.uint8), "noise": torch.randn(2, 5, 4)}
    return Graph(build, inputs, ("score", "layers"), key)


def example_arrays():
    return [example.numpy() for example in graph().inputs.values()]


@pytest.mark.slow
@pytest.mark.parametrize(
    "backend", ["torch", pytest.param("compile", marks=pytest.mark.slow), "onnxruntime", "openvino"]
)
def test_backends_agree_for_any_number_of_images(backend):
    random = np.random.default_rng(0)
    engine = make_engine(graph(), choose_backend(backend, CPU), CPU)
    module = SmallModule()
    for count in (1, 2, 7):
        pixels = random.integers(0, 256, (count, 4), dtype=np.uint8)
        noise = random.standard_normal((count, 5, 4), dtype=np.float32)
        with torch.no_grad():
            expected = module(torch.from_numpy(pixels), torch.from_numpy(noise))
        score, layers = engine(pixels, noise)
        assert (score.shape, layers.shape) == ((count,), (count, 3))
        np.testing.assert_allclose(score, expected[0], rtol=1e-5, atol=1e-4)
        np.testing.assert_allclose(layers, expected[1], rtol=1e-5, atol=1e-4)


def fail():
    raise AssertionError("built again")


def test_an_engine_in_the_cache_is_not_built_again(own_cache):
    first = make_engine(graph(), "openvino", CPU)
    assert len(list(own_cache.glob("engines/*/model.onnx"))) == 1
    arrays = example_arrays()
    again = make_engine(graph(build=fail), "openvino", CPU)
    np.testing.assert_array_equal(again(*arrays)[0], first(*arrays)[0])
    with pytest.raises(AssertionError, match="built again"):
        make_engine(graph("another", fail), "openvino", CPU)


def test_both_runtimes_share_a_conversion(own_cache):
    arrays = example_arrays()
    first = make_engine(graph(), "openvino", CPU)(*arrays)[0]
    np.testing.assert_allclose(make_engine(graph(build=fail), "onnxruntime", CPU)(*arrays)[0], first, rtol=1e-5)


@pytest.mark.parametrize("package", ["torch", "onnx", "onnxscript"])
def test_an_engine_is_built_again_after_an_upgrade(own_cache, monkeypatch, package):
    make_engine(graph(), "openvino", CPU)
    real = backends.metadata.version
    monkeypatch.setattr(backends.metadata, "version", lambda name: "99" if name == package else real(name))
    with pytest.raises(AssertionError, match="built again"):
        make_engine(graph(build=fail), "openvino", CPU)


def test_a_damaged_engine_is_built_again(own_cache):
    arrays = example_arrays()
    first = make_engine(graph(), "openvino", CPU)(*arrays)
    (file,) = own_cache.glob("engines/*/model.onnx")
    intact = file.read_bytes()
    file.write_bytes(bytes(value ^ 0x7F for value in intact))
    again = make_engine(graph(), "openvino", CPU)(*arrays)
    np.testing.assert_array_equal(again[0], first[0])
    assert file.read_bytes() == intact
    assert list(own_cache.glob("engines/*/model.onnx")) == [file]


@pytest.mark.parametrize("backend", ["onnxruntime", "openvino"])
def test_without_a_cache_that_can_be_written_graphs_are_converted_anew(own_cache, backend):
    (own_cache / "engines").write_bytes(b"a file where the folder should be")
    arrays = example_arrays()
    expected = make_engine(graph(), "torch", CPU)(*arrays)[0]
    for _ in range(2):
        np.testing.assert_allclose(make_engine(graph(), backend, CPU)(*arrays)[0], expected, rtol=1e-5, atol=1e-4)
    assert [path.name for path in own_cache.iterdir()] == ["engines"]


def test_an_error_while_a_module_is_built_is_not_an_error_of_writing(own_cache):
    def build():
        raise FileNotFoundError(2, "No such file or directory", "weights.pth")

    with pytest.raises(FileNotFoundError, match=r"weights\.pth"):
        make_engine(graph(build=build), "openvino", CPU)
    assert list((own_cache / "engines").iterdir()) == []


def test_auto_is_the_fastest_installed_backend(monkeypatch):
    assert choose_backend("auto", CPU) == "openvino"
    assert choose_backend("auto", "cuda") == "torch"
    assert available_backends(CPU)[0] == "openvino"
    assert set(available_backends("cuda")) <= {"torch", "compile"}
    hidden = {"openvino"}
    real = backends.find_spec
    monkeypatch.setattr(backends, "find_spec", lambda name: None if name in hidden else real(name))
    assert choose_backend("auto", CPU) == "onnxruntime"
    with pytest.raises(MissingExtraError, match=r"dlsr\[fast\]"):
        choose_backend("openvino", CPU)
    hidden.add("onnxruntime")
    assert choose_backend("auto", CPU) == "torch"
    with pytest.raises(MissingExtraError, match="pip install dlsr onnxruntime"):
        choose_backend("onnxruntime", CPU)


@pytest.mark.parametrize("package", ["torch", "onnx", "onnxscript"])
def test_a_conversion_without_what_it_needs_says_what_to_install(own_cache, monkeypatch, package):
    real = backends.find_spec
    monkeypatch.setattr(backends, "find_spec", lambda name: None if name == package else real(name))
    with pytest.raises(MissingExtraError, match=rf"^{package} is not installed; .*dlsr\[fit\]"):
        make_engine(graph(), "openvino", CPU)


def test_backends_that_cannot_run_are_refused(monkeypatch):
    with pytest.raises(SettingsError, match="auto, torch, compile, onnxruntime, openvino"):
        choose_backend("tpu", CPU)
    with pytest.raises(SettingsError, match="runs on the CPU"):
        choose_backend("openvino", "cuda")
    monkeypatch.setattr(backends.shutil, "which", lambda name: None)
    with pytest.raises(SettingsError, match=r"install g\+\+"):
        choose_backend("compile", CPU)


def test_bfloat16_runs_on_openvino_alone(monkeypatch):
    assert choose_backend("auto", CPU, "bfloat16") == choose_backend("openvino", CPU, "bfloat16") == "openvino"
    for backend in ("torch", "onnxruntime", "compile"):
        with pytest.raises(SettingsError, match="does not run in bfloat16; use --backend openvino"):
            choose_backend(backend, CPU, "bfloat16")
    with pytest.raises(SettingsError, match="on cuda use float32"):
        choose_backend("auto", "cuda", "bfloat16")
    real = backends.find_spec
    monkeypatch.setattr(backends, "find_spec", lambda name: None if name == "openvino" else real(name))
    with pytest.raises(MissingExtraError, match=r"dlsr\[fast\]"):
        choose_backend("auto", CPU, "bfloat16")

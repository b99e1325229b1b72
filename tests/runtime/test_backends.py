import os
import subprocess
import sys

import numpy as np
import pytest
import torch
from torch import nn

from dlsr import MissingExtraError, SettingsError
from dlsr.files import cache_root
from dlsr.runtime.backends import available_backends, choose_backend, make_engine
from dlsr.runtime.base import Graph
from dlsr.runtime.torch_engine import half_agrees

CPU = torch.device("cpu")


class Rows(nn.Module):
    """A little of everything that graphs here are made of."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.linear = nn.Linear(4, 3)

    def forward(self, pixels, noise):
        out = self.linear(pixels.float() + noise.mean(dim=1))
        return out.sum(dim=1), out


def graph(key="rows"):
    inputs = {"pixels": torch.randint(256, (2, 4), dtype=torch.uint8), "noise": torch.randn(2, 5, 4)}
    return Graph(Rows, inputs, ("score", "layers"), key)


@pytest.mark.parametrize("backend", ["torch", "compile", "onnxruntime", "openvino"])
def test_backends_agree_for_any_number_of_images(backend):
    random = np.random.default_rng(0)
    engine = make_engine(graph(), choose_backend(backend, CPU), CPU)
    module = Rows()
    for count in (1, 2, 7):
        pixels = random.integers(0, 256, (count, 4), dtype=np.uint8)
        noise = random.standard_normal((count, 5, 4), dtype=np.float32)
        with torch.no_grad():
            expected = module(torch.from_numpy(pixels), torch.from_numpy(noise))
        score, layers = engine(pixels, noise)
        assert (score.shape, layers.shape) == ((count,), (count, 3))
        np.testing.assert_allclose(score, expected[0], rtol=1e-5, atol=1e-4)
        np.testing.assert_allclose(layers, expected[1], rtol=1e-5, atol=1e-4)


def test_a_cached_engine_needs_no_module():
    def fail():
        raise AssertionError("built again")

    one = graph()
    first = make_engine(one, "openvino", CPU)
    assert [path.name.partition("-")[0] for path in (cache_root() / "engines").iterdir()] == ["openvino"]
    arrays = [example.numpy() for example in one.inputs.values()]
    again = make_engine(Graph(fail, one.inputs, one.outputs, one.key), "openvino", CPU)
    np.testing.assert_array_equal(again(*arrays)[0], first(*arrays)[0])
    with pytest.raises(AssertionError, match="built again"):
        make_engine(Graph(fail, one.inputs, one.outputs, "another"), "openvino", CPU)


def test_auto_takes_the_fastest_that_is_installed(monkeypatch):
    assert choose_backend("auto", CPU) == "openvino"
    assert choose_backend("auto", torch.device("cuda")) == "torch"
    assert available_backends(CPU)[0] == "openvino"
    assert set(available_backends(torch.device("cuda"))) <= {"torch", "compile"}
    hidden = {"openvino"}
    real = __import__("dlsr.runtime.backends", fromlist=["find_spec"]).find_spec
    monkeypatch.setattr("dlsr.runtime.backends.find_spec", lambda name: None if name in hidden else real(name))
    assert choose_backend("auto", CPU) == "onnxruntime"
    with pytest.raises(MissingExtraError, match=r"dlsr\[openvino\]"):
        choose_backend("openvino", CPU)
    hidden.add("onnxscript")
    assert choose_backend("auto", CPU) == "torch"
    with pytest.raises(MissingExtraError, match=r"dlsr\[onnx\]"):
        choose_backend("onnxruntime", CPU)


def test_backends_that_cannot_work_are_refused(monkeypatch):
    with pytest.raises(SettingsError, match="auto, torch, compile, onnxruntime, openvino"):
        choose_backend("tpu", CPU)
    with pytest.raises(SettingsError, match="runs on the CPU"):
        choose_backend("openvino", torch.device("cuda"))
    monkeypatch.setattr("dlsr.runtime.backends.shutil.which", lambda name: None)
    with pytest.raises(SettingsError, match=r"install g\+\+"):
        choose_backend("compile", CPU)


def test_half_precision_only_where_it_changes_nothing():
    wide = Rows()
    assert not half_agrees(wide, graph().inputs, CPU, torch.bfloat16)
    with torch.no_grad():
        wide.linear.weight.zero_()
        wide.linear.bias.zero_()
    assert half_agrees(wide, graph().inputs, CPU, torch.bfloat16)


def test_openvinos_first_call_is_alone_and_later_ones_are_not(monkeypatch):
    import threading
    import time

    import openvino

    from dlsr.runtime.openvino_engine import openvino_engine

    at_once, most, lock = 0, [], threading.Lock()

    class Request:
        def infer(self, arrays):
            nonlocal at_once
            with lock:
                at_once += 1
            time.sleep(0.1)
            with lock:
                most.append(at_once)
                at_once -= 1
            return {0: arrays[0]}

    class Compiled:
        outputs = (None,)

        def create_infer_request(self):
            return Request()

        def get_property(self, name):
            return 4

    class Core:
        def compile_model(self, model, device, options):
            return Compiled()

    monkeypatch.setattr(openvino, "Core", Core)
    engine = openvino_engine(object())
    threads = [threading.Thread(target=engine, args=(np.zeros(1),)) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert most[0] == 1
    assert max(most) > 1


PINNED = """
import os, threading
from pathlib import Path
import numpy as np
from dlsr import Encoder, encoder_spec

encoder = Encoder(encoder_spec("test_resnet", weights="random"), backend="openvino")
pixels = np.zeros((64, encoder.spec.size, encoder.spec.size, 3), np.uint8)
done, seen = threading.Event(), set()

def look():
    while not done.is_set():
        for task in Path("/proc/self/task").iterdir():
            try:
                seen.add(len(os.sched_getaffinity(int(task.name))))
            except ProcessLookupError:
                continue

looking = threading.Thread(target=look)
looking.start()
for _ in range(50):
    encoder.encode(pixels)
done.set()
looking.join()
print(sorted(seen))
"""


def test_workers_with_few_threads_each_do_not_all_take_the_first_core():
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    said = subprocess.run([sys.executable, "-c", PINNED], env=environment, capture_output=True, text=True, check=True)
    assert said.stdout.strip() == f"[{len(os.sched_getaffinity(0))}]"

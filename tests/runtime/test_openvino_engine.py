import os
import shutil
import subprocess
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import openvino
import pytest
import torch
from torch import nn

from dlsr.runtime.backends import as_onnx
from dlsr.runtime.base import Graph
from dlsr.runtime.openvino_engine import load_openvino, openvino_engine

PIXELS = np.arange(12, dtype=np.uint8).reshape(3, 4) * 20
HALVED = np.maximum(PIXELS.astype(np.float32) - 128, 0) / 2


class Halved(nn.Module):
    def forward(self, pixels):
        return torch.relu(pixels.float() - 128) / 2


@pytest.fixture
def onnx(own_cache):
    return as_onnx(Graph(Halved, {"pixels": torch.zeros(2, 4, dtype=torch.uint8)}, ("z0",), "halved"))


def not_again(*args):
    raise AssertionError("compiled again")


def test_a_graph_is_compiled_once_for_each_number_of_threads(onnx, monkeypatch):
    monkeypatch.setenv("OMP_NUM_THREADS", "2")
    np.testing.assert_array_equal(load_openvino(onnx)(PIXELS)[0], HALVED)
    monkeypatch.setattr(openvino.Core, "compile_model", not_again)
    np.testing.assert_array_equal(load_openvino(onnx)(PIXELS)[0], HALVED)
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    with pytest.raises(AssertionError, match="compiled again"):
        load_openvino(onnx)


def test_a_damaged_compilation_is_made_again(onnx, own_cache):
    load_openvino(onnx)
    (file,) = own_cache.glob("engines/*/model.blob")
    intact = file.read_bytes()
    file.write_bytes(intact[:-1])
    np.testing.assert_array_equal(load_openvino(onnx)(PIXELS)[0], HALVED)
    assert len(file.read_bytes()) == len(intact)


def test_a_graph_runs_without_a_cache_that_can_be_written(onnx, own_cache):
    shutil.rmtree(own_cache / "engines")
    (own_cache / "engines").write_bytes(b"a file where the folder should be")
    np.testing.assert_array_equal(load_openvino(onnx)(PIXELS)[0], HALVED)


def test_the_first_call_is_alone_and_later_calls_are_concurrent(monkeypatch):
    callers = 4
    lock, calls = threading.Lock(), []
    second_call, later_calls = threading.Event(), threading.Barrier(callers - 1)

    class Request:
        def infer(self, arrays):
            with lock:
                calls.append(threading.get_ident())
                first = len(calls) == 1
            if first:
                assert not second_call.wait(0.2)
            else:
                second_call.set()
                later_calls.wait(timeout=30)  # an error unless all later calls are here at the same time
            return {0: arrays[0]}

    class Compiled:
        outputs = (None,)

        def create_infer_request(self):
            return Request()

        def get_property(self, name):
            return callers

    class Core:
        def compile_model(self, model, device, options):
            return Compiled()

    monkeypatch.setattr("dlsr.runtime.openvino_engine.openvino_core", Core)
    engine = openvino_engine(object())
    with ThreadPoolExecutor(callers) as pool:
        found = list(pool.map(engine, [np.zeros(1)] * callers))
    assert len(found) == callers


def test_requests_are_kept_for_calls_of_other_threads_and_never_shared(monkeypatch):
    made, busy = [], set()

    class Request:
        def infer(self, arrays):
            assert self not in busy
            busy.add(self)
            time.sleep(0.01)
            busy.discard(self)
            if arrays[0].sum() < 0:
                raise RuntimeError("wrong input")
            return {0: arrays[0]}

    class Compiled:
        outputs = (None,)

        def create_infer_request(self):
            made.append(Request())
            return made[-1]

        def get_property(self, name):
            return 2

    class Core:
        def compile_model(self, model, device, options):
            return Compiled()

    monkeypatch.setattr("dlsr.runtime.openvino_engine.openvino_core", Core)
    engine = openvino_engine(object())
    for _ in range(5):
        with ThreadPoolExecutor(3) as pool:  # new threads each time
            list(pool.map(engine, [np.zeros(1)] * 12))
    assert len(made) <= 3
    with pytest.raises(RuntimeError, match="wrong input"):
        engine(-np.ones(1))
    assert engine(np.ones(1))[0] == 1


AFFINITIES = """
import os, threading
from pathlib import Path
import torch
from dlsr.runtime.backends import make_engine
from dlsr.runtime.base import Graph

graph = Graph(lambda: torch.nn.Conv2d(3, 3, 3), {"x": torch.zeros(2, 3, 128, 128)}, ("y",), "convolution")
engine = make_engine(graph, "openvino", "cpu")
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
for _ in range(5):
    engine(torch.zeros(64, 3, 128, 128).numpy())
done.set()
looking.join()
print(sorted(seen))
"""


def test_workers_with_few_threads_are_not_pinned_to_the_first_core():
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-c", AFFINITIES]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=True)
    assert done.stdout.strip() == f"[{len(os.sched_getaffinity(0))}]"


SIGNALS = """
import gc, signal, sys
from pathlib import Path
from dlsr.runtime.openvino_engine import load_openvino

graph = Path(sys.argv[1]).read_bytes()
signal.signal(signal.SIGTERM, lambda *_: print("handled", flush=True))
engines = [load_openvino(graph) for _ in range(3)]
while engines:
    engines.pop(0)
    gc.collect()
    signal.raise_signal(signal.SIGTERM)
"""


def test_signals_are_handled_whichever_engines_have_ended(onnx, tmp_path):
    """As when a service has taken over a new model, and is then ended."""
    graph = tmp_path / "graph.onnx"
    graph.write_bytes(onnx)
    done = subprocess.run(
        [sys.executable, "-c", SIGNALS, graph], capture_output=True, text=True, timeout=100, check=False
    )
    assert (done.returncode, done.stdout) == (0, "handled\n" * 3), done.stderr

"""OpenVINO gives the thread that loads its plugin a stack for signals, and takes its memory away with the plugin."""

import subprocess
import sys

import torch
from torch import nn

from dlsr.runtime.backends import as_onnx
from dlsr.runtime.base import Graph

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


class Doubled(nn.Module):
    def forward(self, pixels):
        return pixels.float() * 2


def test_signals_are_handled_whichever_engines_have_ended(own_cache, tmp_path):
    """As when a service has taken over a new model, and is then ended."""
    graph = tmp_path / "graph.onnx"
    graph.write_bytes(as_onnx(Graph(Doubled, {"pixels": torch.zeros(2, 4, dtype=torch.uint8)}, ("z0",), "doubled")))
    done = subprocess.run(
        [sys.executable, "-c", SIGNALS, graph], capture_output=True, text=True, timeout=100, check=False
    )
    assert (done.returncode, done.stdout) == (0, "handled\n" * 3), done.stderr

"""Engines that run a pure module: PyTorch, compiled PyTorch, ONNX Runtime, OpenVINO."""

"""What runs a pure module: PyTorch, compiled PyTorch, ONNX Runtime, OpenVINO."""

"""ONNX Runtime, OpenVINO and NNCF report to their makers that they are used, unless they are told not to."""

import os
import sys


def refuse_telemetry() -> None:
    """Tell them, before they are imported. ONNX Runtime would also write an identifier into the user's cache."""
    os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")
    os.environ.setdefault("ORT_TELEMETRY_DISABLED", "1")  # the name in versions after 1.32
    sys.modules.setdefault("openvino_telemetry", None)  # type: ignore[arg-type]

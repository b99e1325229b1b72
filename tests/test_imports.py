"""What the parts that score images may import. PyTorch takes two seconds to import and gigabytes to install."""

import subprocess
import sys

import pytest

HEAVY = (
    "torch",
    "torchvision",
    "timm",
    "sklearn",
    "scipy",
    "matplotlib",
    "pandas",
    "pyarrow",
    "openvino",
    "onnxruntime",
)
LIGHT = (
    "dlsr.calibration.conformal",
    "dlsr.calibration.fdr",
    "dlsr.encoders.presets",
    "dlsr.encoding.examples",
    "dlsr.encoding.pipeline",
    "dlsr.encoding.store",
    "dlsr.images.sources",
    "dlsr.images.transforms",
    "dlsr.method.noise",
    "dlsr.results",
    "dlsr.runtime.base",
)


@pytest.mark.parametrize("module", LIGHT)
def test_a_light_module_imports_no_heavy_package(module):
    code = f"import sys, {module}; print(*(name for name in {HEAVY!r} if name in sys.modules))"
    assert subprocess.check_output([sys.executable, "-c", code], text=True).split() == []

"""Where images are scored, neither SciPy nor scikit-learn need be installed."""

import subprocess
import sys

BLOCKED = "import sys; sys.modules.update(dict.fromkeys(('scipy', 'sklearn')))\n"
WORK = """
import numpy as np
from dlsr.calibration.conformal import threshold
from dlsr.calibration.copies import found_groups
from dlsr.calibration.drift import drift
from dlsr.calibration.two_samples import Sample
import dlsr.calibration.exchangeability

random = np.random.default_rng(0)
scores, z0 = random.random(100), random.random((100, 30), np.float32)
threshold(scores, 0.1, confidence=0.9, left_out=True)
assert len(np.unique(found_groups(z0, random.integers(0, 256, (100, 16), np.uint8)))) > 90
sample = Sample(z0, {"width": scores, "file type": np.repeat(["PNG", "JPEG"], 50)})
assert not drift(scores, scores, window=50, stream=True, samples=(sample, sample)).drifted
"""


def test_thresholds_groups_and_drift_need_numpy_alone():
    subprocess.run([sys.executable, "-c", BLOCKED + WORK], check=True)

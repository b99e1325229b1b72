"""Do two versions of dlsr give real images the same scores? Every score is fitted and applied.

    python benchmarks/parity.py write before.json --data ../shared/data   # with one version
    python benchmarks/parity.py compare before.json --data ../shared/data  # with the other

The first fits each score to 1,000 images of CIFAR-10 and scores 200 others. The second does the same, prints the
greatest difference of each score, and ends with status 1 if a difference is 1e-6 or more.
"""

import argparse
import json
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from dlsr import Detector, open_images

SCORES: dict[str, dict[str, Any]] = {
    "residual": {},
    "fast": {"preset": "fast"},
    "mfsim": {"score": "mfsim", "epochs": 2},
    "mse": {"score": "mse", "epochs": 2},
    "lr": {"score": "lr", "epochs": 2},
    "mahalanobis": {"score": "mahalanobis"},
    "knn": {"score": "knn", "neighbours": 5},
    "autoencoder": {"score": "autoencoder", "epochs": 2},
    "feature-vae": {"score": "feature-vae", "epochs": 2},
}
TOLERANCE = 1e-6


def scores(data: Path, done: dict[str, list[float]], store: str) -> Iterator[dict[str, list[float]]]:
    """All scores so far, after each one; those in `done` are not computed again."""
    images = open_images(data / "cifar10.tar")
    chosen = np.random.default_rng(0).choice(len(images), 1200, replace=False)
    train, test = images.subset(chosen[:1000].tolist()), images.subset(chosen[1000:].tolist())
    for name, arguments in SCORES.items():
        if name not in done:
            detector = Detector(**arguments, device="cpu", store=store).fit(train)
            done |= {f"{name}, p-values": detector.p_values(test).tolist(), name: detector.score_samples(test).tolist()}
            print(name, detector.threshold_, file=sys.stderr)
            yield done


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("action", choices=["write", "compare"])
    parser.add_argument("file", type=Path)
    parser.add_argument("--data", type=Path, required=True, help="folder with cifar10.tar")
    arguments = parser.parse_args()
    before = json.loads(arguments.file.read_text()) if arguments.file.exists() else {}
    with tempfile.TemporaryDirectory() as store:
        if arguments.action == "write":
            for found in scores(arguments.data, before, store):
                arguments.file.write_text(json.dumps(found))
            return
        *_, found = scores(arguments.data, {}, store)
    differences = {name: float(np.abs(np.subtract(found[name], before[name])).max()) for name in before}
    for name, difference in differences.items():
        print(f"{name}: {difference:.1e}")
    sys.exit(max(differences.values()) >= TOLERANCE)


if __name__ == "__main__":
    main()

"""Scores images with the exported model beside this file: python score_image.py IMAGE [IMAGE ...]."""

import hashlib
import json
import sys
from pathlib import Path

import numpy as np

sys.modules["openvino_telemetry"] = None  # or OpenVINO reports its use to its makers
import openvino
from PIL import Image, ImageOps

HERE = Path(__file__).parent
ABOUT = json.loads((HERE / "export.json").read_text())
CALIBRATION = np.load(HERE / "calibration.npy")  # scores of ID images, rising
P_VALUES = np.load(HERE / "p_values.npy")  # of scores between them
GRAPH = openvino.Core().compile_model(HERE / ABOUT["graph"], "CPU", {"INFERENCE_PRECISION_HINT": "f32"})


def noise_of(pixels, seed, vectors, dimensions):
    """Noise that belongs to the image, shape (1, K, c): the same pixels and seed always give the same."""
    digest = hashlib.blake2b(repr(pixels.shape).encode() + pixels.tobytes(), digest_size=16).digest()
    key = hashlib.blake2b(digest, key=seed.to_bytes(8, "little", signed=True), digest_size=16).digest()
    generator = np.random.Generator(np.random.Philox(key=int.from_bytes(key, "little")))
    return generator.standard_normal((1, vectors, dimensions), dtype=np.float32)


def score(path):
    """Score (larger = more OOD) and p-value of an image."""
    image = ImageOps.exif_transpose(Image.open(path)).convert("RGB")  # lay transparent ones over white first
    size, interpolation = ABOUT["image"]["size"], ABOUT["image"]["interpolation"].upper()
    pixels = np.asarray(image.resize((size, size), Image.Resampling[interpolation]))
    inputs = {"pixels": pixels[None]}
    if ABOUT["noise"]["vectors"]:
        inputs["noise"] = noise_of(pixels, **ABOUT["noise"])
    value = float(GRAPH(inputs)["score"][0])
    return value, P_VALUES[np.searchsorted(CALIBRATION, value)]


for name in sys.argv[1:]:
    value, p_value = score(name)
    print(f"{name}: score {value:.6f}, p-value {p_value:.4f}, {'OOD' if value > ABOUT['threshold'] else 'ID'}")

"""Scores images with the exported model beside this file: python score_image.py IMAGE [IMAGE ...]."""

import hashlib
import json
import os
import sys
from pathlib import Path

import numpy as np
from PIL import Image, ImageOps

HERE = Path(__file__).parent
ABOUT = json.loads((HERE / "export.json").read_text())
CALIBRATION = np.load(HERE / "calibration.npy")  # scores of ID images, rising
P_VALUES = np.load(HERE / "p_values.npy")  # of scores between them


def load_graph():
    """A function from the graph's inputs to scores, shape (N,)."""
    path = HERE / ABOUT["graph"]
    if path.suffix == ".onnx":
        os.environ["ORT_DISABLE_TELEMETRY"] = os.environ["ORT_TELEMETRY_DISABLED"] = "1"  # by version
        import onnxruntime

        session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
        return lambda inputs: session.run(["score"], inputs)[0]
    sys.modules["openvino_telemetry"] = None  # or OpenVINO reports its use to its makers
    import openvino

    model = openvino.Core().compile_model(path, "CPU", {"INFERENCE_PRECISION_HINT": "f32"})
    return lambda inputs: model(inputs)["score"]


def load_image(path, draft, most_pixels, longest_side):
    """An image as dlsr reads it: upright, in RGB, over white where it is transparent."""
    image = Image.open(path, formats=list(most_pixels))
    if (
        image.width * image.height > most_pixels.get(image.format, most_pixels["JPEG"])
        or max(image.size) > longest_side
    ):
        raise ValueError(f"{image.width}x{image.height} pixels are too many")
    if draft:
        image.draft(None, (draft, draft))
    image.load()
    bits = bits_of(image)
    negative = image.format == "TIFF" and image.tag_v2.get(262) == 0
    image = upright(image)
    if bits > 8:
        image = Image.fromarray((np.asarray(image) >> (bits - 8)).astype(np.uint8)).convert("RGB")
        return ImageOps.invert(image) if negative else image
    if image.has_transparency_data:
        image = Image.alpha_composite(Image.new("RGBA", image.size, "white"), image.convert("RGBA"))
    return image.convert("RGB")


def upright(image):
    """The image as its EXIF orientation says; damaged EXIF data are passed over."""
    try:
        orientation = image.getexif().get(0x0112)
    except Exception:
        return image
    names = ["FLIP_LEFT_RIGHT", "ROTATE_180", "FLIP_TOP_BOTTOM", "TRANSPOSE", "ROTATE_270", "TRANSVERSE", "ROTATE_90"]
    turns = {2 + i: Image.Transpose[name] for i, name in enumerate(names)}
    return image.transpose(turns[orientation]) if orientation in turns else image


def bits_of(image):
    """How many bits a channel has: of 9 to 16, the upper 8 are used."""
    if image.format == "TIFF":
        tags = image.tag_v2
        if 2 in tags.get(339, ()):
            raise ValueError("signed pixels have no known range; convert to 8 or unsigned 16 bits")
        if tags.get(284) == 2 and tags.get(259, 1) == 1 and max(tags.get(258, (8,))) > 8:
            raise ValueError("separate planes of more than 8 bits are read wrongly; store pixel by pixel")
    if image.mode.startswith("I;16"):
        return image.tag_v2.get(258, (16,))[0] if image.format == "TIFF" else 16
    if image.mode == "I" and image.format in ("PPM", "PNG"):
        return 16
    if image.mode in ("I", "F"):
        raise ValueError("its pixels have no known range; convert to 8 or unsigned 16 bits")
    return 8


def resize(image, size, interpolation, resizer):
    """Resize as dlsr does, uint8 of shape (size, size, 3)."""
    if resizer == "pillow":
        return np.asarray(image.resize((size, size), Image.Resampling[interpolation.upper()]))
    import cykooz_resizer as cykooz

    kind = {"bilinear": cykooz.FilterType.bilinear, "bicubic": cykooz.FilterType.catmull_rom}[interpolation]
    resized = Image.new("RGB", (size, size))
    cykooz.Resizer().resize_pil(image, resized, cykooz.ResizeOptions(cykooz.ResizeAlg.convolution(kind)))
    return np.asarray(resized)


def noise_of(pixels, seed, vectors, dimensions):
    """Noise that belongs to the image, shape (1, K, c): the same pixels and seed always give the same."""
    digest = hashlib.blake2b(repr(pixels.shape).encode() + pixels.tobytes(), digest_size=16).digest()
    key = hashlib.blake2b(digest, key=seed.to_bytes(8, "little", signed=True), digest_size=16).digest()
    generator = np.random.Generator(np.random.Philox(key=int.from_bytes(key, "little")))
    return generator.standard_normal((1, vectors, dimensions), dtype=np.float32)


def score(path, graph):
    """Score (larger = more OOD) and p-value of an image."""
    about = ABOUT["image"]
    pixels = resize(load_image(path, **about["loading"]), about["size"], about["interpolation"], about["resizer"])
    inputs = {"pixels": pixels[None]}
    if ABOUT["noise"]["vectors"]:
        inputs["noise"] = noise_of(pixels, **ABOUT["noise"])
    value = float(graph(inputs)[0])
    return value, P_VALUES[np.searchsorted(CALIBRATION, value)]


def main():
    """Print a line for each image; exit with 1 if some cannot be read."""
    graph, unreadable = load_graph(), 0
    for name in sys.argv[1:]:
        try:
            value, p_value = score(name, graph)
        except Exception as error:  # decoders raise errors of any kind
            print(f"{name}: cannot be read: {error}")
            unreadable += 1
        else:
            print(f"{name}: score {value:.6f}, p-value {p_value:.4f}, {'OOD' if value > ABOUT['threshold'] else 'ID'}")
    if unreadable:
        sys.exit(1)


if __name__ == "__main__":
    main()

import importlib.util
import json
import shutil
import subprocess
import sys

import numpy as np
import pytest
import torch
from PIL import Image

from dlsr import (
    Detector,
    ExportError,
    MissingExtraError,
    NotFittedError,
    OutputError,
    SettingsError,
    TooFewImagesError,
    UnreadableImagesWarning,
)
from dlsr.export import export, export_int8
from dlsr.export.graph import TOLERANCE
from dlsr.export.int8 import quantised_encoder
from shared import small

pytestmark = pytest.mark.slow


def fitted(image_folder, small_encoder, score="local", **arguments):
    """A detector whose graph is small: converting takes most of the time."""
    settings = {"blocks": 1} | ({"t": (9, 3)} if score in ("mfsim", "lr") else {})
    return Detector(**small_encoder, **small(score, **settings), **arguments).fit(image_folder)


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["onnx", "openvino"])
@pytest.mark.parametrize("score", ["local", "residual", "mfsim", "lr", "mahalanobis", "knn"])
def test_the_example_scores_as_the_detector_does(image_folder, odd_folder, small_encoder, tmp_path, kind, score):
    detector = fitted(image_folder, small_encoder, score=score)
    assert export(detector, tmp_path / "out", kind, odd_folder) <= TOLERANCE
    paths = sorted(odd_folder.iterdir())[:2] + sorted(image_folder.rglob("*.png"))[:2]
    moved = tmp_path / "moved"
    shutil.move(tmp_path / "out", moved)
    done = subprocess.run(
        [sys.executable, "-I", moved / "score_image.py", *paths], capture_output=True, text=True, check=True
    )
    for line, result in zip(done.stdout.splitlines(), detector.results(paths), strict=True):
        name, _, rest = line.rpartition(": score ")
        score_text, p_text, verdict = rest.split(", ")
        assert name == result.path
        assert float(score_text) == pytest.approx(result.score, rel=1e-4, abs=1e-5)
        assert float(p_text.removeprefix("p-value ")) == pytest.approx(result.p_value, abs=1e-4)
        assert verdict == ("OOD" if result.is_ood else "ID")
    about = json.loads((moved / "export.json").read_text())
    assert about["threshold"] == detector.threshold_
    assert tuple(about["layers"]) == detector.layer_names_
    assert len(np.load(moved / "calibration.npy", allow_pickle=False)) == detector.fit_summary_.calibration_images


def test_the_example_needs_no_dlsr():
    from importlib import resources

    text = resources.files("dlsr.export").joinpath("templates/score_image.py").read_text()
    assert "import dlsr" not in text
    assert "torch" not in text


def hard_images(photograph):
    """Images that are easily loaded in another way, by name."""
    image = photograph.resize((97, 65))
    ramp = Image.linear_gradient("L").resize(image.size)
    rgba, grey = image.copy(), image.convert("L")
    rgba.putalpha(ramp)
    deep = Image.fromarray(np.asarray(grey).astype(np.uint16) * 200 + 77)
    palette = image.quantize(256)
    exif = Image.Exif()
    exif[0x0112] = 6
    clear = {"transparency": bytes(range(256))}
    return {
        "deep.png": (deep, {}),
        "deep.tif": (deep, {}),
        "rgba.png": (rgba, {}),
        "la.png": (rgba.convert("LA"), {}),
        "p.png": (palette, clear),
        "p.gif": (palette, {"transparency": 3}),
        "key.png": (
            image.quantize(8).convert("RGB"),
            {"transparency": image.quantize(8).convert("RGB").getpixel((0, 0))},
        ),
        "cmyk.jpg": (image.convert("CMYK"), {}),
        "turned.jpg": (image, {"exif": exif}),
        "turned.png": (rgba, {"exif": exif}),
        "grey.jpg": (grey, {}),
        "bits.png": (image.convert("1"), {}),
        "large.jpg": (photograph, {}),
    }


@pytest.mark.slow
@pytest.mark.parametrize(("decoding", "resizer"), [("full", "pillow"), ("draft", "cykooz")])
def test_the_example_loads_images_as_the_detector_does(
    image_folder, small_encoder, photographs, tmp_path, monkeypatch, decoding, resizer
):
    """16-bit grey and transparent images had other scores."""
    folder = tmp_path / "images"
    folder.mkdir()
    for name, (image, options) in hard_images(photographs[0]).items():
        image.save(folder / name, **options)
    (folder / "deep.pgm").write_bytes(b"P5 90 60 4095 " + np.arange(5400, dtype=">u2").clip(0, 4095).tobytes())
    detector = fitted(image_folder, small_encoder, score="mahalanobis", decoding=decoding, resizer=resizer)
    export(detector, tmp_path / "out", "onnx")
    spec = importlib.util.spec_from_file_location("score_image", tmp_path / "out" / "score_image.py")
    example = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(example)
    graph, paths = example.load_graph(), sorted(folder.iterdir())
    results = detector.detect(paths)
    assert results.errors == [None] * len(paths)
    about = example.ABOUT["image"]
    for path, result in zip(paths, results, strict=True):
        loaded = example.load_image(path, **about["loading"])
        np.testing.assert_array_equal(loaded, detector.extractor_.spec.decode(path.read_bytes()), path.name)
        assert example.score(path, graph)[0] == pytest.approx(result.score, rel=1e-4, abs=1e-5), path.name


def test_the_example_refuses_what_the_detector_refuses(image_folder, small_encoder, tmp_path):
    folder = tmp_path / "images"
    folder.mkdir()
    Image.fromarray(np.full((9, 9), 200, np.int32)).save(folder / "int.tif")
    Image.new("F", (9, 9)).save(folder / "float.tif")
    Image.new("RGB", (9, 9)).save(folder / "a.eps")
    Image.new("1", (70_000, 2)).save(folder / "long.png")
    (folder / "text.png").write_text("no image")
    Image.new("RGB", (9, 9)).save(folder / "z-good.png")
    detector = fitted(image_folder, small_encoder, score="mahalanobis")
    export(detector, tmp_path / "out", "onnx")
    paths = sorted(folder.iterdir())
    words = [sys.executable, "-I", tmp_path / "out" / "score_image.py", *paths]
    done = subprocess.run(words, capture_output=True, text=True, check=False)
    *refused, good = done.stdout.splitlines()
    assert done.returncode == 1
    assert ["cannot be read: " in line for line in refused] == [True] * 5
    assert "z-good.png: score" in good
    with pytest.warns(UnreadableImagesWarning):
        assert (detector.predict(paths) == -1).tolist() == [True] * 5 + [False]


@pytest.mark.slow
@pytest.mark.parametrize("score", [0.0, np.nan])
def test_a_graph_that_disagrees_is_refused(image_folder, small_encoder, tmp_path, monkeypatch, score):
    detector = fitted(image_folder, small_encoder, score="mahalanobis")

    def wrong(path):
        return lambda pixels: (np.full(len(pixels), score, np.float32), None)

    monkeypatch.setattr("dlsr.export.graph.load_onnx", wrong)
    with pytest.raises(ExportError, match="disagrees with PyTorch"):
        export(detector, tmp_path / "out", "onnx")
    assert list(tmp_path.iterdir()) == []


def test_exporting_what_cannot_be_exported(image_folder, small_encoder, features, tmp_path, monkeypatch):
    detector = fitted(image_folder, small_encoder, score="mahalanobis")
    with pytest.raises(SettingsError, match="onnx, openvino"):
        export(detector, tmp_path / "out", "tflite")
    (tmp_path / "thesis.txt").write_text("x")
    with pytest.raises(OutputError, match="holds other files"):
        export(detector, tmp_path)
    with pytest.raises(NotFittedError, match="has no encoder"):
        export(Detector(score="mahalanobis").fit_features(features[0]), tmp_path / "out")
    with pytest.raises(NotFittedError):
        export(Detector(**small_encoder), tmp_path / "out")
    monkeypatch.setattr("dlsr.runtime.backends.find_spec", lambda name: None)
    with pytest.raises(MissingExtraError, match=r"dlsr\[fit\]"):
        export(detector, tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_files_of_users_in_an_export_are_kept(image_folder, small_encoder, tmp_path):
    detector = fitted(image_folder, small_encoder, score="mahalanobis")
    export(detector, tmp_path / "out", "onnx")
    export(detector, tmp_path / "out", "onnx")
    (tmp_path / "out" / "Dockerfile").write_text("FROM python")
    with pytest.raises(OutputError, match="holds other files, such as Dockerfile"):
        export(detector, tmp_path / "out", "onnx")
    assert (tmp_path / "out" / "Dockerfile").read_text() == "FROM python"
    with pytest.raises(OutputError, match="is a file"):
        export(detector, tmp_path / "out" / "Dockerfile", "onnx")


@pytest.mark.slow
def test_an_export_replaces_an_export(image_folder, odd_folder, small_encoder, tmp_path):
    detector = fitted(image_folder, small_encoder, score="mahalanobis")
    export(detector, tmp_path / "out", "onnx")
    detector.false_alarm_rate = 0.2
    export(detector, tmp_path / "out", "onnx", odd_folder)
    assert json.loads((tmp_path / "out" / "export.json").read_text())["false_alarm_rate"] == 0.2
    assert [path.name for path in tmp_path.iterdir()] == ["out"]
    assert torch.is_grad_enabled()


@pytest.mark.slow
def test_eight_bits_are_kept_only_if_detection_hardly_suffers(
    image_folder, odd_folder, small_encoder, tmp_path, monkeypatch
):
    pytest.importorskip("nncf")
    detector = fitted(image_folder, small_encoder, false_alarm_rate=0.1)
    made = []

    def quantised_once(*arguments):
        made.append(made[0].clone() if made else quantised_encoder(*arguments))
        return made[-1].clone()

    monkeypatch.setattr("dlsr.export.int8.quantised_encoder", quantised_once)
    monkeypatch.setattr("dlsr.export.int8.GREATEST_LOSS", -1.0)
    with pytest.raises(ExportError, match="points of AUROC"):
        export_int8(detector, tmp_path / "refused", image_folder, image_folder, {"flower": odd_folder})
    assert not (tmp_path / "refused").exists()

    monkeypatch.setattr("dlsr.export.int8.GREATEST_LOSS", 1.0)
    before = detector.score_samples(odd_folder)
    report = export_int8(detector, tmp_path / "out", image_folder, image_folder, {"flower": odd_folder})
    np.testing.assert_array_equal(detector.score_samples(odd_folder), before)
    assert report.loss == pytest.approx(report.auroc["flower"] - report.auroc_int8["flower"])
    assert report.times_as_fast > 0
    about = json.loads((tmp_path / "out" / "export.json").read_text())
    assert about["int8"]["auroc_int8"] == report.auroc_int8
    calibration = np.load(tmp_path / "out" / "calibration.npy")
    assert len(calibration) == detector.fit_summary_.calibration_images
    assert about["threshold"] in calibration
    assert not np.isin(calibration, detector.calibration_scores_).any()
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == [
        "calibration.npy", "export.json", "model.bin", "model.xml", "p_values.npy", "score_image.py",
    ]  # fmt: skip
    image = sorted(odd_folder.iterdir())[0]
    line = subprocess.check_output([sys.executable, "-I", tmp_path / "out" / "score_image.py", image], text=True)
    assert "nan" not in line
    assert float(line.rpartition(": score ")[2].split(",")[0]) != next(detector.results([image])).score


def test_eight_bits_need_sets_and_enough_images(image_folder, odd_folder, small_encoder, tmp_path, monkeypatch):
    detector = fitted(image_folder, small_encoder, score="mahalanobis")
    with pytest.raises(SettingsError, match="at least one OOD dataset"):
        export_int8(detector, tmp_path / "out", image_folder, image_folder, {})
    few = sorted(image_folder.rglob("*.png"))[:19]
    with pytest.raises(TooFewImagesError, match="19 readable images are too few"):
        export_int8(detector, tmp_path / "out", few, image_folder, {"flower": odd_folder})
    monkeypatch.setattr("dlsr.runtime.quantisation.find_spec", lambda name: None)
    with pytest.raises(MissingExtraError, match=r"dlsr\[quantise\]"):
        export_int8(detector, tmp_path / "out", image_folder, image_folder, {"flower": odd_folder})


@pytest.mark.slow
def test_export_from_the_command_line(model, image_folder, tmp_path, monkeypatch, capsys):
    from dlsr.cli import main

    def run(*arguments):
        monkeypatch.setattr(sys, "argv", ["dlsr", "export", str(model), *map(str, arguments), "--backend", "torch"])
        with pytest.raises(SystemExit) as caught:
            main()
        return caught.value.code or 0, capsys.readouterr().err

    status, err = run("-o", tmp_path / "out", "--images", image_folder)
    assert (status, "agree with PyTorch" in err) == (0, True)
    assert json.loads((tmp_path / "out" / "export.json").read_text())["parity"]["images"] == 120
    for arguments in (["--int8"], ["--int8", "--format", "openvino", "--id", image_folder]):
        status, err = run("-o", tmp_path / "new", *arguments)
        assert status == 2
        assert "--int8 needs" in err.splitlines()[-1]

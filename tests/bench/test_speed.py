import json
import os
import subprocess
import sys
from dataclasses import replace

import numpy as np
import pytest
from PIL import Image

from dlsr import Detector
from dlsr.bench import image_paths, parts, speed
from dlsr.bench.speed import SpeedSettings, default_backends, measure_speed, measure_training
from dlsr.cli.console import print_speed
from dlsr.method.lfdn import LFDN
from dlsr.reports.plots import save_speed
from dlsr.scorers import resolve

SETTINGS = SpeedSettings(
    backends=("torch",),
    batch_sizes=(1, 4),
    images=8,
    growth=(8, 16),
    vectors=64,
    encoder="test_resnet",
    weights="random",
    others=False,
)
PARTS = {
    "cores": 2,
    "core_ms": dict.fromkeys(("read", "decode", "resize", "digest", "encode", "score"), 1.5),
    "sum": 9.0,
    "end_to_end": 10.0,
    "share": 0.9,
}


@pytest.fixture
def in_this_process(monkeypatch):
    """Everything runs once and in this process, except the command that is timed."""
    monkeypatch.setattr(speed, "_alone", lambda function, *arguments: function(*arguments))
    monkeypatch.setattr(speed, "ROUNDS", 1)
    monkeypatch.setattr(parts, "ROUNDS", 1)


@pytest.mark.slow
@pytest.mark.usefixtures("in_this_process")
def test_a_report_on_speed_is_complete_and_consistent(image_folder):
    messages = []
    measured = json.loads(json.dumps(measure_speed(SETTINGS, image_folder, messages.append)))
    (row,) = measured["scoring"]
    assert row["backend"] == "torch"
    for numbers in (row["end_to_end"], row["encoder_alone"], row["restoration_share"]):
        assert numbers.keys() == {"1", "4"}
        assert min(numbers.values()) > 0
    assert row["seconds_to_first_score"] > 0
    fastest, eager = max(row["end_to_end"].values()), measured["eager_default_layout_images_per_second"]
    assert row["over_eager"] == pytest.approx(fastest / eager)
    assert [numbers["images"] for numbers in measured["growth"]] == [8, 16]
    for numbers in measured["growth"]:
        assert numbers["images_per_second"] == pytest.approx(numbers["images"] / numbers["seconds"])
        assert numbers["peak_memory_bytes"] > 100 * 2**20
    assert measured["training"] == []  # the default trains nothing
    assert measured["others"] == {}
    costs = measured["parts"]["core_ms"]
    assert list(costs) == ["read", "decode", "resize", "digest", "encode", "score"]
    assert min(costs.values()) > 0
    assert measured["parts"]["sum"] == pytest.approx(sum(costs.values()))
    assert measured["parts"]["share"] == pytest.approx(measured["parts"]["sum"] / measured["parts"]["end_to_end"])
    assert messages == [
        "the parts of scoring",
        "PyTorch in its default layout",
        "scoring with torch",
        "scoring 8 images",
        "scoring 16 images",
    ]


@pytest.mark.usefixtures("in_this_process")
def test_the_training_of_a_preset_with_a_network_is_measured(image_folder, monkeypatch):
    monkeypatch.setattr(speed, "_scoring", lambda *_: {"end_to_end": {"1": 5.0}, "encoder_alone": {"1": 10.0}})
    monkeypatch.setattr(speed, "_first_score_seconds", lambda *_: 1.0)
    monkeypatch.setattr(speed, "_eager_rate", lambda *_: 1.0)
    monkeypatch.setattr(speed, "_parts", lambda *_: PARTS)
    monkeypatch.setattr(
        speed, "_fitted", lambda *_: Detector(score="knn", group_by="none").fit_features(np.ones((64, 2)))
    )
    monkeypatch.setattr(speed, "measure_training", lambda network, *_: {"epoch_seconds": 2.0, "width": network.width})
    settings = replace(SETTINGS, preset="paper", growth=())
    measured = measure_speed(settings, image_folder)
    assert measured["training"]
    for row in measured["training"]:
        assert row["re_encoding_over_cached"] == pytest.approx((2 + settings.vectors / 10) / 2)


def test_speed_is_drawn_as_a_plot_and_printed(tmp_path, capsys):
    rates = {"1": 10.0, "4": 20.0}
    scoring = {"backend": "torch", "end_to_end": rates, "encoder_alone": rates}
    growth = [{"images": n, "seconds": n / 10, "images_per_second": 10.0, "peak_memory_bytes": 1e9} for n in (8, 16)]
    others = {"by hand: something": 20.0, "other: thing": "not installed"}
    measured = {"scoring": [scoring], "growth": growth, "eager_default_layout_images_per_second": 15.0}
    measured |= {"parts": PARTS, "others": others}
    save_speed(tmp_path / "speed.png", measured)
    with Image.open(tmp_path / "speed.png") as picture:
        assert picture.width > 500
    more = {"end_to_end_over_encoder": rates, "seconds_to_first_score": 1.0, "peak_memory_bytes": 1e9}
    print_speed(measured | {"scoring": [scoring | more], "training": []})
    printed = capsys.readouterr().out
    assert "0.90" in printed  # the share
    assert "by hand: something: 100.00 core-milliseconds an image" in printed
    assert "other: thing: not installed" in printed


@pytest.mark.slow
def test_other_ways_to_score_are_measured_or_say_what_is_missing(image_folder, monkeypatch):
    monkeypatch.setattr(image_paths, "ROUNDS", 1)
    settings = replace(SETTINGS, encoder="efficientnet_lite0", weights=None)
    for name in image_paths.OTHERS:
        assert speed._alone(speed._other, settings, name, str(image_folder)) > 0

    def missing(*_):
        raise ModuleNotFoundError("No module named 'anomalib'")

    monkeypatch.setattr(speed, "OTHERS", {"anomalib": missing})
    assert speed._other(SETTINGS, "anomalib", str(image_folder)) == (
        "No module named 'anomalib'; run: pip install 'dlsr[compare]'"
    )


def test_measurements_run_in_their_own_process():
    assert speed._alone(os.getpid) != os.getpid()


def test_the_arithmetic_of_an_epoch_grows_with_its_vectors():
    small = resolve("paper").scorer.changed({"width": 32, "blocks": 1})
    few, many = (measure_training(small, n * small.batch_size, "float32", c=16) for n in (1, 3))
    assert many["gflops"] * many["epoch_seconds"] == pytest.approx(3 * few["gflops"] * few["epoch_seconds"])
    assert many["share_of_products"] == pytest.approx(many["gflops"] / many["gflops_of_products"])
    assert many["parameters"] == sum(parameter.numel() for parameter in LFDN(16, 32, 1).parameters())


def test_peak_memory_grows_with_allocated_memory():
    code = "from dlsr.bench.speed import peak_memory as p; a = p(); x = b'1' * (400 << 20); print(a, p(), len(x))"
    before, after, _ = map(int, subprocess.check_output([sys.executable, "-c", code]).split())
    assert 200 << 20 < after - before < 500 << 20


def test_compile_is_measured_only_when_asked_for():
    assert "compile" not in default_backends()
    assert "torch" in default_backends()

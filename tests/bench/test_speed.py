import json
import subprocess
import sys
import time

import pytest
from PIL import Image

from dlsr.bench.speed import SpeedSettings, default_backends, diffusion_settings, measure_speed, measure_training
from dlsr.reports.plots import save_speed


def test_speed_measures_what_it_says(tmp_path, image_folder):
    settings = SpeedSettings(
        backends=("torch",),
        batch_sizes=(1, 4),
        images=8,
        growth=(8, 16),
        vectors=64,
        encoder="test_resnet",
        weights="random",
    )
    told = []
    measured = json.loads(json.dumps(measure_speed(settings, image_folder, told.append)))
    (row,) = measured["scoring"]
    assert row["backend"] == "torch"
    assert row["end_to_end"].keys() == row["encoder_alone"].keys() == {"1", "4"}
    assert min(*row["end_to_end"].values(), *row["encoder_alone"].values()) > 0
    assert all(0 < share < 1 for share in row["restoration_share"].values())
    assert 0.5 < row["seconds_to_first_score"] < 60
    assert [one["images"] for one in measured["growth"]] == [8, 16]
    assert all(one["peak_memory_bytes"] > 100 * 2**20 for one in measured["growth"])
    assert told == ["PyTorch in its default layout", "scoring with torch", *(f"scoring {n} images" for n in (8, 16)),
                    "training"]  # fmt: skip
    save_speed(tmp_path / "speed.png", measured)
    with Image.open(tmp_path / "speed.png") as picture:
        assert picture.width > 500


def test_training_is_slower_than_its_products():
    small = diffusion_settings("default").changed({"width": 256, "blocks": 2})
    start = time.perf_counter()
    measured = measure_training(small, 2048, "float32", c=64)
    assert measured["epoch_seconds"] < time.perf_counter() - start
    assert 0 < measured["share_of_products"] < 1.2
    assert measured["parameters"] > 2 * 2 * 256 * 256


def test_peak_memory_grows_with_what_is_held():
    code = "from dlsr.bench.speed import peak_memory as p; a = p(); x = b'1' * (400 << 20); print(a, p(), len(x))"
    before, after, _ = map(int, subprocess.check_output([sys.executable, "-c", code]).split())
    assert 200 << 20 < after - before < 500 << 20


def test_compile_is_measured_only_when_asked_for():
    assert "compile" not in default_backends()
    assert "torch" in default_backends()


@pytest.mark.parametrize("command", [["bench", "--help"], ["bench", "speed", "--help"]])
def test_bench_has_help(command, monkeypatch, capsys):
    from dlsr.cli import main

    monkeypatch.setattr("sys.argv", ["dlsr", *command])
    with pytest.raises(SystemExit) as caught:
        main()
    assert not caught.value.code
    assert "speed" in capsys.readouterr().out

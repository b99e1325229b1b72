import pytest
from PIL import Image

from dlsr import FittedDetector
from shared import patches


def test_maps_are_drawn_beside_the_scores(run, model_with_maps, odd_folder, tmp_path):
    broken = tmp_path / "new" / "broken.png"
    broken.parent.mkdir()
    broken.write_bytes(b"no image")
    image = sorted(odd_folder.iterdir())[0]
    (broken.parent / "good.png").write_bytes(image.read_bytes())
    finished = run("score", model_with_maps, broken.parent, "--maps", tmp_path / "maps", "-o", tmp_path / "scores.csv")
    assert finished.status == 0
    assert "1 maps in" in finished.err
    assert "broken.png" in finished.err
    (file,) = (tmp_path / "maps").iterdir()
    assert file.name == "good.png.jpg"
    with Image.open(file) as drawn, Image.open(image) as plain:
        assert drawn.size == plain.size
    assert (tmp_path / "scores.csv").read_text().count("\n") == 3


def test_maps_are_drawn_beside_verdicts_at_a_false_discovery_rate(run, model_with_maps, odd_folder, tmp_path):
    options = ["--fdr", "0.2", "--quiet"]
    plain = run("score", model_with_maps, odd_folder, *options)
    with_maps = run("score", model_with_maps, odd_folder, *options, "--maps", tmp_path / "maps")
    verdicts = [[line.split(",")[3] for line in one.out.splitlines()] for one in (plain, with_maps)]
    assert verdicts[0] == verdicts[1]
    assert "True" in verdicts[0]
    assert len(list((tmp_path / "maps").iterdir())) == len(verdicts[0]) - 1


def test_a_model_without_maps_is_one_error_before_anything_is_scored(run, model, odd_folder, tmp_path):
    finished = run("score", model, odd_folder, "--maps", tmp_path / "maps", "-o", tmp_path / "scores.csv")
    assert "fit it again with --maps" in finished.error
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("option", ["score", "fit"])
def test_maps_do_not_work_on_a_cluster(run, model_with_maps, image_folder, tmp_path, option):
    if option == "score":
        finished = run("score", model_with_maps, image_folder, "--maps", tmp_path, "-o", tmp_path, "--engine", "ray")
    else:
        finished = run("fit", image_folder, "-o", tmp_path / "model", "--maps", "--engine", "ray")
    assert "--maps does not work with --engine ray" in finished.error


@pytest.mark.slow
def test_a_fit_of_the_default_score_draws_maps_without_pytorch(run, photographs, image_folder, tmp_path):
    options = ["--encoder", "test_resnet", "--weights", "random", "--group-by", "none"]
    assert run("fit", image_folder, "-o", tmp_path / "model", "--maps", *options).status == 0
    detector = FittedDetector.load(tmp_path / "model", backend="onnxruntime")
    maps = list(detector.anomaly_maps(list(patches(photographs[1], 3))))
    assert [found.values.shape for found in maps] == [(28, 28)] * 3

"""A score defined here alone works everywhere: fitting, saving, loading, the command line, exports."""

import json
import subprocess
import sys

import numpy as np
import pytest
import torch
from pydantic import Field

from dlsr import SCORES, ArtifactError, Detector, FittedDetector, Scorer, register
from dlsr.cli import main
from dlsr.export import export
from dlsr.fitting import GraphWarning
from dlsr.method.scores import layer_means
from dlsr.scorers import ScorerSettings


class BoxSettings(ScorerSettings):
    slack: float = Field(default=0.1, ge=0, description="How far a feature may leave the box.")


class BoxScorer(Scorer):
    """How far features lie outside the box around the training features."""

    name = "box"
    summary = "distance to the box around the training features"
    Settings = BoxSettings
    presets = {"default": BoxSettings()}  # noqa: RUF012

    def __init__(self, settings, channels):
        super().__init__(settings, channels)
        self.register_buffer("low", torch.zeros(sum(channels)))
        self.register_buffer("high", torch.zeros(sum(channels)))

    def fit(self, data, trainer):
        every = torch.cat(list(data.training))
        self.low, self.high = every.min(dim=0).values, every.max(dim=0).values
        return []

    def forward(self, z0, noise):
        outside = (self.low - z0).maximum(z0 - self.high) - self.settings.slack
        squares = outside.clamp(min=0).square() + 1e-3 * (z0 - (self.low + self.high) / 2).square()
        return squares.mean(dim=1), layer_means(squares, self.channels)


@pytest.fixture(autouse=True)
def registered():
    register(BoxScorer)
    yield
    del SCORES["box"]


@pytest.fixture
def detector(image_folder, small_encoder):
    return Detector(**small_encoder, score="box", slack=0.2).fit(image_folder)


def test_it_fits_scores_saves_and_loads(detector, odd_folder, tmp_path):
    results = detector.detect(odd_folder)
    assert results.verdicts.mean() > 0.5
    detector.save(tmp_path / "model")
    loaded = Detector.load(tmp_path / "model", backend="torch")
    assert loaded.settings_.scorer == BoxSettings(slack=0.2)
    np.testing.assert_array_equal(loaded.score_samples(odd_folder), results.scores)


def test_its_graph_scores_where_it_is_not_known(detector, odd_folder, tmp_path):
    results = detector.detect(odd_folder)
    detector.save(tmp_path / "model")
    del SCORES["box"]
    try:
        with pytest.raises(ArtifactError, match="register a score of your own before loading"):
            Detector.load(tmp_path / "model")
        loaded = FittedDetector.load(tmp_path / "model", backend="onnxruntime")
        assert loaded.settings_.scorer.slack == 0.2
        np.testing.assert_allclose(loaded.score_samples(odd_folder), results.scores, rtol=1e-4, atol=1e-5)
    finally:
        register(BoxScorer)


def test_a_score_that_cannot_be_converted_is_saved_without_graphs(detector, odd_folder, tmp_path, monkeypatch):
    def forward(self, z0, noise):
        scores = torch.tensor([float(row.max()) for row in z0])
        return scores, scores[:, None].expand(-1, len(self.channels))

    monkeypatch.setattr(BoxScorer, "forward", forward)
    monkeypatch.setattr("dlsr.scorer_module._code", lambda scorer: "another")
    with pytest.warns(GraphWarning, match="will need PyTorch.*cannot be converted to ONNX"):
        detector.save(tmp_path / "model")
    loaded = FittedDetector.load(tmp_path / "model")
    np.testing.assert_allclose(loaded.score_samples(odd_folder), detector.score_samples(odd_folder), rtol=1e-5)


@pytest.mark.parametrize("kind", ["onnx", "openvino"])
def test_it_is_exported(detector, odd_folder, tmp_path, kind):
    assert export(detector, tmp_path / "out", kind, odd_folder) <= 1e-4


def test_the_command_line_knows_it(image_folder, odd_folder, small_encoder, tmp_path, monkeypatch, capsys):
    def dlsr(*arguments):
        monkeypatch.setattr(sys, "argv", ["dlsr", *map(str, arguments)])
        with pytest.raises(SystemExit) as caught:
            main()
        assert not caught.value.code, capsys.readouterr().err
        return capsys.readouterr().out

    monkeypatch.setenv("COLUMNS", "200")
    assert "distance to the box" in dlsr("fit", "--help")
    encoder = ["--encoder", small_encoder["encoder"], "--weights", "random", "--backend", "torch"]
    dlsr("fit", image_folder, "-o", tmp_path / "model", *encoder, "--score", "box", "--slack", "0.3", "--quiet")
    told = json.loads(dlsr("info", tmp_path / "model", "--json"))
    assert told["settings"]["scorer"] == {"slack": 0.3}
    assert dlsr("score", tmp_path / "model", odd_folder, "--quiet").count("\n") == 41


def test_a_graph_that_disagrees_with_pytorch_is_not_kept(detector, odd_folder, tmp_path, monkeypatch):
    monkeypatch.setattr("dlsr.scorer_module._code", lambda scorer: "the same code, as far as is known")
    detector.save(tmp_path / "model")
    forward = BoxScorer.forward
    monkeypatch.setattr(BoxScorer, "forward", lambda self, z0, noise: tuple(2 * x for x in forward(self, z0, noise)))
    again = Detector(**detector.get_params()).fit_features(np.random.default_rng(0).standard_normal((60, 1200)))
    again.fit_features(np.random.default_rng(0).standard_normal((60, 1200)), detector.channels_)
    with pytest.warns(GraphWarning, match="disagrees with PyTorch"):
        again.save(tmp_path / "other")


def test_a_score_without_a_file_is_saved_with_its_graph(tmp_path):
    code = """
import numpy as np
import torch
from dlsr import Detector, FittedDetector, Scorer, register
from dlsr.scorers import ScorerSettings

@register
class Typed(Scorer):
    name = "typed"
    summary = "largest feature"
    presets = {"default": ScorerSettings()}

    def __init__(self, settings, channels):
        super().__init__(settings, channels)
        self.register_buffer("most", torch.zeros(()))

    def fit(self, data, trainer):
        self.most = torch.cat(list(data.training)).max()
        return []

    def forward(self, z0, noise):
        scores = z0.amax(dim=1) - self.most
        return scores, scores[:, None]

z0 = np.random.default_rng(0).standard_normal((200, 6))
detector = Detector(score="typed").fit_features(z0)
detector.save("model")
np.testing.assert_allclose(FittedDetector.load("model").score_features(z0), detector.score_features(z0), atol=1e-5)
"""
    done = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert "Warning" not in done.stderr

import json
import shutil

import numpy as np
import pytest
from PIL import Image
from sklearn.base import clone
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import FunctionTransformer

from dlsr import (
    PRESETS,
    SCORES,
    ArtifactError,
    Detector,
    FeatureError,
    InputError,
    NoImagesError,
    NotFittedError,
    OutputError,
    SettingsError,
    TooFewImagesError,
    UnreadableImagesWarning,
    WeightsError,
    evaluate,
    evaluate_scores,
    open_images,
    register,
)
from dlsr.encoders.presets import RandomWeights
from dlsr.method.noise import row_digests
from dlsr.scorers import ScorerSettings, resolve
from shared import CHANNELS, small


def settings_for(score):
    # The paper's scores need a better trained network than the others.
    return small(score, epochs=60 if score == "mse" else 12, neighbours=5)


@pytest.fixture(scope="module")
def fitted(features):
    inside, _ = features
    return {score: Detector(**settings_for(score)).fit_features(inside[:500], CHANNELS) for score in SCORES}


# LR is left out: its direction holds on real images (docs/design.md), where OOD is restored worse from the start.
# The feature VAE's 13 layers learn nothing at this width: see test_baselines.py.
@pytest.mark.parametrize("score", [score for score in SCORES if score not in ("lr", "feature-vae")])
def test_every_score_is_larger_for_ood(fitted, features, score):
    inside, outside = features
    detector = fitted[score]
    metrics = evaluate_scores(detector.score_features(inside[500:]), detector.score_features(outside))
    assert metrics.auroc > 0.85


@pytest.mark.parametrize("score", SCORES)
def test_scores_do_not_depend_on_the_batch(fitted, features, score):
    rows = features[0][500:564]
    detector = fitted[score]
    together = detector.score_features(rows)
    alone = np.concatenate([detector.score_features(row[None]) for row in rows])
    order = np.random.default_rng(0).permutation(64)
    np.testing.assert_allclose(alone, together, atol=1e-5)
    np.testing.assert_allclose(detector.score_features(rows[order]), together[order], atol=1e-5)


@pytest.mark.parametrize("score", SCORES)
def test_saved_and_loaded_is_the_same(fitted, features, score, tmp_path):
    detector = fitted[score]
    detector.save(tmp_path / "m")
    loaded = Detector.load(tmp_path / "m")
    np.testing.assert_array_equal(loaded.score_features(features[1]), detector.score_features(features[1]))
    assert loaded.threshold_ == detector.threshold_
    assert loaded.fit_summary_ == detector.fit_summary_
    assert loaded.settings_ == detector.settings_
    assert sorted(path.suffix for path in (tmp_path / "m").iterdir()) == [".json", ".safetensors"]


@pytest.mark.parametrize("score", ["residual", "mfsim"])
def test_draws_and_seed(features, fitted, score):
    rows = features[0][500:]
    base = fitted[score]
    other = base.with_settings(seed=5)
    assert not np.allclose(base.score_features(rows), other.score_features(rows))
    np.testing.assert_allclose(other.with_settings(seed=0).score_features(rows), base.score_features(rows))
    assert np.corrcoef(base.score_features(rows), other.score_features(rows))[0, 1] > 0.5


def test_another_score_of_the_network_is_saved_as_such(fitted, features, tmp_path):
    regret = fitted["mse"].with_settings(score="lr", seed=2)
    regret.save(tmp_path / "m")
    loaded = Detector.load(tmp_path / "m")
    assert (loaded.score, loaded.seed, loaded.settings_.score) == ("lr", 2, "lr")
    np.testing.assert_array_equal(loaded.score_features(features[1]), regret.score_features(features[1]))
    with pytest.raises(TooFewImagesError, match="got 0"):
        print(loaded.threshold_)
    for score in ("residual", "best"):
        with pytest.raises(SettingsError, match="does not use the network of 'mse'"):
            fitted["mse"].with_settings(score=score)


@pytest.mark.parametrize("score", ["local", "residual"])
def test_equal_fits_are_equal(features, score):
    settings = small(score, references=200)
    a, b = (Detector(**settings).fit_features(features[0], CHANNELS).score_features(features[1]) for _ in range(2))
    np.testing.assert_array_equal(a, b)


def test_p_values_and_false_alarm_rate_can_change(fitted, features):
    detector = fitted["mahalanobis"]
    scores = detector.score_features(features[0][500:])
    p = detector.p_values_of(scores)
    np.testing.assert_array_equal(p <= 0.05, scores > detector.threshold_)
    before = detector.threshold_
    try:
        detector.false_alarm_rate = 0.2
        assert detector.threshold_ < before
        np.testing.assert_array_equal(p <= 0.2 + 1e-9, scores > detector.threshold_)
        detector.false_alarm_rate = 0.001
        with pytest.raises(TooFewImagesError, match="at least 999"):
            _ = detector.threshold_
    finally:
        detector.false_alarm_rate = 0.05


@pytest.mark.parametrize(
    ("bad", "reason"),
    [
        (np.full((50, 4), np.nan), "NaN"),
        (np.where(np.eye(50, 4) == 1, np.inf, 0), r"4 rows.*row 0"),
        (np.zeros(5), "shape"),
        (np.zeros((5, 0)), "shape"),
        (np.array([["a", "b"]]), "numbers"),
    ],
)
def test_bad_features_are_refused(bad, reason):
    with pytest.raises(FeatureError, match=reason):
        Detector(score="mahalanobis").fit_features(bad)


def test_features_must_fit_the_model(fitted):
    with pytest.raises(FeatureError, match="24 columns, got 3"):
        fitted["knn"].score_features(np.zeros((2, 3)))
    with pytest.raises(FeatureError, match="do not add up"):
        Detector().fit_features(np.zeros((100, 4)), channels=(3, 2))


def test_too_few_to_fit_or_calibrate():
    rows = np.random.default_rng(0).standard_normal((60, 3))
    for calibration, fewest in (("held-out", 39), ("leave-one-out", 20)):
        detector = Detector(score="knn", calibration=calibration)
        with pytest.raises(TooFewImagesError, match=f"at least {fewest}"):
            detector.fit_features(rows[: fewest - 1])
        detector.fit_features(rows[:fewest])
    with pytest.raises(TooFewImagesError, match=r"rate of 0\.001"):
        Detector(score="knn", false_alarm_rate=0.001).fit_features(rows)


@pytest.mark.parametrize(
    ("parameters", "message"),
    [
        ({"score": "best"}, "local"),
        ({"preset": "best"}, "default, fast, paper"),
        ({"score": "residual", "t": 200}, r"1\.\.100"),
        ({"score": "mse", "t": (1, 5)}, "decreasing"),
        ({"score": "residual", "t": (9, 3)}, "single t"),
        ({"score": "residual", "draws": 0}, "draws"),
        ({"stages": []}, "stages"),
        ({"score": "residual", "width": 7}, "width"),
        ({"score": "residual", "epochs": 0}, "epochs"),
        ({"neighbours": 1}, "neighbours"),
        ({"trim": 0.5}, "trim"),
        ({"draws": 2}, "'local' has no setting 'draws'"),
        ({"false_alarm_rate": 0}, "between 0 and 1"),
        ({"device": "warp"}, "device"),
    ],
)
def test_settings_that_cannot_work_are_refused(parameters, message):
    with pytest.raises(SettingsError, match=message) as caught:
        Detector(**parameters).fit_features(np.zeros((100, 4)))
    assert "\n" not in str(caught.value)


def test_presets():
    assert PRESETS == {"default": "local", "fast": "local", "paper": "mfsim"}
    paper = resolve("paper").scorer
    assert (paper.lr, paper.weight_decay, paper.batch_size, paper.epochs) == (1e-4, 1e-4, 128, 150)
    assert (paper.blocks, paper.width, paper.t) == (16, None, (3, 2, 1))
    assert resolve(score="lr").preset == "paper"
    assert resolve().preset == "default"
    assert resolve("default", "mfsim").scorer.lr == resolve("default", "residual").scorer.lr
    assert resolve("fast").scorer.references < resolve().scorer.references
    assert resolve("fast", "residual").scorer.width == 64
    assert resolve(score="residual", changes={"t": 5}).scorer.t == 5
    assert resolve("paper", changes={"t": 5}).scorer.t == (5,)
    few = resolve(score="residual", changes={"epochs": 3})
    assert few.scorer.min_steps == 0, "a given number of epochs holds for small datasets"


@pytest.mark.parametrize(
    ("parameters", "pooling", "parts"),
    [
        ({}, "mean+std+max", 3),
        ({"preset": "fast"}, "mean+std+max", 3),
        ({"preset": "paper"}, "mean", 1),
        ({"score": "mfsim"}, "mean", 1),
        ({"score": "mahalanobis"}, "mean+std+max", 3),
        ({"preset": "paper", "pooling": "mean+std"}, "mean+std", 2),
        ({"pooling": "mean"}, "mean", 1),
    ],
)
def test_the_preset_decides_the_pooling_unless_it_is_given(small_encoder, parameters, pooling, parts):
    encoder = Detector(**small_encoder, **parameters).prepare_extractor().encoder
    stages = (32, 32, 48, 192, 96)
    assert encoder.spec.pooling == pooling
    assert encoder.channels == tuple(parts * c for c in stages)


def test_unknown_pooling_is_refused_before_anything_is_encoded(small_encoder, image_folder):
    with pytest.raises(SettingsError, match=r"unknown pooling 'median'; choose one of mean, mean\+std, mean\+std\+max"):
        Detector(**small_encoder, pooling="median").fit(image_folder)


def test_a_loaded_detector_can_be_fitted_again(model, image_folder):
    loaded = Detector.load(model, backend="torch")
    before = loaded.calibration_scores_
    assert loaded.prepare_extractor().encoder.spec.weights.kind == "random"
    np.testing.assert_allclose(loaded.fit(image_folder).calibration_scores_, before, atol=1e-5)


def test_unknown_options_of_a_fit_are_refused(features):
    for options in ({"chekpoint": "c"}, {"epochs": 3}):
        with pytest.raises(TypeError, match="choose among checkpoint, on_epoch, ranks"):
            Detector(score="knn").fit_features(features[0], **options)


def test_settings_are_saved_as_the_score_validated_them(features, tmp_path):
    detector = Detector(score="knn", neighbours=np.int64(3), references="200").fit_features(features[0])
    detector.save(tmp_path / "m")
    loaded = Detector.load(tmp_path / "m")
    assert (loaded.neighbours, loaded.references) == (3, 200)
    detector.false_alarm_rate = 2
    with pytest.raises(SettingsError, match="between 0 and 1"):
        detector.save(tmp_path / "m")
    Detector.load(tmp_path / "m")


def test_digests_of_another_shape_are_refused(features):
    with pytest.raises(FeatureError, match=r"digests must have shape \(600, 16\), got \(3, 16\)"):
        Detector(score="knn").fit_features(features[0], digests=np.zeros((3, 16), np.uint8))


def test_a_fitted_detector_predicts_in_a_pipeline(image_folder, odd_folder, small_encoder):
    pipeline = make_pipeline(FunctionTransformer(), Detector(**small_encoder, score="mahalanobis"))
    paths = [item.name for item in open_images(image_folder).items]
    assert pipeline.fit(paths).predict(sorted(map(str, odd_folder.iterdir()))).mean() > 0.5


def test_a_setting_may_not_hide_an_argument():
    class Hiding(ScorerSettings):
        weights: str = ""

    class HidingScorer(SCORES["mahalanobis"]):
        name = "hiding"
        Settings = Hiding

    register(HidingScorer)
    try:
        with pytest.raises(SettingsError, match="cannot be called 'weights'"):
            Detector()
    finally:
        del SCORES["hiding"]


def test_the_warning_of_unreadable_images_is_at_the_callers_line(model, tmp_path, image_folder):
    detector = Detector.load(model, backend="torch")
    (tmp_path / "broken.png").write_bytes(b"no")
    for ask in (detector.detect, detector.score_samples, detector.predict):
        with pytest.warns(UnreadableImagesWarning) as caught:
            ask([tmp_path / "broken.png"])
        assert [warning.filename for warning in caught] == [__file__]


def test_scikit_learn_idiom():
    detector = Detector(draws=3, t=5)
    assert clone(detector).get_params() == detector.get_params()
    assert detector.set_params(draws=7).draws == 7
    with pytest.raises(ValueError, match="no parameter"):
        detector.set_params(drawz=7)
    assert "draws=7" in repr(detector)
    pipeline = make_pipeline(FunctionTransformer(), detector)
    assert pipeline.set_params(detector__draws=3).named_steps["detector"].draws == 3
    with pytest.raises(NotFittedError, match="not fitted"):
        detector.score_features(np.zeros((1, 2)))
    with pytest.raises(NotFittedError):
        detector.save("never")


# With images


def test_images_end_to_end(model, image_folder, odd_folder):
    detector = Detector.load(model, backend="torch")
    inside, outside = detector.score_samples(image_folder), detector.score_samples(odd_folder)
    assert evaluate_scores(inside, outside).auroc > 0.8
    verdicts = detector.predict(odd_folder)
    p = detector.p_values(odd_folder)
    np.testing.assert_array_equal(verdicts == 1, p <= 0.05)
    assert {result.top_layer for result in detector.results(odd_folder)} <= {f"stage {i}" for i in range(5)}


def test_every_kind_of_input_gives_the_same_score(model, image_folder, photographs):
    detector = Detector.load(model, backend="torch")
    paths = [item.name for item in open_images(image_folder).items[:4]]
    from PIL import Image

    pil = [Image.open(path).copy() for path in paths]
    expected = detector.score_samples(paths)
    np.testing.assert_allclose(detector.score_samples(pil), expected, atol=1e-5)
    np.testing.assert_allclose(detector.score_samples(np.stack([np.asarray(i) for i in pil])), expected, atol=1e-5)
    np.testing.assert_allclose(detector.score_samples(paths[0]), expected[:1], atol=1e-5)


def test_image_scores_do_not_depend_on_the_batch(model, image_folder):
    detector = Detector.load(model, backend="torch", workers=3)
    images = open_images(image_folder).subset(range(64))
    together = detector.score_samples(images)
    order = np.random.default_rng(0).permutation(64)
    np.testing.assert_allclose(detector.score_samples(images.subset(order)), together[order], atol=1e-5)
    for i in (0, 31, 63):
        np.testing.assert_allclose(detector.score_samples(images.subset([i])), together[i : i + 1], atol=1e-5)


def test_backends_give_the_same_verdicts(model, odd_folder):
    pytest.importorskip("openvino")
    plain, fast = (Detector.load(model, backend=backend) for backend in ("torch", "openvino"))
    np.testing.assert_allclose(fast.score_samples(odd_folder), plain.score_samples(odd_folder), atol=1e-2)
    np.testing.assert_array_equal(fast.predict(odd_folder), plain.predict(odd_folder))


def test_unreadable_images_are_named_and_the_rest_is_scored(model, image_folder, tmp_path):
    detector = Detector.load(model, backend="torch")
    (tmp_path / "broken ü.jpg").write_bytes(b"")
    good = open_images(image_folder).items[0].name
    with pytest.warns(UnreadableImagesWarning, match="broken ü.jpg: empty file"):
        scores = detector.score_samples([good, tmp_path / "broken ü.jpg", good])
    assert np.isnan(scores).tolist() == [False, True, False]
    with pytest.warns(UnreadableImagesWarning):
        assert detector.predict([tmp_path / "broken ü.jpg"]).tolist() == [-1]
    with pytest.warns(UnreadableImagesWarning):
        assert np.isnan(detector.p_values([tmp_path / "broken ü.jpg"])).tolist() == [True]


def test_fitting_to_nothing_readable(tmp_path, small_encoder):
    (tmp_path / "a.png").write_bytes(b"no")
    with pytest.raises(NoImagesError, match=r"none of 1 images.*a\.png: not an image"):
        Detector(**small_encoder).fit(tmp_path)


def test_fit_reports_what_it_could_not_read(image_folder, tmp_path, small_encoder):
    bad = tmp_path / "bad.png"
    bad.write_bytes(b"no")
    paths = [item.name for item in open_images(image_folder).items]
    with pytest.warns(UnreadableImagesWarning, match="1 images"):
        detector = Detector(**small_encoder, score="mahalanobis").fit([*paths, bad])
    assert list(detector.fit_summary_.unreadable) == [str(bad)]


def test_a_fit_that_fails_leaves_the_detector_as_it_was(model, image_folder, odd_folder, tmp_path):
    detector = Detector.load(model, backend="torch")
    before = detector.score_samples(odd_folder)
    detector.set_params(weights="random:7", seed=3)
    with pytest.raises(TooFewImagesError):
        detector.fit(open_images(image_folder).subset(range(5)))
    (tmp_path / "bad.png").write_bytes(b"no")
    with pytest.raises(NoImagesError):
        detector.fit(tmp_path)
    np.testing.assert_array_equal(detector.score_samples(odd_folder), before)
    assert detector.extractor_.spec.weights == RandomWeights(seed=0)
    unfitted = Detector(encoder="test_resnet", weights="random", backend="torch")
    with pytest.raises(TooFewImagesError):
        unfitted.fit(open_images(image_folder).subset(range(5)))
    with pytest.raises(NotFittedError):
        unfitted.score_samples(odd_folder)


@pytest.mark.slow
@pytest.mark.parametrize(
    "parameters",
    [
        {"neighbours": 7, "references": 50, "pooling": "mean+std"},
        {"score": "residual", "epochs": 3, "width": 32, "blocks": 1},
        {"score": "mfsim", "preset": "default", "t": (9, 3), "width": 32, "blocks": 1, "epochs": 1},
        {"score": "knn", "neighbours": 2, "stages": (1, 3), "decoding": "draft", "thumbnails": 3},
        {"preset": "fast", "false_alarm_rate": 0.1, "seed": 4},
    ],
)
def test_a_loaded_detector_has_the_parameters_it_was_made_with(image_folder, small_encoder, parameters, tmp_path):
    detector = Detector(**small_encoder, **parameters).fit(image_folder)
    detector.save(tmp_path / "m")
    loaded = Detector.load(tmp_path / "m", backend="torch")
    assert loaded.get_params() == detector.get_params()
    assert loaded.settings_ == detector.settings_
    assert loaded.extractor_.spec == detector.extractor_.spec
    assert loaded.channels_ == detector.channels_


def test_calibrating_on_other_images(model, odd_folder):
    detector = Detector.load(model, backend="torch")
    before = detector.threshold_
    detector.calibrate(odd_folder)
    assert detector.threshold_ > before
    assert detector.fit_summary_.calibration_images == 40
    with pytest.raises(TooFewImagesError):
        detector.calibrate(open_images(odd_folder).subset(range(5)))


def test_images_of_the_fit_do_not_calibrate(model, image_folder, odd_folder, tmp_path):
    """As new images each finds itself as its nearest: all new images were called OOD then."""
    detector = Detector.load(model, backend="torch")
    before = detector.threshold_
    shutil.copytree(odd_folder, tmp_path / "mixed")
    shutil.copy(next(image_folder.rglob("*.png")), tmp_path / "mixed" / "known.png")
    for images, named in ((image_folder, "120 of the 120 images"), (tmp_path / "mixed", "1 of the 41 images")):
        with pytest.raises(InputError, match=f"fitted to {named}, the first is .*leave them out"):
            detector.calibrate(images)
    assert detector.threshold_ == before


def test_new_calibration_images_are_checked_as_those_of_a_fit(model, odd_folder, tmp_path):
    for i in range(60):
        with Image.open(sorted(odd_folder.iterdir())[i // 3]) as image:
            shade = image.convert("RGB")
        shade.putpixel((0, i % 3), (i, 0, 0))
        shade.save(tmp_path / f"{i % 3}-{i}.png")
    detector = Detector.load(model, backend="torch")
    assert not detector.fit_summary_.check.fired
    detector.group_by = "none"
    summary = detector.calibrate(tmp_path).fit_summary_
    assert summary.check.fired
    assert "have a near copy" in summary.check.message
    assert (summary.groups, summary.grouped_by) == (60, "none")


def test_only_unreadable_calibration_images_are_an_error_with_the_first_reason(model, tmp_path):
    (tmp_path / "a.png").write_bytes(b"no image")
    with pytest.raises(NoImagesError, match=r"none of 1 images can be read; the first, .*a\.png: not an image"):
        Detector.load(model, backend="torch").calibrate(tmp_path)


def test_a_model_of_features_has_no_encoder(fitted, image_folder):
    with pytest.raises(NotFittedError, match="score_features"):
        fitted["knn"].score_samples(image_folder)


def test_evaluate(model, image_folder, odd_folder):
    detector = Detector.load(model, backend="torch")
    for protocol in ("native", "matched"):
        done = evaluate(detector, image_folder, {"flower": odd_folder}, protocol=protocol, seeds=2, limit=30)
        report = done.report
        assert (report.id_images, report.datasets[0].images, report.seeds) == (30, 30, (0, 1))
        expected = evaluate_scores(done.id_scores, done.ood_scores["flower"]).auroc
        assert abs(report.datasets[0].mean["auroc"] - expected) <= 2 * report.datasets[0].std["auroc"] + 1e-9
        assert report.average_auroc == report.datasets[0].mean["auroc"]
        json.loads(report.model_dump_json())
    with pytest.raises(SettingsError, match="at least one OOD dataset"):
        evaluate(detector, image_folder, {})
    with pytest.raises(SettingsError, match="native, matched"):
        evaluate(detector, image_folder, {"a": odd_folder}, protocol="other")


# Model directories


@pytest.fixture
def saved(fitted, tmp_path):
    fitted["mahalanobis"].save(tmp_path / "m")
    return tmp_path / "m"


def change(folder, **values):
    path = folder / "model.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | values))


def flip(folder):
    (path,) = folder.glob("numbers-*")
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    path.write_bytes(content)


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda m: (m / "model.json").unlink(), "no model directory"),
        (lambda m: (m / "model.json").write_text("{"), "cannot read"),
        (lambda m: (m / "model.json").write_text("[1]"), "not of dlsr"),
        (lambda m: change(m, format="other"), "not of dlsr"),
        (lambda m: change(m, schema_version=99), "upgrade dlsr"),
        (lambda m: change(m, schema_version=1), "reads 9; fit the model again"),
        (lambda m: change(m, schema_version="x"), "schema_version"),
        (lambda m: change(m, channels="x"), "channels"),
        (lambda m: change(m, config={"false_alarm_rate": 7}), "between 0 and 1"),
        (lambda m: change(m, settings={"preset": "default", "score": "best", "scorer": {}}), "was changed"),
        (lambda m: change(m, surprise=1), "surprise"),
        (lambda m: change(m, numbers="../elsewhere.safetensors"), "outside itself"),
        (lambda m: change(m, numbers=f"numbers-{16 * '0'}.safetensors"), "cannot read"),
        (lambda m: change(m, channels=[8, 8, 8]), "was changed"),
        (flip, "SHA-256"),
        (lambda m: change(m, numbers_sha256="0"), "SHA-256"),
    ],
)
def test_models_that_cannot_be_trusted_are_refused(saved, damage, message):
    damage(saved)
    with pytest.raises(ArtifactError, match=message) as caught:
        Detector.load(saved)
    assert "\n" not in str(caught.value)


def test_saving_again_replaces_the_model(saved, fitted):
    fitted["knn"].save(saved)
    assert Detector.load(saved).settings_.score == "knn"
    assert len(list(saved.iterdir())) == 2


def test_other_files_are_not_overwritten(tmp_path, fitted):
    (tmp_path / "thesis.txt").write_text("precious")
    with pytest.raises(OutputError, match="holds other files"):
        fitted["knn"].save(tmp_path)
    with pytest.raises(OutputError, match="is a file"):
        fitted["knn"].save(tmp_path / "thesis.txt")


def test_a_setting_that_came_later_does_not_make_a_model_look_changed(saved, monkeypatch):
    class Later(ScorerSettings):
        added: str = "no"

    monkeypatch.setattr(SCORES["mahalanobis"], "Settings", Later)
    assert Detector.load(saved).settings_.scorer.added == "no"


def test_a_full_disk_leaves_the_old_model(saved, fitted, monkeypatch):
    def full(self, *args, **options):
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr("pathlib.Path.write_text", full)
        with pytest.raises(OutputError, match="No space left"):
            fitted["knn"].save(saved)
    assert Detector.load(saved).settings_.score == "mahalanobis"


def test_other_encoder_weights_than_fitted_with_are_refused(model, odd_folder):
    with pytest.raises(WeightsError, match="not those"):
        Detector.load(model, weights="random:9", backend="torch").score_samples(odd_folder)


def test_digests_can_be_given(fitted, features):
    rows = features[0][500:510]
    detector = fitted["mfsim"]
    digests = row_digests(rows)
    np.testing.assert_array_equal(detector.score_features(rows, digests), detector.score_features(rows))
    assert not np.allclose(detector.score_features(rows, digests[::-1]), detector.score_features(rows))


def test_a_fit_names_the_images_that_are_unlike_the_rest(features):
    inside = np.concatenate([features[0][:400], features[0][:4] + 100])
    summary = Detector().fit_features(inside, CHANNELS).fit_summary_
    assert summary.examined_images == 404
    assert set(summary.unlike) >= {"400", "401", "402", "403"}
    assert len(summary.unlike) < 10
    assert list(summary.unlike.values()) == sorted(summary.unlike.values(), reverse=True)


def test_a_score_that_cannot_score_its_own_training_images_examines_none(features):
    detector = Detector(**small("mse", epochs=1)).fit_features(features[0][:400], CHANNELS)
    summary = detector.fit_summary_
    assert (summary.examined_images, summary.unlike) == (0, {})

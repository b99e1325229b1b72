"""Model directories of strangers: refused in one line, in bounded time and memory, without a connection."""

import hashlib
import json
import os
import random
import resource
import signal
import socket
import time
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest
import safetensors.torch
import timm
import torch
from safetensors import safe_open

from dlsr import (
    ArtifactError,
    Detector,
    FeatureError,
    FittedDetector,
    SettingsError,
    UnreadableImagesWarning,
    WeightsError,
)
from dlsr.errors import DlsrError
from dlsr.model import calibrated_on
from dlsr.model_folder import digest
from dlsr.reports.tables import write_jsonl
from shared import CHANNELS, small

SECONDS = 10


@contextmanager
def quick_and_small():
    """No loading takes long, or more memory than a few times that of the model."""
    soft, hard = resource.getrlimit(resource.RLIMIT_AS)
    used = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_AS, (used + 2**30, hard))
    # Of the processor, since others may be using it; what blocks uses none.
    start = time.process_time()
    before = signal.signal(signal.SIGALRM, lambda *_: pytest.fail("it hangs"))
    signal.alarm(20 * SECONDS)
    try:
        yield
    finally:
        signal.alarm(0)
        signal.signal(signal.SIGALRM, before)
        resource.setrlimit(resource.RLIMIT_AS, (soft, hard))
    assert time.process_time() - start < SECONDS


@pytest.fixture
def no_network(monkeypatch):
    def refuse(*arguments, **options):
        raise AssertionError(f"a connection to {arguments}")

    monkeypatch.setattr(socket, "getaddrinfo", refuse)
    monkeypatch.setattr(socket.socket, "connect", refuse)


def read(folder):
    description = json.loads((folder / "model.json").read_text())
    with safe_open(folder / description["numbers"], framework="pt") as file:
        return description, {name: file.get_tensor(name).clone() for name in file.keys()}  # noqa: SIM118


def write(folder, description, tensors):
    """A model directory whose digests are right, whatever it says."""
    content = safetensors.torch.save(
        {name: tensor.contiguous() for name, tensor in tensors.items()}, {"manifest_sha256": digest(description)}
    )
    sha256 = hashlib.sha256(content).hexdigest()
    numbers = f"numbers-{sha256[:16]}.safetensors"
    folder.mkdir(exist_ok=True)
    (folder / numbers).write_bytes(content)
    described = description | {"numbers": numbers, "numbers_sha256": sha256}
    (folder / "model.json").write_text(json.dumps(described))
    return folder


def changed(description, place, value):
    """A copy with another value at a place such as `settings.scorer.draws`."""
    copy = json.loads(json.dumps(description))
    *above, last = place.split(".")
    at = copy
    for name in above:
        at = at[name]
    at[last] = value
    return copy


@pytest.fixture(scope="module")
def restoring(features, tmp_path_factory):
    """A model with a network, fitted to features."""
    folder = tmp_path_factory.mktemp("restoring") / "model"
    Detector(**small("mfsim", draws=2)).fit_features(features[0], CHANNELS).save(folder)
    return folder


@pytest.fixture(scope="module")
def shown(tmp_path_factory, image_folder, small_encoder):
    """A model with an encoder and thumbnails."""
    folder = tmp_path_factory.mktemp("shown") / "model"
    Detector(**small_encoder, group_by="none", thumbnails=3).fit(image_folder).save(folder)
    return folder


@pytest.mark.parametrize(
    ("place", "value", "message"),
    [
        ("settings.score", "best", "unknown score.*register a score of your own"),
        ("settings.scorer.draws", 10**6, "draws"),
        ("settings.scorer.blocks", 10**7, "blocks"),
        ("settings.scorer.T", 10**9, "T"),
        ("settings.scorer.width", 10**9, "width"),
        ("settings.scorer.width", 2**16, "has shape"),
        ("settings.scorer.blocks", 1000, "is missing"),
        ("settings.scorer.t", list(range(100, 0, -1)), "has shape|scores"),
        ("channels", [10**9], "channels"),
        ("channels", [2**20], "has shape"),
        ("channels", [24], "layer_mean|has shape"),
        ("channels", [], "channels"),
        ("config.settings", {"device": "cpu"}, "no setting 'device'"),
        ("config.settings", {"encoder": "x"}, "no setting 'encoder'"),
        ("fit.calibration_images", 3, "calibration scores of 3 images"),
    ],
)
def test_settings_of_strangers_are_bounded(restoring, tmp_path, place, value, message):
    description, tensors = read(restoring)
    write(tmp_path / "m", changed(description, place, value), tensors)
    if place.endswith(".t"):  # more steps are no harm, as long as they are bounded
        with quick_and_small():
            Detector.load(tmp_path / "m")
        return
    with quick_and_small(), pytest.raises(ArtifactError, match=message) as caught:
        Detector.load(tmp_path / "m")
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("name", "change", "message"),
    [
        ("calibration.scores", lambda x: x[None], "calibration scores have shape"),
        ("calibration.scores", lambda x: x[:0], "calibration"),
        ("calibration.scores", lambda x: x * torch.nan, "scores are not finite"),
        ("calibration.scores", lambda x: x.float(), "float32"),
        ("calibration.groups", lambda x: x[:3], "calibration groups have shape"),
        ("calibration.groups", lambda x: x.double(), "float64"),
        ("calibration.layer_mean", lambda x: x[:1], "layer_mean have shape"),
        ("calibration.layer_std", lambda x: 0 * x, "not positive"),
        ("calibration.layer_std", lambda x: x + torch.inf, "not finite"),
        ("scorer.lfdn.linear_in.weight", lambda x: x * torch.nan, "not finite"),
        ("scorer.lfdn.linear_in.weight", lambda x: x.half(), "float16"),
        ("scorer.lfdn.linear_in.weight", lambda x: x[:1], "has shape"),
        ("scorer.lfdn.linear_in.weight", lambda x: x + 1e38, "not finite"),
        ("scorer.more", lambda x: torch.zeros(1), "unknown"),
    ],
)
def test_numbers_of_strangers_are_checked(restoring, tmp_path, name, change, message):
    description, tensors = read(restoring)
    write(tmp_path / "m", description, tensors | {name: change(tensors.get(name))})
    with quick_and_small(), pytest.raises(ArtifactError, match=message) as caught:
        Detector.load(tmp_path / "m")
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("name", "change", "message"),
    [
        ("examples.sizes", lambda x: -x, "sizes"),
        ("examples.sizes", lambda x: x[:1], "do not belong"),
        ("examples.sizes", lambda x: x + 10**12, "do not belong"),
        ("examples.names", lambda x: torch.frombuffer(bytearray(100_000 * b"["), dtype=torch.uint8), "recursion"),
        ("examples.names", lambda x: torch.frombuffer(bytearray(b"[1, 2, 3]"), dtype=torch.uint8), "do not belong"),
        ("examples.z0", lambda x: x[:1], "features of thumbnails"),
        ("images.names", lambda x: torch.frombuffer(bytearray(b'{"a": 1}'), dtype=torch.uint8), "not a list of texts"),
        ("images.names", lambda x: torch.frombuffer(bytearray(b"[1]"), dtype=torch.uint8), "not a list of texts"),
        ("images.keys", lambda x: x[:5], "the keys of"),
        ("images.keys", lambda x: x.float(), "the keys of"),
        ("ranges.brightness", lambda x: x[:5], "the range of '.*' is not 5 finite numbers"),
        ("ranges.brightness", lambda x: x * torch.nan, "is not 120 finite numbers"),
        ("ranges.brightness", lambda x: x.float(), "is not 120 finite numbers"),
        ("ranges.contrast", lambda x: x.flip(0), "not in order"),
        ("ranges.side", lambda x: x[None], "is not"),
        ("scorer.references", lambda x: x[:0], "training images"),
        ("scorer.search.centred", lambda x: x[:5], "training images"),
        ("scorer.gaussian.variances", lambda x: -x, "not finite"),
        ("scorer.gaussian.scale", lambda x: 0 * x, "not finite"),
    ],
)
def test_references_and_thumbnails_of_strangers_are_checked(shown, tmp_path, name, change, message):
    description, tensors = read(shown)
    write(tmp_path / "m", description, tensors | {name: change(tensors[name])})
    with quick_and_small(), pytest.raises(ArtifactError, match=message) as caught:
        Detector.load(tmp_path / "m")
    assert "\n" not in str(caught.value)


def test_ranges_of_unknown_properties_are_refused(shown, tmp_path):
    description, tensors = read(shown)
    write(tmp_path / "m", description, tensors | {"ranges.evil": tensors["ranges.brightness"].clone()})
    with quick_and_small(), pytest.raises(ArtifactError, match="images have no property 'evil'"):
        Detector.load(tmp_path / "m")


@pytest.mark.parametrize(
    ("place", "value"),
    [
        ("encoder.network", "hf-hub:someone/model"),
        ("encoder.network", "local-dir:/tmp"),
        ("encoder.network", 300 * "a"),
        ("encoder.network", "../resnet50"),
        ("encoder.name", 300 * "a"),
        ("encoder.size", 20_000),
        ("encoder.std", [0, 1, 1]),
        ("encoder.stages", [-1]),
        ("encoder.weights", {"kind": "package", "package": "evil", "file": "/etc/passwd", "sha256": "0"}),
    ],
)
def test_encoders_of_strangers_are_those_installed(shown, tmp_path, no_network, place, value):
    description, tensors = read(shown)
    write(tmp_path / "m", changed(description, place, value), tensors)
    with quick_and_small(), pytest.raises(ArtifactError) as caught:
        Detector.load(tmp_path / "m")
    assert "\n" not in str(caught.value)
    assert "pip install" not in str(caught.value)


@pytest.mark.parametrize(
    ("place", "value"),
    [
        ("encoder.network", "no_such_network"),
        ("encoder.network", "vit_tiny_patch16_224"),
        ("encoder.network", "resnet18"),
        ("encoder.stages", [99]),
        ("encoder.stages", [0]),
        ("encoder.pooling", "mean"),
        ("encoder.weights", {"kind": "file", "path": "/etc/passwd"}),
        ("encoder.weights", {"kind": "file", "path": "/dev/zero"}),
        ("encoder.weights", {"kind": "file", "path": 300 * "a"}),
        ("encoder.weights", {"kind": "file", "path": "a\0b"}),
        ("encoder.weights", {"kind": "hub"}),
        ("encoder.weights", {"kind": "hub", "download": True}),
    ],
)
def test_encoders_that_do_not_fit_are_refused_when_scoring(
    shown, tmp_path, own_cache, odd_folder, no_network, place, value
):
    description, tensors = read(shown)
    write(tmp_path / "m", changed(description, place, value), tensors)
    detector = Detector.load(tmp_path / "m", backend="torch")
    with pytest.raises(DlsrError) as caught:
        detector.score_samples(odd_folder)
    assert "\n" not in str(caught.value)


def test_an_engine_in_the_cache_of_other_features_is_refused(shown, tmp_path, odd_folder, monkeypatch):
    detector = Detector.load(shown, backend="torch")
    encoder = detector.extractor_.encoder
    monkeypatch.setattr(encoder, "channels", (1, 2))
    with pytest.raises(WeightsError, match=r"features, but the model was fitted to 3"):
        detector.score_samples(odd_folder)


def test_weights_of_the_hub_are_downloaded_only_if_asked_for(shown, tmp_path, monkeypatch, odd_folder):
    description, tensors = read(shown)
    write(tmp_path / "m", changed(description, "encoder.weights", {"kind": "hub"}), tensors)
    asked = []

    def create(name, pretrained=False, **options):
        asked.append(pretrained)
        raise RuntimeError("no network here")

    monkeypatch.setattr("timm.create_model", create)
    with pytest.raises(WeightsError, match="give --weights hub to download"):
        Detector.load(tmp_path / "m", backend="torch").score_samples(odd_folder)
    assert not any(asked)
    with pytest.raises(WeightsError, match="cannot download"):
        Detector.load(tmp_path / "m", weights="hub", backend="torch").score_samples(odd_folder)
    assert any(asked)


def test_weights_of_the_hub_that_are_on_this_machine_need_no_connection(
    image_folder, odd_folder, tmp_path, monkeypatch, no_network
):
    repository = tmp_path / "cache" / f"models--{timm.get_pretrained_cfg('test_resnet').hf_hub_id.replace('/', '--')}"
    (repository / "refs").mkdir(parents=True)
    (repository / "refs" / "main").write_text(40 * "a")
    snapshot = repository / "snapshots" / (40 * "a")
    snapshot.mkdir(parents=True)
    safetensors.torch.save_file(timm.create_model("test_resnet").state_dict(), snapshot / "model.safetensors")
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "cache"))
    detector = Detector("test_resnet", weights="hub", backend="torch", group_by="none").fit(image_folder)
    detector.save(tmp_path / "m")
    loaded = Detector.load(tmp_path / "m", backend="torch")
    np.testing.assert_array_equal(loaded.score_samples(odd_folder), detector.score_samples(odd_folder))


@pytest.mark.parametrize(
    "content",
    [100_000 * "[", '{"a":' * 100_000, '{"format": NaN}', '{"format": 1' + 5000 * "0" + "}", "\0", "[]", "null", '"x"'],
)
def test_descriptions_that_are_not_json_are_refused(tmp_path, content):
    (tmp_path / "model.json").write_text(content)
    with quick_and_small(), pytest.raises(ArtifactError) as caught:
        Detector.load(tmp_path)
    assert "\n" not in str(caught.value)


def test_numbers_of_types_that_numpy_lacks_are_refused(restoring, tmp_path):
    description, tensors = read(restoring)
    for kind in (torch.bfloat16, torch.float8_e4m3fn):
        changed_tensors = tensors | {name: tensor.to(kind) for name, tensor in list(tensors.items())[:1]}
        with pytest.raises(ArtifactError, match=r"fit (the model|it) again"):
            Detector.load(write(tmp_path / str(kind), description, changed_tensors))


def test_pipes_and_huge_files_are_refused(restoring, tmp_path):
    description, tensors = read(restoring)
    folder = write(tmp_path / "m", description, tensors)
    (numbers,) = folder.glob("numbers-*")
    numbers.unlink()
    os.mkfifo(numbers)
    with quick_and_small(), pytest.raises(ArtifactError, match="no regular file"):
        Detector.load(folder)
    numbers.unlink()
    with numbers.open("wb") as file:
        file.truncate(2**40)
    with quick_and_small(), pytest.raises(ArtifactError, match="are the most"):
        Detector.load(folder)
    (folder / "model.json").unlink()
    os.mkfifo(folder / "model.json")
    with quick_and_small(), pytest.raises(ArtifactError, match="no regular file"):
        Detector.load(folder)
    with pytest.raises(ArtifactError, match="cannot read"):
        Detector.load(tmp_path / (300 * "a"))


VALUES = [
    None,
    True,
    -1,
    0,
    1,
    2,
    7,
    10**6,
    2**63,
    1e-300,
    1e300,
    "",
    "x",
    300 * "y",
    "\ud800",
    [],
    [1],
    [3, 1],
    {},
    {"a": 1},
]


def mutated(description, tensors, choose):
    """One to three values of `model.json`, or tensors, replaced by others."""
    description, tensors = json.loads(json.dumps(description)), dict(tensors)
    for _ in range(choose.randint(1, 3)):
        if choose.random() < 0.6:
            at = description
            while True:
                key = choose.choice(list(at) if isinstance(at, dict) else range(len(at)))
                if not (isinstance(at[key], dict | list) and at[key] and choose.random() < 0.9):
                    break
                at = at[key]
            fate = choose.random()
            if fate < 0.1:
                del at[key]
            elif fate < 0.3 and isinstance(at[key], int | float):
                at[key] = at[key] * choose.choice([-1, 2, 0.5, 10**6])
            else:
                at[key] = choose.choice(VALUES)
        else:
            name = choose.choice(list(tensors))
            tensor = tensors[name]
            changes = [
                lambda x: x[:0],
                lambda x: x[None],
                lambda x: x[1:],
                lambda x: x.flatten(),
                lambda x: torch.cat([x, x]),
                lambda x: -x,
                lambda x: x * 0,
                lambda x: x.double(),
                lambda x: x.int(),
                lambda x: (x.double() * 1e30).to(x.dtype),
                lambda x: (x.double() * torch.nan).to(x.dtype),
                lambda x: (x.double() + torch.inf).to(x.dtype),
                lambda x: x[torch.randperm(len(x))],
            ]
            if tensor.ndim:
                tensors[name] = choose.choice(changes)(tensor)
            if choose.random() < 0.1:
                tensors[choose.choice(["extra", "scorer.x", "calibration.x"])] = tensors.pop(name, torch.ones(1))
    return description, tensors


def outcome(folder, score):
    """How loading and scoring ended: with scores, in which there is no error, or with one clear line."""
    with quick_and_small():
        try:
            detector = Detector.load(folder, backend="torch")
            score(detector)
        except DlsrError as error:
            assert "\n" not in str(error)
            assert 10 < len(str(error)) < 1000
            return "refused"
    return "scored"


@pytest.mark.slow
@pytest.mark.parametrize("name", ["mfsim", "residual", "local", "knn", "mahalanobis", "autoencoder"])
def test_mutated_models_score_or_are_refused(features, tmp_path, name, no_network):
    Detector(**small(name)).fit_features(features[0], CHANNELS).save(tmp_path / "sound")
    description, tensors = read(tmp_path / "sound")
    choose, outcomes = random.Random(name), []
    for i in range(60):
        write(tmp_path / str(i), *mutated(description, tensors, choose))

        def score(detector):
            scores = detector.score_features(features[1][:20])
            assert scores.shape == (20,)
            assert np.isfinite(scores).all()
            assert 0 < detector.p_values_of(scores).min() <= 1
            assert np.isfinite(detector.threshold_)

        outcomes.append(outcome(tmp_path / str(i), score))
    assert {"scored", "refused"} == set(outcomes)


def test_mutated_models_with_an_encoder_score_or_are_refused(shown, odd_folder, tmp_path, no_network):
    description, tensors = read(shown)
    images = sorted(odd_folder.iterdir())[:2]
    choose, outcomes = random.Random(0), []
    for i in range(60):
        write(tmp_path / str(i), *mutated(description, tensors, choose))

        def score(detector):
            for result in detector.detect(images):
                assert result.error or (np.isfinite(result.score) and 0 < result.p_value <= 1)
                json.dumps(result.row(), allow_nan=False)

        outcomes.append(outcome(tmp_path / str(i), score))
    assert {"scored", "refused"} == set(outcomes)


@pytest.mark.slow
@pytest.mark.parametrize("score", ["local", "residual", "mahalanobis", "knn", "mfsim"])
@pytest.mark.parametrize("value", [0, 1])
def test_a_model_of_equal_features_scores_others_with_finite_numbers(score, value, tmp_path):
    equal, others = np.full((60, 8), value), np.random.default_rng(0).standard_normal((5, 8))
    detector = Detector(**small(score), group_by="none").fit_features(equal)
    assert np.isfinite(detector.score_features(others)).all()
    if score not in ("mfsim",):
        assert (detector.score_features(others) > detector.threshold_).all()
    detector.save(tmp_path / "m")
    np.testing.assert_array_equal(Detector.load(tmp_path / "m").score_features(others), detector.score_features(others))


def test_an_image_whose_score_is_not_finite_counts_as_unreadable(shown, image_folder, monkeypatch, tmp_path):
    detector = Detector.load(shown, backend="torch")
    images, model_score = sorted((image_folder / "one").iterdir())[:5], detector._model.score
    before = detector.detect(images)

    def score(z0, digests):
        scores, layers = model_score(z0, digests)
        scores[1], layers[3, 0] = np.nan, np.inf
        return scores, layers

    monkeypatch.setattr(type(detector._model), "score", lambda self, *arguments: score(*arguments))
    with pytest.warns(UnreadableImagesWarning):
        results = detector.detect(images)
    assert results.verdicts.tolist() == [before.verdicts[0], -1, before.verdicts[2], -1, before.verdicts[4]]
    assert results[3].error == "its score is not a finite number"
    assert results[4] == before[4]
    with (tmp_path / "out.jsonl").open("w") as file:
        write_jsonl(file, results)
    for line in (tmp_path / "out.jsonl").read_text().splitlines():
        json.loads(line, parse_constant=pytest.fail)


def test_a_fit_whose_scores_are_not_finite_is_an_error(features):
    with pytest.raises(SettingsError, match=r"diverged in epoch 1, .*; lower the learning rate"):
        Detector(**small("mfsim", lr=1e30)).fit_features(features[0])
    scores = np.array([1.0, np.nan])
    with pytest.raises(FeatureError, match=r"not finite numbers; lower the learning rate, or choose another score"):
        calibrated_on(scores, np.ones((2, 3)), np.arange(2))


def onnx_file(outside=None, dimension=24, operation=None, branch=False):
    """A graph that scores features by their sum.

    `outside` names a file with one of its numbers; there may be another operation, or a branch.
    """
    from onnx import TensorProto, helper

    weight = helper.make_tensor("weight", TensorProto.FLOAT, [dimension, 1], [1.0] * dimension)
    if outside:
        weight.ClearField("float_data")
        weight.data_location = TensorProto.EXTERNAL
        weight.external_data.add(key="location", value=outside)
    nodes = [
        helper.make_node("MatMul", ["z0", "weight"], ["layers"]),
        helper.make_node("ReduceMax", ["layers"], ["score"], axes=[1], keepdims=0),
    ]
    if operation:
        nodes.append(helper.make_node(operation, ["layers"], ["unused"]))
    if branch:
        inner = helper.make_graph([], "inner", [], [])
        nodes.append(helper.make_node("If", ["layers"], ["unused"], then_branch=inner, else_branch=inner))
    z0, layers = (
        helper.make_tensor_value_info(name, TensorProto.FLOAT, ["N", columns])
        for name, columns in (("z0", dimension), ("layers", 1))
    )
    score = helper.make_tensor_value_info("score", TensorProto.FLOAT, ["N"])
    graph = helper.make_graph([*nodes], "g", [z0], [score, layers], [weight])
    opset = [helper.make_opsetid("", 13)]
    return helper.make_model(graph, opset_imports=opset, ir_version=8).SerializeToString()


def as_tensor(content):
    return torch.frombuffer(bytearray(content), dtype=torch.uint8)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"garbage", "does not hold what"),
        (onnx_file(dimension=23), "score cannot be run"),
        (onnx_file(), "score cannot be run"),
        (onnx_file(outside="/etc/hostname"), "refers to another file"),
        (onnx_file(outside=r"\\\\server\\share"), "refers to another file"),
        (onnx_file(outside="x").replace(b"\n\x08location", b"\n\x88\x00location"), "refers to another file|damaged"),
        (onnx_file(outside="x").replace(b"\n\x08location", b"\x8a\x80\x80\x80\x10\x08location"), "refers to|damaged"),
        (onnx_file(operation="RandomNormalLike"), "holds the operation RandomNormalLike"),
        (onnx_file(branch=True), "holds the operation If|holds another graph"),
        (onnx_file()[:-20], "does not hold what"),
    ],
)
def test_graphs_of_strangers_are_checked(restoring, tmp_path, content, message):
    description, tensors = read(restoring)
    write(tmp_path / "m", description, tensors | {"graph.scorer": as_tensor(content)})
    with quick_and_small(), pytest.raises(ArtifactError, match=message) as caught:
        FittedDetector.load(tmp_path / "m")
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("place", "value", "message"),
    [
        ("graphs.noise_vectors", 0, "score cannot be run"),
        ("graphs.noise_vectors", 3, "score cannot be run"),
        ("graphs.noise_vectors", 10**9, "noise_vectors"),
        ("channels", [2**20, 2**20], "does not hold what"),
        ("graphs.batch", 0, "batch"),
        ("graphs.batch", 10**9, "batch"),
        ("channels", [23], "does not hold what"),
        ("fit.calibration_images", 3, "calibration scores of 3 images"),
    ],
)
def test_what_is_said_of_graphs_is_bounded(restoring, tmp_path, place, value, message):
    description, tensors = read(restoring)
    write(tmp_path / "m", changed(description, place, value), tensors)
    with quick_and_small(), pytest.raises(ArtifactError, match=message):
        FittedDetector.load(tmp_path / "m")


@pytest.mark.parametrize(
    ("name", "change"),
    [
        ("scorer.lfdn.linear_in.weight", lambda x: x * torch.nan),
        ("scorer.lfdn.linear_in.weight", lambda x: x[:1]),
        ("scorer.lfdn.linear_in.weight", lambda x: x.double()),
        ("scorer.lfdn.linear_in.weight", None),
        ("graph.scorer", None),
    ],
)
def test_numbers_that_a_graph_takes_are_checked(restoring, tmp_path, name, change):
    description, tensors = read(restoring)
    others = {key: value for key, value in tensors.items() if key != name}
    write(tmp_path / "m", description, others | ({name: change(tensors[name])} if change else {}))
    with quick_and_small(), pytest.raises(ArtifactError, match=r"does not hold what|score cannot be run"):
        FittedDetector.load(tmp_path / "m")


@pytest.mark.parametrize("backend", ["openvino", "onnxruntime"])
@pytest.mark.parametrize("content", [b"\x08\x08", onnx_file()])
def test_a_damaged_encoder_is_refused_at_its_first_use(shown, odd_folder, tmp_path, content, backend):
    description, tensors = read(shown)
    write(tmp_path / "m", description, tensors | {"graph.encoder": as_tensor(content)})
    with pytest.raises(
        (ArtifactError, WeightsError), match=r"encoder cannot be run|encoder gives 1 features|does not hold what"
    ) as caught:
        FittedDetector.load(tmp_path / "m", backend=backend).detect(odd_folder)
    assert "\n" not in str(caught.value)

import hashlib
from pathlib import Path

import numpy as np
import pytest
import safetensors.torch
import timm
import torch

from dlsr import ENCODERS, Encoder, SettingsError, WeightsError, encoder_spec
from dlsr.encoders import weights as weights_module
from dlsr.encoders.weights import load_classifier
from dlsr.images.transforms import resize
from dlsr.method.features import to_z0

SMALL = "test_resnet"


def pixels(photographs, spec):
    return np.stack([resize(photograph, spec.size, spec.interpolation) for photograph in photographs])


def test_lite0_knows_real_photographs(photographs):
    """China.jpg is a temple roof (ImageNet 832 stupa, 698 palace, 663 monastery), flower.jpg a flower (985 daisy)."""
    spec = ENCODERS["efficientnet_lite0"]
    x = (torch.from_numpy(pixels(photographs, spec)).permute(0, 3, 1, 2).float() - 127) / 128
    with torch.inference_mode():
        top = load_classifier(spec)(x).topk(5).indices.tolist()
    assert {663, 698, 832} & set(top[0][:3])
    assert 985 in top[1]


@pytest.mark.parametrize(
    ("name", "c"), [("efficientnet_lite0", 512), ("efficientnet_lite1", 512), ("efficientnet_lite2", 560)]
)
def test_lite_presets_load_their_packages(name, c):
    encoder = Encoder(ENCODERS[name], backend="torch")
    assert encoder.c == c
    assert len(encoder.channels) == 5


@pytest.mark.parametrize(
    ("name", "c", "channels"),
    [
        ("efficientnet_b4", 720, (24, 32, 56, 160, 448)),
        ("resnet50", 1792, (256, 512, 1024)),
    ],
)
def test_the_papers_encoders(name, c, channels, photographs):
    encoder = Encoder(encoder_spec(name, weights="random"), backend="torch")
    assert encoder.channels == channels
    assert encoder.c == c
    z0 = encoder.encode(pixels(photographs, encoder.spec))
    assert z0.shape == (2, c)
    assert np.isfinite(z0).all()
    assert not np.allclose(z0[0], z0[1])


def test_z0_is_pooled_and_scored_from_the_networks_own_maps(photographs):
    spec = encoder_spec(SMALL, weights="random:3")
    network = timm.create_model(SMALL, pretrained=False, features_only=True)
    own = load_classifier(spec).state_dict()
    network.load_state_dict({name: own[name] for name in network.state_dict()})
    batch = pixels(photographs, spec)
    x = (torch.from_numpy(batch).permute(0, 3, 1, 2).float() - torch.tensor(spec.mean).view(3, 1, 1)) / torch.tensor(
        spec.std
    ).view(3, 1, 1)
    with torch.inference_mode():
        expected = to_z0(network.eval()(x))
    np.testing.assert_allclose(Encoder(spec, backend="torch").encode(batch), expected, atol=1e-4)


def test_stages_by_index():
    all_stages = Encoder(encoder_spec(SMALL, weights="random"), backend="torch")
    some = Encoder(encoder_spec(SMALL, stages=(1, 3), weights="random"), backend="torch")
    assert some.channels == (all_stages.channels[1], all_stages.channels[3])
    with pytest.raises(SettingsError, match=r"stages 0\.\.4"):
        Encoder(encoder_spec(SMALL, stages=(9,), weights="random"))


def test_unknown_encoders_say_what_there_is():
    with pytest.raises(SettingsError, match=r"efficientnet_lite0.*timm"):
        encoder_spec("no_such_network")


def test_key_changes_with_what_features_depend_on():
    spec = encoder_spec(SMALL, weights="random")
    key = Encoder(spec, backend="torch").key
    assert Encoder(spec, backend="torch").key == key
    changed = [
        encoder_spec(SMALL, weights="random:1"),
        encoder_spec(SMALL, stages=(1, 2), weights="random"),
        spec.model_copy(update={"size": 128}),
        spec.model_copy(update={"interpolation": {"bilinear": "bicubic", "bicubic": "bilinear"}[spec.interpolation]}),
        spec.model_copy(update={"mean": (0.0, 0.0, 0.0)}),
    ]
    keys = {Encoder(other, backend="torch").key for other in changed}
    assert len(keys) == 5
    assert key not in keys


# Weights: every one is used, or it is an error


@pytest.fixture
def state():
    return dict(timm.create_model(SMALL, pretrained=False).state_dict())


@pytest.mark.parametrize("suffix", [".safetensors", ".pth", ".wrapped.pth"])
def test_weights_from_a_file(tmp_path, state, suffix):
    path = tmp_path / f"w{suffix}"
    if suffix == ".safetensors":
        safetensors.torch.save_file(state, path)
    else:
        torch.save({"state_dict": state} if "wrapped" in suffix else state, path)
    loaded = load_classifier(encoder_spec(SMALL, weights=str(path))).state_dict()
    assert all(torch.equal(loaded[name], state[name]) for name in state)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda s: s.pop("fc.weight"), r"1 missing \(fc.weight\)"),
        (lambda s: s.update(extra=torch.zeros(1)), r"1 extra \(extra\)"),
        (lambda s: s.update({"fc.bias": torch.zeros(7)}), r"1 mis-shaped \(fc.bias\)"),
    ],
)
def test_weights_that_do_not_fit_are_refused(tmp_path, state, change, message):
    change(state)
    safetensors.torch.save_file(state, tmp_path / "w.safetensors")
    with pytest.raises(WeightsError, match=message):
        load_classifier(encoder_spec(SMALL, weights=str(tmp_path / "w.safetensors")))


@pytest.mark.parametrize("content", [b"", b"garbage" * 10])
@pytest.mark.parametrize("suffix", [".safetensors", ".pth"])
def test_damaged_weight_files_are_refused(tmp_path, content, suffix):
    path = tmp_path / f"w{suffix}"
    path.write_bytes(content)
    with pytest.raises(WeightsError, match="cannot read weights"):
        load_classifier(encoder_spec(SMALL, weights=str(path)))


def test_missing_files_and_wrong_contents_are_refused(tmp_path):
    with pytest.raises(WeightsError, match="no weights file"):
        load_classifier(encoder_spec(SMALL, weights=str(tmp_path / "none.pth")))
    torch.save({"a": 1}, tmp_path / "w.pth")
    with pytest.raises(WeightsError, match="no state dict"):
        load_classifier(encoder_spec(SMALL, weights=str(tmp_path / "w.pth")))


def test_pickled_code_is_not_run(tmp_path):
    class Evil:
        def __reduce__(self):
            return (Path.touch, (tmp_path / "owned",))

    torch.save({"x": Evil()}, tmp_path / "w.pth")
    with pytest.raises(WeightsError):
        load_classifier(encoder_spec(SMALL, weights=str(tmp_path / "w.pth")))
    assert not (tmp_path / "owned").exists()


def test_package_weights_are_verified(monkeypatch):
    spec = ENCODERS["efficientnet_lite0"]
    broken = spec.weights.model_copy(update={"sha256": hashlib.sha256(b"other").hexdigest()})
    with pytest.raises(WeightsError, match="force-reinstall"):
        load_classifier(spec.model_copy(update={"weights": broken}))
    absent = spec.weights.model_copy(update={"package": "no-such-package-at-all"})
    with pytest.raises(WeightsError, match="pip install no-such-package-at-all"):
        load_classifier(spec.model_copy(update={"weights": absent}))


def test_weights_in_order_must_match_shape_by_shape():
    own = {"a.weight": torch.zeros(2), "a.bias": torch.zeros(3)}
    theirs = {"_x.weight": torch.ones(2), "_x.bias": torch.ones(3)}
    renamed = weights_module.in_order(theirs, own, Path("f"))
    assert list(renamed) == ["a.weight", "a.bias"]
    for wrong in (
        {"_x.weight": torch.ones(2)},
        {"_x.weight": torch.ones(2), "_x.bias": torch.ones(4)},
        {"_x.bias": torch.ones(2), "_x.weight": torch.ones(3)},
    ):
        with pytest.raises(WeightsError, match="right file"):
            weights_module.in_order(wrong, own, Path("f"))


def test_without_a_hub_the_error_says_what_to_do(monkeypatch):
    def fail(*args, **options):
        if options.get("pretrained"):
            raise OSError("no route to host\nmore")
        return real(*args, **options)

    real = timm.create_model
    monkeypatch.setattr(timm, "create_model", fail)
    with pytest.raises(WeightsError, match=r"no route to host\).*--weights") as caught:
        load_classifier(encoder_spec("resnet50"))
    assert "\n" not in str(caught.value)


# Backends


def test_openvino_agrees_with_torch(photographs):
    pytest.importorskip("openvino")
    spec = encoder_spec(SMALL, weights="random")
    batch = pixels(photographs, spec)
    fast, plain = Encoder(spec, backend="openvino"), Encoder(spec, backend="torch")
    assert (fast.backend, plain.backend) == ("openvino", "torch")
    assert fast.key == plain.key
    np.testing.assert_allclose(fast.encode(batch), plain.encode(batch), atol=1e-4)
    np.testing.assert_allclose(fast.encode(batch[:1]), plain.encode(batch[:1]), atol=1e-4)


def test_unknown_backend():
    with pytest.raises(SettingsError, match="auto, torch, compile, onnxruntime, openvino"):
        Encoder(encoder_spec(SMALL, weights="random"), backend="tpu")


def test_converted_networks_are_kept_and_a_damaged_one_is_made_again(photographs, tmp_path, monkeypatch):
    pytest.importorskip("openvino")
    monkeypatch.setenv("DLSR_CACHE", str(tmp_path))
    spec = encoder_spec(SMALL, weights="random")
    batch = pixels(photographs, spec)
    first = Encoder(spec, backend="openvino").encode(batch)
    (folder,) = (tmp_path / "engines").iterdir()
    written = (folder / "sha256.json").stat().st_mtime_ns
    np.testing.assert_array_equal(Encoder(spec, backend="openvino").encode(batch), first)
    assert (folder / "sha256.json").stat().st_mtime_ns == written
    numbers = bytearray((folder / "model.bin").read_bytes())
    numbers[1000] ^= 0x7F
    (folder / "model.bin").write_bytes(numbers)
    np.testing.assert_array_equal(Encoder(spec, backend="openvino").encode(batch), first)
    assert (folder / "sha256.json").stat().st_mtime_ns > written
    assert len(list((tmp_path / "engines").iterdir())) == 1

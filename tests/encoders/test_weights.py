import hashlib
from pathlib import Path

import numpy as np
import pytest
import safetensors.torch
import timm
import torch

from dlsr import ENCODERS, SettingsError, WeightsError, encoder_spec
from dlsr.encoders import weights as weights_module
from dlsr.encoders.presets import RandomWeights
from dlsr.encoders.weights import load_classifier
from dlsr.images.resizing import resize

SMALL = "test_resnet"


def test_lite0_with_its_weights_classifies_real_photographs(photographs):
    """China.jpg is a temple roof (ImageNet 832 stupa, 698 palace, 663 monastery), flower.jpg a flower (985 daisy)."""
    spec = ENCODERS["efficientnet_lite0"]
    pixels = np.stack([resize(photograph, spec.size, spec.interpolation) for photograph in photographs])
    x = (torch.from_numpy(pixels).permute(0, 3, 1, 2).float() - 127) / 128
    with torch.inference_mode():
        top = load_classifier(spec)(x).topk(5).indices.tolist()
    assert {663, 698, 832} & set(top[0][:3])
    assert 985 in top[1]


@pytest.fixture
def state():
    return dict(timm.create_model(SMALL, pretrained=False).state_dict())


@pytest.mark.parametrize("suffix", [".safetensors", ".pth", ".wrapped.pth"])
def test_weights_are_loaded_from_a_file(tmp_path, state, suffix):
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


def test_missing_files_and_files_without_a_state_dict_are_refused(tmp_path):
    with pytest.raises(WeightsError, match="no weights file"):
        load_classifier(encoder_spec(SMALL, weights=str(tmp_path / "none.pth")))
    torch.save({"a": 1}, tmp_path / "w.pth")
    with pytest.raises(WeightsError, match="no state dict"):
        load_classifier(encoder_spec(SMALL, weights=str(tmp_path / "w.pth")))


def test_code_in_a_pickle_is_not_run(tmp_path):
    class Evil:
        def __reduce__(self):
            return (Path.touch, (tmp_path / "owned",))

    torch.save({"x": Evil()}, tmp_path / "w.pth")
    with pytest.raises(WeightsError):
        load_classifier(encoder_spec(SMALL, weights=str(tmp_path / "w.pth")))
    assert not (tmp_path / "owned").exists()


def test_weights_of_a_package_are_verified_by_their_sha256(monkeypatch):
    spec = ENCODERS["efficientnet_lite0"]
    broken = spec.weights.model_copy(update={"sha256": hashlib.sha256(b"other").hexdigest()})
    with pytest.raises(WeightsError, match="force-reinstall"):
        load_classifier(spec.model_copy(update={"weights": broken}))
    absent = spec.weights.model_copy(update={"package": "no-such-package-at-all"})
    with pytest.raises(WeightsError, match="pip install no-such-package-at-all"):
        load_classifier(spec.model_copy(update={"weights": absent}))


def test_weights_matched_by_order_must_agree_in_number_shape_and_name():
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


def test_offline_the_error_says_to_give_a_file(monkeypatch):
    def fail(*args, **options):
        if options.get("pretrained"):
            raise OSError("no route to host\nmore")
        return real(*args, **options)

    real = timm.create_model
    monkeypatch.setattr(timm, "create_model", fail)
    with pytest.raises(WeightsError, match=r"no route to host\).*--weights") as caught:
        load_classifier(encoder_spec("resnet50"))
    assert "\n" not in str(caught.value)


def test_a_very_large_network_gets_no_random_weights():
    """Its weights would take 17 GB, and a model directory of a few kilobytes may name it."""
    changed = {"network": "eva02_enormous_patch14_clip_224", "weights": RandomWeights()}
    with pytest.raises(SettingsError, match=r"17\d+ bytes, too many for random weights"):
        load_classifier(encoder_spec(SMALL, weights="random").model_copy(update=changed))

import sys
from importlib import metadata

import numpy as np
import pytest
import timm
import torch

from dlsr import ENCODERS, Encoder, SettingsError, WeightsError, encoder_spec
from dlsr.encoders import encoder as encoder_module
from dlsr.encoders.weights import load_classifier
from dlsr.images import transforms
from dlsr.images.resizing import resize
from dlsr.method.features import to_z0
from dlsr.method.layers import POOLINGS

SMALL = "test_resnet"


@pytest.fixture(scope="module")
def encoder():
    return Encoder(encoder_spec(SMALL, weights="random"), backend="torch")


def pixels(photographs, spec):
    return np.stack([resize(photograph, spec.size, spec.interpolation) for photograph in photographs])


@pytest.mark.parametrize(
    ("name", "c"), [("efficientnet_lite0", 512), ("efficientnet_lite1", 512), ("efficientnet_lite2", 560)]
)
def test_lite_presets_load_the_weights_of_their_packages(name, c):
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
def test_the_encoders_of_the_paper(name, c, channels, photographs):
    encoder = Encoder(encoder_spec(name, weights="random"), backend="torch")
    assert encoder.channels == channels
    assert encoder.c == c
    z0 = encoder.encode(pixels(photographs, encoder.spec))
    assert z0.shape == (2, c)
    assert np.isfinite(z0).all()
    assert not np.allclose(z0[0], z0[1])


def test_z0_is_pooled_and_normalised_from_the_maps_of_timms_network(photographs):
    spec = encoder_spec(SMALL, weights="random:3")
    network = timm.create_model(SMALL, pretrained=False, features_only=True)
    own = load_classifier(spec).state_dict()
    network.load_state_dict({name: own[name] for name in network.state_dict()})
    batch = pixels(photographs, spec)
    x = (torch.from_numpy(batch).permute(0, 3, 1, 2).float() - torch.tensor(spec.mean).view(3, 1, 1)) / torch.tensor(
        spec.std
    ).view(3, 1, 1)
    with torch.inference_mode():
        maps = network.eval()(x)
    for pooling in POOLINGS:
        encoder = Encoder(spec.model_copy(update={"pooling": pooling}), backend="torch")
        np.testing.assert_allclose(encoder.encode(batch), to_z0(maps, pooling), atol=1e-4)
        assert encoder.channels == tuple(stage.shape[1] * len(pooling.split("+")) for stage in maps)


@pytest.mark.parametrize("name", ["convnext_atto", "swin_tiny_patch4_window7_224"])
def test_networks_whose_names_timm_flattens_and_whose_maps_have_channels_last(name, photographs):
    spec = encoder_spec(name, weights="random", stages=(0, 1))
    encoder = Encoder(spec, backend="torch")
    network = timm.create_model(name, pretrained=False, features_only=True)
    own = {key.replace(".", "_"): value for key, value in load_classifier(spec).state_dict().items()}
    network.load_state_dict({key: own[key.replace(".", "_")] for key in network.state_dict()})
    batch = pixels(photographs, spec)
    mean, std = (torch.tensor(values).view(3, 1, 1) for values in (spec.mean, spec.std))
    with torch.inference_mode():
        maps = network.eval()((torch.from_numpy(batch).permute(0, 3, 1, 2).float() - mean) / std)
    first = [stage.permute(0, 3, 1, 2) if name.startswith("swin") else stage for stage in maps[:2]]
    np.testing.assert_allclose(encoder.encode(batch), to_z0(first, "mean"), atol=1e-4)
    assert encoder.channels == tuple(network.feature_info.channels()[:2])


def test_a_stage_of_a_transformer_may_be_any_block():
    with pytest.raises(SettingsError, match=r"stages 0\.\.11"):
        Encoder(encoder_spec("vit_tiny_patch16_224", stages=(12,), weights="random"))


def test_stages_are_chosen_by_index():
    all_stages = Encoder(encoder_spec(SMALL, weights="random"), backend="torch")
    some = Encoder(encoder_spec(SMALL, stages=(1, 3), weights="random"), backend="torch")
    assert some.channels == (all_stages.channels[1], all_stages.channels[3])
    with pytest.raises(SettingsError, match=r"stages 0\.\.4"):
        Encoder(encoder_spec(SMALL, stages=(9,), weights="random"))


def test_the_key_changes_with_everything_that_features_depend_on():
    spec = encoder_spec(SMALL, weights="random")
    key = Encoder(spec, backend="torch").key
    assert Encoder(spec, backend="torch").key == key
    changed = [
        encoder_spec(SMALL, weights="random:1"),
        encoder_spec(SMALL, stages=(1, 2), weights="random"),
        spec.model_copy(update={"size": 128}),
        spec.model_copy(update={"interpolation": {"bilinear": "bicubic", "bicubic": "bilinear"}[spec.interpolation]}),
        spec.model_copy(update={"decoding": "full"}),
        spec.model_copy(update={"resizer": "pillow"}),
        spec.model_copy(update={"mean": (0.0, 0.0, 0.0)}),
        encoder_spec(SMALL, weights="random", pooling="mean+std"),
        encoder_spec(SMALL, weights="random", pooling="mean+std+max"),
    ]
    keys = {Encoder(other, backend="torch").key for other in changed}
    assert len(keys) == 9
    assert key not in keys


def test_engines_of_other_poolings_have_other_keys():
    specs = [encoder_spec(SMALL, weights="random", pooling=pooling) for pooling in POOLINGS]
    assert len({Encoder(spec, backend="torch").graph().key for spec in specs}) == 3


@pytest.fixture
def upgrade(monkeypatch):
    """Pretend that another version of a package is installed."""
    real = metadata.version

    def install(package):
        monkeypatch.setattr(metadata, "version", lambda name: "99" if name == package else real(name))

    return install


def test_an_upgrade_of_timm_changes_the_keys_of_features_and_engine(encoder, upgrade):
    upgrade("timm")
    upgraded = Encoder(encoder.spec, backend="torch")
    assert upgraded.key != encoder.key
    assert upgraded.graph().key != encoder.graph().key


def test_an_upgrade_of_timm_does_not_change_a_converted_network(upgrade):
    first = Encoder(encoder_spec(SMALL, weights="random"), backend="openvino")
    known = {"weights_sha256": first.weights_sha256, "channels": first.channels}
    old = metadata.version("timm")
    upgrade("timm")
    again = Encoder(first.spec, backend="openvino", onnx=first.onnx(), timm=old, **known)
    assert again.key == first.key
    np.testing.assert_array_equal(again.encode(first.spec.example()), first.encode(first.spec.example()))


def test_features_of_a_graph_that_was_converted_elsewhere_are_kept_apart():
    own = Encoder(encoder_spec(SMALL, weights="random"), backend="openvino")
    known = {"weights_sha256": own.weights_sha256, "channels": own.channels, "timm": own.timm}
    same = Encoder(own.spec, backend="openvino", onnx=own.onnx(), **known)
    other = Encoder(encoder_spec(SMALL, weights="random:1"), backend="openvino")
    false = Encoder(own.spec, backend="openvino", onnx=other.onnx(), **known)
    assert same.key == own.key
    assert false.key != own.key


def test_an_upgrade_of_pillow_changes_the_key_of_features_but_not_of_the_engine(encoder, upgrade):
    features, engine = encoder.key, encoder.graph().key
    upgrade("pillow")
    assert encoder.key != features
    assert encoder.graph().key == engine


def test_a_change_of_dlsrs_own_code_changes_the_keys(encoder, monkeypatch):
    features, engine = encoder.key, encoder.graph().key
    monkeypatch.setattr(transforms, "PIXELS_VERSION", transforms.PIXELS_VERSION + 1)
    new_pixels = encoder.key
    monkeypatch.setattr(encoder_module, "Z0_VERSION", encoder_module.Z0_VERSION + 1)
    assert len({features, new_pixels, encoder.key}) == 3
    assert encoder.graph().key != engine


@pytest.mark.slow
@pytest.mark.parametrize(
    ("backend", "pooling"),
    [
        ("openvino", "mean"),
        ("openvino", "mean+std+max"),
        ("onnxruntime", "mean+std+max"),
        pytest.param("compile", "mean+std+max", marks=pytest.mark.slow),
    ],
)
def test_backends_agree_with_torch(photographs, backend, pooling):
    spec = encoder_spec(SMALL, weights="random", pooling=pooling)
    batch = pixels(photographs, spec)
    fast, plain = Encoder(spec, backend=backend), Encoder(spec, backend="torch")
    assert (fast.backend, plain.backend) == (backend, "torch")
    assert fast.key == plain.key
    np.testing.assert_allclose(fast.encode(batch), plain.encode(batch), atol=1e-4)
    np.testing.assert_allclose(fast.encode(batch[:1]), plain.encode(batch[:1]), atol=1e-4)
    # The maps of an image of one colour hardly vary, so the z-score enlarges rounding.
    flat = np.full_like(batch[:1], 200)
    np.testing.assert_allclose(fast.encode(flat), plain.encode(flat), rtol=1e-4, atol=1e-4)


def test_unknown_backends_are_refused():
    with pytest.raises(SettingsError, match="auto, torch, compile, onnxruntime, openvino"):
        Encoder(encoder_spec(SMALL, weights="random"), backend="tpu")


def test_a_saved_models_encoder_needs_neither_timm_nor_weights_if_its_engine_is_in_the_cache(monkeypatch):
    spec = encoder_spec(SMALL, weights="random")
    first = Encoder(spec, backend="openvino")
    monkeypatch.setitem(sys.modules, "timm", None)
    monkeypatch.setattr("dlsr.encoders.network.load_classifier", None)
    again = Encoder(spec, backend="openvino", weights_sha256=first.weights_sha256, channels=first.channels)
    batch = spec.example()
    np.testing.assert_array_equal(again.encode(batch), first.encode(batch))


def test_weights_other_than_those_of_the_model_are_refused(encoder):
    with pytest.raises(WeightsError, match="not those that the model was fitted with"):
        Encoder(encoder.spec, backend="torch", weights_sha256="0" * 64, channels=encoder.channels)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU")
def test_an_encoder_on_a_gpu_agrees_with_the_cpu(photographs):
    spec = encoder_spec(SMALL, weights="random")
    batch = pixels(photographs, spec)
    on_gpu, on_cpu = Encoder(spec, "cuda"), Encoder(spec, backend="torch")
    assert on_gpu.backend == "torch"
    assert on_gpu.key == on_cpu.key
    np.testing.assert_allclose(on_gpu.encode(batch), on_cpu.encode(batch), atol=5e-3)

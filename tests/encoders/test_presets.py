import pytest

from dlsr import ENCODERS, SettingsError, encoder_spec
from dlsr.encoders import EncoderSpec
from dlsr.encoders.presets import FileWeights, HubWeights, RandomWeights


def test_unknown_encoders_are_refused_with_the_known_names():
    with pytest.raises(SettingsError, match=r"efficientnet_lite0.*timm"):
        encoder_spec("no_such_network")


def test_unknown_decodings_are_refused():
    with pytest.raises(SettingsError, match="choose one of full, draft"):
        encoder_spec("resnet50", decoding="quick")


def test_unknown_poolings_are_refused():
    with pytest.raises(SettingsError, match=r"unknown pooling 'max'; choose one of mean, mean\+std, mean\+std\+max"):
        encoder_spec("resnet50", pooling="max")


def test_a_spec_of_before_pooling_reads_as_the_mean():
    older = ENCODERS["resnet50"].model_dump(exclude={"pooling"})
    assert "pooling" not in older
    assert EncoderSpec.model_validate(older) == ENCODERS["resnet50"]
    assert EncoderSpec.model_validate(older).pooling == "mean"


def test_a_network_of_timm_has_its_own_preprocessing_and_all_stages():
    spec = encoder_spec("test_resnet", weights="random:7")
    assert spec.stages == (0, 1, 2, 3, 4)
    assert spec.mean == spec.std == (127.5, 127.5, 127.5)
    assert spec.weights == RandomWeights(seed=7)


def test_the_stages_of_a_transformer_are_those_that_timm_takes():
    """Its first three blocks were taken, which see little."""
    assert encoder_spec("vit_tiny_patch16_224", weights="random").stages == (9, 10, 11)


def test_changes_to_a_preset_leave_the_rest_and_the_preset_as_they_are():
    changed = encoder_spec("resnet50", stages=(2,), weights="file.pth", decoding="full", pooling="mean+std")
    assert changed.weights == FileWeights(path="file.pth")
    expected = ENCODERS["resnet50"].model_dump() | {"stages": (2,), "decoding": "full", "pooling": "mean+std"}
    given = {"weights", "resizer"}
    assert changed.model_dump(exclude=given) == {k: v for k, v in expected.items() if k not in given}
    assert encoder_spec("resnet50", resizer="pillow") == ENCODERS["resnet50"]


def test_values_that_cannot_be_are_one_line():
    with pytest.raises(SettingsError, match="seed"):
        encoder_spec("resnet50", weights=f"random:{2**63}")
    with pytest.raises(SettingsError, match="stages"):
        encoder_spec("resnet50", stages=(-1,))
    assert encoder_spec("resnet50", weights=f"random:{5000 * '1'}").weights.kind == "file"
    assert encoder_spec("resnet50", weights="random:²").weights.kind == "file"


def test_weights_of_the_hub_can_be_asked_for_and_a_saved_spec_does_not_decide_on_downloads():
    spec = encoder_spec("efficientnet_lite0", weights="hub")
    assert spec.weights == HubWeights(download=True)
    assert "download" not in spec.model_copy(update={"weights": HubWeights(download=False)}).model_dump_json()

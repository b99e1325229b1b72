import numpy as np
import pytest

from dlsr import SettingsError
from dlsr.calibration.two_samples import feature_test, property_tests


def normal(seed, count, c=6):
    return np.random.default_rng(seed).standard_normal((count, c)).astype(np.float32)


def clusters(seed, count, share):
    """Images of two classes, of which the second has this share."""
    random = np.random.default_rng(seed)
    is_second = random.random(count) < share
    return (random.standard_normal((count, 20)) + np.where(is_second, 3, -3)[:, None]).astype(np.float32), is_second


def test_the_p_value_of_features_is_valid_for_samples_of_any_sizes():
    pairs = [(normal(i, 24), normal(1000 + i, 12 + i % 40)) for i in range(200)]
    found = np.array([feature_test(x, y, level=0.1, seed=i).p_value for i, (x, y) in enumerate(pairs)])
    assert np.mean(found <= 0.1) < 0.165
    assert np.mean(found <= 0.5) < 0.61
    assert np.mean(found <= 0.5) > 0.39


def test_a_changed_mix_is_seen_and_its_images_are_named():
    before, _ = clusters(0, 150, 0.5)
    after, is_second = clusters(1, 100, 0.8)
    test = feature_test(before, after, level=0.01)
    assert test.p_value == pytest.approx(1 / 1000)
    assert is_second[list(test.most_typical)].all()
    assert feature_test(before, clusters(2, 100, 0.5)[0], level=0.01).p_value > 0.01


def test_a_smaller_spread_around_the_same_mean_is_seen():
    assert feature_test(normal(0, 200), 0.7 * normal(1, 200), level=0.01).p_value <= 0.001


def test_the_test_of_features_is_reproducible_and_does_not_depend_on_the_unit():
    before, after = normal(0, 60), normal(1, 60) + np.float32(0.3)
    test = feature_test(before, after, level=0.05, seed=4)
    assert feature_test(before, after, level=0.05, seed=4) == test
    assert feature_test(1000 * before, 1000 * after, level=0.05, seed=4).p_value == pytest.approx(
        test.p_value, abs=0.01
    )


@pytest.mark.parametrize("value", [0.0, 0.1, 1e6])
def test_equal_features_have_not_changed(value):
    same = np.full((30, 5), value, np.float32)
    assert feature_test(same, same, level=0.01).p_value == 1


def test_permutations_suffice_for_the_level_or_it_is_refused():
    x = normal(0, 25)
    for level in (0.1, 0.003, 0.0002):
        permutations = feature_test(x, x + 9, level=level).permutations
        assert 1 / (permutations + 1) <= level
    with pytest.raises(SettingsError, match="allow a higher alpha"):
        feature_test(x, x, level=0.00009)


def of_properties(seed, count):
    random = np.random.default_rng(seed)
    brightness = random.random(count)
    return {
        "brightness": brightness,
        "contrast": brightness + 0.1 * random.standard_normal(count),
        "sharpness": random.standard_normal(count),
        "width": random.choice([32.0, 64.0], count),
        "height": np.full(count, 32.0),
        "file type": random.choice(["JPEG", "PNG", "BMP"], count, p=[0.7, 0.2, 0.1]),
    }


def test_that_any_property_moved_is_said_for_exchangeable_images_with_at_most_the_probability_alpha():
    found = [property_tests(of_properties(i, 40), of_properties(1000 + i, 60))[0].p_value for i in range(300)]
    assert np.mean(np.array(found) <= 0.2) < 0.26
    assert np.mean(np.array(found) <= 0.2) > 0.02


def test_what_moved_is_named_with_its_value_before_and_after():
    before, after = of_properties(0, 100), of_properties(1, 100)
    after["brightness"] = after["brightness"] - 0.5
    after["file type"] = np.full(100, "PNG")
    after["width"] = np.where(np.arange(100) < 30, 128.0, after["width"])
    tests = {test.name: test for test in property_tests(before, after)}
    assert {name for name, test in tests.items() if test.p_value < 0.001} == {"brightness", "file type", "width"}
    assert tests["brightness"].before == pytest.approx(np.median(before["brightness"]))
    assert tests["brightness"].after == pytest.approx(np.median(after["brightness"]))
    assert tests["file type"].after == {"BMP": 0, "JPEG": 0, "PNG": 1}
    assert (tests["width"].widest.value, tests["width"].widest.after_above) == (64, 0.3)


def test_a_property_with_one_value_in_all_images_or_in_one_sample_only_is_not_tested():
    before, after = of_properties(0, 30), of_properties(1, 30)
    del after["file type"]
    assert {test.name for test in property_tests(before, after)} == {"brightness", "contrast", "sharpness", "width"}
    assert property_tests({}, {}) == []


def test_p_values_are_corrected_by_the_method_of_holm():
    from scipy.stats import ks_2samp

    before, after = of_properties(3, 50), of_properties(4, 50)
    names = ("brightness", "contrast", "sharpness")
    after["sharpness"] = after["sharpness"] + 0.8
    after["contrast"] = after["contrast"] + 0.2
    alone = sorted(ks_2samp(after[name], before[name]).pvalue for name in names)
    expected = np.minimum(np.maximum.accumulate(np.array(alone) * [3, 2, 1]), 1)
    tests = property_tests({name: before[name] for name in names}, after)
    np.testing.assert_allclose([test.p_value for test in tests], expected)

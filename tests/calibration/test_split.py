import numpy as np
import pytest

from dlsr import TooFewImagesError
from dlsr.calibration.split import split


@pytest.mark.parametrize(
    ("n", "rate", "validation", "calibration"),
    [(1000, 0.05, 50, 100), (150, 0.01, 8, 99), (40, 0.1, 5, 9), (1_000_000, 0.05, 50_000, 50_000)],
)
def test_each_image_is_in_one_part_of_the_expected_size(n, rate, validation, calibration):
    parts = split(np.arange(n), rate, seed=0)
    assert (len(parts.validation), len(parts.calibration)) == (validation, calibration)
    together = np.concatenate([parts.training, parts.validation, parts.calibration])
    np.testing.assert_array_equal(np.sort(together), np.arange(n))


def test_without_validation_its_images_are_training_images_and_calibration_is_the_same():
    parts, without = split(np.arange(1000), 0.05, seed=0), split(np.arange(1000), 0.05, seed=0, validation=False)
    assert not len(without.validation)
    np.testing.assert_array_equal(without.calibration, parts.calibration)
    np.testing.assert_array_equal(without.training, np.concatenate([parts.training, parts.validation]))


def test_the_seed_decides_the_split():
    same, again, other = (split(np.arange(100), 0.1, seed).training for seed in (0, 0, 1))
    np.testing.assert_array_equal(same, again)
    assert (same != other).any()


def test_too_few_images_are_refused_with_the_smallest_number():
    with pytest.raises(TooFewImagesError, match=r"100 readable images.* 0\.01; give at least 124") as caught:
        split(np.arange(100), 0.01, 0)
    assert "higher rate" in str(caught.value)
    smallest = split(np.arange(34), 0.1, 0)
    assert len(smallest.training) == 20
    with pytest.raises(TooFewImagesError, match="at least 34"):
        split(np.arange(33), 0.1, 0)


def test_a_group_is_never_split():
    groups = np.random.default_rng(0).integers(0, 60, 500)
    parts = split(groups, 0.05, seed=0)
    of_parts = [set(groups[part]) for part in (parts.training, parts.validation, parts.calibration)]
    assert sum(map(len, of_parts)) == 60
    assert set.union(*of_parts) == set(groups)
    assert len(of_parts[2]) >= 19
    assert len(parts.calibration) >= 50
    np.testing.assert_array_equal(np.sort(np.concatenate([*vars(parts).values()])), np.arange(500))


@pytest.mark.parametrize("singles", [100, 5000])
def test_a_large_group_is_held_out_no_more_often_than_others(singles):
    """To go on until a tenth of the images are held out takes it nearly always: 2,500 of 20,000 were left to fit to."""
    groups = np.concatenate([np.zeros(3 * singles, int), np.arange(1, singles + 1)])
    parts = [split(groups, 0.05, seed) for seed in range(40)]
    held_out = sum(0 not in groups[part.training] for part in parts)
    assert held_out < 20  # with a probability of 0.15, or of 0.25 for 100, since 19 groups must calibrate
    assert np.median([len(part.training) for part in parts]) > 0.9 * 3 * singles


def test_validation_does_with_fewer_groups_where_there_are_few():
    groups = np.repeat(np.arange(22), 10)
    parts = split(groups, 0.05, 0)
    assert [len(np.unique(groups[part])) for part in (parts.training, parts.validation, parts.calibration)] == [
        2,
        1,
        19,
    ]


@pytest.mark.parametrize("calibration", [True, False])
@pytest.mark.parametrize("groups", [np.zeros(100, int), np.repeat(np.arange(4), 50)])
def test_too_few_groups_are_one_clear_error(groups, calibration):
    with pytest.raises(
        TooFewImagesError, match=r"images in \d groups, the largest of \d+, .*19 are needed to calibrate"
    ):
        split(groups, 0.05, 0, calibration=calibration)


def test_a_confidence_needs_more_images():
    assert len(split(np.arange(200), 0.05, 0, confidence=0.95).calibration) == 59
    with pytest.raises(TooFewImagesError, match=r"with a confidence of 0\.95; give at least 84"):
        split(np.arange(83), 0.05, 0, confidence=0.95)

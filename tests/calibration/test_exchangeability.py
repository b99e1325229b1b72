import numpy as np
import pytest

from dlsr.calibration import exchangeability, neighbours
from dlsr.calibration.exchangeability import ExchangeabilityCheck, check


def features(random, n, dimensions=16):
    return (random.standard_normal((n, dimensions)) @ random.standard_normal((dimensions, 40))).astype(np.float32)


def tracks(random, count, frames, spread=0.5):
    """Features of several frames each of signs of their own, and the numbers of the signs."""
    signs = np.repeat(np.arange(count), frames)
    return features(random, count)[signs] + spread * features(random, count * frames), signs


def distance_from_mean(z0):
    return np.linalg.norm(z0 - z0.mean(axis=0), axis=1).astype(np.float64)


def checked(z0, names, groups=None, scores=None, seed=0):
    scores = distance_from_mean(z0) if scores is None else scores
    return check(names, z0, scores, np.arange(len(z0)) if groups is None else groups, seed)


@pytest.fixture
def random():
    return np.random.default_rng(0)


def numbered(n):
    return [f"photos/{i}.jpg" for i in range(n)]


@pytest.mark.parametrize("n", [60, 200])
def test_it_seldom_fires_when_all_is_well(n):
    random, fired, small = np.random.default_rng(n), 0, []
    for seed in range(120):
        z0 = features(random, n, dimensions=random.integers(1, 20))
        result = checked(z0, [f"{i % 3}/{i}.jpg" for i in range(n)], seed=seed)
        fired += result.fired
        small.append([result.neighbours.p_value <= 0.05, result.drift.p_value <= 0.05, result.copies.p_value <= 0.05])
    assert fired <= 5  # of 120 at 1 %: more with a probability of 0.1 %
    assert (np.mean(small, axis=0) < 0.05 + 3 * np.sqrt(0.05 * 0.95 / 120)).all()


def test_frames_of_tracks_in_the_order_of_names_are_seen(random):
    z0, signs = tracks(random, 40, 3)
    result = checked(z0, numbered(120))
    assert result.fired
    assert result.neighbours.fired
    assert f"{result.neighbours.adjacent} of 120 images stand next to their nearest image by name" in result.message
    assert result.neighbours.adjacent > 10 * result.neighbours.by_chance
    assert "say which belong together (group_by)" in result.message
    assert not checked(z0, numbered(120), groups=signs).fired


def test_numbers_are_ordered_by_value(random):
    z0, _ = tracks(random, 40, 3)
    shuffled = random.permutation(120)
    names = [f"photos/{i}.jpg" for i in shuffled]  # no zeros in front: 10 stands before 2 by letters
    assert checked(z0[shuffled], names).neighbours.adjacent == checked(z0, numbered(120)).neighbours.adjacent


def test_near_copies_are_seen_whatever_their_names(random):
    originals = features(random, 60)
    z0 = np.repeat(originals, 5, axis=0) + 0.05 * features(random, 300)
    names = [f"{i:08x}.jpg" for i in random.integers(2**32, size=300)]
    for result in (checked(z0, names), check(None, z0, distance_from_mean(z0), np.arange(300), 0)):
        assert result.copies.fired
        assert f"{result.copies.copies} of 300 images have a near copy outside their group" in result.message
        assert result.copies.copies > 250
    assert not checked(z0, names, groups=np.repeat(np.arange(60), 5)).fired


def test_exact_copies_are_near_copies(random):
    for z0 in (np.repeat(features(random, 60), 2, axis=0), np.ones((50, 8), np.float32)):
        result = check(None, z0, distance_from_mean(z0), np.arange(len(z0)), 0)
        assert result.copies.copies == len(z0)
        assert result.fired


def test_folders_of_classes_are_no_reason_to_fire(random):
    centres = 10 * features(random, 10)
    labels = np.repeat(np.arange(10), 12)
    z0 = centres[labels] + features(random, 120) * (1 + labels[:, None] / 3)
    scores = labels + random.standard_normal(120)
    in_folders = checked(z0, [f"class-{label}/{i:03}.jpg" for i, label in enumerate(labels)], scores=scores)
    by_prefix = checked(z0, [f"{'abcdefghij'[label]}_{i:03}.jpg" for i, label in enumerate(labels)], scores=scores)
    flat = checked(z0, numbered(120), scores=scores)
    assert not in_folders.fired
    assert in_folders == by_prefix
    assert flat.drift.fired


@pytest.mark.parametrize("sign", [1, -1])
def test_scores_that_change_along_the_names_are_seen(random, sign):
    scores = random.standard_normal(300) + sign * (np.arange(300) >= 180)
    result = checked(features(random, 300), numbered(300), scores=scores)
    assert result.drift.fired
    assert result.drift.at == pytest.approx(0.6, abs=0.05)
    assert result.drift.shift * sign > 0.1
    assert f"percentile points {'higher' if sign > 0 else 'lower'}" in result.message


def test_a_certain_but_tiny_change_does_not_fire(random):
    n = 20_000
    scores = random.standard_normal(n) + 0.15 * (np.arange(n) >= n // 2)
    places = exchangeability._places(numbered(n), np.arange(n))
    drift = exchangeability._named_drift(places, scores)
    assert drift.p_value < 1e-6
    assert not drift.fired


def test_images_of_one_group_count_once(random):
    labels = np.repeat(np.arange(60), 10)
    scores = random.standard_normal(60)[labels] + 0.1 * random.standard_normal(600)
    z0 = features(random, 600)
    assert checked(z0, numbered(600), scores=scores).drift.p_value < 0.001
    assert checked(z0, numbered(600), groups=labels, scores=scores).drift.p_value > 0.01


def test_unknown_scores_and_few_images_leave_tests_out(random):
    z0 = features(random, 100)
    unknown = checked(z0, numbered(100), scores=np.full(100, np.nan))
    assert unknown.drift is None
    assert unknown.neighbours is not None
    few = checked(z0[:19], numbered(19))
    assert (few.neighbours, few.drift, few.copies, few.fired) == (None, None, None, False)
    assert "fewer than 20" in few.message
    assert checked(z0, numbered(100), groups=np.zeros(100, np.intp)).copies is None
    lopsided = np.maximum(np.arange(100) - 78, 0)  # a group of 79 images, and 21 single ones
    assert checked(z0, numbered(100), groups=lopsided).neighbours.images == 22


def test_the_result_is_deterministic_and_survives_json(random):
    z0, _ = tracks(random, 30, 3)
    result = checked(z0, numbered(90))
    assert result == checked(z0, numbered(90))
    assert ExchangeabilityCheck.model_validate_json(result.model_dump_json()) == result


def test_only_some_images_are_searched_in_large_folders(random, monkeypatch):
    z0, _ = tracks(random, 100, 3)
    monkeypatch.setattr(exchangeability, "QUERIES", 100)
    monkeypatch.setattr(neighbours, "AT_ONCE", 1000)  # three queries at a time
    result = checked(z0, numbered(300))
    assert result.neighbours.images == result.copies.images == 100
    assert result.neighbours.fired


def test_groups_that_were_found_do_not_hide_that_images_come_in_groups(random):
    z0, signs = tracks(random, 40, 3)
    names, scores, exact = [f"{i:04}.png" for i in range(120)], distance_from_mean(z0), np.arange(120)
    found = exact.copy()
    found[1::3] = found[::3]  # two frames of each track
    assert not check(names, z0, scores, signs, 0).fired
    result = check(names, z0, scores, signs, 0, exact)
    assert result.fired
    assert result.message.startswith(
        "near copies were found and grouped, but others that belong to them may be missing"
    )
    assert result.message.endswith("say which belong together (group_by)")
    assert check(names, z0, scores, found, 0, exact).fired


def test_exact_copies_that_were_found_are_no_reason_to_fire(random):
    z0 = np.repeat(features(random, 100), 3, axis=0)
    groups = np.arange(300) // 3
    assert check(None, z0, distance_from_mean(z0), np.arange(300), 0).fired
    assert not check(None, z0, distance_from_mean(z0), groups, 0, groups).fired

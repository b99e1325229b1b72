import numpy as np
import pytest
from scipy.sparse import coo_array
from scipy.sparse.csgraph import connected_components

from dlsr.calibration import components, copies
from dlsr.calibration.copies import found_groups

COLUMNS = 200


@pytest.fixture
def random():
    return np.random.default_rng(0)


@pytest.fixture
def photographs(random):
    """Features of unlike images: some directions vary much more than others, as those of an encoder do."""

    def draw(n):
        return random.standard_normal((n, COLUMNS)) / np.sqrt(np.arange(1, COLUMNS + 1))

    return draw


def nearly(random, originals, copies_of_each, amount=0.1):
    """Features of near copies, and the original of each. The first copy of each is the original itself."""
    original = np.repeat(np.arange(len(originals)), copies_of_each)
    changed = np.arange(len(original)) % copies_of_each > 0
    change = random.standard_normal((len(original), originals.shape[1])) * originals.std(axis=0)
    return originals[original] + amount * changed[:, None] * change, original


def digests_of(images):
    """Digests that tell all images from each other, in random order."""
    return np.random.default_rng(1).integers(0, 256, (len(images), 16), np.uint8)


def groups_of(z0, digests=None):
    z0 = np.asarray(z0, np.float32)
    return found_groups(z0, digests_of(z0) if digests is None else digests)


def same_partition(first, second):
    pairs = np.unique(np.stack([first, second]), axis=1)
    return pairs.shape[1] == len(np.unique(first)) == len(np.unique(second))


def share_in_groups(groups):
    return np.mean(np.bincount(groups)[groups] > 1)


def test_unlike_images_have_a_group_each(photographs):
    np.testing.assert_array_equal(np.sort(groups_of(photographs(400))), np.arange(400))


def test_exact_copies_share_a_group(photographs, random):
    original = random.integers(0, 100, 300)
    digests = digests_of(range(100))[original]
    groups = groups_of(photographs(100)[original], digests)
    assert groups.dtype == np.intp
    assert same_partition(groups, original)


@pytest.mark.parametrize("copies_of_each", [2, 5, 20])
def test_near_copies_share_a_group(photographs, random, copies_of_each):
    z0, original = nearly(random, photographs(50), copies_of_each)
    assert same_partition(groups_of(z0), original)


def test_near_copies_are_found_among_unlike_images_and_exact_copies(photographs, random):
    z0, original = nearly(random, photographs(20), 3)
    z0, original = np.concatenate([z0, photographs(200)]), np.concatenate([original, np.arange(20, 220)])
    again = np.concatenate([np.arange(260), random.integers(0, 260, 100)])
    assert same_partition(groups_of(z0[again], digests_of(z0)[again]), original[again])


def test_frames_of_a_video_share_a_group_though_the_last_is_unlike_the_first(photographs, random):
    steps = 0.15 * photographs(1200).reshape(20, 60, COLUMNS)
    frames = np.cumsum(steps, axis=1) + photographs(20)[:, None]
    groups = groups_of(frames.reshape(1200, COLUMNS)).reshape(20, 60)
    for video in groups:
        assert np.bincount(video).max() > 45
    assert len(np.unique(groups)) < 200


def test_groups_do_not_depend_on_the_order(photographs, random):
    # As near to the limit as these, some are found and some are not.
    z0, _ = nearly(random, photographs(100), 3, 0.9)
    z0, digests = z0.astype(np.float32), digests_of(z0)
    groups = found_groups(z0, digests)
    assert 110 < len(np.unique(groups)) < 290
    order = random.permutation(300)
    np.testing.assert_array_equal(found_groups(z0[order], digests[order]), groups[order])


def test_dense_classes_are_not_swallowed_and_copies_are_found_in_each(random):
    spread = np.array([0.01, 0.1, 1, 5])
    kind = random.integers(0, 4, 400)
    originals = 10 * random.standard_normal((4, 50))[kind] + spread[kind, None] * random.standard_normal((400, 50))
    assert share_in_groups(groups_of(originals)) < 0.01
    change = 0.1 * spread[kind, None] * random.standard_normal((400, 50))
    groups = groups_of(np.concatenate([originals, originals + change]))
    assert same_partition(groups, np.tile(np.arange(400), 2))


def test_an_image_far_from_a_dense_class_does_not_join_it(photographs):
    z0 = np.concatenate([0.01 * photographs(300), photographs(3) + 3])
    assert share_in_groups(groups_of(z0)) < 0.01


@pytest.mark.parametrize("dimension", [2, 5])
def test_classes_of_few_dimensions_are_not_swallowed(random, dimension):
    classes = 10 * random.standard_normal((10, COLUMNS))[random.integers(0, 10, 500)]
    within = random.standard_normal((500, dimension)) @ random.standard_normal((dimension, COLUMNS))
    assert share_in_groups(groups_of(classes + within)) < 0.03


@pytest.mark.parametrize("dimension", [1, 2, 3, 8])
def test_few_dimensions_make_neighbours_near_but_no_copies(random, dimension):
    assert share_in_groups(groups_of(random.standard_normal((500, dimension)))) < 0.03
    mixing = random.standard_normal((dimension, COLUMNS)) / np.sqrt(dimension)
    mixed = np.tanh(random.standard_normal((500, dimension)) @ mixing)
    assert share_in_groups(groups_of(mixed)) < 0.05


def test_equal_images_are_one_group_even_if_only_their_features_are_equal(photographs):
    one = np.repeat(photographs(1), 50, axis=0)
    assert len(np.unique(groups_of(one, np.zeros((50, 16), np.uint8)))) == 1
    assert len(np.unique(groups_of(one))) == 1


def test_many_images_with_equal_features_are_one_group_among_others(photographs):
    z0 = np.concatenate([np.repeat(photographs(1), 60, axis=0), photographs(100)])
    assert same_partition(groups_of(z0), np.maximum(np.arange(160) - 59, 0))


@pytest.mark.parametrize("images", [0, 1, 2, 19])
def test_in_tiny_folders_only_exact_copies_are_found(photographs, images):
    z0 = np.tile(photographs(images) * 1e-6, (2, 1))
    digests = np.tile(digests_of(range(images)), (2, 1))
    assert same_partition(groups_of(z0, digests), np.tile(np.arange(images), 2))


def test_twenty_images_are_enough_to_find_near_copies(photographs, random):
    z0, original = nearly(random, photographs(10), 2, 0.05)
    assert same_partition(groups_of(z0), original)


def test_scale_shift_and_constant_columns_do_not_matter(photographs, random):
    z0, _ = nearly(random, photographs(60), 3, 0.3)
    groups = groups_of(z0)
    scaled = np.hstack([1e5 * z0 - 3e5, np.full((len(z0), 5), 7.3)])
    scaled[:, 0] *= 1e6
    assert same_partition(groups_of(scaled), groups)


def test_blocks_give_the_same_as_one_block_in_memory_and_mapped(photographs, random, monkeypatch, tmp_path):
    z0, _ = nearly(random, photographs(100), 3, 0.3)
    groups = groups_of(z0)
    np.save(tmp_path / "z0.npy", z0.astype(np.float32))
    monkeypatch.setattr(components, "BLOCK", 7)
    assert same_partition(found_groups(np.load(tmp_path / "z0.npy", mmap_mode="r"), digests_of(z0)), groups)


@pytest.mark.parametrize("links", [0, 1, 50, 150, 400])
def test_linked_images_are_the_connected_parts_of_a_graph(random, links):
    left, right = random.integers(0, 200, (2, links))
    graph = coo_array((np.ones(links), (left, right)), shape=(200, 200))
    np.testing.assert_array_equal(copies._linked(200, left, right), connected_components(graph, directed=False)[1])


def test_a_long_chain_of_links_is_one_part(random):
    chain = random.permutation(10_000)
    assert not copies._linked(10_000, chain[1:], chain[:-1]).any()


def test_in_cells_most_near_copies_are_found_and_no_others(photographs, random, monkeypatch):
    monkeypatch.setattr(copies, "CELL", 200)
    z0, _ = nearly(random, photographs(600), 2)
    groups = groups_of(z0)
    together = groups[::2] == groups[1::2]
    assert together.mean() > 0.9
    assert len(np.unique(groups)) == 1200 - together.sum()


def test_cells_hold_each_image_once_and_no_more_than_allowed(photographs, monkeypatch):
    monkeypatch.setattr(copies, "CELL", 100)
    cells = list(copies._cells(photographs(1001).astype(np.float32)))
    assert max(map(len, cells)) <= 100
    np.testing.assert_array_equal(np.bincount(np.concatenate(cells)), np.full(1001, copies.FORESTS))

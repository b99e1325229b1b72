import shutil

import numpy as np
import pytest
from PIL import Image

from dlsr import FittedDetector, NoImagesError, SettingsError, open_images
from dlsr.selection import select


@pytest.fixture(scope="module")
def detector(model):
    return FittedDetector.load(model, backend="torch")


@pytest.fixture
def mixed(tmp_path, image_folder, odd_folder):
    """40 ID images, 20 odd ones, a copy of each of the odd ones, and a file that is no image."""
    folder = tmp_path / "mixed"
    folder.mkdir()
    for i, path in enumerate(sorted(image_folder.rglob("*.png"))[:40]):
        shutil.copy(path, folder / f"id{i:02}.png")
    for i, path in enumerate(sorted(odd_folder.rglob("*.png"))[:20]):
        with Image.open(path) as image:
            image.save(folder / f"odd{i:02}.png")
            image.save(folder / f"odd{i:02}-copy.bmp")
    (folder / "broken.png").write_bytes(b"no image")
    return folder


def test_the_most_anomalous_image_is_first_and_each_next_one_is_farthest(detector, mixed):
    chosen = select(detector, mixed, 5)
    results = detector.results(mixed)
    scores = {result.path: result.score for result in results if result.score is not None}
    assert chosen.results[0].score == max(scores.values())
    assert all(result.is_ood for result in chosen.results)
    encoded = detector.extractor_.encode(mixed)
    z0 = dict(zip(encoded.readable_names, encoded.z0, strict=True))
    picked = [z0[result.path] for result in chosen.results]
    gaps = [min(np.linalg.norm(picked[k] - before) for before in picked[:k]) for k in range(1, 5)]
    assert gaps == sorted(gaps, reverse=True)
    ood = [name for name in scores if detector.p_values_of([scores[name]])[0] <= detector.false_alarm_rate]
    farthest = max(ood, key=lambda name: np.linalg.norm(z0[name] - picked[0]))
    assert np.linalg.norm(z0[farthest] - picked[0]) == pytest.approx(gaps[0])


def test_no_copies_are_selected_however_many_are_asked_for(detector, mixed):
    chosen = select(detector, mixed, 100)
    stems = [result.path.rpartition("/")[2].partition(".")[0].removesuffix("-copy") for result in chosen.results]
    assert len(set(stems)) == len(stems) == chosen.distinct < chosen.ood
    assert all(copies >= 1 for copies, stem in zip(chosen.copies, stems, strict=True) if stem.startswith("odd"))
    names = [item.name for item in open_images(mixed).items]
    assert [result.path for result in chosen.results] == [names[i] for i in chosen.positions]
    assert list(chosen.unreadable) == [str(mixed / "broken.png")]


def test_a_selection_is_filled_by_the_next_highest_scores(detector, mixed):
    refused = select(detector, mixed, 30)
    assert len(refused.results) < 30
    filled = select(detector, mixed, 30, fill=True)
    assert len(filled.results) == 30
    assert list(filled.results[: len(refused.results)]) == list(refused.results)
    rest = [result for result in filled.results if not result.is_ood]
    assert len(rest) == 30 - len(refused.results)
    scores = [result.score for result in rest]
    assert scores == sorted(scores, reverse=True)


def test_a_single_image_can_be_selected_among_few(detector, odd_folder):
    chosen = select(detector, [*sorted(odd_folder.rglob("*.png"))[:3]], 1)
    assert len(chosen.results) == 1


def test_mistakes_are_errors(detector, mixed, tmp_path):
    with pytest.raises(SettingsError, match="at least 1"):
        select(detector, mixed, 0)
    (tmp_path / "bad").mkdir()
    (tmp_path / "bad" / "a.png").write_bytes(b"")
    with pytest.raises(NoImagesError, match="empty file"):
        select(detector, tmp_path / "bad", 3)
    with pytest.raises(NoImagesError, match="none of 2 images"):
        select(detector, 2 * [tmp_path / "bad" / "a.png"], 3)

"""Reasons and groups of the results of a detector."""

import numpy as np
import pytest

from dlsr import Detector, FittedDetector, InputError, Result, SettingsError, explain, group, open_images
from dlsr.calibration.reasons import MEASURED, Reason
from dlsr.explaining.groups import ALONE, shared

pytestmark = pytest.mark.filterwarnings("ignore::dlsr.UnreadableImagesWarning")


@pytest.fixture(scope="module")
def detector(explaining_model):
    return FittedDetector.load(explaining_model, backend="torch")


def test_every_readable_image_gets_reasons_whatever_its_verdict(detector, refused_folder):
    results = detector.detect(refused_folder)
    explained = list(explain(detector, refused_folder, results))
    assert [result.path for result in explained] == results.paths
    assert [result.score for result in explained] == [result.score for result in results]
    by_kind = {kind: [r for r in explained if f"/{kind}/" in r.path] for kind in ("temple", "noise", "red")}
    assert [len(some) for some in by_kind.values()] == [10, 20, 15]
    for result in by_kind["noise"]:
        assert "very large" in {reason.words for reason in result.reasons}
        assert "very large" in result.sentence
    for result in by_kind["red"]:
        assert {"very large", "very reddish"} <= {reason.words for reason in result.reasons}
    assert sum(bool(result.reasons) for result in by_kind["temple"]) <= 2
    (broken,) = [result for result in explained if result.error]
    assert broken.reasons is None
    assert broken.sentence == "Cannot be read: not an image, or of an unknown format."


def test_results_of_other_images_are_refused(detector, refused_folder, odd_folder):
    with pytest.raises(InputError, match="is not that of the image"):
        list(explain(detector, odd_folder, detector.detect(refused_folder)))


def test_a_clip_that_ended_early_has_fewer_results_but_never_more(detector, refused_folder):
    results, images = detector.detect(refused_folder), open_images(refused_folder)
    assert len(list(explain(detector, images, results[:3]))) == 3
    with pytest.raises(InputError, match="there are only 2 images"):
        list(explain(detector, images.subset(range(2)), results))


def test_a_file_that_vanished_after_it_was_scored_has_no_reasons(detector, refused_folder):
    results = detector.detect(refused_folder)
    images = open_images(refused_folder)
    (refused_folder / "red" / "red-00.png").unlink()
    explained = {result.path: result.reasons for result in explain(detector, images, results)}
    assert explained[str(refused_folder / "red" / "red-00.png")] is None
    assert explained[str(refused_folder / "red" / "red-01.png")]
    grouped, groups = group(detector, images, results)
    assert sum(len(each.members) for each in groups) == results.ood - 1
    assert {r.path: r.group for r in grouped}[str(refused_folder / "red" / "red-00.png")] is None


def test_a_model_that_measured_too_few_images_or_none_says_so(model, features, refused_folder):
    few = FittedDetector.load(model, backend="torch")
    assert few.ranges_.images == 120
    with pytest.raises(
        SettingsError, match="properties of 120 ID images are too few, 319 are needed; measure ID images that"
    ):
        explain(few, refused_folder, few.results(refused_folder))
    none = Detector(score="mahalanobis").fit_features(features[0])
    assert none.ranges_ is None
    with pytest.raises(SettingsError, match="fitted without measuring properties"):
        explain(none, refused_folder, [])


def test_a_fit_measures_some_images_and_calibrating_measures_others(
    tmp_path, detector, explaining_model, image_folder, refused_folder
):
    assert detector.ranges_.images == 330 < MEASURED
    own = FittedDetector.load(explaining_model, backend="torch")
    own.calibrate(refused_folder / "noise")
    assert own.ranges_.images == 20
    assert own.ranges_.values["side"].tolist() == [200] * 20
    own.save(tmp_path / "own")
    loaded = FittedDetector.load(tmp_path / "own").ranges_
    assert loaded.values.keys() == own.ranges_.values.keys()
    for name, values in own.ranges_.values.items():
        np.testing.assert_array_equal(loaded.values[name], values)


def test_refused_images_are_grouped_and_what_they_share_is_told(detector, refused_folder):
    results = detector.detect(refused_folder)
    grouped, groups = group(detector, refused_folder, results)
    assert [result.path for result in grouped] == results.paths
    assert all((result.group is not None) == bool(result.is_ood) for result in grouped)
    members = {each.name: each.members for each in groups}
    assert {i for some in members.values() for i in some} == set(np.flatnonzero(results.verdicts == 1))
    assert all(grouped[i].group == name for name, some in members.items() for i in some)
    numbered = [each for each in groups if each.name != ALONE]
    assert [each.name for each in numbered] == [str(i + 1) for i in range(len(numbered))]
    sizes = [len(each.members) for each in numbered]
    assert sizes == sorted(sizes, reverse=True)
    for each in numbered:
        kinds = {results.paths[i].split("/")[-2] for i in each.members} - {"temple"}
        assert len(kinds) == 1
        (kind,) = kinds
        assert "large" in each.shared
        assert f"in folder {kind}" in each.shared
        assert f"names begin with {kind}-" in each.shared
    assert {"red", "noise"} <= {results.paths[each.members[0]].split("/")[-2] for each in numbered}


def test_without_refused_images_there_are_no_groups(detector, refused_folder):
    results = [result for result in detector.results(refused_folder) if result.is_ood is False]
    images = open_images([result.path for result in results])
    assert group(detector, images, results) == (results, [])


def result_of(path, layer, *words):
    return Result(path, 1.0, 0.01, True, layer, reasons=tuple(Reason("x", "low", word, 0.0, 0.01) for word in words))


def test_what_most_share_is_told_but_not_what_all_images_share():
    members = [result_of(f"in/night/IMG_{i}.jpg", "stage 1", "very dark" if i % 2 else "dark") for i in range(4)]
    members.append(result_of("in/other/x.jpg", "stage 2", "blurry"))
    paths = [member.path for member in members]
    day = [f"in/day/IMG_{i}.jpg" for i in range(40)]
    assert shared(members, [*paths, *day]) == ("dark", "deviate most at stage 1", "in folder night")
    assert shared(members, paths) == ("dark", "deviate most at stage 1")
    scans = [f"in/day/scan{i}.jpg" for i in range(40)]
    assert shared(members, [*paths, *scans])[-2:] == ("in folder night", "names begin with IMG_")
    assert shared([result_of("7", "a"), result_of("8", "b")], ["7", "8", "9"]) == ()

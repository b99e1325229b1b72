import io

import numpy as np
import pytest
from PIL import Image, ImageEnhance, ImageFilter

from dlsr.calibration.reasons import (
    FEWEST,
    LEVEL,
    MEASURED,
    PROPERTIES,
    Ranges,
    Reason,
    listed,
    reasons,
    sentence,
    why_no_reasons,
)
from dlsr.images.properties import measure, properties_of, ranges_of
from dlsr.images.sources import ImageDataset, ImageItem
from shared import patches


def saved(image, quality=90):
    buffer = io.BytesIO()
    image.save(buffer, "JPEG", quality=quality)
    return buffer.getvalue()


@pytest.fixture(scope="module")
def files(photographs):
    without_sky = photographs[0].crop((0, 200, 640, 427))
    return [saved(Image.fromarray(patch)) for patch in patches(without_sky, MEASURED + 400, side=48, seed=5)]


@pytest.fixture(scope="module")
def dataset(files):
    return ImageDataset([ImageItem(str(i), lambda raw=raw: raw) for i, raw in enumerate(files[:MEASURED])])


@pytest.fixture(scope="module")
def ranges(dataset):
    return ranges_of(dataset, seed=0)


CHANGES = {
    "dark": lambda image: ImageEnhance.Brightness(image).enhance(0.02),
    "bright": lambda image: image.point(lambda v: 240 + v // 17),
    "blurry": lambda image: image.filter(ImageFilter.GaussianBlur(8)),
    "greyscale": lambda image: image.convert("L"),
    "colourful": lambda image: ImageEnhance.Color(image).enhance(20),
    "wide": lambda image: image.crop((0, 0, 48, 10)),
    "tall": lambda image: image.crop((0, 0, 10, 48)),
    "very small": lambda image: image.resize((8, 8)),
    "very large": lambda image: image.resize((400, 400)),
}


@pytest.mark.parametrize("words", CHANGES)
def test_a_changed_image_gets_the_words_for_the_change(files, ranges, words):
    changed = [CHANGES[words](Image.open(io.BytesIO(raw))) for raw in files[MEASURED : MEASURED + 20]]
    given = [reasons(properties_of(saved(image)), ranges) for image in changed]
    hits = [reason for some in given for reason in some if reason.words.removeprefix("very ") in words]
    assert len(hits) >= 15
    if words.startswith("very"):
        assert sum(reason.words == words for reason in hits) >= 15
    assert all(reason.p_value <= LEVEL for some in given for reason in some)


def test_heavy_compression_is_told_from_the_file_alone(files, ranges):
    image = Image.open(io.BytesIO(files[-1]))
    (reason,) = [r for r in reasons(properties_of(saved(image, 10)), ranges) if r.name == "compression"]
    assert (reason.words, reason.direction) == ("very heavily compressed", "high")
    assert "compressed" not in listed(reasons(properties_of(image), ranges))  # has no file
    assert "lightly compressed" in listed(reasons(properties_of(saved(image, 100)), ranges))


def test_ordinary_images_seldom_get_a_reason(files, ranges):
    given = [reasons(properties_of(raw), ranges) for raw in files[MEASURED:]]
    # 400 images at 5 %; the ranges are those of one draw.
    assert np.mean([bool(some) for some in given]) < LEVEL + 0.03


def test_exchangeable_numbers_keep_the_level_on_average():
    random = np.random.default_rng(0)
    shares = []
    for _ in range(20):
        values = {name: random.random(MEASURED + 200) for name in ("brightness", "contrast", "saturation")}
        known = Ranges({name: np.sort(some[:MEASURED]) for name, some in values.items()})
        new = [{name: some[i] for name, some in values.items()} for i in range(MEASURED, MEASURED + 200)]
        shares.append(np.mean([bool(reasons(each, known)) for each in new]))
    # Three of eight properties are tested, each at an eighth of the level.
    assert 0.25 * LEVEL < np.mean(shares) < LEVEL


def test_too_few_id_images_give_no_reason_and_say_so():
    few = Ranges({"brightness": np.linspace(0.4, 0.6, FEWEST - 1)})
    enough = Ranges({"brightness": np.linspace(0.4, 0.6, FEWEST)})
    assert reasons({"brightness": 0.0}, few) == ()
    (reason,) = reasons({"brightness": 0.0}, enough)
    assert reason == Reason("brightness", "low", "very dark", 0.0, 2 / (FEWEST + 1))
    assert f"{FEWEST - 1} ID images are too few, {FEWEST} are needed" in why_no_reasons(few)
    assert why_no_reasons(enough) is None
    assert "without measuring" in why_no_reasons(None)


def test_p_values_are_two_sided_and_ties_are_ordinary():
    known = Ranges({"side": np.full(1000, 100.0), "brightness": np.arange(1000) / 1000})

    def given(**values):
        return reasons({"width": 100.0, "height": 100.0, "brightness": 0.5} | values, known)

    assert given() == ()
    assert [(r.words, r.p_value) for r in given(width=81.0)] == [("small", 2 / 1001)]
    assert given(brightness=0.9995)[0].p_value == 2 / 1001
    assert given(brightness=0.998)[0].p_value == pytest.approx(6 / 1001)
    assert given(brightness=0.99) == ()


def test_holms_method_allows_more_for_the_second_property():
    ordered = np.arange(900.0)
    known = Ranges({"brightness": ordered, "contrast": ordered})
    third = 897.5  # two ID images have more
    assert LEVEL / 8 < 2 * 3 / 901 < LEVEL / 7
    assert reasons({"brightness": 450.0, "contrast": third}, known) == ()
    assert [reason.name for reason in reasons({"brightness": -1.0, "contrast": third}, known)] == [
        "brightness",
        "contrast",
    ]


def test_grey_among_colour_is_called_greyscale_but_not_among_grey(files, ranges):
    grey = properties_of(saved(Image.open(io.BytesIO(files[-1])).convert("L")))
    assert "greyscale" in [reason.words for reason in reasons(grey, ranges)]
    among_grey = Ranges(dict(ranges.values) | {"saturation": np.zeros(MEASURED)})
    assert "greyscale" not in [reason.words for reason in reasons(grey, among_grey)]
    tinted = reasons({**grey, "saturation": 0.002}, among_grey)
    assert [reason.words for reason in tinted if reason.name == "saturation"] == ["colourful"], "more than all others"
    pale = reasons({**grey, "saturation": 0.01}, ranges)
    assert "greyscale" not in [reason.words for reason in pale]


def test_sentences():
    given = [Reason("saturation", "low", "greyscale", 0.0, 0.003), Reason("brightness", "low", "very dark", 0.0, 0.003)]
    assert sentence(True, given) == "Out of distribution; unlike ID images it is greyscale and very dark."
    given.append(Reason("aspect ratio", "high", "wide", 4.0, 0.0062))
    assert sentence(False, given) == "In distribution; unlike ID images it is greyscale, very dark and wide."
    assert sentence(True, given[:1]) == "Out of distribution; unlike ID images it is greyscale."
    assert sentence(True, []) == "Out of distribution."
    assert listed(given) == "greyscale, very dark (p = 0.003); wide (p = 0.0062)"


def test_properties_that_not_all_images_have_are_left_out(files):
    mixed = [*files[:3], Image.open(io.BytesIO(files[3]))]
    known = Ranges.of(measure(ImageDataset([ImageItem("", lambda raw=raw: raw) for raw in mixed])).properties)
    assert set(PROPERTIES) - set(known.values) == {"compression"}
    assert known.images == 4
    assert Ranges.of({}).images == 0


def test_only_some_images_are_measured(files):
    many = ImageDataset([ImageItem(str(i), lambda raw=raw: raw) for i, raw in enumerate(files)])
    assert ranges_of(many, seed=0).images == MEASURED


def test_ranges_of_two_folders_are_joined(ranges):
    other = Ranges({"brightness": np.array([2.0, 3.0]), "side": np.array([0.5, 1.5])})
    joined = ranges.joined(other)
    assert set(joined.values) == {"brightness", "side"}
    assert joined.images == ranges.images + 2
    assert joined.values["brightness"][-2:].tolist() == [2.0, 3.0]
    assert (np.diff(joined.values["side"]) >= 0).all()

"""Clips that PyAV writes here, whole, cut short and damaged, and what is read of them."""

import shutil
import sys
from concurrent.futures import ThreadPoolExecutor

import av
import numpy as np
import pytest
from PIL import Image

from dlsr import Detector, ImageError, InputError, MissingExtraError, SettingsError, open_images
from dlsr.audit import audit
from dlsr.errors import NoSuchImageError
from dlsr.images import video
from dlsr.images.properties import measure
from dlsr.images.video import Clip

FRAMES = 60
CODECS = {
    "clip.mp4": "libx264",
    "clip.mkv": "libx264",
    "clip.mov": "mpeg4",
    "clip.avi": "mjpeg",
    "CLIP.WEBM": "libvpx",
}


def write_clip(path, codec="libx264", frames=FRAMES, size=(96, 64), degrees=0, **options):
    """A clip whose frame `i` has the grey value `4 i` on the left, and noise on the right."""
    random = np.random.default_rng(0)
    with av.open(str(path), "w", options=options) as container:
        stream = container.add_stream(codec, rate=30)
        stream.width, stream.height = size
        stream.pix_fmt = "yuvj420p" if codec == "mjpeg" else "yuv420p"
        stream.bit_rate = 2_000_000
        if degrees:
            stream.set_display_rotation(degrees)
        for i in range(frames):
            pixels = random.integers(0, 255, (*size[::-1], 3), dtype=np.uint8)
            pixels[:, : size[0] // 2] = 4 * i
            container.mux(stream.encode(av.VideoFrame.from_ndarray(pixels, format="rgb24")))
        container.mux(stream.encode())
    return path


def number_in(image):
    """The number of the frame, from its pixels."""
    return round(float(np.asarray(image)[8:-8, 8:32].mean()) / 4)


def read_all(images):
    """Numbers by name, and errors by name, of the images that there are."""
    numbers, errors = {}, {}
    for item in images.items:
        try:
            numbers[item.name.rpartition("#")[2]] = number_in(item.read())
        except NoSuchImageError:
            continue
        except ImageError as error:
            errors[item.name.rpartition("#")[2]] = str(error)
    return numbers, errors


@pytest.fixture(scope="module")
def clip(tmp_path_factory):
    return write_clip(tmp_path_factory.mktemp("clips") / "clip.mp4")


@pytest.mark.parametrize(("name", "codec"), CODECS.items())
def test_every_kept_frame_is_the_one_of_its_name(tmp_path, name, codec):
    images = open_images(write_clip(tmp_path / name, codec), every=7)
    numbers, errors = read_all(images)
    assert numbers == {f"frame={i}": i for i in range(0, FRAMES, 7)}
    assert not errors
    assert len(images) == len(numbers)
    assert images.items[1].name == f"{tmp_path / name}#frame=7"


def test_all_frames_are_kept_unless_said_otherwise(clip):
    assert len(open_images(clip)) == len(read_all(open_images(str(clip)))[0]) == FRAMES


def test_seconds_are_frames_at_the_average_rate(clip):
    assert [item.name.rpartition("=")[2] for item in open_images(clip, every="0.5s").items] == ["0", "15", "30", "45"]
    assert len(open_images(clip, every="0.001s")) == FRAMES
    assert len(open_images(clip, every="100s")) == 1


@pytest.mark.parametrize("every", [0, -1, "x", "0s", "nans", "1.5", "s", ""])
def test_every_must_be_frames_or_seconds(clip, every):
    with pytest.raises(SettingsError, match="every takes a number of frames"):
        open_images(clip, every=every)


def test_every_is_for_clips(image_folder):
    with pytest.raises(SettingsError, match=r"every is for clips, which end in \.avi"):
        open_images(image_folder, every=2)


def test_threads_get_each_its_frame_and_each_is_decoded_once(clip, monkeypatch):
    decoded = []
    until_error = video._until_error
    monkeypatch.setattr(
        video, "_until_error", lambda *args: (decoded.append(0) or frame for frame in until_error(*args))
    )
    images = open_images(clip, every=2)
    with ThreadPoolExecutor(8) as pool:
        numbers = list(pool.map(lambda item: number_in(item.read()), images.items))
    assert numbers == list(range(0, FRAMES, 2))
    assert len(decoded) <= FRAMES


def test_frames_can_be_read_in_any_order(clip):
    images = open_images(clip, every=3)
    for index in (19, 0, 7, 7, 3, -1):
        item = images.items[index]
        assert number_in(item.read()) == int(item.name.rpartition("=")[2]) == 3 * (index % 20)
    assert [item.name[-2:] for item in images.items[1:3]] == ["=3", "=6"]
    assert len(images.subset([5, 6]).items) == 2


def test_memory_does_not_grow_with_frames_that_nobody_takes(clip):
    reader = Clip(clip)
    reader.read(FRAMES - 1)
    (decoder,) = reader._decoders
    assert len(decoder.late) <= video._OUT_OF_ORDER


def test_two_readers_at_different_places_decode_each_frame_once_each(clip, monkeypatch):
    decoded = []
    until_error = video._until_error
    monkeypatch.setattr(
        video, "_until_error", lambda *args: (decoded.append(0) or frame for frame in until_error(*args))
    )
    items = open_images(clip).items
    ahead = 25
    for i in range(FRAMES + ahead):
        for place in (i, i - ahead):
            if 0 <= place < FRAMES:
                assert number_in(items[place].read()) == place
    assert len(decoded) <= 2 * FRAMES


CUT = {"clip.mp4": {"movflags": "faststart"}, "clip.mkv": {}, "clip.avi": {}, "CLIP.WEBM": {}}


@pytest.mark.parametrize(("name", "options"), CUT.items())
def test_a_clip_that_is_cut_short_gives_the_frames_before_and_one_error(tmp_path, name, options):
    path = write_clip(tmp_path / name, CODECS[name], **options)
    path.write_bytes(path.read_bytes()[: path.stat().st_size * 6 // 10])
    images = open_images(path, every=5)
    numbers, errors = read_all(images)
    assert 3 <= len(numbers) < 10
    assert numbers == {f"frame={5 * i}": 5 * i for i in range(len(numbers))}
    ((place, reason),) = errors.items()
    assert place == f"frame={5 * len(numbers)}"
    assert "on, this clip cannot be decoded: " in reason
    assert len(images) == len(numbers) + 1


def damaged(path):
    """The clip with noise in the middle, which only decoding notices."""
    content = bytearray(path.read_bytes())
    middle = len(content) // 2
    content[middle : middle + 4000] = np.random.default_rng(1).bytes(4000)
    path.write_bytes(content)
    return path


@pytest.mark.parametrize("name", ["clip.mp4", "clip.mkv", "clip.avi"])
def test_damage_within_a_clip_ends_it_with_one_error(tmp_path, name):
    path = damaged(write_clip(tmp_path / name, CODECS[name]))
    images = open_images(path)
    numbers, errors = read_all(images)
    assert 10 < len(numbers) < 50
    assert list(errors) == [f"frame={len(numbers)}"]
    assert len(images) == len(numbers) + 1
    measured = measure(open_images(path))
    assert len(measured.properties["width"]) == len(numbers)
    assert len(measured.unreadable) == 1


def test_a_damaged_clip_is_examined_as_far_as_it_goes(tmp_path, small_encoder):
    path = damaged(write_clip(tmp_path / "clip.mp4"))
    found = audit(path, detector=Detector(**small_encoder), against=path)
    assert 10 < len(found.names) < 50
    assert found.faults["unreadable"] == [len(found.names) - 1]
    assert len(found.deviations) == len(found.names)


def test_results_have_one_row_for_the_damage(tmp_path, model):
    path = damaged(write_clip(tmp_path / "clip.mkv"))
    with pytest.warns(UserWarning, match="1 images could not be read"):
        results = Detector.load(model, backend="torch").detect(open_images(path, every=5))
    assert [error is not None for error in results.errors] == [False] * (len(results) - 1) + [True]
    assert 3 < len(results) < 12
    assert "on, this clip cannot be decoded: " in results.errors[-1]


@pytest.mark.parametrize("content", [b"no clip", b"#EXTM3U\nfile:///etc/passwd\n"])
def test_what_is_no_clip_is_one_line(tmp_path, content):
    (tmp_path / "clip.mp4").write_bytes(content)
    with pytest.raises(InputError, match=r"cannot read '.*clip.mp4': it is no clip, or it is cut short"):
        open_images(tmp_path / "clip.mp4")


def test_an_empty_clip_is_one_line(tmp_path):
    (tmp_path / "clip.mp4").touch()
    with pytest.raises(InputError, match="empty file"):
        open_images(tmp_path / "clip.mp4")


def test_a_playlist_does_not_read_other_files(clip, tmp_path):
    (tmp_path / "list.mp4").write_text(f"ffconcat version 1.0\nfile '{clip.name}'\n")
    (tmp_path / clip.name).write_bytes(clip.read_bytes())
    with av.open(str(tmp_path / "list.mp4")) as opened:
        assert opened.format.name == "concat"  # FFmpeg would
    with pytest.raises(InputError, match="it is no clip"):
        open_images(tmp_path / "list.mp4")


def test_a_clip_without_video_is_one_line(tmp_path):
    with av.open(str(tmp_path / "sound.mp4"), "w") as container:
        stream = container.add_stream("aac", rate=8000)
        frame = av.AudioFrame.from_ndarray(np.zeros((1, 1024), np.float32), "fltp", "mono")
        frame.sample_rate = 8000
        container.mux(stream.encode(frame))
        container.mux(stream.encode())
    with pytest.raises(InputError, match="it has no video"):
        open_images(tmp_path / "sound.mp4")


def test_a_clip_that_does_not_exist_is_one_line(tmp_path):
    with pytest.raises(InputError, match="does not exist"):
        open_images(tmp_path / "gone.mp4")


def test_a_missing_extra_is_one_line(run, model, clip, monkeypatch):
    monkeypatch.setitem(sys.modules, "av", None)
    assert "av is not installed; run: pip install 'dlsr[video]'" in run("score", model, clip).error
    with pytest.raises(MissingExtraError):
        open_images(clip)


def test_turned_clips_are_upright(tmp_path):
    path = write_clip(tmp_path / "turned.mp4", degrees=90)
    image = open_images(path).items[50].read()
    assert image.size == (64, 96)
    # Turned counter-clockwise, the left half is the lower one.
    assert abs(np.asarray(image)[60:90, 8:-8].mean() - 200) < 8
    assert np.asarray(image)[60:90, 8:-8].std() < np.asarray(image)[:40].std()


def test_colours_are_those_that_were_written(tmp_path):
    with av.open(str(tmp_path / "red.mp4"), "w") as container:
        stream = container.add_stream("libx264", rate=30)
        stream.width = stream.height = 64
        stream.pix_fmt = "yuv420p"
        red = av.VideoFrame.from_image(Image.new("RGB", (64, 64), (200, 30, 60)))
        container.mux([*stream.encode(red), *stream.encode()])
    pixel = open_images(tmp_path / "red.mp4").items[0].read().getpixel((32, 32))
    assert np.abs(np.subtract(pixel, (200, 30, 60))).max() <= 4


def test_every_command_takes_clips(run, model, clip, tmp_path):
    torch = ["--backend", "torch", "--no-store"]
    done = run("score", model, clip, "--every", "10", *torch)
    assert [line.split(",")[0] for line in done.out.splitlines()[1:]] == [f"{clip}#frame={10 * i}" for i in range(6)]
    page = tmp_path / "page.html"
    assert run("report", model, clip, "--every", "10", "-o", page, *torch).status == 0
    assert page.read_text().count("<img") >= 6
    assert run("drift", model, clip, "--every", "2", *torch).status in (0, 1)
    words = ["--encoder", "test_resnet", "--weights", "random", *torch, "--thumbnails", "3"]
    assert run("fit", clip, "-o", tmp_path / "model", *words).status == 0
    other = shutil.copytree(model, tmp_path / "other")
    assert run("calibrate", other, "--images", clip, "--every", "2", *torch).status == 0
    assert "--every is for clips" in run("score", model, "x", "--engine", "ray", "--every", "2", "-o", "y").error

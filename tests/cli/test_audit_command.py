import json
import shutil

import pytest
from PIL import Image

from dlsr.reports.audit import SETS_SHOWN, SHOWN

SMALL = ("--encoder", "test_resnet", "--weights", "random", "--backend", "torch", "--no-store")


@pytest.fixture
def folder(tmp_path, image_folder):
    folder = tmp_path / "photos"
    folder.mkdir()
    for i, path in enumerate(sorted(image_folder.rglob("*.png"))[:60:2]):
        shutil.copy(path, folder / f"{i:02}.png")
    return folder


def test_a_clean_folder_has_status_0_and_faults_have_status_1(run, folder):
    faults = ("--fail-on", "unreadable,exact-copies,dark")
    assert run("audit", folder, *faults, *SMALL).status == 0, "images unlike the rest or near copies do not count"
    shutil.copy(folder / "00.png", folder / "again.png")
    done = run("audit", folder, *faults, *SMALL)
    assert done.status == 1
    assert any(line.split()[:3] == ["exact-copies", "2", "1"] for line in done.out.splitlines())
    assert "least like the rest" in done.out
    assert run("audit", folder, *SMALL).status == 1


def test_unreadable_images_are_named_and_the_rest_is_examined(run, folder):
    (folder / "\x1b[31mred.png").write_bytes(b"no image")
    done = run("audit", folder, "--json", "--fail-on", "unreadable", *SMALL)
    assert done.status == 1
    assert "1 of 31 images could not be read" in done.err
    assert "\\x1b[31mred.png: not an image" in done.err
    content = json.loads(done.out)
    assert (content["images"], len(content["unreadable"])) == (31, 1)
    shown = run("audit", folder, *SMALL).out
    assert "\x1b" not in shown


def test_leaks_are_counted_and_shown(run, folder, odd_folder, tmp_path):
    other = shutil.copytree(odd_folder, tmp_path / "test")
    shutil.copy(folder / "03.png", other / "leaked.png")
    page = tmp_path / "out" / "page.html"
    done = run("audit", folder, "--against", other, "--html", page, "--fail-on", "exact-leaks", *SMALL)
    assert done.status == 1
    text = page.read_text()
    section = text.partition('<h2 id="exact-leaks">')[2].partition("</section>")[0]
    assert section.count("<img ") == 2
    assert section.index("03.png") < section.index("in the other folder") < section.index(">leaked.png")


def test_the_page_is_self_contained_and_escapes_names(run, folder, tmp_path):
    for i, path in enumerate(sorted(folder.iterdir())):
        shutil.copy(path, folder / f"<script>alert({i})<%2Fscript>&amp;\n.png")
        Image.new("RGB", (32, 32), (i, 0, 0)).save(folder / f"dark{i}.png")
    page = tmp_path / "page.html"
    assert run("audit", folder, "--html", page, "-o", tmp_path / "table.csv", "--fail-on", "none", *SMALL).status == 0
    text = page.read_text()
    assert "<script" not in text
    assert "http" not in text.replace("http-equiv", "")
    assert "&lt;script&gt;alert(0)" in text
    sections = {part.partition('"')[0]: part for part in text.split('<h2 id="')[1:]}
    assert sections["dark"].count("<figure>") == SHOWN
    assert f"The worst {SHOWN} of 30 images." in sections["dark"]
    assert sections["exact-copies"].count('class="set"') == SETS_SHOWN
    assert sections["unlike"].count("<figure>") == SHOWN
    assert (tmp_path / "table.csv").read_text().startswith("path,faults,")


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        (("--fail-on", "blury"), "got 'blury'"),
        (("--fail-on", "exact-leaks"), "needs --against"),
        (("--against", "no-such"), "'no-such' does not exist"),
        (("--html", "/proc/none/page.html"), "cannot write"),
        (("--encoder", "no_such_network"), "no_such_network"),
    ],
)
def test_mistakes_are_one_line(run, folder, arguments, expected):
    assert expected in run("audit", folder, *SMALL, *arguments).error

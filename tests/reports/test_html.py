import re
import shutil
import subprocess
import sys
from html.parser import HTMLParser

import pytest
from playwright.sync_api import sync_playwright

from dlsr import Detector, MissingExtraError, NoImagesError
from dlsr.reports import html
from dlsr.reports.html import SHOWN, Summary, write_html_report
from dlsr.results import Result

CHROMIUM = shutil.which("chromium")
DRAWING = ("matplotlib", "scipy", "sklearn")
"""Packages that a machine that writes reports may lack."""


class Page(HTMLParser):
    """Checks that tags are closed, and collects images and text."""

    VOID = frozenset({"img", "meta", "br", "link", "input"})

    def __init__(self, text):
        super().__init__()
        self.open, self.images, self.text = [], [], ""
        self.feed(text)
        assert self.open == []

    def handle_starttag(self, tag, attributes):
        if tag not in self.VOID:
            self.open.append(tag)
        self.images += [dict(attributes)] if tag == "img" else []

    def handle_startendtag(self, tag, attributes):
        pass

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        self.text += data


@pytest.fixture
def mixed(image_folder, odd_folder, tmp_path):
    folder = tmp_path / "mixed"
    folder.mkdir()
    for source, name in ((image_folder, "id"), (odd_folder, "odd")):
        for i, path in enumerate(sorted(source.rglob("*.png"))[:20]):
            (folder / f"{name}-{i}.png").write_bytes(path.read_bytes())
    (folder / "<b>&amp.png").write_bytes(b"broken")
    return folder


def test_shown_images_have_their_maps_if_the_model_makes_them(model_with_maps, model, mixed, tmp_path):
    for folder, makes_maps in ((model_with_maps, True), (model, False)):
        detector = Detector.load(folder, backend="torch")
        write_html_report(tmp_path / "report.html", detector, mixed, title="maps")
        text = (tmp_path / "report.html").read_text()
        page = Page(text)
        overlays = [image for image in page.images if image.get("class") == "deviation"]
        assert len(overlays) == (2 * SHOWN if makes_maps else 0)
        assert ("Show where images deviate" in page.text) is makes_maps
        assert all(image["src"].startswith("data:image/png;base64,") for image in overlays)


@pytest.mark.skipif(CHROMIUM is None, reason="needs Chromium (Debian's package chromium)")
def test_maps_lie_on_their_images_until_they_are_taken_away(model_with_maps, mixed, tmp_path):
    write_html_report(tmp_path / "report.html", Detector.load(model_with_maps, backend="torch"), mixed, title="maps")
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        page = browser.new_page()
        page.goto((tmp_path / "report.html").as_uri())
        shown = page.locator(".shown").nth(0)
        assert shown.locator(".deviation").bounding_box() == shown.locator("img").nth(0).bounding_box()
        page.get_by_label("Show where images deviate").uncheck()
        assert not shown.locator(".deviation").is_visible()
        browser.close()


def test_the_report_is_one_file_with_all_results(model, mixed, tmp_path):
    detector = Detector.load(model, backend="torch")
    progress = []
    summary = write_html_report(tmp_path / "report.html", detector, mixed, title="a & b", progress=progress.append)
    text = (tmp_path / "report.html").read_text()
    page = Page(text)
    assert not re.search(r"""(src|href)=["'](?!data:|#)|url\((?!#)|@import|<script""", text)
    results = list(detector.results(mixed))
    judged = [result for result in results if result.score is not None]
    assert len(judged) == 40
    assert sum(progress) == len(results) == 41
    assert summary.ood == sum(result.is_ood for result in judged)
    assert f"{summary.ood} of 40 images" in page.text
    assert "a & b" in page.text
    assert "<b>&amp.png" in page.text  # escaped in the source
    assert "not an image, or of an unknown format" in page.text
    by_score = sorted(judged, key=lambda result: -result.score)
    for heading, expected in (("Highest", by_score[:SHOWN]), ("Lowest", by_score[::-1][:SHOWN])):
        gallery = Page(text.partition(f"<h2>{heading} scores</h2>")[2].partition("</div>")[0] + "</div>")
        assert [image["alt"] for image in gallery.images] == [result.path for result in expected]
    assert all(image["src"].startswith("data:image/jpeg;base64,") for image in page.images)
    ood = [result for result in judged if result.is_ood]
    mean = sum(result.layers["stage 0"] for result in ood) / len(ood)
    assert summary.layer_means(True)["stage 0"] == pytest.approx(mean)
    assert f"{mean:+.2f}" in page.text


def test_refused_images_are_shown_in_groups_and_on_a_map_with_their_reasons(explaining_model, refused_folder, tmp_path):
    detector = Detector.load(explaining_model, backend="torch")
    summary = write_html_report(tmp_path / "report.html", detector, refused_folder, title="")
    text = (tmp_path / "report.html").read_text()
    page = Page(text)
    assert "<b>/noise" not in text  # names are escaped
    assert re.search("Unlike ID images: [^;]*very large", page.text)
    assert "at most 5 % of ID images have any" in page.text
    groups = page.text.partition("Groups of refused images")[2].partition("Map")[0]
    assert "Group 1" in groups
    assert "Group 2" in groups
    for kind in ("noise", "red"):
        assert f"in folder {kind}, names begin with {kind}-" in groups
    sizes = re.findall(r'<h3>[^<]+</h3><p class="quiet">(\d+) image', text)
    assert sum(map(int, sizes)) == summary.ood
    links = dict(re.findall(r'<a id="(point-\d+)" href="#(image-\d+)" aria-label="[^"]+">', text))
    figures = re.findall(r'<figure id="(image-\d+)">.*?<a href="#(point-\d+)">Back to the map</a></figure>', text)
    assert len(links) == 45 + 3  # and the training images that the model keeps
    assert {(figure, point) for point, figure in links.items()} == set(figures)
    assert text.count('class="mark ood"') == summary.ood + 1  # and one in the legend
    assert text.count('class="mark training"') == 3 + 1
    assert re.search("aria-label=.[^>]*unlike ID images it is [^>]*very large", text)


def test_a_report_of_images_none_of_which_is_refused(explaining_model, refused_folder, tmp_path):
    detector = Detector.load(explaining_model, backend="torch")
    results = detector.detect(refused_folder)
    inside = [result.path for result in results if result.is_ood is False][:3]
    assert inside
    summary = write_html_report(tmp_path / "report.html", detector, inside, title="")
    assert (len(summary.scores), summary.ood) == (len(inside), 0)


def test_a_model_that_can_give_no_reasons_says_why(model, mixed, tmp_path):
    write_html_report(tmp_path / "report.html", Detector.load(model, backend="torch"), mixed, title="")
    text = Page((tmp_path / "report.html").read_text()).text
    assert "There are no reasons in words: properties of 120 ID images are too few" in text
    assert "Unlike ID images" not in text


def test_only_some_of_many_images_are_grouped_and_on_the_map(model, mixed, tmp_path, monkeypatch):
    monkeypatch.setitem(html.MOST_DRAWN, True, 6)
    monkeypatch.setitem(html.MOST_DRAWN, False, 4)
    monkeypatch.setattr("dlsr.reports.refused.MOST_ON_MAP", 3)
    detector = Detector.load(model, backend="torch")
    detector.false_alarm_rate = 0.5
    summary = write_html_report(tmp_path / "report.html", detector, mixed, title="")
    text = (tmp_path / "report.html").read_text()
    assert f"6 of {summary.ood} refused images, drawn at random, are grouped." in text
    assert "Map of 6 images" in text


def test_images_on_the_map_are_drawn_from_all_parts_of_a_folder(model, odd_folder, tmp_path, monkeypatch):
    """They were the first by name."""
    for part in "abc":
        shutil.copytree(odd_folder, tmp_path / "images" / part)
    monkeypatch.setattr("dlsr.reports.refused.MOST_ON_MAP", 12)
    write_html_report(tmp_path / "report.html", Detector.load(model, backend="torch"), tmp_path / "images", title="")
    text = (tmp_path / "report.html").read_text()
    placed = text[text.index("Map of ") : text.index("<h2>Lowest scores")]
    assert set(re.findall(r"images/(\w)/[^:]*: Out of distribution", placed)) == set("abc")


def test_a_missing_package_of_a_layout_is_told_before_images_are_scored(model, mixed, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "umap", None)
    with pytest.raises(MissingExtraError, match=r"pip install 'dlsr\[umap\]'"):
        write_html_report(tmp_path / "r.html", Detector.load(model, backend="torch"), mixed, title="", layout="umap")
    assert not (tmp_path / "r.html").exists()


@pytest.mark.skipif(CHROMIUM is None, reason="needs Chromium (Debian's package chromium)")
def test_the_map_is_used_by_pointer_and_keyboard(explaining_model, refused_folder, tmp_path):
    from playwright.sync_api import sync_playwright

    path = tmp_path / "report.html"
    write_html_report(path, Detector.load(explaining_model, backend="torch"), refused_folder, title="")
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        page = browser.new_page(viewport={"width": 390, "height": 800})
        page.goto(path.as_uri())
        assert not page.evaluate("document.documentElement.scrollWidth > innerWidth")
        chosen = page.locator(".chosen figure:visible")
        assert chosen.count() == 0
        page.locator("#point-3").click(force=True)
        assert chosen.count() == 1
        page.locator(".skip").focus()
        focused = []
        for _ in range(2):
            page.keyboard.press("Tab")
            focused.append(page.evaluate("document.activeElement.id"))
        assert all(name.startswith("point-") for name in focused)
        page.keyboard.press("Enter")
        assert chosen.get_attribute("id") == focused[1].replace("point", "image")
        page.keyboard.press("Tab")
        page.keyboard.press("Enter")
        assert page.evaluate("document.activeElement.id") == focused[1]
        assert chosen.count() == 0
        browser.close()


def test_a_report_needs_no_drawing_packages(model, mixed, tmp_path, monkeypatch):
    detector = Detector.load(model, backend="torch")
    for name in [*DRAWING, *(name for name in sys.modules if name.partition(".")[0] in DRAWING)]:
        monkeypatch.setitem(sys.modules, name, None)  # an import of it fails
    write_html_report(tmp_path / "report.html", detector, mixed, title="")
    text = (tmp_path / "report.html").read_text()
    legend = f"calibration images ({len(detector.calibration_scores_)}), these images (40), threshold "
    assert f'<svg class="histogram" role="img" aria-label="Histogram of scores: {legend}' in text
    page = Page(text).text
    assert "not grouped: scikit-learn is not installed; run: pip install 'dlsr[groups]'" in page
    assert "Map of 40 images" in text


def test_the_page_imports_no_drawing_packages():
    code = f"import sys; sys.modules.update(dict.fromkeys({DRAWING!r})); import dlsr.reports.html"
    subprocess.run([sys.executable, "-c", code], check=True)


def test_unreadable_images_of_one_name_are_counted_and_listed_one_by_one():
    unreadable = [Result(path="a.png", error=why) for why in ("empty file", "not a regular file")]
    assert Summary("", 0.0).add(unreadable).unreadable == [("a.png", "empty file"), ("a.png", "not a regular file")]


def test_a_report_needs_a_readable_image(model, tmp_path):
    (tmp_path / "a.png").write_bytes(b"")
    with pytest.raises(NoImagesError, match="empty file"):
        write_html_report(tmp_path / "report.html", Detector.load(model, backend="torch"), tmp_path, title="")
    assert not (tmp_path / "report.html").exists()


@pytest.mark.filterwarnings("ignore::dlsr.UnreadableImagesWarning")
def test_a_report_at_a_false_discovery_rate_says_so(model, mixed, tmp_path):
    detector = Detector.load(model, backend="torch")
    expected = detector.detect(mixed).at_fdr(0.9)
    summary = write_html_report(tmp_path / "report.html", detector, mixed, title="", fdr=0.9)
    text = Page((tmp_path / "report.html").read_text()).text
    assert summary.ood == expected.ood > 0
    assert f"{summary.ood} of 40 images" in text
    assert "at a false discovery rate of 90 %. Expect at most about" in text
    assert f"{expected.threshold:.6g} at a false discovery rate of 90 %" in text
    assert "a false-alarm rate of" not in text


@pytest.mark.filterwarnings("ignore::dlsr.UnreadableImagesWarning")
def test_a_report_says_when_calibration_images_are_too_few_to_reject_any(model, mixed, tmp_path):
    detector = Detector.load(model, backend="torch")
    summary = write_html_report(tmp_path / "report.html", detector, mixed, title="", fdr=0.0001)
    assert summary.ood == 0
    assert "No image can be rejected: the smallest p-value" in Page((tmp_path / "report.html").read_text()).text

"""The running service: `dlsr serve` as a process under load, and its page in a browser."""

import asyncio
import itertools
import shutil
import socket
import time

import httpx
import pytest
from playwright.sync_api import expect, sync_playwright

from dlsr import Detector
from dlsr.serve.service import Service
from dlsr.serve.settings import ServeSettings
from serving import encoded, load, serving

CHROMIUM = shutil.which("chromium")
CHROMIUM_OPTIONS = [
    "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-background-networking",
    "--disable-component-update", "--disable-sync",
]  # fmt: skip
MALFORMED = [
    {"content": b"no form", "headers": {"content-type": "multipart/form-data; boundary=b"}},
    {"files": [("images", ("broken.png", b"broken"))]},
    {"json": {"images": [{"data": "?"}]}},
    {"content": b"x", "headers": {"content-type": "text/plain"}},
]


def is_malformed(index):
    return index % 5 == 4


def test_under_load_every_request_is_answered_correctly_through_a_reload_and_the_shutdown(fitted, odd_folder, tmp_path):
    folder = shutil.copytree(fitted, tmp_path / "model")
    paths = sorted(odd_folder.iterdir())
    expected = {}
    for rate in (0.5, 0.05):
        detector = Detector.load(folder, backend="torch", false_alarm_rate=rate)
        detector.save(folder)
        results = detector.results([str(path) for path in paths])
        expected[detector.threshold_] = {path.name: result for path, result in zip(paths, results, strict=True)}

    def new_model_has_scored():
        if httpx.get(f"{service.url}/v1/model", timeout=60).json()["false_alarm_rate"] != 0.5:
            return False
        metrics = httpx.get(f"{service.url}/metrics", timeout=60).text
        return "\ndlsr_score_count 0.0\n" not in metrics  # of the current model

    def reload_then_terminate():
        detector.false_alarm_rate = 0.5
        detector.save(folder)
        deadline = time.monotonic() + 120
        while not new_model_has_scored():
            assert time.monotonic() < deadline
            time.sleep(0.05)
        service.terminate()

    def request(i):
        if is_malformed(i):
            return encoded(**MALFORMED[i // 5 % len(MALFORMED)])
        chosen = [paths[(i + k) % len(paths)] for k in range(1 + i % 3)]
        return encoded(files=[("images", (path.name, path.read_bytes())) for path in chosen])

    with serving(folder, "--backend", "torch", "--max-waiting", "40", "--drain", "5") as service:
        done = asyncio.run(load(service.url, map(request, itertools.count()), 64, at={150: reload_then_terminate}))
        status, printed = service.end()
    assert status == 0, printed
    assert done.unanswered == []
    assert 503 in {status for _, status, _ in done.answers}
    thresholds = set()
    for index, status, answer in done.answers:
        if is_malformed(index):
            assert status in (400, 415, 422, 429, 503)
        elif status == 200:
            thresholds.add(answer["threshold"])
            for image in answer["images"]:
                result = expected[answer["threshold"]][image["name"]]
                assert image["score"] == pytest.approx(result.score, abs=1e-5)
                assert (image["p_value"], image["is_ood"]) == (result.p_value, result.is_ood)
        else:
            assert status in (429, 503)
    assert thresholds == expected.keys(), "requests were answered before and after the reload"


def test_a_port_in_use_is_one_line(run, fitted):
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        error = run("serve", fitted, "--backend", "torch", "--port", taken.getsockname()[1]).error
    assert "Address already in use; choose another --host or --port" in error


@pytest.mark.parametrize("host", ["127..0.1", ".local"])
def test_a_host_that_is_no_name_is_one_line(run, fitted, host, monkeypatch):
    monkeypatch.setenv("DLSR_TOKEN", "a long secret")
    done = run("serve", fitted, "--backend", "torch", "--host", host, "--port", 0)
    assert f"cannot listen on {host}:0" in done.error


def test_a_bad_token_file_is_one_line(run, fitted, tmp_path):
    (tmp_path / "token").write_text("short")
    assert "a token needs 8 or more" in run("serve", fitted, "--token-file", tmp_path / "token").error
    assert "cannot read the token file" in run("serve", fitted, "--token-file", tmp_path / "none").error


def test_a_missing_model_is_one_line(run, tmp_path):
    assert "nothing" in run("serve", tmp_path / "nothing").error


def test_without_the_extra_one_line_says_what_to_install(run, fitted, monkeypatch):
    monkeypatch.setattr("dlsr.cli.serve.find_spec", lambda name: None)
    assert run("serve", fitted).error == "error: fastapi is not installed; run: pip install 'dlsr[serve]'"


@pytest.fixture
def started(monkeypatch):
    """What the command starts: the service and the host."""
    started = []
    monkeypatch.setattr("dlsr.serve.server.serve", lambda service, host, *_, **__: started.append((service, host)))
    return started


def test_the_service_listens_on_loopback_without_a_token_by_default(run, fitted, started, monkeypatch):
    monkeypatch.delenv("DLSR_TOKEN", raising=False)
    done = run("serve", fitted, "--backend", "torch")
    (service, host) = started[0]
    assert (host, service.settings.token, done.err) == ("127.0.0.1", None, "")


def test_the_token_may_come_from_the_environment(run, fitted, started, monkeypatch):
    monkeypatch.setenv("DLSR_TOKEN", "long enough")
    run("serve", fitted, "--backend", "torch")
    assert started[0][0].settings.token == "long enough"


def test_the_service_has_the_names_on_the_command_line(run, fitted, started):
    run(
        "serve",
        fitted,
        "--backend",
        "torch",
        "--host",
        "here",
        "--allow-host",
        "a.example",
        "--allow-host",
        "B.example",
    )
    assert started[0][0].settings.hosts == {"here", "a.example", "b.example"}


def test_other_hosts_without_a_token_are_warned_of(run, fitted, started, monkeypatch):
    monkeypatch.delenv("DLSR_TOKEN", raising=False)
    assert "set --token-file" in run("serve", fitted, "--backend", "torch", "--host", "0.0.0.0").err


@pytest.fixture
def url(fitted, running):
    """A service in a thread of this process."""
    with running(Service(fitted, ServeSettings(max_images=3), backend="torch")) as url:
        yield url


@pytest.mark.skipif(CHROMIUM is None, reason="needs Chromium (Debian's package chromium)")
def test_the_page_in_a_browser(url, fitted, image_folder, odd_folder, tmp_path):
    files = [*sorted(image_folder.rglob("*.png"))[:3], *sorted(odd_folder.iterdir())[:3]]
    (tmp_path / "broken.png").write_bytes(b"broken")
    detector = Detector.load(fitted, backend="torch")
    results = list(detector.results([str(path) for path in files]))

    expect.set_options(timeout=60_000)

    def ood(rate):
        return sum(result.p_value <= rate for result in results)

    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=CHROMIUM_OPTIONS)
        page = browser.new_page(viewport={"width": 1100, "height": 900})
        logged, requested = [], []
        page.on("console", lambda message: logged.append(message.text))
        page.on("pageerror", lambda error: logged.append(str(error)))
        page.on("request", lambda request: requested.append(request.url))
        page.goto(url)
        expect(page.locator("#model")).to_contain_text("fitted to")
        with page.expect_file_chooser() as chooser:
            page.get_by_label("Choose images").click()
        chooser.value.set_files([str(path) for path in (*files, tmp_path / "broken.png")])
        expect(page.locator(".card")).to_have_count(7)
        summary = page.locator("#summary")
        expect(summary).to_have_text(f"{ood(0.05)} of 6 images are out of distribution; 1 cannot be read")
        for card, result in zip(page.locator(".card").all(), results, strict=False):
            expect(card.locator(".score")).to_have_text(f"{result.score:.2f}")
            expect(card.locator(".verdict")).to_contain_text("Out of" if result.is_ood else "In dist")
            expect(card.locator(".bars .layer")).to_have_count(len(result.layers))
            expect(card.locator(".thumbnails img")).to_have_count(4)
            assert card.locator("svg").get_attribute("aria-label").startswith(f"Score {result.score:.2f}")
        expect(page.locator(".card.error")).to_contain_text("not an image, or of an unknown format")
        page.locator("#rate").focus()
        page.keyboard.press("End")
        expect(page.locator("#rate-shown")).to_have_text("50 %")
        expect(summary).to_have_text(f"{ood(0.5)} of 6 images are out of distribution; 1 cannot be read")
        page.keyboard.press("Home")
        smallest = detector.calibration_.table(None)[1].min()
        expect(summary).to_have_text(f"{ood(smallest)} of 6 images are out of distribution; 1 cannot be read")
        assert ood(smallest) < ood(0.5)
        page.screenshot(path=tmp_path / "page.png", full_page=True)
        narrow = browser.new_page(viewport={"width": 360, "height": 700}, color_scheme="dark")
        held, released = [], []
        narrow.route("**/v1/model", lambda route: route.continue_() if released else held.append(route))
        narrow.goto(url)
        with narrow.expect_request("**/v1/model"):
            narrow.set_input_files("#files", [str(files[0])])  # before the page has loaded the model
        released.append(True)
        for route in held:
            route.continue_()
        expect(narrow.locator(".card")).to_have_count(1)
        assert narrow.evaluate("document.documentElement.scrollWidth") <= 360
        browser.close()
    # The browser logs that the request with only the broken image was refused.
    assert [line for line in logged if "422" not in line] == []
    assert all(address.startswith((url, "blob:", "data:")) for address in requested)


@pytest.mark.skipif(CHROMIUM is None, reason="needs Chromium (Debian's package chromium)")
def test_the_page_tells_in_words_what_is_unusual(explaining_model, running, refused_folder):
    expect.set_options(timeout=60_000)
    with running(Service(explaining_model, ServeSettings(), backend="torch")) as url, sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=CHROMIUM_OPTIONS)
        page = browser.new_page(viewport={"width": 390, "height": 700})
        page.goto(url)
        names = ("noise/noise-00.png", "temple/temple-00.png")
        page.set_input_files("#files", [str(refused_folder / name) for name in names])
        expect(page.locator(".card")).to_have_count(2)
        expect(page.locator(".why").nth(0)).to_contain_text("Unlike in-distribution images: very large")
        expect(page.locator(".why").nth(1)).to_be_hidden()
        assert page.evaluate("document.documentElement.scrollWidth") <= 390
        browser.close()


@pytest.mark.skipif(CHROMIUM is None, reason="needs Chromium (Debian's package chromium)")
def test_the_page_shows_where_an_image_deviates(model_with_maps, running, odd_folder):
    expect.set_options(timeout=60_000)
    with running(Service(model_with_maps, ServeSettings(), backend="torch")) as url, sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=CHROMIUM_OPTIONS)
        page = browser.new_page(viewport={"width": 390, "height": 700})
        page.goto(url)
        page.set_input_files("#files", [str(sorted(odd_folder.iterdir())[0])])
        overlay = page.locator(".picture .map")
        expect(overlay).to_be_visible()
        image = page.locator(".picture img").nth(0)
        assert overlay.bounding_box() == image.bounding_box()
        page.get_by_label("Show where images deviate").focus()
        page.keyboard.press("Space")
        expect(overlay).to_be_hidden()
        browser.close()

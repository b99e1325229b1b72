"""The service as its users run it: a process, many clients, signals, a browser."""

import asyncio
import shutil
import socket
import subprocess
import sys
import time

import httpx
import pytest

from dlsr import Detector
from serving import encoded, load, serving

CHROMIUM = shutil.which("chromium")
CHROMIUM_OPTIONS = [
    "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-background-networking",
    "--disable-component-update", "--disable-sync",
]  # fmt: skip


def run(*arguments):
    return subprocess.run(
        [sys.executable, "-m", "dlsr", *map(str, arguments)], capture_output=True, text=True, check=False
    )


@pytest.fixture
def two_models(tmp_path, image_folder, small_encoder):
    """A model directory, and what makes it another model."""
    folder = tmp_path / "model"
    detector = Detector(**small_encoder, width=32, blocks=2, epochs=2, lr=1e-3, thumbnails=5).fit(image_folder)
    detector.save(folder)
    return folder, detector


def test_nothing_is_lost_and_nothing_wrong_under_load(two_models, odd_folder, tmp_path):
    folder, detector = two_models
    paths = sorted(odd_folder.iterdir())
    expected = {}
    for rate in (0.5, 0.05):
        detector.false_alarm_rate = rate
        detector.save(folder)
        now = Detector.load(folder, backend="torch")
        rows = now.results([str(path) for path in paths])
        expected[now.threshold_] = {path.name: row for path, row in zip(paths, rows, strict=True)}
    malformed = [
        {"content": b"no form", "headers": {"content-type": "multipart/form-data; boundary=b"}},
        {"files": [("images", ("broken.png", b"broken"))]},
        {"json": {"images": [{"data": "?"}]}},
        {"content": b"x", "headers": {"content-type": "text/plain"}},
    ]

    def reload_then_end():
        detector.false_alarm_rate = 0.5
        detector.save(folder)
        deadline = time.monotonic() + 20
        while httpx.get(f"{service.url}/v1/model").json()["false_alarm_rate"] != 0.5:
            assert time.monotonic() < deadline
            time.sleep(0.05)
        time.sleep(0.5)  # in which the new model scores
        service.terminate()

    def request(i):
        if i % 5 == 4:
            return encoded(**malformed[i // 5 % 4])
        chosen = [paths[(i + k) % len(paths)] for k in range(1 + i % 3)]
        return encoded(files=[("images", (path.name, path.read_bytes())) for path in chosen])

    requests = (request(i) for i in range(20_000))  # far more than will be sent before the end
    with serving(folder, "--backend", "torch", "--max-waiting", "40", "--drain", "2") as service:
        done = asyncio.run(load(service.url, requests, 64, at={150: reload_then_end}))
        status, said = service.end()
    assert status == 0, said
    assert done.unanswered == []
    assert 200 < len(done.answers) < 20_000
    statuses = [status for _, status, _ in done.answers]
    assert set(statuses) <= {200, 400, 415, 422, 429, 503}
    assert statuses.count(200) > 100
    assert 503 in statuses
    thresholds = set()
    for index, status, answer in done.answers:
        wrong = index % 5 == 4
        if status == 200:
            assert not wrong
            thresholds.add(answer["threshold"])
            for one in answer["images"]:
                row = expected[answer["threshold"]][one["name"]]
                assert one["score"] == pytest.approx(row.score, abs=1e-5)
                assert (one["p_value"], one["is_ood"]) == (row.p_value, row.is_ood)
        elif wrong:
            assert status in (400, 415, 422, 429, 503)
        else:
            assert status in (429, 503)
    assert thresholds == expected.keys()  # before and after the reload


def test_what_cannot_be_served_is_one_line(two_models, tmp_path):
    folder, _ = two_models
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        busy = run("serve", folder, "--port", taken.getsockname()[1])
    assert busy.returncode == 2
    assert "Address already in use; choose another --host or --port" in busy.stderr
    assert len(busy.stderr.splitlines()) == 1
    (tmp_path / "token").write_text("short")
    short = run("serve", folder, "--token-file", tmp_path / "token")
    assert (short.returncode, short.stderr.count("\n")) == (2, 1)
    assert "a token needs 8 or more" in short.stderr
    gone = run("serve", folder, "--token-file", tmp_path / "none")
    assert (gone.returncode, gone.stderr.count("\n")) == (2, 1)
    assert run("serve", tmp_path / "nothing").returncode == 2


def test_without_the_extra_one_line_says_what_to_install(two_models, monkeypatch, capsys):
    from dlsr.cli import main
    from dlsr.cli import serve as command

    monkeypatch.setattr(command, "find_spec", lambda name: None)
    monkeypatch.setattr("sys.argv", ["dlsr", "serve", str(two_models[0])])
    with pytest.raises(SystemExit) as caught:
        main()
    assert caught.value.code == 2
    assert capsys.readouterr().err == "error: fastapi is not installed; run: pip install 'dlsr[serve]'\n"


def test_the_token_may_come_from_the_environment(two_models, monkeypatch):
    monkeypatch.setenv("DLSR_TOKEN", "long enough")
    with serving(two_models[0], "--backend", "torch") as service:
        assert service.url.startswith("http://127.0.0.1:")  # nobody else's business unless told otherwise
        assert httpx.get(f"{service.url}/v1/model").status_code == 401
        headers = {"authorization": "Bearer long enough"}
        assert httpx.get(f"{service.url}/v1/model", headers=headers).json()["examples"] == 5


@pytest.mark.skipif(CHROMIUM is None, reason="needs Chromium (Debian's package chromium)")
def test_the_page_in_a_browser(two_models, image_folder, odd_folder, tmp_path):
    from playwright.sync_api import expect, sync_playwright

    folder, _ = two_models
    files = [*sorted(image_folder.rglob("*.png"))[:3], *sorted(odd_folder.iterdir())[:3]]
    (tmp_path / "broken.png").write_bytes(b"broken")
    detector = Detector.load(folder, backend="torch")
    rows = list(detector.results([str(path) for path in files]))

    def outside(rate):
        return sum(row.p_value <= rate for row in rows)

    with serving(folder, "--backend", "torch", "--max-images", "3") as service, sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=CHROMIUM_OPTIONS)
        page = browser.new_page(viewport={"width": 1100, "height": 900})
        said, asked = [], []
        page.on("console", lambda message: said.append(message.text))
        page.on("pageerror", lambda error: said.append(str(error)))
        page.on("request", lambda request: asked.append(request.url))
        page.goto(service.url)
        expect(page.locator("#model")).to_contain_text("fitted to")
        with page.expect_file_chooser() as chooser:
            page.get_by_label("Choose images").click()
        chooser.value.set_files([str(path) for path in (*files, tmp_path / "broken.png")])
        expect(page.locator(".card")).to_have_count(7)
        summary = page.locator("#summary")
        expect(summary).to_have_text(f"{outside(0.05)} of 6 images are out of distribution; 1 cannot be read")
        for card, row in zip(page.locator(".card").all(), rows, strict=False):
            expect(card.locator(".score")).to_have_text(f"{row.score:.2f}")
            expect(card.locator(".verdict")).to_contain_text("Out of" if row.is_ood else "In dist")
            expect(card.locator(".bars .layer")).to_have_count(len(row.layers))
            expect(card.locator(".thumbnails img")).to_have_count(4)
            assert card.locator("svg").get_attribute("aria-label").startswith(f"Score {row.score:.2f}")
        expect(page.locator(".card.error")).to_contain_text("not an image, or of an unknown format")
        page.locator("#rate").focus()
        page.keyboard.press("End")
        expect(page.locator("#rate-shown")).to_have_text("50 %")
        expect(summary).to_have_text(f"{outside(0.5)} of 6 images are out of distribution; 1 cannot be read")
        page.keyboard.press("Home")
        smallest = 1 / (len(detector.calibration_scores_) + 1)
        expect(summary).to_have_text(f"{outside(smallest)} of 6 images are out of distribution; 1 cannot be read")
        assert outside(smallest) < outside(0.5)
        page.screenshot(path=tmp_path / "page.png", full_page=True)
        narrow = browser.new_page(viewport={"width": 360, "height": 700}, color_scheme="dark")
        narrow.goto(service.url)
        narrow.set_input_files("#files", [str(files[0])])
        expect(narrow.locator(".card")).to_have_count(1)
        assert narrow.evaluate("document.documentElement.scrollWidth") <= 360
        browser.close()
    # The browser itself remarks that the request with the broken image alone was refused.
    assert [line for line in said if "422" not in line] == []
    assert all(url.startswith((service.url, "blob:", "data:")) for url in asked)

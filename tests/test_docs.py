"""Every code block of the README and the docs runs, in order, as a reader would type it."""

import configparser
import contextlib
import os
import re
import signal
import socket
import subprocess
import sys
import tomllib
from pathlib import Path

import av
import numpy as np
import pytest
from PIL import Image, ImageFilter

import dlsr
from dlsr.config import TrainingSettings
from preloaded import Preloaded
from shared import patches

ROOT = Path(__file__).parent.parent
PAGES = [path.relative_to(ROOT) for path in (ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md")))]
NOT_RUN = re.compile(r"<!-- not run in tests: (.+) -->")


def blocks(path):
    """Language and text of each code block; the text is None if the block is marked as not run."""
    found, language, lines, before = [], None, [], ""
    for line in (ROOT / path).read_text().splitlines():
        if line.startswith("```"):
            if language is None:
                language, lines = line[3:].strip(), []
            else:
                found.append((language, None if NOT_RUN.fullmatch(before) else "\n".join(lines)))
                language, before = None, ""
        elif language is not None:
            lines.append(line)
        elif line.strip():
            before = line.strip()
    assert language is None, f"{path} does not close a code block"
    return found


def script_of(page):
    """A shell script of all blocks of a page that are run."""
    script = ["set -euo pipefail"]
    for language, text in blocks(page):
        if text is None or language == "text":
            continue
        if language == "ini":
            parser = configparser.ConfigParser()
            parser.optionxform = str
            parser.read_string(text)
            assert parser.sections()
        elif language == "python":
            script.append(f"python - <<'END_OF_PYTHON'\n{text}\nEND_OF_PYTHON")
        else:
            assert language == "sh", f"{page} has a block of '{language}', which no test runs"
            script.append(text)
    return with_free_ports("\n".join(script))


def with_free_ports(script):
    """The script with unused ports in place of those it names."""
    with contextlib.ExitStack() as stack:  # all are open at once, so they differ
        for port in sorted(set(re.findall(r"--port (\d+)", script))):
            free = stack.enter_context(socket.socket())
            free.bind(("127.0.0.1", 0))
            script = re.sub(rf"\b{port}\b", str(free.getsockname()[1]), script)
    return script


def test_no_script_depends_on_a_fixed_port():
    scripts = [script_of(page) for page in PAGES]
    ports = {port for script in scripts for port in re.findall(r"(?:--port |127\.0\.0\.1:|localhost:)(\d+)", script)}
    named = {port for page in PAGES for port in re.findall(r"--port (\d+)", (ROOT / page).read_text())}
    assert len(named) >= 2
    assert not ports & named
    assert len(ports) >= len(named)


@pytest.fixture(scope="session")
def environment(tmp_path_factory, cache):
    """Commands run in forks of a process that has imported PyTorch, and do not compete for cores with idle threads."""
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    preloaded = Preloaded(tmp_path_factory.mktemp("preloaded"), environment)
    yield {**environment, "PATH": f"{preloaded.bin}:{Path(sys.executable).parent}:{os.environ['PATH']}"}
    preloaded.stop()


@pytest.fixture
def workplace(tmp_path, photographs):
    """The files that the docs use: images to fit to, new images, held-out images, blurred images, vectors."""

    def write(folder, images):
        (tmp_path / folder).mkdir()
        for i, image in enumerate(images):
            image.save(tmp_path / folder / f"{i:03}.png")

    temple = [Image.fromarray(patch) for patch in patches(photographs[0], 430, side=48)]
    flower = [Image.fromarray(patch) for patch in patches(photographs[1], 40, side=48)]
    write("photos", temple[:330])
    write("held-out", temple[330:])
    write("new", [*temple[330:350], *flower[:20]])
    write("blurred", [image.filter(ImageFilter.GaussianBlur(3)) for image in temple[330:370]])
    with av.open(str(tmp_path / "clip.mp4"), "w") as clip:
        stream = clip.add_stream("libx264", rate=10)
        stream.width, stream.height, stream.pix_fmt = 48, 48, "yuv420p"
        for image in [*temple[330:350], *flower[:20]]:
            clip.mux(stream.encode(av.VideoFrame.from_image(image)))
        clip.mux(stream.encode())
    (tmp_path / "benchmarks").mkdir()
    np.save(tmp_path / "vectors.npy", np.random.default_rng(0).standard_normal((300, 16)).astype(np.float32))
    return tmp_path


@pytest.mark.parametrize(
    "page",
    [pytest.param(page, marks=[] if page.name == "README.md" else pytest.mark.slow) for page in PAGES if blocks(page)],
    ids=str,
)
def test_code_blocks_run(page, workplace, environment):
    with (workplace / "output").open("w") as output:
        process = subprocess.Popen(
            ["bash", "-x", "-c", script_of(page)], cwd=workplace, env=environment, start_new_session=True,
            stdout=output, stderr=subprocess.STDOUT,
        )  # fmt: skip
        try:
            status: int | str = process.wait(timeout=400)
        except subprocess.TimeoutExpired:
            status = "took too long"
        finally:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
    assert status == 0, (workplace / "output").read_text()[-4000:]


def test_blocks_that_are_not_run_say_why():
    reasons = [match[1] for page in PAGES for match in NOT_RUN.finditer((ROOT / page).read_text())]
    assert len(reasons) == sum(text is None for page in PAGES for _, text in blocks(page)) <= 4
    assert all(len(reason) > 20 for reason in reasons)


def test_contributing_lists_all_rooms_in_their_order():
    table = (ROOT / "CONTRIBUTING.md").read_text().partition("| room in")[2].partition("\n\n")[0]
    listed = [re.findall(r"`(\w+)(?:/|\.py)`", line.split("|")[1]) for line in table.splitlines()[2:]]
    (contract,) = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["importlinter"]["contracts"]
    rooms = [sorted(layer.split(" | ")) for layer in contract["layers"]]
    assert listed == [layer for layer in rooms if layer != ["__main__"]]


def table_of_scores():
    yield "| `--score` | the score | presets (the first is the default) | settings |"
    yield "|---|---|---|---|"
    for name, scorer in dlsr.SCORES.items():
        fields = scorer.Settings.model_fields
        is_trained = issubclass(scorer.Settings, TrainingSettings)
        own = [f"`{field}`" for field in fields if not (is_trained and field in TrainingSettings.model_fields)]
        settings = ", ".join([*own, *(["training"] if is_trained else [])]) or "none"
        yield f"| `{name}` | {scorer.summary} | {', '.join(f'`{preset}`' for preset in scorer.presets)} | {settings} |"


def table_of_settings():
    meanings: dict[str, dict[str, list[str]]] = {}
    for name, scorer in dlsr.SCORES.items():
        for setting, field in scorer.Settings.model_fields.items():
            meanings.setdefault(setting, {}).setdefault(field.description, []).append(f"`{name}`")
    yield "| setting | meaning |"
    yield "|---|---|"
    for setting, scores in meanings.items():
        texts = [text if len(scores) == 1 else f"{', '.join(names)}: {text}" for text, names in scores.items()]
        yield f"| `{setting}` | {' '.join(texts)} |"


@pytest.mark.parametrize("table", [table_of_scores, table_of_settings])
def test_the_docs_list_every_score_and_setting(table):
    expected = "\n".join(table())
    assert f"\n\n{expected}\n\n" in (ROOT / "docs" / "choosing.md").read_text(), f"the table should be:\n{expected}"


@pytest.fixture(scope="module")
def site(tmp_path_factory):
    folder = tmp_path_factory.mktemp("site")
    command = [sys.executable, "-m", "mkdocs", "build", "--strict", "--quiet", "--site-dir", str(folder)]
    built = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert built.returncode == 0, built.stderr
    return folder


def test_the_site_loads_nothing_from_elsewhere(site):
    page = (site / "api" / "index.html").read_text()
    assert not re.search(r'<(?:script|img|link)[^>]+(?:src|href)="https?://[^"]*\.(?:js|css|woff2?|png)', page)


def test_the_api_page_describes_every_public_name(site):
    documented = set(re.findall(r'id="dlsr\.(?:errors\.)?([\w.]+)"', (site / "api" / "index.html").read_text()))
    assert set(dlsr.__all__) <= documented
    assert {f"Detector.{name}" for name in dir(dlsr.Detector) if not name.startswith("_")} <= documented

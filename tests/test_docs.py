"""Every code block of the README and the docs runs, in order, as a reader would type it."""

import configparser
import contextlib
import os
import re
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image, ImageFilter

from shared import patches

ROOT = Path(__file__).parent.parent
PAGES = [path.relative_to(ROOT) for path in (ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md")))]
NOT_RUN = re.compile(r"<!-- not run in tests: (.+) -->")


def blocks(path):
    """Language and text of each code block; None in place of the text of one that is not to be run, with a reason."""
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


@pytest.fixture
def workplace(tmp_path, photographs):
    """What the docs speak of: images to fit to, new ones, held-out ones, blurred ones, vectors."""

    def write(folder, images):
        (tmp_path / folder).mkdir()
        for i, image in enumerate(images):
            image.save(tmp_path / folder / f"{i:03}.png")

    temple = [Image.fromarray(patch) for patch in patches(photographs[0], 320, side=48)]
    flower = [Image.fromarray(patch) for patch in patches(photographs[1], 40, side=48)]
    write("photos", temple[:220])
    write("held-out", temple[220:])
    write("new", [*temple[220:240], *flower[:20]])
    write("blurred", [image.filter(ImageFilter.GaussianBlur(3)) for image in temple[220:260]])
    (tmp_path / "benchmarks").mkdir()
    np.save(tmp_path / "vectors.npy", np.random.default_rng(0).standard_normal((300, 16)).astype(np.float32))
    return tmp_path


@pytest.mark.parametrize("page", [page for page in PAGES if blocks(page)], ids=str)
def test_code_blocks_run(page, workplace):
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
    environment = {**os.environ, "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}"}
    with (workplace / "said").open("w") as said:
        process = subprocess.Popen(
            ["bash", "-x", "-c", "\n".join(script)], cwd=workplace, env=environment, start_new_session=True,
            stdout=said, stderr=subprocess.STDOUT,
        )  # fmt: skip
        try:
            status: int | str = process.wait(timeout=400)
        except subprocess.TimeoutExpired:
            status = "took too long"
        finally:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
    assert status == 0, (workplace / "said").read_text()[-4000:]


def test_what_is_not_run_says_why():
    reasons = [match[1] for page in PAGES for match in NOT_RUN.finditer((ROOT / page).read_text())]
    assert len(reasons) == sum(text is None for page in PAGES for _, text in blocks(page)) <= 4
    assert all(len(reason) > 20 for reason in reasons)


def test_the_site_builds(tmp_path):
    command = [sys.executable, "-m", "mkdocs", "build", "--strict", "--quiet", "--site-dir", str(tmp_path / "site")]
    built = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert built.returncode == 0, built.stderr
    page = (tmp_path / "site" / "api" / "index.html").read_text()
    assert "false_alarm_rate" in page
    # Nothing is loaded from elsewhere.
    assert not re.search(r'<(?:script|img|link)[^>]+(?:src|href)="https?://[^"]*\.(?:js|css|woff2?|png)', page)

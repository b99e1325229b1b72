"""What is said of installing and deploying fits the command line, the service and the packages as they are."""

import configparser
import json
import os
import re
import shlex
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest
import yaml

from serving import serving

ROOT = Path(__file__).parent.parent
DEPLOY = ROOT / "deploy"
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
EXTRAS = PROJECT["optional-dependencies"]


def instructions():
    """Each instruction of the Dockerfile with its arguments, in order."""
    lines = re.sub(r"\\\n", "", (DEPLOY / "Dockerfile").read_text()).splitlines()
    return [tuple(line.split(maxsplit=1)) for line in lines if line and not line.startswith("#")]


def last(name):
    return [arguments for instruction, arguments in instructions() if instruction == name][-1]


def health_check():
    return json.loads(last("HEALTHCHECK").removeprefix("CMD"))


def service_of_compose():
    return yaml.safe_load((DEPLOY / "compose.yaml").read_text())["services"]["dlsr"]


def unit():
    parser = configparser.ConfigParser(interpolation=None)
    parser.optionxform = str
    parser.read(DEPLOY / "dlsr.service")
    return parser["Service"]


def commands():
    """Each command that starts the service, and the directory of its model."""
    yield json.loads(last("CMD")), "/model"
    yield service_of_compose()["command"], service_of_compose()["volumes"][0]["target"]
    yield shlex.split(unit()["ExecStart"]), "/srv/dlsr/model"


@pytest.mark.parametrize(("command", "model"), list(commands()), ids=("Dockerfile", "compose.yaml", "dlsr.service"))
def test_commands_start_the_service_with_options_that_exist(run, tmp_path, command, model):
    (tmp_path / "token").write_text("long enough")
    program, *arguments = (part.replace("${CREDENTIALS_DIRECTORY}", str(tmp_path)) for part in command)
    assert Path(program).name == "dlsr"
    assert arguments[:2] == ["serve", model]
    # All options are valid if what is missing is the model.
    assert "'nowhere' is no model directory" in run("serve", "nowhere", *arguments[2:]).err


def test_the_health_check_tells_whether_the_service_answers(model, monkeypatch):
    monkeypatch.setenv("DLSR_TOKEN", "long enough")  # or the first message is a warning
    program, option, code = health_check()
    assert program == "python"
    environment = {name: value for name, value in os.environ.items() if not name.lower().endswith("_proxy")}

    def status(port):
        command = [sys.executable, option, code.replace(":8000/", f":{port}/")]
        return subprocess.run(command, env=environment, stderr=subprocess.DEVNULL, check=False).returncode

    with serving(model, *json.loads(last("CMD"))[3:]) as running:
        port = running.url.rpartition(":")[2]
        assert status(port) == 0
        running.terminate()
        assert running.end()[0] == 0
    assert status(port) == 1


def test_every_file_knows_the_port_of_the_service():
    assert ":8000/" in health_check()[2]
    assert last("EXPOSE") == "8000"
    assert service_of_compose()["ports"] == ["127.0.0.1:8000:8000"]


def test_the_image_is_built_from_files_that_it_gets():
    copied = {
        path
        for instruction, arguments in instructions()
        if instruction == "COPY" and not arguments.startswith("--from")
        for path in arguments.split()[:-1]
    }
    kept = re.findall(r"^!(.+)$", (ROOT / ".dockerignore").read_text(), re.MULTILINE)
    assert copied == set(kept) >= {"pyproject.toml", "src", PROJECT["readme"], *PROJECT["license-files"]}
    assert all((ROOT / path).exists() for path in copied)
    (build,) = (arguments for _, arguments in instructions() if "install" in arguments)
    assert set(re.search(r"\[(.+)\]", build)[1].split(",")) <= EXTRAS.keys()


def test_compose_builds_this_dockerfile():
    build = service_of_compose()["build"]
    context = DEPLOY / build["context"]
    assert context.resolve() == ROOT
    assert (context / build["dockerfile"]).is_file()


def test_the_readme_lists_all_extras_in_order():
    table = (ROOT / "README.md").read_text().partition("\n## Extras\n")[2]
    assert re.findall(r"^\| `(\w+)` \|", table, re.MULTILINE) == list(EXTRAS)


@pytest.mark.parametrize("page", ["README.md", "docs/index.md"])
def test_what_is_installed_has_these_extras(page):
    installed = re.findall(r"pip install '\.\[(.+?)\]'", (ROOT / page).read_text())
    assert installed
    assert {extra for extras in installed for extra in extras.split(",")} <= EXTRAS.keys()

"""Nothing opens a connection that the user did not ask for."""

import os
import subprocess
import sys

import pytest

SCRIPT = """
import os, signal, sys, threading, urllib.request

images, model, exported, seen = sys.argv[1:]
log = open(seen, "a", buffering=1)  # a file, since OpenVINO reports from a process of its own

def watch(event, arguments):
    if event in ("socket.connect", "socket.sendto", "socket.sendmsg"):
        address = arguments[1]
        host = address[0] if isinstance(address, tuple) else None  # others are sockets of this machine
    elif event in ("socket.getaddrinfo", "socket.gethostbyname"):
        host = arguments[0]
    else:
        return
    if host not in (None, "127.0.0.1", "localhost"):
        print(event, host, file=log)

sys.addaudithook(watch)

from dlsr.cli import main

def run(*arguments):
    sys.argv = ["dlsr", *arguments]
    try:
        main()
    except SystemExit as ended:
        assert not ended.code, arguments

run("fit", images, "-o", model, "--encoder", "test_resnet", "--weights", "random", "--backend", "openvino")
for backend in ("onnxruntime", "openvino"):
    run("score", model, images, "--backend", backend)
run("export", model, "-o", exported, "--format", "openvino", "--images", images)

from pathlib import Path

from dlsr.serve.server import serve
from dlsr.serve.service import Service
from dlsr.serve.settings import ServeSettings

def ask(url):
    urllib.request.urlopen(url + "/v1/model", timeout=60).read()
    os.kill(os.getpid(), signal.SIGTERM)

service = Service(Path(model), ServeSettings(), backend="openvino")
serve(service, "127.0.0.1", 0, drain_seconds=0, ready=lambda url: threading.Thread(target=ask, args=(url,)).start())
sys.argv = ["score_image.py", images + "/one/001.png"]
exec(open(exported + "/score_image.py").read(), {"__file__": exported + "/score_image.py", "__name__": "__main__"})
"""


@pytest.mark.slow
def test_fit_score_export_and_serve_reach_for_no_other_machine(image_folder, tmp_path):
    pytest.importorskip("openvino")
    pytest.importorskip("fastapi")
    home = tmp_path / "home"
    home.mkdir()
    seen = tmp_path / "seen.txt"
    arguments = [image_folder, tmp_path / "model", tmp_path / "exported", seen]
    # OpenVINO keeps quiet where it takes the process for one of continuous integration.
    environment = {name: value for name, value in os.environ.items() if name != "CI"}
    done = subprocess.run(
        [sys.executable, "-c", SCRIPT, *map(str, arguments)],
        env=environment | {"HOME": str(home), "DLSR_CACHE": str(tmp_path / "cache")},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert seen.read_text() == ""
    assert [path for path in home.rglob("*") if path.is_file()] == []

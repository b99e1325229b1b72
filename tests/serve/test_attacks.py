"""Clients that hold on to connections or send too much, beside a client with the token."""

import contextlib
import re
import resource
import socket
import subprocess
import sys
import time

import httpx
import pytest

from dlsr.serve import connections
from dlsr.serve.service import Service
from dlsr.serve.settings import ServeSettings

TOKEN = "a long secret"
HALF_SENT = (
    b"POST /v1/score HTTP/1.1\r\nhost: localhost\r\ncontent-type: application/json\r\ncontent-length: 1000\r\n\r\n{"
)


def service_of(model, **limits):
    return Service(model, ServeSettings(token=TOKEN, **limits), backend="torch")


def connect(url):
    host, port = url.removeprefix("http://").split(":")
    return socket.create_connection((host, int(port)), timeout=60)


@contextlib.contextmanager
def clients(url, count, sent):
    """Clients that have sent a piece of a request, and wait."""
    with contextlib.ExitStack() as stack:
        opened = [stack.enter_context(connect(url)) for _ in range(count)]
        for client in opened:
            client.sendall(sent)
        time.sleep(0.3)
        yield opened


def score(url, image, **options):
    files = {"images": (image.name, image.read_bytes())}
    return httpx.post(
        f"{url}/v1/score", files=files, headers={"authorization": f"Bearer {TOKEN}"}, timeout=60, **options
    )


@pytest.fixture(scope="module")
def image(odd_folder):
    return min(odd_folder.iterdir())


@pytest.fixture(scope="module")
def url(fitted, running):
    with running(service_of(fitted, max_requests=20)) as url:
        yield url


def answer_of(client):
    """All that the service sends until it closes the connection."""
    received = b""
    with contextlib.suppress(ConnectionResetError):
        while piece := client.recv(65536):
            received += piece
    return received


def test_half_sent_requests_without_the_token_hold_no_slot(url, image):
    with clients(url, 60, HALF_SENT):
        assert [score(url, image).status_code for _ in range(10)] == [200] * 10
        headers = {"authorization": f"Bearer {TOKEN}"}
        assert httpx.get(f"{url}/v1/model", headers=headers, timeout=60).headers.get("connection") != "close"


def test_half_sent_requests_without_the_token_are_answered_and_closed(url):
    with clients(url, 60, HALF_SENT) as opened:
        start = time.monotonic()
        answers = [answer_of(client) for client in opened]
        assert time.monotonic() - start < 20
    assert all(answer.startswith(b"HTTP/1.1 401") and b"connection: close" in answer for answer in answers)


@pytest.mark.parametrize("sent", [b"", b"GET /healthz HTTP/1.1\r\nx-slow: "])
def test_a_head_that_does_not_arrive_is_given_up(url, sent, monkeypatch):
    monkeypatch.setattr(connections, "HEAD_SECONDS", 0.2)
    with clients(url, 1, sent) as opened:
        assert answer_of(opened[0]) == b""


def test_a_second_head_that_does_not_arrive_is_given_up(url, monkeypatch):
    monkeypatch.setattr(connections, "HEAD_SECONDS", 0.2)
    with clients(url, 1, b"GET /healthz HTTP/1.1\r\nhost: localhost\r\n\r\n") as opened:
        opened[0].sendall(b"GET /")
        assert answer_of(opened[0]).count(b"HTTP/1.1") == 1


def flood(client, count, seconds):
    """Send `count` requests at a time and read nothing, until the service closes the connection."""
    deadline = time.monotonic() + 30
    with pytest.raises((BrokenPipeError, ConnectionResetError)):
        while time.monotonic() < deadline:
            client.sendall(b"GET /page.js HTTP/1.1\r\nhost: localhost\r\n\r\n" * count)
            time.sleep(seconds)


def test_a_client_that_does_not_read_is_given_up(url, monkeypatch):
    monkeypatch.setattr(connections, "READ_SECONDS", 0.2)
    with connect(url) as client:
        flood(client, 20, 0.05)


def test_requests_do_not_pile_up_on_a_connection(url):
    with connect(url) as client:
        flood(client, 1000, 0)


@pytest.mark.parametrize(
    "sent",
    [
        b"GET /healthz HTTP/1.1\r\n" + b"x: y\r\n" * 10_000 + b"\r\n",
        b"GET /healthz HTTP/1.1\r\nx: " + b"y" * 100_000,
        b"GET /" + b"y" * 100_000,
        b"POST /healthz HTTP/1.1\r\nhost: localhost\r\ntransfer-encoding: chunked\r\n\r\n0\r\n" + b"x: y\r\n" * 10_000,
    ],
)
def test_large_headers_are_refused(url, sent):
    with clients(url, 1, sent) as opened:
        answer = answer_of(opened[0])
        assert b"HTTP/1.1 431" in answer
        assert b"application/problem+json" in answer


def test_what_is_no_http_gets_a_problem_document(url):
    with clients(url, 1, b"\x16\x03\x01\x02\r\n\r\n") as opened:
        answer = answer_of(opened[0])
        assert answer.startswith(b"HTTP/1.1 400")
        assert b"this is not HTTP/1.1" in answer


def test_idle_connections_make_room_for_new_connections(fitted, image, running):
    with running(service_of(fitted, max_connections=20)) as url, clients(url, 60, b"GET /healthz HTTP/1.1\r\n"):
        assert [score(url, image).status_code for _ in range(5)] == [200] * 5


def test_the_connection_of_a_client_with_the_token_is_kept(fitted, running):
    headers = {"authorization": f"Bearer {TOKEN}"}
    with running(service_of(fitted, max_connections=20)) as url, httpx.Client(headers=headers, timeout=60) as client:
        first = client.get(f"{url}/v1/model").extensions["network_stream"].get_extra_info("client_addr")
        with clients(url, 60, b"GET /healthz HTTP/1.1\r\n"):
            second = client.get(f"{url}/v1/model").extensions["network_stream"].get_extra_info("client_addr")
    assert first == second


SERVE_WITH_FEW_FILES = """
import resource, sys
resource.setrlimit(resource.RLIMIT_NOFILE, (200, 200))
sys.argv = ["dlsr", "serve", sys.argv[1], "--port", "0", "--backend", "torch", "--token-file", sys.argv[2]]
from dlsr.cli import main
main()
"""


@pytest.mark.slow
def test_idle_connections_do_not_use_up_the_open_files(fitted, image, tmp_path):
    (tmp_path / "token").write_text(TOKEN)
    command = [sys.executable, "-c", SERVE_WITH_FEW_FILES, str(fitted), str(tmp_path / "token")]
    with subprocess.Popen(command, stderr=subprocess.PIPE, text=True) as process:
        try:
            url = re.search(r"at (http://\S+)", process.stderr.readline())[1]
            with clients(url, 300, b"GET /healthz HTTP/1.1\r\n"):
                assert [score(url, image).status_code for _ in range(5)] == [200] * 5
        finally:
            process.terminate()
    assert process.returncode == 0


def test_the_limit_of_open_files_is_raised():
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    try:
        resource.setrlimit(resource.RLIMIT_NOFILE, (200, hard))
        assert connections.allowed_connections(300) == 300
        assert resource.getrlimit(resource.RLIMIT_NOFILE)[0] == 300 + connections.SPARE_FILES
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))

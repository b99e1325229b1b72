"""Clients that hold on to connections or send too much, beside a client with the token."""

import contextlib
import io
import re
import resource
import socket
import subprocess
import sys
import threading
import time

import httpx
import pytest
from PIL import Image

from dlsr.serve import connections, decoding
from dlsr.serve.bodies import BODIES, Bodies
from dlsr.serve.problems import RefusedError
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
    monkeypatch.setattr(connections, "PIPELINED", 10**9)
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


# Bodies that are expensive to parse or to decode


@contextlib.contextmanager
def longest_silence(url):
    """A list that gets the longest time, in seconds, in which the service did not answer /healthz during the block."""
    found, done = [], threading.Event()

    def ask():
        longest = 0.0
        with httpx.Client(timeout=120) as client:
            while not done.is_set():
                start = time.monotonic()
                client.get(f"{url}/healthz")
                longest = max(longest, time.monotonic() - start)
        found.append(longest)

    thread = threading.Thread(target=ask)
    thread.start()
    yield found
    done.set()
    thread.join()


def post(url, **options):
    return httpx.post(f"{url}/v1/score", headers={"authorization": f"Bearer {TOKEN}"}, timeout=120, **options)


def grey_png(side):
    buffer = io.BytesIO()
    Image.new("L", (side, side)).save(buffer, "PNG")
    return buffer.getvalue()


def test_the_service_answers_while_it_parses_many_values(url):
    body = b'{"images": [' + b"{}," * (16 * 2**20 // 3) + b"{}]}"
    with longest_silence(url) as found:
        headers = {"authorization": f"Bearer {TOKEN}", "content-type": "application/json"}
        assert httpx.post(f"{url}/v1/score", headers=headers, timeout=120, content=body).status_code == 413
    assert found[0] < 2


def test_the_service_answers_while_it_reads_a_long_comment(url):
    image = b"P6\n#" + b" " * 16_000_000 + b"\n2 2\n255\n" + bytes(12)
    with longest_silence(url) as found:
        post(url, files={"images": ("a.ppm", image)})
    assert found[0] < 2


def test_requests_of_large_images_do_not_keep_others_waiting(url, image):
    large = grey_png(7000)
    answers = []
    files = [("images", (f"{i}.png", large)) for i in range(4)]
    threads = [threading.Thread(target=lambda: answers.append(post(url, files=files))) for _ in range(2)]
    with longest_silence(url) as found:
        for thread in threads:
            thread.start()
        time.sleep(0.5)
        assert score(url, image).status_code == 200
        assert answers == []
        for thread in threads:
            thread.join()
    assert [answer.status_code for answer in answers] == [200, 200]
    assert found[0] < 2


@pytest.fixture
def slow_decoding(monkeypatch):
    """Decoding that waits: an event that lets it go on, and a list of what was decoded."""
    go, decoded = threading.Event(), []

    def decode(content, spec):
        assert go.wait(60)
        decoded.append(content)
        return "was slow"

    monkeypatch.setattr(decoding, "_decode", decode)
    monkeypatch.setattr(decoding, "SMALL_PIXELS", 1)
    return go, decoded


def test_images_of_a_request_that_took_too_long_are_not_decoded(fitted, running, slow_decoding, image):
    go, decoded = slow_decoding
    with running(service_of(fitted, score_seconds=0.2)) as url:
        files = [("images", (image.name, image.read_bytes()))] * 9
        assert post(url, files=files).status_code == 503
        go.set()
        assert post(url, files=files[:1]).status_code == 422
    assert len(decoded) <= 3


def test_a_client_that_leaves_while_it_sends_is_no_failure_of_the_service(fitted, running, caplog):
    """Each left a traceback in the log, and counted as an error of the service."""
    service = service_of(fitted)
    head = HALF_SENT.replace(b"host:", b"authorization: Bearer %s\r\nhost:" % TOKEN.encode())
    with running(service) as url:
        with clients(url, 2, head):
            pass
        time.sleep(0.3)
        exposed = httpx.get(f"{url}/metrics", headers={"authorization": f"Bearer {TOKEN}"}).text
    assert 'dlsr_requests_total{path="/v1/score",status="499"} 2.0' in exposed
    assert not caplog.records


def test_images_of_a_client_that_has_left_are_not_decoded(fitted, running, slow_decoding, image):
    go, decoded = slow_decoding
    service = service_of(fitted)
    with running(service) as url:
        files = [("images", (image.name, image.read_bytes()))] * 9
        with pytest.raises(httpx.ReadTimeout):
            httpx.post(f"{url}/v1/score", headers={"authorization": f"Bearer {TOKEN}"}, timeout=0.5, files=files)
        time.sleep(0.2)
        assert service.handling == service.waiting == 0
        go.set()
        assert post(url, files=files[:1]).status_code == 422
    assert len(decoded) <= 3


def test_the_bodies_of_all_requests_are_bounded():
    bodies = Bodies(ServeSettings(max_body_bytes=100))
    with bodies.hold() as first:
        bodies.count(BODIES * 100)
        first.size = BODIES * 100
        with pytest.raises(RefusedError, match="are being handled already") as caught:
            bodies.count(1)
        assert (caught.value.status, caught.value.headers) == (429, {"Retry-After": "1"})
    bodies.count(1)

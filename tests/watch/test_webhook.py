"""Webhooks that answer well, badly, late or never."""

import json
import socket
import threading
import time
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest

from dlsr import SettingsError
from dlsr.watch import webhook
from dlsr.watch.journal import COLUMNS, open_journal
from dlsr.watch.webhook import Delivery, Webhook, WebhookError, posted_path


class Receiver:
    """A server that answers with the given statuses in turn, and then with 204."""

    def __init__(self, statuses=()):
        self.statuses = list(statuses)
        self.requests = []
        receiver = self

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self):
                body = self.rfile.read(int(self.headers["Content-Length"]))
                status = receiver.statuses.pop(0) if receiver.statuses else 204
                receiver.requests.append((status, dict(self.headers), json.loads(body)))
                self.send_response(status)
                if status in (301, 302, 307):
                    self.send_header("Location", receiver.url + "elsewhere")
                self.end_headers()

            do_GET = do_POST  # noqa: N815 - the server's name

            def log_message(self, *_):
                pass

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self.server.server_port}/"
        threading.Thread(target=self.server.serve_forever, daemon=True).start()

    @property
    def ids(self):
        """Ids that were received with success, in order."""
        return [int(row["id"], 16) for status, _, body in self.requests if status < 300 for row in body["results"]]


@contextmanager
def receiving(*statuses):
    receiver = Receiver(statuses)
    try:
        yield receiver
    finally:
        receiver.server.shutdown()
        receiver.server.server_close()


@pytest.fixture
def journal(tmp_path):
    with open_journal(tmp_path / "a.jsonl", 10) as opened:
        yield opened


@pytest.fixture
def path(tmp_path):
    return tmp_path / "a.jsonl"


def append(journal, numbers):
    for i in numbers:
        journal.append(dict.fromkeys(COLUMNS) | {"path": "<b>\n.png", "score": i / 2, "model": "m", "id": f"{i:032x}"})


def deliver(journal, path, url, lines=None, seconds=10, token=None):
    delivery = Delivery(path, Webhook(url, token), (lines if lines is not None else []).append, first_pause=0.01)
    delivery.start()
    delivery.written(journal.size)
    return delivery.end(seconds)


def test_each_row_is_posted_once_in_order(journal, path):
    with receiving() as receiver:
        append(journal, range(250))
        assert deliver(journal, path, receiver.url, token="secret-token") == 0
        append(journal, range(250, 260))
        assert deliver(journal, path, receiver.url) == 0
    assert receiver.ids == list(range(260))
    assert [len(body["results"]) for _, _, body in receiver.requests] == [100, 100, 50, 10]
    _, headers, body = receiver.requests[0]
    assert headers["Content-Type"] == "application/json"
    assert headers["Authorization"] == "Bearer secret-token"
    assert body["results"][3] == json.loads(path.read_text().splitlines()[3])
    assert "Authorization" not in receiver.requests[-1][1]


def test_a_webhook_that_fails_is_tried_again_and_told_of_once(journal, path):
    lines = []
    with receiving(500, 500, 503, 404) as receiver:
        append(journal, range(3))
        assert deliver(journal, path, receiver.url, lines) == 0
    assert [status for status, _, _ in receiver.requests] == [500, 500, 503, 404, 204]
    assert receiver.ids == [0, 1, 2]
    assert lines == [
        f"the webhook fails: it answers {status}; results wait for it, and are posted when it works again"
        for status in (500, 503, 404)
    ] + ["the webhook works again"]


def test_a_journal_that_is_gone_at_the_end_is_told(journal, path):
    lines = []
    delivery = Delivery(path, Webhook("http://127.0.0.1:9/", None), lines.append, first_pause=0.01)
    delivery.start()
    path.unlink()
    delivery.written(journal.size)
    assert delivery.end(0.1) == 0
    assert any("cannot be counted" in line for line in lines)


@pytest.mark.parametrize("status", [301, 302, 307])
def test_redirects_are_failures(journal, path, status):
    lines = []
    with receiving(status) as receiver:
        append(journal, range(2))
        assert deliver(journal, path, receiver.url, lines, token="secret-token") == 0
    assert [one for one, _, _ in receiver.requests] == [status, 204]
    assert f"it answers {status};" in lines[0]


def test_what_could_not_be_posted_is_posted_the_next_time(journal, path):
    with receiving(*[500] * 1000) as receiver:
        append(journal, range(5))
        assert deliver(journal, path, receiver.url, seconds=0.3) == 5
        receiver.statuses.clear()
        append(journal, range(5, 7))
        assert deliver(journal, path, receiver.url) == 0
        assert sorted(set(receiver.ids)) == list(range(7))


def test_a_webhook_that_never_answers_holds_up_nothing(journal, path, monkeypatch):
    monkeypatch.setattr(webhook, "TIMEOUT_SECONDS", 0.2)
    lines = []
    with socket.create_server(("127.0.0.1", 0)) as silent:
        append(journal, range(2))
        start = time.monotonic()
        assert deliver(journal, path, f"http://127.0.0.1:{silent.getsockname()[1]}/", lines, seconds=1) == 2
        assert time.monotonic() - start < 5
    assert lines[0].startswith("the webhook fails: it does not answer within 0.2 seconds; ")
    with receiving() as receiver:
        assert deliver(journal, path, receiver.url) == 0
    assert receiver.ids == [0, 1]


def test_what_is_no_http_is_a_failure(journal, path, monkeypatch):
    lines = []
    with socket.create_server(("127.0.0.1", 0)) as server:

        def answer():
            client, _ = server.accept()
            client.recv(65536)
            client.sendall(b"\x1b[31mno http\n\n")
            client.close()

        threading.Thread(target=answer, daemon=True).start()
        append(journal, range(1))
        assert deliver(journal, path, f"http://127.0.0.1:{server.getsockname()[1]}/", lines, seconds=0.5) == 1
    assert "no http" in lines[0]


def test_nobody_there_is_a_failure():
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
    with pytest.raises(WebhookError, match="Connection refused"):
        Webhook(f"http://127.0.0.1:{port}/")(b"{}")


def test_the_mark_of_another_journal_does_not_count(journal, path):
    with receiving() as receiver:
        append(journal, range(3))
        assert deliver(journal, path, receiver.url) == 0
        stated = json.loads(posted_path(path).read_text())
        for wrong in (
            "",
            "[]",
            "{}",
            json.dumps(stated | {"last": "f" * 32}),
            json.dumps({**stated, "posted_bytes": 1}),
        ):
            posted_path(path).write_text(wrong)
            receiver.requests.clear()
            assert deliver(journal, path, receiver.url) == 0
            assert receiver.ids == [0, 1, 2]
        receiver.requests.clear()
        assert deliver(journal, path, receiver.url) == 0
        assert receiver.ids == []


def test_a_killed_process_posts_again_at_most_what_was_under_way(journal, path):
    """Killed between the answer and the note of it."""
    with receiving() as receiver:
        append(journal, range(3))
        assert deliver(journal, path, receiver.url) == 0
        before = posted_path(path).read_text()
        append(journal, range(3, 5))
        assert deliver(journal, path, receiver.url) == 0
        posted_path(path).write_text(before)
        assert deliver(journal, path, receiver.url) == 0
    assert receiver.ids == [0, 1, 2, 3, 4, 3, 4]


@pytest.mark.parametrize(
    ("url", "why"),
    [
        ("file:///etc/passwd", "must begin with http"),
        ("ftp://example.org/", "must begin with http"),
        ("example.org", "must begin with http"),
        ("http://", "must begin with http"),
        ("http://[::1/", "is not valid"),
        ("http://example.org:99999/", "is not valid"),
        ("https://me:secret@example.org/", "give a token instead"),
        ("http://example.org/a b", "percent-encoded"),
        ("http://example.org/ü", "percent-encoded"),
        ("http://example.org/\r\nX: y", "percent-encoded"),
    ],
)
def test_addresses_that_cannot_be(url, why):
    with pytest.raises(SettingsError, match=why) as caught:
        Webhook(url)
    assert "secret" not in str(caught.value)


@pytest.mark.parametrize("token", ["", "a\r\nX: y", "ü"])
def test_tokens_that_cannot_be(token):
    with pytest.raises(SettingsError, match="printable ASCII"):
        Webhook("https://example.org/", token)


def test_a_token_without_encryption_is_noticed():
    assert Webhook("http://example.org/", "token").token_is_readable
    assert not Webhook("https://example.org/", "token").token_is_readable
    assert not Webhook("http://example.org/").token_is_readable

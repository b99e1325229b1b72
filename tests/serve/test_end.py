"""The end of the service, and models that must not take over."""

import contextlib
import os
import shutil
import socket
import threading
import time
from dataclasses import replace

import httpx
import numpy as np
import pytest

from dlsr import ArtifactError, Detector, FittedDetector
from dlsr.artifact import read_manifest
from dlsr.serve import connections, server
from dlsr.serve.connections import Connections
from dlsr.serve.models import load_model
from dlsr.serve.service import Service
from dlsr.serve.settings import ServeSettings
from serving import serving

HEADERS = (
    b"POST /v1/score HTTP/1.1\r\nhost: localhost\r\ncontent-type: application/json\r\ncontent-length: 1000\r\n\r\n"
)
SLOW = {
    "nothing": b"",
    "half a head": b"POST /v1/score HTTP/1.1\r\nhost:",
    "no body": HEADERS,
    "half a body": HEADERS + b'{"images": [',
    "body for a page": HEADERS.replace(b"/v1/score", b"/"),
}


@pytest.fixture
def own_model(fitted, tmp_path):
    return shutil.copytree(fitted, tmp_path / "model")


def service_of(model, **limits):
    return Service(model, ServeSettings(**limits), backend="torch")


def connect(url):
    host, port = url.removeprefix("http://").split(":")
    return socket.create_connection((host, int(port)), timeout=60)


@pytest.mark.parametrize("sent", SLOW.values(), ids=SLOW)
def test_slow_clients_do_not_hold_up_the_end(fitted, running, sent):
    with contextlib.ExitStack() as stack:
        with running(service_of(fitted), drain_seconds=0.3) as url:
            clients = [stack.enter_context(connect(url)) for _ in range(8)]
            for client in clients:
                client.sendall(sent)
            time.sleep(0.2)
            start = time.monotonic()
        assert time.monotonic() - start < 8
        if sent.endswith(b"["):
            answers = [client.recv(65536) for client in clients]
            assert all(answer.startswith(b"HTTP/1.1 503") for answer in answers)
            assert all(b"the service is shutting down" in answer for answer in answers)


def test_a_client_that_does_not_read_does_not_hold_up_the_end(fitted, running, monkeypatch):
    made = []
    monkeypatch.setattr(connections, "PIPELINED", 10**9)
    monkeypatch.setattr(server, "Connections", lambda limit: made.append(Connections(limit)) or made[0])
    with contextlib.ExitStack() as stack:
        with running(service_of(fitted)) as url:
            client = stack.enter_context(connect(url))
            while not made[0].are_sending():
                client.sendall(b"GET /page.js HTTP/1.1\r\nhost: localhost\r\n\r\n" * 5)
                time.sleep(0.01)
            start = time.monotonic()
        assert server.SEND_SECONDS <= time.monotonic() - start < server.SEND_SECONDS + 8


def test_sigterm_ends_a_service_with_slow_clients(fitted):
    with serving(fitted, "--backend", "torch", "--drain", "0.5") as service, contextlib.ExitStack() as stack:
        for sent in [*SLOW.values()] * 2:
            stack.enter_context(connect(service.url)).sendall(sent)
        time.sleep(0.3)
        service.terminate()
        assert service.end(10) == (0, "")


def test_a_request_whose_body_arrives_in_the_drain_time_is_answered(fitted, running, odd_folder):
    image = min(odd_folder.iterdir())
    answers = []

    def slowly():
        yield request.content[:100]
        time.sleep(0.5)
        yield request.content[100:]

    request = httpx.Request("POST", "http://x/v1/score", files={"images": (image.name, image.read_bytes())})
    request.read()
    service = service_of(fitted)
    with running(service, drain_seconds=3) as url:
        headers = {"content-type": request.headers["content-type"]}
        options = {"headers": headers, "content": slowly(), "timeout": 60}
        thread = threading.Thread(target=lambda: answers.append(httpx.post(f"{url}/v1/score", **options)))
        thread.start()
        while not service.handling:
            time.sleep(0.01)
    thread.join()
    assert answers[0].status_code == 200


# Models that must not take over


def nan_weights(detector):
    for values in detector._model.scorer.module.state_dict().values():
        if values.is_floating_point():
            values.fill_(float("nan"))


def nan_calibration(detector):
    calibration = detector._model.calibration
    scores = np.full_like(calibration.scores, np.nan)
    detector._model = replace(detector._model, calibration=replace(calibration, scores=scores))


def results_that(outcome):
    def change(detector):
        def results(images):
            if isinstance(outcome, Exception):
                raise outcome
            return [outcome(result) for result in FittedDetector.results(detector, images)]

        detector.results = results

    return change


BROKEN = {
    "nan weights": nan_weights,
    "nan calibration": nan_calibration,
    "scoring fails": results_that(RuntimeError("mat1 and mat2 shapes cannot be multiplied")),
    "infinite scores": results_that(lambda result: replace(result, score=float("inf"))),
    "unreadable": results_that(lambda result: replace(result, score=None, p_value=None, error="bad")),
}


@pytest.fixture(params=BROKEN.values(), ids=BROKEN)
def broken(request, monkeypatch):
    """Once set, models are broken as they are loaded, in a way that loading does not notice."""
    enabled, load = threading.Event(), FittedDetector.load

    def load_broken(*args, **options):
        detector = load(*args, **options)
        if enabled.is_set():
            request.param(detector)
        return detector

    monkeypatch.setattr(FittedDetector, "load", load_broken)
    return enabled


def wait_until(condition):
    deadline = time.monotonic() + 60
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.02)


def test_a_model_that_cannot_score_does_not_take_over(own_model, running, broken, odd_folder):
    service = service_of(own_model, reload_seconds=0.01)
    image = min(odd_folder.iterdir())
    other = Detector.load(own_model, backend="torch", false_alarm_rate=0.5)
    with running(service) as url:
        first = service.model.id
        broken.set()
        other.save(own_model)
        wait_until(lambda: service.reload_error is not None)
        assert "cannot be used" in service.reload_error
        assert "fit it again" in service.reload_error
        answer = httpx.post(f"{url}/v1/score", files={"images": (image.name, image.read_bytes())}, timeout=60)
        assert (answer.status_code, answer.json()["model"]) == (200, first)
        assert httpx.get(f"{url}/v1/model", timeout=60).status_code == 200
        broken.clear()
        other.false_alarm_rate = 0.4
        other.save(own_model)
        wait_until(lambda: service.model.id != first)
        assert service.reload_error is None


def test_a_model_that_is_replaced_while_it_is_loaded_has_its_own_id(own_model, monkeypatch):
    load, other = FittedDetector.load, Detector.load(own_model, backend="torch", false_alarm_rate=0.5)

    def replaced_first(folder, **options):
        monkeypatch.setattr(FittedDetector, "load", load)
        other.save(folder)
        return load(folder, **options)

    monkeypatch.setattr(FittedDetector, "load", replaced_first)
    model = load_model(own_model, "cpu", "torch", 1)
    assert model.detector.false_alarm_rate == 0.5
    assert model.id == read_manifest(own_model).numbers_sha256[:16]


def test_a_model_that_cannot_score_is_not_served(own_model, broken):
    broken.set()
    with pytest.raises(ArtifactError, match=r"cannot be used \(.+\); fit it again"):
        service_of(own_model)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["model.json", "numbers"])
def test_a_pipe_in_the_model_directory_does_not_block_the_end(own_model, name):
    with serving(own_model, "--backend", "torch") as service:
        path = own_model / "model.json" if name == "model.json" else next(own_model.glob("numbers-*"))
        pipe = own_model / "pipe"
        os.mkfifo(pipe)
        pipe.replace(path)
        if name == "numbers":
            os.utime(own_model / "model.json")  # a new model to load
        time.sleep(2)
        description = httpx.get(f"{service.url}/v1/model", timeout=60).json()
        service.terminate()
        status, _ = service.end(20)
    assert status == 0
    if name == "model.json":
        assert "is no regular file" in description["reload_error"]

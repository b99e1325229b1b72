import asyncio
import base64
import io
import shutil
import struct
import threading
import time
import zlib

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image
from starlette.testclient import TestClient

from dlsr import Detector
from dlsr.serve.app import create_app
from dlsr.serve.batching import Batcher, QueueFullError
from dlsr.serve.bodies import read_images
from dlsr.serve.problems import RefusedError
from dlsr.serve.service import Service
from dlsr.serve.settings import ServeSettings

TOKEN = "a long secret"


def png_header(width, height):
    """A PNG that promises more than it holds."""
    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    chunks = b"".join(
        struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))
        for kind, data in ((b"IHDR", header), (b"IDAT", zlib.compress(b"\0" * 100)), (b"IEND", b""))
    )
    return b"\x89PNG\r\n\x1a\n" + chunks


@pytest.fixture(scope="module")
def served_model(tmp_path_factory, image_folder, small_encoder):
    folder = tmp_path_factory.mktemp("served") / "model"
    detector = Detector(**small_encoder, width=32, blocks=2, epochs=2, lr=1e-3, thumbnails=10)
    detector.fit(image_folder).save(folder)
    return folder


@pytest.fixture(scope="module")
def files(odd_folder):
    return sorted(odd_folder.iterdir())


def service_of(model, **limits):
    return Service(model, ServeSettings(**limits), backend="torch")


@pytest.fixture(scope="module")
def client(served_model):
    with TestClient(create_app(service_of(served_model, max_images=8, max_body_bytes=200_000, max_pixels=10_000))) as c:
        yield c


def upload(client, *contents, **options):
    return client.post("/v1/score", files=[("images", one) for one in contents], **options)


def named(path):
    return path.name, path.read_bytes()


def assert_problem(response, status, detail):
    assert response.status_code == status, response.text
    assert response.headers["content-type"] == "application/problem+json"
    problem = response.json()
    assert problem["status"] == status
    assert detail in problem["detail"], problem["detail"]
    assert "\n" not in problem["detail"]


# Scores


def test_scores_are_the_detectors_own_from_a_form_and_from_json(client, served_model, files):
    detector = Detector.load(served_model, backend="torch")
    expected = list(detector.results([str(path) for path in files[:3]]))
    form = upload(client, *(named(path) for path in files[:3])).json()
    listed = [{"name": p.name, "data": base64.b64encode(p.read_bytes()).decode()} for p in files[:3]]
    assert client.post("/v1/score", json={"images": listed}).json() == form
    assert [one["name"] for one in form["images"]] == [path.name for path in files[:3]]
    for one, result in zip(form["images"], expected, strict=True):
        assert one["score"] == pytest.approx(result.score, abs=1e-5)
        assert (one["p_value"], one["is_ood"], one["top_layer"]) == (result.p_value, result.is_ood, result.top_layer)
        assert one["layers"] == pytest.approx(dict(result.layers), abs=1e-4)
        assert one["nearest"] == list(result.nearest)
        assert one["error"] is None
    assert form["threshold"] == detector.threshold_


def test_an_unreadable_image_is_told_of_beside_the_others(client, files):
    answer = upload(client, named(files[0]), ("bad ü.png", b"broken"), ("empty.png", b"")).json()
    assert answer["images"][0]["score"] is not None
    assert answer["images"][1]["name"] == "bad ü.png"
    assert answer["images"][1]["error"] == "not an image, or of an unknown format"
    assert answer["images"][2]["error"] == "empty file"
    response = upload(client, ("a.png", b"broken"), ("b.png", b""))
    assert_problem(response, 422, "none of the 2 images can be read: not an image")
    assert response.json()["images"] == {"a.png": "not an image, or of an unknown format", "b.png": "empty file"}


def test_only_pictures_of_pixels_are_decoded(client):
    buffer = io.BytesIO()
    Image.new("RGB", (9, 9)).save(buffer, "EPS")  # which Pillow would hand to Ghostscript
    assert_problem(upload(client, ("a.png", buffer.getvalue())), 422, "EPS files are not read")


# Limits


def test_too_much_is_refused(client, files):
    assert_problem(upload(client, *[named(files[0])] * 9), 413, "send at most 8 images")
    assert_problem(upload(client, *[named(files[0])] * 20), 413, "send at most 8 images")
    assert_problem(upload(client, ("big.png", b"x" * 300_000)), 413, "the body is over 200000 bytes")
    streamed = client.post(
        "/v1/score",
        content=(b"x" * 50_000 for _ in range(6)),  # without a length
        headers={"content-type": "multipart/form-data; boundary=b"},
    )
    assert_problem(streamed, 413, "the body is over 200000 bytes")
    assert_problem(upload(client, ("b.png", png_header(101, 100))), 413, "'b.png' has 10100 pixels; send at most 10000")
    assert_problem(upload(client, ("b.png", png_header(60_000, 60_000))), 413, "over the limit of 89478485")


@pytest.mark.parametrize(
    ("options", "status", "detail"),
    [
        ({"content": b"x", "headers": {"content-type": "image/png"}}, 415, "not 'image/png'"),
        ({"content": b""}, 415, "not ''"),
        ({"content": b"{", "headers": {"content-type": "application/json"}}, 400, "the JSON is not as it should be"),
        ({"json": {}}, 422, "images: Field required"),
        ({"json": {"images": []}}, 422, "images"),
        ({"json": {"images": [{"data": "%%%"}]}}, 422, "images.0.data is not base64"),
        ({"json": {"images": [{"data": "YQ==", "more": 1}]}}, 422, "images.0.more"),
        ({"json": {"images": [{"data": "ü"}]}}, 422, "images.0.data is not base64"),
        ({"content": b"x", "headers": {"content-type": "multipart/form-data"}}, 400, "the form is malformed"),
        ({"content": b"x", "headers": {"content-type": "multipart/form-data; boundary=b"}}, 400, "malformed"),
        ({"files": [("pictures", ("a.png", b"x"))]}, 422, "the form has 'pictures'"),
        ({"content": b"--b--\r\n", "headers": {"content-type": "multipart/form-data; boundary=b"}}, 422, "no image"),
    ],
)
def test_malformed_requests_get_a_problem_document(client, options, status, detail):
    assert_problem(client.post("/v1/score", **options), status, detail)


def test_unknown_paths_and_methods_are_problems_too(client):
    assert_problem(client.get("/v2"), 404, "Not Found")
    assert_problem(client.get("/v1/score"), 405, "Method Not Allowed")
    assert_problem(client.get("/v1/examples/x"), 422, "path.index")


def test_a_full_queue_says_when_to_come_again(served_model, files, monkeypatch):
    service = service_of(served_model, max_waiting=3, max_batch=1, score_seconds=30)
    go = threading.Event()
    score = service._score
    monkeypatch.setattr(service._batcher, "_function", lambda images: (go.wait(20), score(images))[1])
    with TestClient(create_app(service)) as client:
        answers = []
        threads = [
            threading.Thread(target=lambda: answers.append(upload(client, named(files[0])).status_code))
            for _ in range(5)  # two are scored at once, three wait
        ]
        for thread in threads:
            thread.start()
        deadline = time.monotonic() + 10
        while service.waiting < 3 and time.monotonic() < deadline:
            time.sleep(0.01)
        refused = upload(client, named(files[0]))
        assert_problem(refused, 429, "3 images are waiting already")
        assert int(refused.headers["retry-after"]) >= 1
        assert client.get("/healthz").status_code == 200
        go.set()
        for thread in threads:
            thread.join()
        assert answers == [200] * 5
        assert 'dlsr_rejected_total{reason="queue full"} 1.0' in client.get("/metrics").text


def test_requests_at_once_are_bounded(served_model, files):
    service = service_of(served_model, max_requests=1)
    with TestClient(create_app(service)) as client:
        service.handling = 1
        refused = upload(client, named(files[0]))
        assert_problem(refused, 429, "1 requests are being handled already")
        assert refused.headers["retry-after"]
        assert client.get("/healthz").status_code == 200
        service.handling = 0
        assert upload(client, named(files[0])).status_code == 200


def test_scoring_that_takes_too_long_is_given_up(served_model, files, monkeypatch):
    service = service_of(served_model, score_seconds=0.2)
    monkeypatch.setattr(service._batcher, "_function", lambda images: time.sleep(1))
    with TestClient(create_app(service)) as client:
        refused = upload(client, named(files[0]))
        assert_problem(refused, 503, "not scored within 0.2 seconds")
        assert refused.headers["retry-after"]


def test_a_body_that_does_not_come_is_given_up():
    from fastapi import Request

    async def receive():
        await asyncio.sleep(10)

    scope = {"type": "http", "headers": [(b"content-type", b"application/json")]}
    with pytest.raises(RefusedError, match="did not arrive within") as caught:
        asyncio.run(read_images(Request(scope, receive), ServeSettings(body_seconds=0.05)))
    assert caught.value.status == 408


def test_a_failure_of_the_service_is_a_problem_document_too(served_model, files, monkeypatch):
    service = service_of(served_model)

    def fail(images):
        raise RuntimeError("the engine broke")

    monkeypatch.setattr(service._batcher, "_function", fail)
    with TestClient(create_app(service), raise_server_exceptions=False) as client:
        assert_problem(upload(client, named(files[0])), 500, "the service failed (RuntimeError)")
        assert client.get("/healthz").status_code == 200


# Token


def test_a_token_is_asked_for(served_model, files):
    with TestClient(create_app(service_of(served_model, token=TOKEN))) as client:
        for path in ("/v1/model", "/metrics", "/v1/examples/0"):
            refused = client.get(path)
            assert_problem(refused, 401, "Authorization: Bearer TOKEN")
            assert refused.headers["www-authenticate"] == "Bearer"
        for wrong in ("Bearer wrong", f"Basic {TOKEN}", "Bearer", f"Bearer {TOKEN}x", "Bearer \xff"):
            assert (
                upload(client, named(files[0]), headers={"authorization": wrong.encode("latin-1")}).status_code == 401
            )
        assert upload(client, named(files[0]), headers={"authorization": f"Bearer {TOKEN}"}).status_code == 200
        assert client.get("/metrics", headers={"authorization": f"bearer {TOKEN}"}).status_code == 200
        for path in ("/", "/healthz", "/readyz"):
            assert client.get(path).status_code == 200
        schema = client.get("/openapi.json").json()
        assert schema["paths"]["/v1/score"]["post"]["security"] == [{"token": []}]
    assert TOKEN not in repr(ServeSettings(token=TOKEN))


# The model


def test_the_model_is_described(client, served_model):
    detector = Detector.load(served_model)
    told = client.get("/v1/model").json()
    assert told["layers"] == detector.layer_names_
    assert told["threshold"] == detector.threshold_
    assert (
        sum(told["calibration_histogram"]["counts"]) == len(detector.calibration_scores_) == told["calibration_images"]
    )
    assert told["examples"] == 10
    example = client.get("/v1/examples/3")
    assert example.headers["content-type"] == "image/jpeg"
    assert example.content == detector.examples_.thumbnails[3]
    assert_problem(client.get("/v1/examples/10"), 404, "the model keeps 10 examples")


def test_a_new_model_is_taken_up_and_a_damaged_one_is_not(served_model, files, tmp_path):
    folder = tmp_path / "model"
    shutil.copytree(served_model, folder)
    with TestClient(create_app(service_of(folder, reload_seconds=0.05))) as client:
        first = upload(client, named(files[0])).json()
        detector = Detector.load(folder, backend="torch")
        detector.false_alarm_rate = 0.5
        detector.save(folder)
        deadline = time.monotonic() + 20
        while upload(client, named(files[0])).json()["model"] == first["model"]:
            assert time.monotonic() < deadline
        second = upload(client, named(files[0])).json()
        assert second["false_alarm_rate"] == 0.5
        assert second["threshold"] == detector.threshold_ < first["threshold"]
        (folder / "model.json").write_text("{}")
        while (told := client.get("/v1/model").json())["reload_error"] is None:
            assert time.monotonic() < deadline
        assert "is not of dlsr" in told["reload_error"]
        assert upload(client, named(files[0])).json() == second
        assert 'dlsr_reloads_total{outcome="failed"} 1.0' in client.get("/metrics").text
        detector.save(folder)
        while client.get("/v1/model").json()["reload_error"] is not None:
            assert time.monotonic() < deadline


def test_a_model_of_features_cannot_be_served(features, tmp_path):
    from dlsr import NotFittedError

    Detector(score="mahalanobis").fit_features(features[0]).save(tmp_path / "m")
    with pytest.raises(NotFittedError, match="has no encoder; give a model fitted to images"):
        service_of(tmp_path / "m")


# Metrics and the end


def test_metrics_tell_what_was_judged(served_model, files):
    with TestClient(create_app(service_of(served_model))) as client:
        before = client.get("/metrics").text
        assert "dlsr_drift_p_value NaN" in before
        answers = [upload(client, *(named(path) for path in files[i : i + 10])).json() for i in (0, 10, 20)]
        upload(client, named(files[0]), ("b.png", b""))
        client.get("/v1/examples/1")
        client.get("/some/path")
        lines = dict(line.rsplit(" ", 1) for line in client.get("/metrics").text.splitlines() if line[0] != "#")
        verdicts = [one["is_ood"] for answer in answers for one in answer["images"]]
        again = answers[0]["images"][0]["is_ood"]
        assert float(lines['dlsr_images_total{verdict="ood"}']) == sum(verdicts) + again
        assert float(lines['dlsr_images_total{verdict="unreadable"}']) == 1
        assert float(lines["dlsr_ood_share"]) == pytest.approx((sum(verdicts) + again) / 31)
        assert float(lines["dlsr_score_count"]) == 31
        assert 0 <= float(lines["dlsr_drift_p_value"]) <= 1
        assert np.isfinite(float(lines["dlsr_drift_log10_martingale"]))
        assert float(lines['dlsr_requests_total{path="/v1/score",status="200"}']) == 4
        assert float(lines['dlsr_requests_total{path="/v1/examples",status="200"}']) == 1
        assert float(lines['dlsr_requests_total{path="other",status="404"}']) == 1
        assert any(line.startswith("dlsr_model_info{id=") for line in lines)


def test_a_closing_service_refuses_and_says_so(served_model, files):
    service = service_of(served_model)
    with TestClient(create_app(service)) as client:
        assert client.get("/readyz").json() == {"status": "ready"}
        service.draining = True
        assert_problem(client.get("/readyz"), 503, "shutting down")
        refused = upload(client, named(files[0]))
        assert_problem(refused, 503, "shutting down")
        assert refused.headers["connection"] == "close"
        assert client.get("/healthz").status_code == 200


def test_the_page_needs_nothing_from_elsewhere(client):
    import re

    for path in ("/", "/page.css", "/page.js"):
        response = client.get(path)
        assert response.status_code == 200
        assert "default-src 'self'" in response.headers["content-security-policy"]
        links = re.findall(r"""https?://[^\s"']+""", response.text)
        assert set(links) <= {"http://www.w3.org/2000/svg"}


# Whatever comes in


def test_the_service_keeps_to_its_openapi_schema(client):
    import schemathesis
    from schemathesis.checks import not_a_server_error
    from schemathesis.specs.openapi.checks import (
        content_type_conformance,
        response_schema_conformance,
        status_code_conformance,
    )

    schema = schemathesis.openapi.from_asgi("/openapi.json", client.app)
    checks = [not_a_server_error, content_type_conformance, response_schema_conformance, status_code_conformance]
    for operation in schema.get_all_operations():

        @given(case=operation.ok().as_strategy())
        @settings(max_examples=25, deadline=None, suppress_health_check=list(HealthCheck), database=None)
        def conforms(case):
            case.call_and_validate(checks=checks, session=client)

        conforms()


@given(
    content=st.binary(max_size=400), flips=st.lists(st.tuples(st.integers(0, 3000), st.integers(0, 255)), max_size=6)
)
@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture], database=None)
def test_no_image_and_no_body_makes_the_service_fail(client, files, content, flips):
    damaged = bytearray(files[0].read_bytes())
    for place, value in flips:
        damaged[place % len(damaged)] = value
    answer = upload(client, ("noise", content), ("damaged.png", bytes(damaged)))
    assert answer.status_code in (200, 413, 422)
    for kind in ("application/json", "multipart/form-data; boundary=b"):
        assert 400 <= client.post("/v1/score", content=content, headers={"content-type": kind}).status_code < 500


# Batches


def batched(function, calls, **options):
    async def run():
        batcher = Batcher(function, **{"max_batch": 4, "max_wait": 0.02, "max_waiting": 100} | options)
        batcher.start()
        try:
            return await calls(batcher)
        finally:
            await batcher.stop()

    return asyncio.run(run())


def test_callers_get_their_own_outputs_and_share_batches():
    sizes = []

    def double(items):
        sizes.append(len(items))
        return [2 * item for item in items]

    async def calls(batcher):
        return await asyncio.gather(*(batcher.submit([i, i + 100]) for i in range(10)))

    assert batched(double, calls) == [[2 * i, 2 * i + 200] for i in range(10)]
    assert sum(sizes) == 20
    assert max(sizes) == 4


def test_a_failure_reaches_its_callers_and_no_others():
    def function(items):
        if 13 in items:
            raise ValueError("unlucky")
        return items

    async def calls(batcher):
        return await asyncio.gather(*(batcher.submit([i]) for i in range(12, 16)), return_exceptions=True)

    found = batched(function, calls, max_batch=1)
    assert isinstance(found[1], ValueError)
    assert [found[i] for i in (0, 2, 3)] == [[12], [14], [15]]


def test_who_has_gone_is_not_scored_and_the_queue_is_bounded():
    go, seen = threading.Event(), []

    def function(items):
        go.wait(10)
        seen.extend(items)
        return items

    async def calls(batcher):
        first = [asyncio.create_task(batcher.submit([i])) for i in (1, 2)]
        await asyncio.sleep(0.1)
        gone, kept = asyncio.create_task(batcher.submit([3])), asyncio.create_task(batcher.submit([4]))
        await asyncio.sleep(0.05)
        assert batcher.waiting == 2
        with pytest.raises(QueueFullError):
            await batcher.submit([5])
        gone.cancel()
        go.set()
        return [await task for task in (*first, kept)]

    assert batched(function, calls, max_batch=1, max_waiting=2) == [[1], [2], [4]]
    assert sorted(seen) == [1, 2, 4]

import asyncio
import base64
import io
import re
import shutil
import struct
import threading
import time
import zlib
from contextlib import contextmanager

import pytest
import schemathesis
from fastapi import Request
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image
from schemathesis.checks import not_a_server_error
from schemathesis.specs.openapi.checks import (
    content_type_conformance,
    response_schema_conformance,
    status_code_conformance,
)
from starlette import testclient

from dlsr import Detector, NotFittedError
from dlsr.serve.app import create_app
from dlsr.serve.bodies import Bodies
from dlsr.serve.problems import RefusedError
from dlsr.serve.service import Service, _Decoded
from dlsr.serve.settings import ServeSettings

TOKEN = "a long secret"


def png_header(width, height):
    """A PNG whose header claims more pixels than it holds."""
    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    chunks = b"".join(
        struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))
        for kind, data in ((b"IHDR", header), (b"IDAT", zlib.compress(b"\0" * 100)), (b"IEND", b""))
    )
    return b"\x89PNG\r\n\x1a\n" + chunks


@pytest.fixture
def own_model(fitted, tmp_path):
    """A model directory that the test may change."""
    return shutil.copytree(fitted, tmp_path / "model")


@pytest.fixture(scope="module")
def files(odd_folder):
    return sorted(odd_folder.iterdir())


def service_of(model, **limits):
    return Service(model, ServeSettings(**limits), backend="torch")


@pytest.fixture(scope="module")
def client(fitted):
    with client_of(limited_service(fitted)) as client:
        yield client


def client_of(service, **options):
    return testclient.TestClient(create_app(service), base_url="http://localhost", **options)


def limited_service(model, **limits):
    return service_of(model, max_images=8, max_body_bytes=200_000, max_pixels=10_000, **limits)


def upload(client, *images, **options):
    return client.post("/v1/score", files=[("images", image) for image in images], **options)


@pytest.fixture(scope="module")
def explaining(explaining_model):
    with client_of(service_of(explaining_model)) as client:
        yield client


def test_reasons_are_given_when_asked_for(explaining, refused_folder):
    names = ("noise/noise-00.png", "red/red-00.png", "broken.png", "temple/temple-00.png")
    files = [("images", (name, (refused_folder / name).read_bytes())) for name in names]
    plain = explaining.post("/v1/score", files=files).json()["images"]
    asked = explaining.post("/v1/score?reasons=true", files=files).json()["images"]
    assert [image["reasons"] for image in plain] == [None] * 4
    assert explaining.post("/v1/score?reasons=false", files=files).json()["images"] == plain
    noise, red, broken, temple = (image["reasons"] for image in asked)
    assert {"name": "side", "direction": "high", "words": "very large", "value": 200.0} in [
        {key: reason[key] for key in ("name", "direction", "words", "value")} for reason in noise
    ]
    assert all(0 < reason["p_value"] < 0.05 for reason in noise + red)
    assert (broken, temple) == (None, [])
    for image, other in zip(plain, asked, strict=True):
        assert other | {"reasons": None} == image


@pytest.mark.parametrize("query", ["reasons=maybe", "reasons=", "reasons=true&reasons=true"])
def test_another_value_of_the_parameter_is_refused(explaining, files, query):
    answer = explaining.post(f"/v1/score?{query}", files=[("images", files[0].read_bytes())])
    assert answer.status_code == 422
    assert answer.json()["detail"] == "the parameter 'reasons' is given once, as true or false"


def test_a_model_that_can_give_no_reasons_says_why(client, explaining, files):
    assert explaining.get("/v1/model").json()["no_reasons"] is None
    assert "properties of 120 ID images are too few" in client.get("/v1/model").json()["no_reasons"]
    answer = client.post("/v1/score?reasons=true", files=[("images", files[0].read_bytes())])
    assert answer.json()["images"][0]["reasons"] is None


def test_maps_are_given_when_asked_for(model_with_maps, files):
    uploads = [("images", ("odd.png", files[0].read_bytes())), ("images", ("broken.png", b"no image"))]
    with client_of(service_of(model_with_maps)) as client:
        assert client.get("/v1/model").json()["maps"]
        plain = client.post("/v1/score", files=uploads).json()["images"]
        odd, broken = client.post("/v1/score?maps=true", files=uploads).json()["images"]
        assert client.post("/v1/score?maps=perhaps", files=uploads).status_code == 422
    assert [image["map"] for image in plain] == [None, None]
    assert broken["map"] is None
    with Image.open(io.BytesIO(base64.b64decode(odd["map"]))) as overlay:
        assert (overlay.format, overlay.mode, overlay.size) == ("PNG", "RGBA", (112, 112))
    assert odd | {"map": None} == plain[0]


def test_an_error_of_maps_is_only_that_of_the_images_that_ask_for_them(model_with_maps, files, monkeypatch):
    service = service_of(model_with_maps)
    monkeypatch.setattr(service.model.detector, "detect_with_maps", lambda images: 1 / 0)
    with Image.open(files[0]) as image:
        image.load()
    asked = [_Decoded(service.model, f"{i}.png", image, with_map) for i, with_map in enumerate([True, False, True])]
    failed, (result, overlay), failed_too = service._score(asked)
    assert isinstance(failed, ZeroDivisionError)
    assert isinstance(failed_too, ZeroDivisionError)
    assert (result.path, result.error, overlay) == ("1.png", None, None)


def test_a_model_without_maps_gives_none(client, files):
    assert not client.get("/v1/model").json()["maps"]
    answer = client.post("/v1/score?maps=true", files=[("images", files[0].read_bytes())])
    assert answer.json()["images"][0]["map"] is None


def wait_until(condition):
    """Wait for something that happens soon; the limit is for a broken service on a slow machine."""
    deadline = time.monotonic() + 120
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.01)


@contextmanager
def uploads(client, images, answers):
    """Requests in threads of their own, which end with the block."""
    threads = [threading.Thread(target=lambda image=image: answers.append(upload(client, image))) for image in images]
    for thread in threads:
        thread.start()
    yield
    for thread in threads:
        thread.join()


def metrics_of(client):
    lines = client.get("/metrics").text.splitlines()
    return {name: float(value) for name, value in (line.rsplit(" ", 1) for line in lines if not line.startswith("#"))}


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


def test_scores_are_those_of_the_detector_from_a_form_and_from_json(client, fitted, files):
    detector = Detector.load(fitted, backend="torch")
    expected = list(detector.results([str(path) for path in files[:3]]))
    form = upload(client, *(named(path) for path in files[:3])).json()
    listed = [{"name": p.name, "data": base64.b64encode(p.read_bytes()).decode()} for p in files[:3]]
    assert client.post("/v1/score", json={"images": listed}).json() == form
    assert [image["name"] for image in form["images"]] == [path.name for path in files[:3]]
    for image, result in zip(form["images"], expected, strict=True):
        assert image["score"] == pytest.approx(result.score, abs=1e-5)
        assert image["p_value"] == result.p_value
        assert (image["is_ood"], image["top_layer"]) == (result.is_ood, result.top_layer)
        assert image["layers"] == pytest.approx(dict(result.layers), abs=1e-4)
        assert image["nearest"] == list(result.nearest)
        assert image["error"] is None
    assert form["threshold"] == detector.threshold_


def test_an_unreadable_image_is_an_error_in_its_place(client, files):
    answer = upload(client, named(files[0]), ("bad ü.png", b"broken"), ("empty.png", b"")).json()
    assert answer["images"][0]["score"] is not None
    assert answer["images"][1]["name"] == "bad ü.png"
    assert answer["images"][1]["error"] == "not an image, or of an unknown format"
    assert answer["images"][2]["error"] == "empty file"
    response = upload(client, ("a.png", b"broken"), ("b.png", b""))
    assert_problem(response, 422, "none of the 2 images can be read: not an image")
    assert response.json()["images"] == {"a.png": "not an image, or of an unknown format", "b.png": "empty file"}


def test_eps_files_are_not_decoded(client):
    buffer = io.BytesIO()
    Image.new("RGB", (9, 9)).save(buffer, "EPS")  # Pillow would run Ghostscript on it
    assert_problem(upload(client, ("a.png", buffer.getvalue())), 422, "EPS files are not read")


# Limits


def test_requests_over_the_limits_are_refused(client, files):
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
        ({"content": b"{", "headers": {"content-type": "application/json"}}, 400, "the JSON body is invalid"),
        ({"json": {}}, 422, "images: Field required"),
        ({"json": {"images": []}}, 422, "images"),
        ({"json": {"images": [{"data": "%%%"}]}}, 422, "images.0.data is not base64"),
        ({"json": {"images": [{"data": "YQ==", "more": 1}]}}, 422, "images.0.more"),
        ({"json": {"images": [{"data": "ü"}]}}, 422, "images.0.data is not base64"),
        ({"content": b"x", "headers": {"content-type": "multipart/form-data"}}, 400, "the form is malformed"),
        ({"content": b"x", "headers": {"content-type": "multipart/form-data; boundary=b"}}, 400, "malformed"),
        ({"files": [("pictures", ("a.png", b"x"))]}, 422, "the form has 'pictures'"),
        (
            {"content": b"--b\r\nx: y\r\n\r\n", "headers": {"content-type": "multipart/form-data; boundary=b"}},
            400,
            "end with its boundary",
        ),
        (
            {
                "content": b"--b\r\nx: y\r\n\r\n\r\n--b--",
                "headers": {"content-type": "multipart/form-data; boundary=b"},
            },
            400,
            "no Content-Disposition",
        ),
        ({"data": {"images": "text"}, "files": [("images", ("a.png", b"x"))]}, 422, "send files in the field"),
        ({"content": b"--b--\r\n", "headers": {"content-type": "multipart/form-data; boundary=b"}}, 422, "no image"),
    ],
)
def test_malformed_requests_get_a_problem_document(client, options, status, detail):
    assert_problem(client.post("/v1/score", **options), status, detail)


def test_unknown_paths_and_methods_get_a_problem_document(client):
    assert_problem(client.get("/v2"), 404, "Not Found")
    assert_problem(client.get("/v1/score"), 405, "Method Not Allowed")
    assert_problem(client.get("/v1/examples/x"), 422, "path.index")


def test_a_full_queue_refuses_with_retry_after(fitted, files, monkeypatch):
    service = service_of(fitted, max_waiting=3, max_batch=1)
    go, started, score = threading.Event(), [], service._score

    def wait_and_score(images):
        started.append(images)
        go.wait(120)
        return score(images)

    monkeypatch.setattr(service._batcher, "_function", wait_and_score)
    image, answers = named(files[0]), []
    with client_of(service) as client, uploads(client, [image] * 2, answers):
        wait_until(lambda: len(started) == 2)
        with uploads(client, [image] * 3, answers):
            wait_until(lambda: service.waiting == 3)
            refused = upload(client, image)
            assert_problem(refused, 429, "3 images are waiting already")
            assert int(refused.headers["retry-after"]) >= 1
            assert client.get("/healthz").status_code == 200
            assert metrics_of(client)["dlsr_waiting_images"] == 3
            go.set()
        assert metrics_of(client)['dlsr_rejected_total{reason="queue full"}'] == 1
    assert [answer.status_code for answer in answers] == [200] * 5


def test_concurrent_requests_are_limited(fitted, files):
    service = service_of(fitted, max_requests=1)
    with client_of(service) as client:
        service.handling = 1
        refused = upload(client, named(files[0]))
        assert_problem(refused, 429, "1 requests are being handled already")
        assert refused.headers["retry-after"]
        assert client.get("/healthz").status_code == 200
        service.handling = 0
        assert upload(client, named(files[0])).status_code == 200


def test_scoring_that_takes_too_long_is_refused_with_retry_after(fitted, files, monkeypatch):
    service = service_of(fitted, score_seconds=0.05)
    go = threading.Event()
    monkeypatch.setattr(service._batcher, "_function", lambda images: go.wait(120))
    with client_of(service) as client:
        refused = upload(client, named(files[0]))
        go.set()
        assert_problem(refused, 503, "not scored within 0.05 seconds")
        assert refused.headers["retry-after"]


def test_a_body_that_does_not_arrive_is_refused():
    async def receive():
        await asyncio.Event().wait()

    scope = {"type": "http", "headers": [(b"content-type", b"application/json")]}
    bodies = Bodies(ServeSettings(body_seconds=0.05))
    with pytest.raises(RefusedError, match="did not arrive within") as caught, bodies.hold() as body:
        asyncio.run(body.read(Request(scope, receive)))
    assert caught.value.status == 408


def test_an_error_in_the_service_is_a_problem_document(fitted, files, monkeypatch):
    service = service_of(fitted)

    def fail(images):
        raise RuntimeError("the engine broke")

    monkeypatch.setattr(service._batcher, "_function", fail)
    with client_of(service, raise_server_exceptions=False) as client:
        assert_problem(upload(client, named(files[0])), 500, "the service failed (RuntimeError)")
        assert client.get("/healthz").status_code == 200


# Token


def test_a_token_is_required(fitted, files):
    with client_of(service_of(fitted, token=TOKEN)) as client:
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


# Pages elsewhere


@pytest.mark.parametrize(
    ("host", "options"),
    [
        ("localhost", {}), ("localhost:8000", {}), ("127.0.0.1:8000", {}), ("[::1]:8000", {}), ("10.0.0.5", {}),
        ("dlsr.example", {}), ("DLSR.example.:8000", {}),
        ("localhost:8000", {"origin": "http://localhost:8000"}), ("[::1]:8000", {"origin": "http://[::1]:8000"}),
        ("dlsr.example", {"origin": "https://dlsr.example"}), ("127.0.0.1", {"origin": "https://dlsr.example"}),
    ],
)  # fmt: skip
def test_requests_under_a_name_of_the_service_are_answered(fitted, host, options):
    with client_of(service_of(fitted, hosts=["dlsr.Example"])) as client:
        assert client.get("/v1/model", headers={"host": host, **options}).status_code == 200


@pytest.mark.parametrize(
    "host", ["evil.example", "evil.example:8000", "localhost.evil.example", "127.0.0.1.evil.example", ""]
)
@pytest.mark.parametrize("path", ["/", "/v1/model", "/v1/model/", "/v1/examples/0", "/healthz"])
def test_requests_under_another_name_are_refused(client, host, path):
    refused = client.get(path, headers={"host": host}, follow_redirects=False)
    assert_problem(refused, 421, "is no name of this service; if it is one, start it with --allow-host")
    assert "location" not in refused.headers


@pytest.mark.parametrize(
    "origin",
    ["http://evil.example", "null", "http://localhost:3000", "http://[", "http://localhost:8000.evil.example", ""],
)
def test_requests_of_pages_elsewhere_are_refused(client, files, origin):
    headers = {"host": "localhost:8000", "origin": origin}
    assert_problem(upload(client, named(files[0]), headers=headers), 403, "may not use this service")
    assert metrics_of(client)['dlsr_rejected_total{reason="origin"}'] >= 1


def test_no_path_redirects(client):
    for path in ("/v1/model/", "/healthz/", "/page.js/"):
        assert_problem(client.get(path, follow_redirects=False), 404, "Not Found")


def test_pages_elsewhere_cannot_embed_any_answer(client, files):
    answers = [client.get(path) for path in ("/", "/page.js", "/v1/examples/0", "/none", "/metrics")]
    for answer in (*answers, upload(client, named(files[0])), upload(client, ("a.png", b"x"))):
        assert answer.headers["cross-origin-resource-policy"] == "same-origin"
        assert answer.headers["x-content-type-options"] == "nosniff"
    assert answers[2].headers["cache-control"] == "no-store"


# The model


def test_the_model_is_described(client, fitted):
    detector = Detector.load(fitted)
    description = client.get("/v1/model").json()
    assert description["layers"] == list(detector.layer_names_)
    assert description["threshold"] == detector.threshold_
    assert description["calibration_images"] == len(detector.calibration_scores_)
    assert sum(description["calibration_histogram"]["counts"]) == len(detector.calibration_scores_)
    for rate, threshold in description["thresholds"]:
        assert threshold == detector.calibration_.threshold(rate, None)
    rates = [rate for rate, _ in description["thresholds"]]
    assert rates == sorted({description["smallest_rate"], 0.05, 0.5, *rates})
    assert description["smallest_rate"] == detector.calibration_.table(None)[1].min()
    assert (description["confidence"], description["rate_in_doubt"]) == (None, None)
    assert description["examples"] == 10
    example = client.get("/v1/examples/3")
    assert example.headers["content-type"] == "image/jpeg"
    assert example.content == detector.examples_.thumbnails[3]
    assert_problem(client.get("/v1/examples/10"), 404, "the model keeps 10 examples")


def replace_file(path, text):
    """Replace a file in one step, so that a reader finds the old file or the new file."""
    new = path.with_name("new")
    new.write_text(text)
    new.replace(path)


def test_a_new_model_is_loaded_and_a_damaged_model_is_not(own_model, files):
    with client_of(service_of(own_model, reload_seconds=0.01)) as client:
        first = upload(client, named(files[0])).json()
        detector = Detector.load(own_model, backend="torch", false_alarm_rate=0.5)
        detector.save(own_model)
        wait_until(lambda: client.get("/v1/model").json()["model"] != first["model"])
        second = upload(client, named(files[0])).json()
        assert second["false_alarm_rate"] == 0.5
        assert second["threshold"] == detector.threshold_ < first["threshold"]
        replace_file(own_model / "model.json", "{}")
        wait_until(lambda: client.get("/v1/model").json()["reload_error"] is not None)
        assert "is not of dlsr" in client.get("/v1/model").json()["reload_error"]
        assert upload(client, named(files[0])).json() == second
        assert metrics_of(client)['dlsr_reloads_total{outcome="failed"}'] == 1
        detector.save(own_model)
        wait_until(lambda: client.get("/v1/model").json()["reload_error"] is None)


def test_scores_of_the_old_model_do_not_count_for_the_new_model(own_model, files, monkeypatch):
    service = service_of(own_model, reload_seconds=0.01)
    go, started = threading.Event(), threading.Event()
    old, score = service.model, service.model.detector.results

    def wait_and_score(images):
        started.set()
        go.wait(120)
        return score(images)

    monkeypatch.setattr(old.detector, "results", wait_and_score)
    answers = []
    with client_of(service) as client:
        with uploads(client, [named(files[0])], answers):
            started.wait(120)
            Detector.load(own_model, backend="torch", false_alarm_rate=0.5).save(own_model)
            wait_until(lambda: client.get("/v1/model").json()["model"] != old.id)
            go.set()
        assert answers[0].json()["model"] == old.id
        found = metrics_of(client)
        assert found["dlsr_score_count"] == 0
        assert found["dlsr_drift_log10_martingale"] == pytest.approx(0)
        assert sum(value for name, value in found.items() if name.startswith("dlsr_images_total{")) == 1
        assert upload(client, named(files[0])).json()["model"] != old.id
        assert metrics_of(client)["dlsr_score_count"] == 1


def test_a_model_of_features_cannot_be_served(features, tmp_path):
    Detector(score="mahalanobis").fit_features(features[0]).save(tmp_path / "m")
    with pytest.raises(NotFittedError, match="has no encoder; give a model fitted to images"):
        service_of(tmp_path / "m")


# Metrics and shutdown


def test_metrics_count_requests_images_and_scores(fitted, files):
    with client_of(service_of(fitted)) as client:
        answers = [upload(client, *map(named, files[i : i + 10])).json() for i in (0, 10, 20)]
        upload(client, named(files[0]), ("b.png", b""))
        client.get("/v1/examples/1")
        client.get("/some/path")
        found = metrics_of(client)
        ood = sum(image["is_ood"] for answer in answers for image in answer["images"])
        ood += answers[0]["images"][0]["is_ood"]
        assert found['dlsr_images_total{verdict="ood"}'] == ood
        assert found['dlsr_images_total{verdict="unreadable"}'] == 1
        assert found["dlsr_ood_share"] == pytest.approx(ood / 31)
        assert found["dlsr_score_count"] == 31
        assert 0 <= found["dlsr_drift_p_value"] <= 1
        assert found['dlsr_requests_total{path="/v1/score",status="200"}'] == 4
        assert found['dlsr_requests_total{path="/v1/examples",status="200"}'] == 1
        assert found['dlsr_requests_total{path="other",status="404"}'] == 1


def test_a_service_that_shuts_down_refuses_requests(fitted, files):
    service = service_of(fitted)
    with client_of(service) as client:
        assert client.get("/readyz").json() == {"status": "ready"}
        service.draining = True
        assert_problem(client.get("/readyz"), 503, "shutting down")
        refused = upload(client, named(files[0]))
        assert_problem(refused, 503, "shutting down")
        assert refused.headers["connection"] == "close"
        assert client.get("/healthz").status_code == 200


def test_the_page_loads_nothing_from_other_hosts(client):
    for path in ("/", "/page.css", "/page.js"):
        response = client.get(path)
        assert response.status_code == 200
        assert "default-src 'self'" in response.headers["content-security-policy"]
        links = re.findall(r"""https?://[^\s"']+""", response.text)
        assert set(links) <= {"http://www.w3.org/2000/svg"}


# Any input


def test_answers_conform_to_the_openapi_schema(fitted):
    app = create_app(limited_service(fitted, hosts=["testserver"]))
    schema = schemathesis.openapi.from_asgi("/openapi.json", app)
    checks = [not_a_server_error, content_type_conformance, response_schema_conformance, status_code_conformance]
    for operation in schema.get_all_operations():

        @given(case=operation.ok().as_strategy())
        @settings(max_examples=25, deadline=None, suppress_health_check=list(HealthCheck), database=None)
        def conforms(case):
            case.call_and_validate(checks=checks)

        conforms()


@given(
    content=st.binary(max_size=400), flips=st.lists(st.tuples(st.integers(0, 3000), st.integers(0, 255)), max_size=6)
)
@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture], database=None)
def test_random_images_and_bodies_are_never_a_server_error(client, files, content, flips):
    damaged = bytearray(files[0].read_bytes())
    for place, value in flips:
        damaged[place % len(damaged)] = value
    answer = upload(client, ("noise", content), ("damaged.png", bytes(damaged)))
    assert answer.status_code in (200, 413, 422)
    for kind in ("application/json", "multipart/form-data; boundary=b"):
        assert 400 <= client.post("/v1/score", content=content, headers={"content-type": kind}).status_code < 500

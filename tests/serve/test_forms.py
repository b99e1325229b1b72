import time

import httpx
import pytest

from dlsr.serve.forms import images_of_form, images_of_json
from dlsr.serve.problems import RefusedError

FORM = "multipart/form-data; boundary=b"
PART = b'--b\r\ncontent-disposition: form-data; name="images"; filename="a.png"\r\n'


@pytest.mark.parametrize("name", ["a.png", "bad ü.png", 'quo"ted.png', "semi; colon=.png", "/folder/a.png"])
def test_the_files_of_a_form_are_what_was_sent(name):
    contents = [b"", b"\r\n--", b"\r\n\r\nx\r\n", bytes(range(256)) * 9]
    request = httpx.Request("POST", "http://x", files=[("images", (name, content)) for content in contents])
    images = images_of_form(request.headers["content-type"], bytearray(request.read()), 9)
    assert [content for _, content in images] == contents
    assert {found for found, _ in images} == {name.replace('"', "%22")}  # as browsers send it


def refusal_of(function, *arguments):
    """The status of a refusal that takes less than three seconds, though the body is large."""
    start = time.perf_counter()
    with pytest.raises(RefusedError) as caught:
        function(*arguments)
    assert time.perf_counter() - start < 3
    return caught.value.status


@pytest.mark.parametrize(
    ("body", "status"),
    [
        (PART + b"\r\n" + b"\r\n--" * 2_000_000, 400),
        (PART + b"\r\n" + b"\r" * 8_000_000, 400),
        (PART + b"x: y\r\n" * 1_000_000 + b"\r\n--b--", 400),
        (b"--b\r\n" + b"x" * 8_000_000 + b"\r\n--b--", 400),
        ((PART + b"\r\n\r\n") * 100_000 + b"--b--", 413),
        (b"--b" + b"\r\n--" * 2_000_000, 400),
    ],
)
def test_a_form_takes_time_in_proportion_to_its_size(body, status):
    assert refusal_of(images_of_form, FORM, bytearray(body), 64) == status


@pytest.mark.parametrize("value", [b"{}", b"[]", b"0", b'""', b'{"data": ""}', b'{"a": {"a": {}}}'])
def test_a_json_body_of_many_values_is_refused_before_it_is_parsed(value):
    body = b'{"images": [' + b",".join([value] * (16 * 2**20 // len(value + b","))) + b"]}"
    assert refusal_of(images_of_json, bytearray(body), 64) == 413


@pytest.mark.parametrize(
    "body", [b"[" * 16_000, b'{"images": ' * 5_000, b"1" * 2**24, b'"' + b"\\u0041" * 2_000_000 + b'"']
)
def test_other_large_json_bodies_are_refused_quickly(body):
    assert refusal_of(images_of_json, bytearray(body), 64) in (400, 413, 422)


def test_names_may_have_any_characters():
    names = ["{" * 255, "[" * 255, "," * 255, ":" * 255] * 16
    body = ",".join(f'{{"name": "{name}", "data": "YQ=="}}' for name in names)
    images = images_of_json(bytearray(f'{{"images": [{body}]}}'.encode()), 64)
    assert images == [(name, b"a") for name in names]

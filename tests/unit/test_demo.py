"""The demo's server, asked as browsers and others may ask it; test_demo.py of integration looks."""

import base64
import http.client
import io
import json
import socket
import struct
import threading

import numpy as np
import pytest
from PIL import Image

from jaxattn import overlays
from jaxattn.demo import answer, server
from jaxattn.demo.server import Server
from jaxattn.errors import InputError
from tests.runs import untrained


@pytest.fixture(scope="module")
def serving(make_config, tmp_path_factory):
    """A server of a run of random weights with Grad-CAM."""
    config = make_config()
    config.evaluation.grad_cam = "Conv_0"
    run = untrained(tmp_path_factory.mktemp("demo") / "run", config, names=("<b>", "b", "c"))
    with Server(run, port=0) as serving:
        thread = threading.Thread(target=serving.serve_forever, args=(0.05,))
        thread.start()
        yield serving
        serving.shutdown()
        thread.join()


def ask(serving, method, path, body=None, **headers):
    """Status, headers and content of a reply; underscores in the names of headers are hyphens."""
    connection = http.client.HTTPConnection("127.0.0.1", serving.server_port, timeout=60)
    headers = {name.replace("_", "-"): value for name, value in headers.items()}
    try:
        connection.request(method, path, body, headers)
        reply = connection.getresponse()
        return reply.status, reply.headers, reply.read()
    finally:
        connection.close()


def encoded(image, kind="PNG", **options):
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    return buffer.getvalue()


def pixels(uri):
    with Image.open(io.BytesIO(base64.b64decode(uri.partition(",")[2]))) as image:
        return np.asarray(image)


PHOTO = Image.fromarray(np.random.default_rng(0).integers(0, 256, (30, 45, 3), np.uint8)).resize(
    (900, 600)
)


def test_an_image_is_answered_with_what_the_run_predicts(serving):
    data = encoded(PHOTO)
    status, _, content = ask(serving, "POST", "/classify", data)
    assert status == 200
    found = json.loads(content)
    probabilities, maps = serving.run.predict([data])
    wanted = dict(zip(serving.run.class_names, probabilities[0].tolist(), strict=True))
    assert dict(found["probabilities"]) == pytest.approx(wanted)
    assert found["probabilities"] == sorted(found["probabilities"], key=lambda each: -each[1])
    assert found["predicted"] == max(wanted, key=wanted.get)
    assert pixels(found["image"]).shape == (480, 720, 3)
    assert [each["title"] for each in found["maps"]] == ["Attention", "Grad-CAM"]
    drawn = overlays.colour(overlays.heatmap(maps["attention"][0], 480, 720))
    np.testing.assert_array_equal(pixels(found["maps"][0]["src"]), drawn)
    assert found["maps"][0]["note"].startswith("16 × 16 positions, 2 heads summed, largest value")


def test_the_part_that_the_model_sees_is_shown(make_config, tmp_path):
    """Of an upright photograph the middle, whichever way it was stored."""
    config = make_config()
    config.dataset.centre_crop = 0.5
    config.crops.update(strategy="random", size=16)  # the middle half of 32 pixels
    run = untrained(tmp_path / "run", config)
    marked = np.zeros((400, 600, 3), np.uint8)
    marked[150:250, 250:350] = 255  # the middle half of the middle square of half of 400
    turned = Image.fromarray(np.rot90(marked).copy())
    exif = Image.Exif()
    exif[274] = 6
    shown = pixels(answer.answer(run, encoded(turned, "JPEG", exif=exif, quality=100))["image"])
    assert shown.shape == (100, 100, 3)
    assert shown[3:-3, 3:-3].min() > 250


REFUSED = [
    (b"hello", 415, "This is no image, or a damaged one."),
    (b"", 415, "This is no image, or a damaged one."),
    (b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n", 415, "This is no image"),
    (encoded(PHOTO)[:2000], 415, "cannot be decoded"),
    (encoded(Image.new("1", (9000, 8000))), 415, "at most 64 megapixels, got one of 9000 × 8000"),
    (bytes(answer.MAX_BYTES + 1), 413, "32 MB are allowed"),
]


@pytest.mark.parametrize(("data", "code", "message"), REFUSED)
def test_what_is_no_image_or_too_large_is_refused_politely(serving, data, code, message):
    status, headers, content = ask(serving, "POST", "/classify", data)
    assert status == code
    assert headers["Content-Type"] == "application/json"
    assert message in json.loads(content)["error"]
    assert b"Traceback" not in content


def test_a_request_without_or_with_a_wrong_length(serving):
    for length, code in (("x", 411), ("-1", 411), ("9" * 30, 411)):
        status, _, _ = ask(serving, "POST", "/classify", Content_Length=length)
        assert status == code
    status, _, _ = ask(serving, "POST", "/classify", iter([b"chunk"]), Transfer_Encoding="chunked")
    assert status == 411


ORIGIN = "http://127.0.0.1:{port}"


@pytest.mark.parametrize(
    ("headers", "code"),
    [
        ({"Host": "127.0.0.1:{port}", "Origin": ORIGIN, "Sec_Fetch_Site": "same-origin"}, 200),
        ({"Host": "localhost:{port}"}, 200),
        ({"Host": "localhost:9999"}, 200),  # a tunnel
        ({"Host": "rebound.example:{port}"}, 421),
        ({"Host": "127.0.0.1.rebound.example"}, 421),
        ({"Host": "0.0.0.0:{port}"}, 421),
        ({"Host": "[::1"}, 421),
        ({"Host": ""}, 421),
        ({"Host": "127.0.0.1:{port}", "Origin": "http://other.example"}, 403),
        ({"Host": "127.0.0.1:{port}", "Origin": "null"}, 403),
        ({"Host": "127.0.0.1:{port}", "Origin": "http://127.0.0.1:1"}, 403),
        ({"Host": "127.0.0.1:{port}", "Sec_Fetch_Site": "cross-site"}, 403),
    ],
)
def test_only_our_own_page_may_ask(serving, headers, code):
    filled = {name: value.format(port=serving.server_port) for name, value in headers.items()}
    assert ask(serving, "GET", "/", **filled)[0] == code
    assert ask(serving, "POST", "/classify", encoded(PHOTO), **filled)[0] == code


def test_every_reply_has_the_headers_and_names_no_other_server(serving):
    for method, path, code in [
        ("GET", "/", 200), ("GET", "/demo.css", 200), ("GET", "/demo.js", 200),
        ("GET", "/../demo.js", 404), ("GET", "/server.py", 404), ("POST", "/", 404),
        ("DELETE", "/", 501), ("HEAD", "/", 501),
    ]:  # fmt: skip
        status, headers, content = ask(serving, method, path, b"" if method == "POST" else None)
        assert (status, path) == (code, path)
        assert {name: headers[name] for name in server.HEADERS} == server.HEADERS
        assert headers["Server"] == "jaxattn"
        assert "Set-Cookie" not in headers
        assert b"//" not in content.replace(b"http://www.w3.org", b"").replace(b"// ", b"")


def test_a_browser_that_goes_away_is_no_error(serving, capfd):
    with socket.create_connection(("127.0.0.1", serving.server_port)) as connection:
        connection.sendall(b"POST /classify HTTP/1.0\r\nContent-Length: 9\r\n\r\nhalf")
        linger = struct.pack("ii", 1, 0)  # closing resets the connection
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, linger)
    assert ask(serving, "GET", "/")[0] == 200
    assert capfd.readouterr().err == ""


def test_the_page_says_what_the_card_says_and_escapes_names(serving):
    page = serving.page.decode()
    assert "not a medical device" in page
    assert "It was not evaluated" in page
    assert "&lt;b&gt;" in page
    assert "<b>, b, c" not in page


def test_an_address_that_is_taken_is_one_clear_error(serving):
    with pytest.raises(InputError, match="--host, --port: expected a free address"):
        Server(serving.run, port=serving.server_port)
    with pytest.raises(InputError, match=r"got 192\.0\.2\.1:0"):
        Server(serving.run, host="192.0.2.1", port=0)

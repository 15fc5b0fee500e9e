"""`hsal play` without a browser: drawings and images are named, what is no drawing is refused, and Ctrl-C ends it."""

import io
import re
import signal
import subprocess
import sys
import threading
from concurrent.futures import ThreadPoolExecutor

import anyio
import numpy as np
import pytest
from PIL import Image

pytest.importorskip("starlette", reason="starlette is not installed")
pytest.importorskip("uvicorn", reason="uvicorn is not installed")
from play_parts import strokes_of
from starlette.testclient import TestClient

import hsal_cli as hsal
from hsal_cli.errors import UsageError
from hsal_cli.play import app as play
from hsal_cli.play.canvas import LARGEST, SIDE, render
from hsal_cli.scenes.digits.idx import read_pair


@pytest.fixture(scope="module")
def model():
    return hsal.load("mnist-multiset", "cpu")


@pytest.fixture(scope="module")
def client(model):
    return TestClient(play.make_app(model), base_url="http://127.0.0.1")


def png(pixels: np.ndarray) -> bytes:
    stream = io.BytesIO()
    Image.fromarray(pixels).save(stream, "png")
    return stream.getvalue()


def named(answer) -> list[str]:
    assert answer.status_code == 200, answer.text
    return sorted(step["label"] for step in answer.json()["steps"] if not step["stop"])


def test_a_drawn_3_and_7_are_named(client):
    for size, x in ((26, 56), (34, 55), (44, 52)):
        answer = client.post("/look", json={"strokes": strokes_of(3, 12, 20, size) + strokes_of(7, x, 30, size)})
        assert named(answer) == ["3", "7"]
        assert answer.json()["title"] == "predicted {3, 7}" and answer.json()["warnings"] == []
        assert answer.json()["steps"][0]["saliency"] != answer.json()["steps"][1]["saliency"]  # inhibition of return


def test_an_image_of_mnist_digits_is_named(client, mnist_dir):
    images, labels = read_pair(mnist_dir, "test")
    canvas = np.zeros((SIDE, SIDE), np.uint8)
    for digit, (x, y) in ((3, (10, 40)), (7, (55, 15))):
        glyph = Image.fromarray(images[np.flatnonzero(labels == digit)[1]]).resize((38, 38), Image.Resampling.BILINEAR)
        canvas[y : y + 38, x : x + 38] = glyph
    answer = client.post("/look?name=a.png", content=png(canvas), headers={"content-type": "application/octet-stream"})
    assert named(answer) == ["3", "7"] and answer.json()["name"] == "a.png"


def test_an_image_unlike_those_of_training_is_told(client):
    noise = np.random.default_rng(0).integers(0, 256, (SIDE, SIDE, 3), dtype=np.uint8)
    [why] = client.post("/look", content=png(noise)).json()["warnings"][:1]
    assert why.startswith("unlike the images of training")


def test_ink_is_white_on_black_soft_at_its_edge_and_never_longer_than_a_digit():
    line = [[[20, 50], [40, 50]]]
    pixels = render(line)
    assert pixels.shape == (SIDE, SIDE) and pixels[50, 30] > 230 and pixels[0, 0] == 0
    across = pixels[40:60, 30].astype(float)
    assert 3.2 < across.sum() / 255 < 4.0 and 2 <= ((across > 20) & (across < 235)).sum() <= 4
    large = np.nonzero(render([[[50, 5], [50, 95]]]).max(1) > 127)[0]
    assert np.ptp(large) < LARGEST + 5 and large.mean() == pytest.approx(49.5, abs=1)  # smaller about the middle
    assert not render([]).any() and render([[[30, 30]]]).any() and not render([[[-500, -500]], [[900, 900]]]).any()


@pytest.mark.parametrize(
    "body",
    [b"", b"[]", b"{}", b'{"strokes": 3}', b'{"strokes": [[[1]]]}', b'{"strokes": [[[1, "a"]]]}', b'{"strokes": [[[NaN, 1]]]}'],
    ids=lambda body: body.decode() or "nothing",
)
def test_what_is_no_drawing_is_refused_in_words(client, body):
    answer = client.post("/look", content=body, headers={"content-type": "application/json"})
    assert answer.status_code == 400 and answer.json()["error"].startswith("the drawing ")


def test_too_much_is_refused_and_no_more_of_it_is_taken(client, monkeypatch):
    for strokes in ([[[0, 0]] * (play.MOST_POINTS + 1)], [[[1e9, 0]]]):
        assert client.post("/look", json={"strokes": strokes}).status_code == 400
    monkeypatch.setattr(play, "LARGEST", 10_000)
    taken, sent = [], []

    async def receive():
        taken.append(1_000)
        return {"type": "http.request", "body": b"x" * 1_000, "more_body": True}

    async def send(message):
        sent.append(message)

    scope = {"type": "http", "method": "POST", "path": "/look", "query_string": b"", "headers": [(b"host", b"localhost")]}
    anyio.run(client.app, scope, receive, send)
    assert sent[0]["status"] == 413 and sum(taken) == 11_000


def test_no_image_is_refused_in_words(client):
    for body in (b"", b"no image", png(np.zeros((9, 9), np.uint8))[:40]):
        answer = client.post("/look?name=x.png", content=body)
        assert answer.status_code == 400 and "x.png" in answer.json()["error"]


def test_only_this_machine_and_only_its_own_page_are_answered(client):
    for host in ("evil.example", "127.0.0.1.evil.example", "192.168.0.7:8317"):
        assert client.get("/", headers={"host": host}).status_code == 400
        assert client.post("/look", json={"strokes": []}, headers={"host": host}).status_code == 400
    for host in ("127.0.0.1:8317", "localhost:8317"):
        assert client.get("/", headers={"host": host}).status_code == 200
        own, other = ({"host": host, "origin": origin} for origin in (f"http://{host}", "http://evil.example"))
        assert client.post("/look", json={"strokes": strokes_of(1, 40, 30)}, headers=own).status_code == 200
        assert client.post("/look", json={"strokes": strokes_of(1, 40, 30)}, headers=other).status_code == 403
    with play.listen(0) as listening:
        assert listening.getsockname()[0] == "127.0.0.1"


def test_the_page_is_whole_and_asks_only_its_own_server(client):
    page = client.get("/").text
    assert not re.search(r"@[A-Z]+@", page) and "mnist-multiset.rl" in page
    assert set(re.findall(r"https?://[^\s\"']+", page)) == {"http://www.w3.org/2000/svg"}
    assert "default-src 'none'" in page and page.count("connect-src 'self'") == 1
    assert not re.search(r"<(?:link|script|img|iframe)[^>]+(?:src|href)=", page)


def test_two_at_once_get_their_own_answers_and_look_one_after_the_other(model, monkeypatch):
    inside, most, guard = [0], [0], threading.Lock()

    class Counting:
        loaded = model.loaded

        def __call__(self, picture):
            with guard:
                inside[0] += 1
                most[0] = max(most[0], inside[0])
            found = model(picture)
            with guard:
                inside[0] -= 1
            return found

    client = TestClient(play.make_app(Counting()), base_url="http://127.0.0.1")
    digits = [0, 1, 3, 7] * 2
    with ThreadPoolExecutor(4) as pool:
        answers = list(pool.map(lambda digit: client.post("/look", json={"strokes": strokes_of(digit, 40, 30)}), digits))
    assert [named(answer) for answer in answers] == [[str(digit)] for digit in digits] and most[0] == 1


def test_a_taken_port_is_told_before_anything_is_loaded():
    with play.listen(0) as listening:
        port = listening.getsockname()[1]
        with pytest.raises(UsageError, match=f"port {port} cannot be had") as found:
            play.listen(port)
    assert found.value.hint.endswith("hsal play --port 0")


def test_ctrl_c_ends_it_cleanly():
    words = [sys.executable, "-m", "hsal_cli", "play", "--no-browser", "--port", "0", "--pretrained", "mnist-multiset", "--device", "cpu"]
    with subprocess.Popen(words, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as running:
        said = running.stdout.readline()
        assert re.fullmatch(r"http://127\.0\.0\.1:\d+/   Ctrl-C ends it\n", said), said
        import httpx2

        assert httpx2.get(said.split()[0], timeout=60).status_code == 200
        running.send_signal(signal.SIGINT)
        out, err = running.communicate(timeout=60)
    assert (running.returncode, out, err) == (0, "ended\n", "")


@pytest.mark.parametrize("package", ["starlette", "uvicorn"])
def test_without_the_extra_it_says_what_to_install(package):
    code = f"import sys; sys.modules[{package!r}] = None; sys.argv = ['hsal', 'play']; from hsal_cli.main import run; run()"
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120)
    assert found.returncode == 2 and found.stderr.splitlines() == [
        f"Error: hsal play needs starlette and uvicorn, and {package} is missing",
        "Hint: pip install starlette uvicorn",
    ]

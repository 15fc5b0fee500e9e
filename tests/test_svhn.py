"""SVHN, format 1: what is read from folders and archives laid out as the published ones, and how archives are fetched."""

import gzip
import http.server
import threading
from pathlib import Path

import h5py
import numpy as np
import pytest
from PIL import Image
from svhn_files import HOUSES, made, pack, write_structure, write_svhn

from hsal_cli.errors import FileError, Interrupted
from hsal_cli.progress import SILENT, Reporter
from hsal_cli.scenes.scene_file import open_scenes
from hsal_cli.scenes.street.svhn import read_structure
from hsal_cli.storage.download import fetch


@pytest.fixture(scope="module")
def unpacked(tmp_path_factory) -> Path:
    folder = write_svhn(tmp_path_factory.mktemp("svhn"), "train")
    return write_svhn(folder, "test", HOUSES[:2])


def test_the_structure_gives_digits_and_boxes_in_the_order_of_the_numbers(unpacked):
    houses = read_structure(unpacked / "train" / "digitStruct.mat", "train")
    assert [house.name for house in houses] == ["1.png", "2.png", "3.png", "10.png"]
    for house, (_, _, digits) in zip(houses, HOUSES, strict=True):
        assert house.digits == [label % 10 for label, *_ in digits]
        assert house.boxes.tolist() == [[left, top, left + across, top + down] for _, left, top, across, down in digits]


def test_images_are_squashed_and_boxes_go_along(unpacked, tmp_path):
    with open_scenes(made(unpacked, tmp_path / "a.h5", frame="image")) as scenes:
        assert scenes.classes == [str(digit) for digit in range(10)] and scenes.splits == ["train", "test"]
        train = scenes.split("train")
        assert train.images.shape == (4, 64, 64, 3) and train.labels.tolist() == [[1, 0, -1], [5, -1, -1], [7, 7, 3], [0, -1, -1]]
        for row, (name, (width, height), digits) in enumerate(HOUSES):
            with Image.open(unpacked / "train" / name) as image:
                wanted = np.asarray(image.convert("RGB").resize((64, 64), Image.Resampling.BILINEAR))
            assert np.array_equal(train.read(row, row + 1)[0], wanted)
            for box, (_, left, top, across, down) in zip(train.boxes[row], digits, strict=False):
                exact = np.array([left, top, left + across, top + down]) * np.array([64 / width, 64 / height] * 2)
                assert np.abs(box - np.clip(exact, 0, 64)).max() < 1 and (box[2:] > box[:2]).all()


def test_padding_keeps_the_shape_and_the_digit_under_its_box(unpacked, tmp_path):
    with open_scenes(made(unpacked, tmp_path / "a.h5", fit="pad", frame="image")) as scenes:
        train = scenes.split("train")
        image, (x0, y0, x1, y1) = train.read(0, 1)[0], train.boxes[0][0]
        assert (x1 - x0, y1 - y0) == pytest.approx((10 * 64 / 60, 20 * 64 / 60), abs=2)
        assert np.abs(image[y0 + 3 : y1 - 3, x0 + 3 : x1 - 3].astype(int) - 20).max() < 6
        assert np.ptp(image[:12].reshape(-1, 3), axis=0).max() == 0


@pytest.mark.parametrize("order", [None, ["10.png", "3.png", "digitStruct.mat", "1.png", "2.png"]])
def test_archives_give_what_folders_give_whatever_their_order(unpacked, tmp_path, order):
    packed = pack(unpacked, "train", tmp_path / "packed", order)
    pack(unpacked, "test", packed)
    (packed / "test.tar.gz").write_bytes(gzip.decompress((packed / "test.tar.gz").read_bytes()))  # a browser may unpack and keep the name
    with open_scenes(made(packed, tmp_path / "a.h5")) as ours, open_scenes(made(unpacked, tmp_path / "b.h5")) as theirs:
        assert ours.digest == theirs.digest and set(ours.config["archives"]) == {"test", "train"} and theirs.config["archives"] == {}
    assert sorted(path.name for path in packed.iterdir()) == ["test.tar.gz", "train.tar.gz"]


def test_fewer_images_and_extra_ones(unpacked, tmp_path):
    folder = write_svhn(tmp_path / "more", "extra", HOUSES[1:2])
    for split in ("train", "test"):
        pack(unpacked, split, folder)
    with open_scenes(made(folder, tmp_path / "a.h5", train=2, test=0, extra=True)) as scenes:
        assert scenes.splits == ["train"] and scenes.split("train").labels[:, 0].tolist() == [1, 5, 5]


@pytest.mark.parametrize(
    ("harm", "part"),
    [
        (lambda folder: (folder / "train" / "3.png").unlink(), "picture .*3.png is missing"),
        (lambda folder: (folder / "train" / "2.png").write_bytes(b"\x89PNG\r\n"), "2.png is not a picture"),
        (lambda folder: (folder / "train" / "digitStruct.mat").write_bytes(b"not HDF5"), "is not SVHN's digitStruct.mat"),
        (lambda folder: (folder / "test" / "digitStruct.mat").unlink(), "neither test/digitStruct.mat nor test.tar.gz"),
        (
            lambda folder: write_structure(folder / "train" / "digitStruct.mat", [("1.png", (9, 9), [(11, 1, 1, 2, 2)])]),
            "1.png has a label",
        ),
    ],
)
def test_what_is_missing_or_damaged_is_named_and_nothing_is_written(tmp_path, harm, part):
    folder = write_svhn(write_svhn(tmp_path / "svhn", "train"), "test")
    harm(folder)
    with pytest.raises(FileError, match=part):
        made(folder, tmp_path / "out" / "a.h5")
    assert not (tmp_path / "out").exists() or not list((tmp_path / "out").iterdir())


def test_a_cut_archive_is_refused(unpacked, tmp_path):
    packed = pack(unpacked, "train", tmp_path / "packed", ["digitStruct.mat", "1.png", "2.png", "3.png", "10.png"])
    data = (packed / "train.tar.gz").read_bytes()
    (packed / "train.tar.gz").write_bytes(data[: len(data) * 2 // 3])
    with pytest.raises(FileError, match=r"train\.tar\.gz"):
        made(packed, tmp_path / "a.h5", test=0)


class Server(http.server.BaseHTTPRequestHandler):
    """Serves `body`, from where it is asked to if `ranges`."""

    body, ranges, asked = b"", True, []

    def do_GET(self) -> None:
        start = int((self.headers.get("Range") or "bytes=0-").removeprefix("bytes=").removesuffix("-"))
        self.asked.append(start)
        start = start if self.ranges else 0
        self.send_response(206 if start else 200)
        self.send_header("Content-Length", str(len(self.body) - start))
        self.end_headers()
        self.wfile.write(self.body[start:])

    def log_message(self, *_: object) -> None:
        pass


@pytest.fixture
def address():
    server = http.server.HTTPServer(("127.0.0.1", 0), Server)
    Server.body, Server.ranges, Server.asked = gzip.compress(np.random.default_rng(0).bytes(50_000)), True, []
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True)
    thread.start()
    yield f"http://127.0.0.1:{server.server_port}/train.tar.gz"
    server.shutdown()
    server.server_close()


@pytest.mark.parametrize("size", [None, 1])
@pytest.mark.parametrize("ranges", [True, False])
def test_a_download_goes_on_where_it_was(address, tmp_path, ranges, size):
    Server.ranges = ranges
    (tmp_path / "a.gz.part").write_bytes(Server.body[:20_000])
    fetch(address, tmp_path / "a.gz", size and len(Server.body), SILENT)
    assert (tmp_path / "a.gz").read_bytes() == Server.body and Server.asked == [20_000]
    assert [path.name for path in tmp_path.iterdir()] == ["a.gz"]
    fetch("http://127.0.0.1:1/nobody", tmp_path / "a.gz", None, SILENT)


def test_a_damaged_download_is_not_kept(address, tmp_path):
    Server.body = Server.body[:-6] + b"\x00" * 6
    with pytest.raises(FileError, match="came damaged"):
        fetch(address, tmp_path / "a.gz", len(Server.body), SILENT)
    assert not list(tmp_path.iterdir())


def test_a_connection_that_ends_early_keeps_its_part(address, tmp_path):
    with pytest.raises(FileError, match="ended after"):
        fetch(address, tmp_path / "a.gz", len(Server.body) + 10, SILENT)
    assert (tmp_path / "a.gz.part").read_bytes() == Server.body and not (tmp_path / "a.gz").exists()


def test_a_stopped_download_keeps_its_part(address, tmp_path):
    reporter = Reporter()
    reporter.stop_signal = 2
    with pytest.raises(Interrupted, match="stopped"):
        fetch(address, tmp_path / "a.gz", None, reporter)
    assert (tmp_path / "a.gz.part").stat().st_size > 0


def test_no_network_is_two_lines(tmp_path):
    with pytest.raises(FileError, match="cannot be fetched") as caught:
        fetch("http://127.0.0.1:1/train.tar.gz", tmp_path / "train.tar.gz", None, SILENT)
    assert "train.tar.gz" in caught.value.hint


def test_download_and_reading_in_one_go(unpacked, tmp_path, monkeypatch):
    packed = pack(unpacked, "train", tmp_path / "published")
    monkeypatch.setattr("hsal_cli.scenes.street.svhn.SIZES", {"train.tar.gz": (packed / "train.tar.gz").stat().st_size})
    out = made(tmp_path / "mine", tmp_path / "a.h5", test=0, download=True, url=packed.as_uri())
    with open_scenes(out) as scenes, h5py.File(out) as file:
        assert len(scenes.split("train")) == 4 and "test" not in file

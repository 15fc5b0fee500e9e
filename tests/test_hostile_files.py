"""Files from elsewhere: HDF5 that takes data from other files, names that lead out of a folder, pipes and devices, sizes without bound."""

import gzip
import io
import json
import os
import re
import tarfile
import types
import zipfile
from pathlib import Path

import h5py
import numpy as np
import pytest
import torch
from PIL import Image, ImageFile
from svhn_files import HOUSES, pack, write_structure, write_svhn
from typer.testing import CliRunner

import hsal_cli
from hsal_cli.errors import FileError, HsalError
from hsal_cli.features.saliency.files import FileSaliency
from hsal_cli.features.table import open_features
from hsal_cli.main import app
from hsal_cli.models.load import backbone_folder
from hsal_cli.models.shipped import load_shipped, read_manifest
from hsal_cli.progress import SILENT
from hsal_cli.runs.record import read_record
from hsal_cli.runs.run import Run
from hsal_cli.scenes.digits import idx
from hsal_cli.scenes.digits.idx import read_idx
from hsal_cli.scenes.scene_file import open_scenes
from hsal_cli.scenes.settings import SvhnSettings
from hsal_cli.scenes.street import svhn
from hsal_cli.scenes.street.plans import read_plans
from hsal_cli.scenes.street.svhn import make_svhn, read_structure
from hsal_cli.storage import atomic, checkpoints, download, files, hdf5
from hsal_cli.storage.documents import read_document
from hsal_cli.storage.files import digest_of_file, load_tensors
from hsal_cli.upkeep.check import check_path
from hsal_cli.upkeep.contents import look_into
from hsal_cli.vision.images import FORMATS, read_image
from hsal_cli.vision.weights import read_weights

IMAGES, LABELS = np.zeros((2, 8, 8), np.uint8), np.zeros((2, 1), np.int16)


def external_link(file: h5py.File) -> None:
    file["train/images"] = h5py.ExternalLink("secret.h5", "images")


def external_storage(file: h5py.File) -> None:
    file.create_dataset("train/images", IMAGES.shape, "u1", external=[("secret.bin", 0, IMAGES.nbytes)])


def virtual(file: h5py.File) -> None:
    layout = h5py.VirtualLayout(IMAGES.shape, np.uint8)
    layout[:] = h5py.VirtualSource("secret.h5", "images", IMAGES.shape)
    file.create_virtual_dataset("train/images", layout)


def linked_group(file: h5py.File) -> None:
    file["deep/er/train"] = h5py.ExternalLink("secret.h5", "/")
    file["train"] = h5py.SoftLink("/deep/er/train")


OUTSIDE = {external_link: "link to the file secret.h5", external_storage: "stored in the file secret.bin", virtual: "virtual dataset"}
OUTSIDE[linked_group] = "/deep/er/train is a link to the file secret.h5"


@pytest.fixture(params=OUTSIDE, ids=lambda way: way.__name__)
def outside(request, tmp_path, monkeypatch) -> tuple[Path, str]:
    """A scene file whose images lie in another file, and what is said of it."""
    monkeypatch.chdir(tmp_path)
    Path("secret.bin").write_bytes(b"s" * IMAGES.nbytes)
    with h5py.File("secret.h5", "w") as file:
        file["images"], file["labels"] = IMAGES, LABELS
    with h5py.File("s.h5", "w") as file:
        file.attrs["format"], file.attrs["classes"] = "hsal-scenes", '["a"]'
        request.param(file)
        if request.param is not linked_group:
            file["train/labels"] = LABELS
    return tmp_path / "s.h5", OUTSIDE[request.param]


@pytest.mark.fault(
    200, "external links, external storage, virtual data sets, soft links to external ones: refused by every reader", tried=4
)
def test_hdf5_that_takes_data_from_other_files_is_refused_by_every_reader(outside) -> None:
    path, said = outside
    readers = [open_scenes, open_features, hdf5.format_of, hdf5.opened, look_into]
    readers.append(lambda path: FileSaliency(path)._stack("train"))
    for read in readers:
        with pytest.raises(FileError, match=rf"s\.h5 takes data from outside of itself: .*{said}"):
            read(path)
    assert said in " ".join(check_path(path).faults)
    for words in (
        ["inspect", "s.h5"],
        ["eval", "--data", "s.h5", "--pretrained", "mnist-multiset"],
        ["make-data", "mnist-set", "--out", "s.h5"],
    ):
        done = CliRunner().invoke(app, [*words, "--overwrite"] if words[0] == "make-data" else words)
        assert isinstance(done.exception, FileError) and said in done.exception.message, words


@pytest.mark.fault(30, "soft links, hard links and circles inside of one file: read as ever", tried=1)
def test_links_inside_of_a_file_are_no_harm(tmp_path) -> None:
    with h5py.File(tmp_path / "s.h5", "w") as file:
        file.attrs["format"], file.attrs["classes"] = "hsal-scenes", '["a"]'
        file["train/images"], file["train/labels"] = IMAGES, LABELS
        file["test"] = h5py.SoftLink("/train")
        file["nowhere"] = h5py.SoftLink("/none")
        file["train/up"] = file["/"]
    with open_scenes(tmp_path / "s.h5") as scenes:
        assert len(scenes.split("train")) == len(scenes.split("test")) == 2


@pytest.mark.fault(30, "SVHN's digitStruct.mat with external links, external storage, virtual data sets", tried=3)
@pytest.mark.parametrize("way", ["link", "storage", "virtual"])
def test_svhns_structure_takes_nothing_from_other_files(tmp_path, way) -> None:
    path = tmp_path / "digitStruct.mat"
    write_structure(path, HOUSES)
    write_structure(tmp_path / "secret.mat", HOUSES)
    with h5py.File(path, "r+") as file:
        group = file[file["digitStruct/bbox"][1, 0]]
        del group["left"]
        if way == "link":
            group["left"] = h5py.ExternalLink("secret.mat", "/digitStruct/name")
        elif way == "storage":
            group.create_dataset("left", (1, 1), "f8", external=[(str(tmp_path / "secret.mat"), 0, 8)])
        else:
            layout = h5py.VirtualLayout((1, 1), "f8")
            layout[:] = h5py.VirtualSource(str(tmp_path / "secret.mat"), "x", (1, 1))
            group.create_virtual_dataset("left", layout)
    with pytest.raises(FileError, match="takes data from outside of itself"):
        read_structure(path, "train")


def test_h5py_and_pillow_open_files_in_one_place_each() -> None:
    root = Path(hsal_cli.__file__).parent
    found = {"h5py.File(": set(), "Image.open(": set(), "np.load(": set(), "torch.load(": set()}
    safe = {"Image.open(": "formats=", "np.load(": "allow_pickle=False", "torch.load(": "weights_only=True"}
    for path in root.rglob("*.py"):
        for call, places in found.items():
            if call in re.sub(r"class .*", "", path.read_text(encoding="utf-8")):
                places.add(path.name)
            if call in safe:
                assert all(safe[call] in line for line in path.read_text(encoding="utf-8").splitlines() if call in line), path
    assert found["h5py.File("] == {"hdf5.py"}


EPS = b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 10 10\n%%EndComments\n(/tmp/hsal-was-here) (w) file closefile\n%%EOF\n"


@pytest.mark.fault(37, "EPS, PDF, PSD, FLI, an icon set and more, named .png: no picture, and no other program is started", tried=6)
@pytest.mark.parametrize(
    "data", [EPS, b"%PDF-1.4\n", b"8BPS\0\1" + bytes(40), b"\0" * 4 + b"\x11\xaf" + bytes(140), b"icns" + bytes(40), b"SIMPLE  = T"]
)
def test_a_format_that_is_not_listed_is_no_picture(tmp_path, data, monkeypatch) -> None:
    monkeypatch.setattr("subprocess.check_call", lambda *_: pytest.fail("a program was started"))
    (tmp_path / "a.png").write_bytes(data)
    with pytest.raises(FileError, match=r"a.png is not a picture that can be read|is damaged"):
        read_image(tmp_path / "a.png")


@pytest.mark.fault(37, "pictures of each listed format that Pillow can write, under a foreign ending: read", tried=11)
@pytest.mark.parametrize("kind", [name for name in FORMATS if name != "MPO"])
def test_each_listed_format_is_read(tmp_path, kind) -> None:
    Image.init()
    if kind not in Image.SAVE:
        pytest.skip(f"this Pillow writes no {kind}")
    Image.new("RGB", (32, 32), (200, 0, 0)).save(tmp_path / "a.picture", kind)
    assert read_image(tmp_path / "a.picture").size == (32, 32)


HUGE = {
    "ppm": b"P6\n60000 60000\n255\n",
    "tga": bytes((0, 0, 2, 0, 0, 0, 0, 0, 0, 0, 0, 0)) + b"\xff\xff\xff\xff\x18\x00",
    "gif": b"GIF89a\xff\xff\xff\xff\x80\x00\x00" + bytes(6) + b"\x2c" + bytes(4) + b"\xff\xff\xff\xff\x00\x08\x00\x3b",
    "bmp": b"BM" + bytes(8) + (54).to_bytes(4, "little") + b"\x28\0\0\0" + (60000).to_bytes(4, "little") * 2 + b"\1\0\x18\0" + bytes(24),
}


@pytest.mark.fault(
    207, "headers of a few bytes that announce thousands of megapixels, as PPM, TGA, GIF, BMP: refused before a pixel", tried=4
)
@pytest.mark.parametrize("kind", HUGE)
def test_a_picture_that_announces_too_many_pixels_is_refused_before_any_is_read(tmp_path, kind, monkeypatch) -> None:
    monkeypatch.setattr(ImageFile.ImageFile, "load", lambda self: pytest.fail("pixels were read"))
    (tmp_path / f"a.{kind}").write_bytes(HUGE[kind])
    with pytest.raises(FileError, match="is too large"):
        read_image(tmp_path / f"a.{kind}")


def readers_of_paths() -> dict[str, object]:
    return {
        "picture": read_image,
        "json": lambda path: read_document(path, dict, "x"),
        "scenes": open_scenes,
        "features": open_features,
        "format": hdf5.format_of,
        "idx": lambda path: read_idx(path, 3),
        "plans": read_plans,
        "structure": lambda path: read_structure(path, "train"),
        "digest": files.digest_of_file,
        "maps": lambda path: FileSaliency(path)("x", np.zeros((1, 1, 2, 2)), ["a.png"]),
        "weights": read_weights,
        "config": lambda path: CliRunner().invoke(app, ["train", "--config", str(path)], catch_exceptions=False),
        "labels": lambda path: CliRunner().invoke(
            app, ["make-data", "folder", "--images", str(path.parent), "--labels", str(path)], catch_exceptions=False
        ),
        "check": lambda path: (_ for _ in ()).throw(FileError(" ".join(check_path(path).faults), "")),
        "inspect": look_into,
    }


@pytest.mark.fault(31, "a named pipe or an endless device in place of any file that is read: refused at once, never waited for", tried=30)
@pytest.mark.parametrize("kind", ["pipe", "device"])
@pytest.mark.parametrize("reader", readers_of_paths())
def test_no_reader_waits_for_a_pipe_or_reads_a_device(tmp_path, reader, kind) -> None:
    Image.new("RGB", (4, 4)).save(tmp_path / "b.png")
    path = tmp_path / ("a.png" if reader in ("picture", "maps") else "a.csv" if reader == "labels" else "a")
    if kind == "pipe":
        os.mkfifo(path)
    else:
        path.symlink_to("/dev/zero")
    with pytest.raises(HsalError, match=r"named pipe|a device|is missing|not a regular|neither"):
        readers_of_paths()[reader](path)


@pytest.mark.fault(
    201, "pipes in place of a run's status, config, metrics, eval, manifest: passed over or refused, never waited for", tried=5
)
@pytest.mark.parametrize("name", ["status.json", "config.json", "metrics.jsonl", "eval.json", "checkpoints/epoch-1/manifest.json"])
def test_no_reader_of_runs_waits_for_a_pipe(tmp_path, name) -> None:
    run = tmp_path / "runs" / "a"
    (run / "checkpoints" / "epoch-1").mkdir(parents=True)
    for held in ("status.json", "config.json"):
        (run / held).write_text('{"format": "hsal-run", "kind": "policy", "state": "finished"}')
    (run / name).unlink(missing_ok=True)
    os.mkfifo(run / name)
    assert backbone_folder("0" * 64, None, tmp_path / "runs") is None
    try:
        read_record(run), Run(run).rows()
    except FileError:
        pass
    check_path(run)


NAMES = ["/dev/zero", "../weights.safetensors", "a/b", "..", "", "pipe", "link", "C:x", "a\\b"]


@pytest.mark.fault(31, "a manifest that names a device, a pipe, a link, `..`, an absolute path: refused before it is opened", tried=18)
@pytest.mark.parametrize("name", NAMES)
def test_a_manifest_names_plain_regular_files_of_its_folder(tmp_path, name) -> None:
    folder = tmp_path / "c"
    checkpoints.write_checkpoint(folder, {"w": torch.zeros(2)}, None, {"kind": "policy"})
    os.mkfifo(folder / "pipe")
    (folder / "link").symlink_to(tmp_path / "elsewhere")
    (tmp_path / "elsewhere").write_text("secret")
    manifest = read_document(folder / "manifest.json", dict, "")
    atomic.write_sealed(folder / "manifest.json", {**manifest, "sha256": {name: "0" * 64, **manifest["sha256"]}})
    with pytest.raises(FileError, match=r"not a plain name|not a regular file"):
        checkpoints.read_checkpoint(folder)
    for policies in ({"mnist.rl": {"sha256": {name: "0"}}}, {name: {"sha256": {}}}):
        document = {"format": "hsal-pretrained", "format_version": 1, "backbone": {"sha256": {}}, "policies": policies}
        (folder / "mnist.rl").mkdir(exist_ok=True)
        for kind in ("pipe", "link"):
            if not os.path.lexists(folder / "mnist.rl" / kind):
                (folder / "mnist.rl" / kind).symlink_to(folder / kind)
        (folder / "manifest.json").write_text(json.dumps(document))
        with pytest.raises(FileError, match=r"not a plain name|not a regular file|not a folder"):
            read_manifest(folder)
            load_shipped(f"{folder}/{next(iter(policies))}")


@pytest.mark.fault(31, "SVHN's labels that name images outside of their folder", tried=2)
@pytest.mark.parametrize("name", ["../../secret.png", "/etc/passwd"])
def test_svhns_labels_name_images_of_their_folder(tmp_path, name) -> None:
    write_structure(tmp_path / "digitStruct.mat", [(name, (9, 9), [(1, 1, 1, 2, 2)])])
    with pytest.raises(FileError, match="which is not a plain name"):
        read_structure(tmp_path / "digitStruct.mat", "train")


def archive_of(folder: Path, *members: tuple[str, bytes]) -> Path:
    with tarfile.open(folder / "train.tar.gz", "w:gz") as archive:
        for name, data in members:
            information = tarfile.TarInfo(name)
            information.size = len(data)
            archive.addfile(information, io.BytesIO(data))
    return folder


@pytest.mark.fault(
    205, "an archive with a member, a header or early images larger than any of SVHN's: refused before it is in memory", tried=4
)
@pytest.mark.parametrize("what", ["image", "labels", "header", "early"])
def test_archives_are_read_within_bounds(tmp_path, what, monkeypatch) -> None:
    monkeypatch.setattr(svhn, "MOST_BYTES", {".png": 5_000, ".mat": 200_000, "": 5_000})
    monkeypatch.setattr(svhn._Unpacked, "most", 5_000)
    write_svhn(tmp_path / "u", "train")
    structure = (tmp_path / "u" / "train" / "digitStruct.mat").read_bytes()
    if what == "early":
        monkeypatch.setattr(svhn, "MOST_WAITING", 10)
        pack(tmp_path / "u", "train", tmp_path, ["digitStruct.mat", "10.png", "3.png", "2.png", "1.png"])
    else:
        name = "train/" + "x" * 9_000 if what == "header" else "train/see.m"
        image = bytes(9_000 if what == "image" else 10)
        labels = structure + bytes(300_000 if what == "labels" else 0)
        archive_of(tmp_path, (name, b""), ("train/1.png", image), ("train/digitStruct.mat", labels))
    with pytest.raises(FileError, match=r"bytes long, more than|longer than 5,000 bytes|too much comes too early"):
        make_svhn(SvhnSettings(svhn_dir=str(tmp_path), image_size=64, test=0), tmp_path / "out.h5", read_image)
    assert not (tmp_path / "out.h5").exists()


@pytest.mark.fault(35, "digitStruct.mat that announces a million million images, or a name without end", tried=2)
@pytest.mark.parametrize("field", ["digitStruct/name", "name"])
def test_svhns_structure_is_read_within_bounds(tmp_path, field) -> None:
    path = tmp_path / "digitStruct.mat"
    write_structure(path, HOUSES)
    with h5py.File(path, "r+") as file:
        if field == "name":
            huge = file["#refs#"].create_dataset("huge", (1 << 40, 1), np.uint16, chunks=(1 << 20, 1))
            file["digitStruct/name"][0, 0] = huge.ref
        else:
            del file[field]
            file.create_dataset(field, (1 << 40, 1), h5py.ref_dtype, chunks=(1 << 16, 1))
    with pytest.raises(FileError, match="values, more than"):
        read_structure(path, "train")


@pytest.mark.fault(35, "an IDX file of a few kB of gzip that unpacks to far more than its header says, or says far too much", tried=2)
def test_idx_files_are_unpacked_no_further_than_their_header_says(tmp_path, monkeypatch) -> None:
    header = bytes((0, 0, 8, 3)) + b"".join(value.to_bytes(4, "big") for value in (2, 28, 28))
    path = tmp_path / "a.gz"
    path.write_bytes(gzip.compress(header + bytes(200 << 20)))
    most = []
    read = gzip.GzipFile.read
    monkeypatch.setattr(gzip.GzipFile, "read", lambda self, size=-1: most.append(size) or read(self, size))
    with pytest.raises(FileError, match="more bytes of data where its header says 1,568"):
        read_idx(path, 3)
    assert all(0 <= size <= 1569 for size in most)
    path.write_bytes(gzip.compress(bytes((0, 0, 8, 3)) + b"\xff" * 12))
    with pytest.raises(FileError, match=f"more than {idx.MOST_BYTES:,} bytes"):
        read_idx(path, 3)


@pytest.mark.fault(35, "a server that sends without end, an archive and labels that unpack without end", tried=3)
def test_downloads_and_what_they_hold_are_bounded(tmp_path, monkeypatch) -> None:
    monkeypatch.setattr(download, "MOST_BYTES", 1 << 20)
    (tmp_path / "bomb.gz").write_bytes(gzip.compress(bytes(5 << 20)))
    with pytest.raises(FileError, match="it unpacks to more than 1,048,576 bytes"):
        download.fetch((tmp_path / "bomb.gz").as_uri(), tmp_path / "a.tar.gz", None, SILENT)
    (tmp_path / "long").write_bytes(bytes(5 << 20))
    monkeypatch.setattr("urllib.request.urlopen", lambda *_, **__: Endless())
    with pytest.raises(FileError, match="the server sends more than 1,048,576 bytes"):
        download.fetch("http://x/b.tar.gz", tmp_path / "b.tar.gz", None, SILENT)
    monkeypatch.setattr("hsal_cli.scenes.street.plans.MOST_BYTES", 1000)
    (tmp_path / "plans.json.gz").write_bytes(gzip.compress(b" " * 5000))
    with pytest.raises(FileError, match="holds more than 1,000 bytes"):
        read_plans(tmp_path / "plans.json.gz")


class Endless(io.BytesIO):
    headers = types.MappingProxyType({})

    def read(self, size: int = -1) -> bytes:
        return bytes(size)


@pytest.mark.parametrize("way", [zipfile.ZIP_DEFLATED, zipfile.ZIP_STORED], ids=["deflated", "overlapping"])
def test_tensors_that_unpack_to_far_more_than_their_file_are_refused_before_they_are_read(tmp_path, monkeypatch, way) -> None:
    torch.save({"big": torch.zeros(1 << 20)}, tmp_path / "plain.pt")
    with zipfile.ZipFile(tmp_path / "plain.pt") as plain, zipfile.ZipFile(tmp_path / "state.pt", "w", way) as packed:
        for entry in plain.infolist():
            packed.writestr(entry.filename, plain.read(entry))
        if way == zipfile.ZIP_STORED:  # the same bytes under many names
            packed.filelist += [max(packed.filelist, key=lambda entry: entry.file_size)] * 9
    monkeypatch.setattr(torch, "load", lambda *_, **__: pytest.fail("it was read"))
    with pytest.raises(ValueError, match=r"it unpacks to 4[0-9,]+ bytes from"):
        load_tensors(tmp_path / "state.pt")
    with pytest.raises(FileError, match=r"cannot be read: it unpacks to .* bytes from"):
        read_weights(tmp_path / "state.pt")
    monkeypatch.undo()
    assert load_tensors(tmp_path / "plain.pt")["big"].shape == (1 << 20,)


def test_a_checkpoint_whose_state_unpacks_without_bound_is_refused(tmp_path) -> None:
    checkpoints.write_checkpoint(tmp_path / "c", {"w": torch.zeros(2)}, {"x": 1}, {"kind": "policy"})
    with zipfile.ZipFile(tmp_path / "c" / "state.pt", "w", zipfile.ZIP_DEFLATED) as packed:
        packed.writestr("archive/data.pkl", bytes(1 << 20))
    manifest = json.loads((tmp_path / "c" / "manifest.json").read_text())
    manifest["sha256"]["state.pt"] = digest_of_file(tmp_path / "c" / "state.pt")
    del manifest["digest"]
    (tmp_path / "c" / "manifest.json").write_text(json.dumps(manifest))
    with pytest.raises(FileError, match="unpacks to 1,048,576 bytes from"):
        checkpoints.read_checkpoint(tmp_path / "c")

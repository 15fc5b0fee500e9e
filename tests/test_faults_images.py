"""Every kind of image input, in one call of hsal predict: the valid are converted by rule, the rest refused in two lines each."""

import io
import struct
import zlib
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from hsal_cli.errors import HsalError
from hsal_cli.models import look as room
from hsal_cli.vision.images import read_image

WHITE, RED = (255, 255, 255), (200, 0, 0)


def png_of_size(width: int, height: int) -> bytes:
    """A PNG file that says it is of this size, and holds no pixels."""

    def chunk(name: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))

    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, 8, 0, 0, 0, 0)) + chunk(b"IEND", b"")


def whole_jpeg() -> bytes:
    stream = io.BytesIO()
    Image.fromarray(np.random.default_rng(0).integers(0, 256, (64, 64, 3), dtype=np.uint8)).save(stream, "JPEG")
    return stream.getvalue()


def good_images(folder: Path) -> dict[str, tuple[tuple[int, int], tuple[int, int, int]]]:
    """Writes one of each valid kind; name -> (width and height, top left pixel) that reading must give."""
    Image.new("RGB", (1, 1), RED).save(folder / "1x1.png")
    Image.fromarray(np.full((2, 3), 65535, np.uint16)).save(folder / "16-bit.png")
    Image.new("P", (3, 2), 0).save(folder / "palette.png")
    palette = Image.new("P", (3, 2), 1)
    palette.putpalette([0, 0, 0, *RED])
    palette.save(folder / "palette.png")
    Image.new("CMYK", (3, 2), (0, 0, 0, 0)).save(folder / "cmyk.tiff")
    Image.new("RGBA", (3, 2), (255, 255, 255, 0)).save(folder / "rgba.png")
    rotated = Image.new("RGB", (3, 2), RED)
    exif = Image.Exif()
    exif[0x0112] = 6  # a quarter turn
    rotated.save(folder / "exif.png", exif=exif)
    frames = [Image.new("RGB", (3, 2), colour) for colour in (WHITE, RED)]
    frames[0].save(folder / "animated.gif", save_all=True, append_images=frames[1:])
    Image.new("1", (3, 2), 1).save(folder / "bilevel.png")
    return {
        "1x1.png": ((1, 1), RED),
        "16-bit.png": ((3, 2), WHITE),
        "palette.png": ((3, 2), RED),
        "cmyk.tiff": ((3, 2), WHITE),
        "rgba.png": ((3, 2), (0, 0, 0)),
        "exif.png": ((2, 3), RED),
        "animated.gif": ((3, 2), WHITE),
        "bilevel.png": ((3, 2), WHITE),
    }


def bad_images(folder: Path) -> dict[str, str]:
    """Writes one of each kind that is refused; path -> what is said of it."""
    (folder / "empty.png").write_bytes(b"")
    (folder / "truncated.jpg").write_bytes(whole_jpeg()[:400])
    (folder / "huge.png").write_bytes(png_of_size(20_000, 5_001))
    (folder / "bomb.png").write_bytes(png_of_size(60_000, 60_000))
    (folder / "page.png").write_text("<html>404</html>")
    (folder / "a folder").mkdir()
    return {
        str(folder / "empty.png"): "is empty",
        str(folder / "truncated.jpg"): "is damaged",
        str(folder / "huge.png"): "is too large: 20000 x 5001 px",
        str(folder / "bomb.png"): "is too large",
        str(folder / "page.png"): "is not a picture",
        str(folder / "a folder"): "is a folder",
        "https://example.org/a.png": "is a web address",
        str(folder / "none.png"): "is missing",
    }


@pytest.mark.fault(
    12, "valid images: 1x1, 16-bit, palette, CMYK, RGBA, EXIF-rotated, animated, bilevel: converted by a documented rule", tried=8
)
def test_valid_images_of_every_kind_are_converted_by_the_documented_rule(tmp_path: Path) -> None:
    for name, (size, pixel) in good_images(tmp_path).items():
        picture = read_image(tmp_path / name)
        assert (picture.mode, picture.size, picture.getpixel((0, 0))) == ("RGB", size, pixel), name


@pytest.mark.fault(12, "empty, truncated, above 100 megapixels, no picture, a folder, a URL, missing: refused one by one", tried=8)
def test_what_is_no_usable_image_is_refused_and_the_others_of_the_call_are_done(tmp_path: Path, monkeypatch) -> None:
    bad, good = bad_images(tmp_path), good_images(tmp_path)
    mixed = [Path(name) for pair in zip(bad, (str(tmp_path / name) for name in good), strict=True) for name in pair]
    seen: list[str] = []

    def look(images, backbone, policy, max_steps, names, finder):
        seen.extend(str(name) for name in names)
        return [f"look at {name}" for name in names]

    monkeypatch.setattr(room, "look", look)
    monkeypatch.setattr(room, "BATCH", 3)
    found = dict(room.look_at_files(mixed, None, None))
    assert list(found) == mixed and seen == [str(tmp_path / name) for name in good]
    for path, said in bad.items():
        error = found[Path(path)]
        assert isinstance(error, HsalError) and said in error.message and error.hint, path
    for name in good:
        assert found[tmp_path / name] == f"look at {tmp_path / name}"


def test_images_are_read_as_many_at_a_time_as_a_pass_takes_and_memory_holds(tmp_path, monkeypatch) -> None:
    paths = [tmp_path / f"{n}.png" for n in range(7)]
    for number, path in enumerate(paths):
        Image.new("L", (10, 30 if number == 2 else 10)).save(path)
    monkeypatch.setattr(room, "BATCH", 3)
    assert [len(part) for part in room._read(paths)] == [3, 3, 1]
    monkeypatch.setattr(room, "AT_ONCE", 200)
    parts = list(room._read([*paths, tmp_path / "none.png"]))
    assert [len(part) for part in parts] == [2, 1, 2, 2, 1] and isinstance(parts[-1][0][1], HsalError)

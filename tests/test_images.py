"""Reading pictures of every kind, and turning them into the activation model's input."""

import io
import struct
import zlib

import numpy as np
import pytest
import torch
from PIL import Image

from hsal_cli.errors import FileError
from hsal_cli.vision import images
from hsal_cli.vision.images import from_pil, read_image, to_input

RAMP = np.linspace(0, 255, 6 * 8).astype(np.uint8).reshape(6, 8)
COLOUR = np.stack([RAMP, RAMP[::-1], RAMP.T.reshape(6, 8)], axis=2)


def slow_bilinear(image: np.ndarray, size: int) -> np.ndarray:
    """Bilinear enlargement of (H, W) from the formula, a pixel at a time: centres aligned, edges repeated."""
    height, width = image.shape
    out = np.zeros((size, size))
    for i in range(size):
        for j in range(size):
            y = min(max((i + 0.5) * height / size - 0.5, 0), height - 1)
            x = min(max((j + 0.5) * width / size - 0.5, 0), width - 1)
            y0, x0 = int(y), int(x)
            y1, x1 = min(y0 + 1, height - 1), min(x0 + 1, width - 1)
            top = image[y0, x0] * (1 - (x - x0)) + image[y0, x1] * (x - x0)
            low = image[y1, x0] * (1 - (x - x0)) + image[y1, x1] * (x - x0)
            out[i, j] = top * (1 - (y - y0)) + low * (y - y0)
    return out


def normalised(rgb: np.ndarray) -> np.ndarray:
    return np.stack([(rgb[..., c] / 255 - m) / s for c, (m, s) in enumerate([(0.485, 0.229), (0.456, 0.224), (0.406, 0.225)])])


def test_grey_images_are_enlarged_bilinearly_repeated_to_rgb_and_normalised():
    big = slow_bilinear(RAMP.astype(float), 21)
    x = to_input(torch.from_numpy(np.stack([RAMP, 255 - RAMP])), 21)
    assert x.shape == (2, 3, 21, 21) and x.dtype == torch.float32
    assert x.is_contiguous(memory_format=torch.channels_last)
    np.testing.assert_allclose(x[0], normalised(np.stack([big] * 3, axis=2)), atol=1e-4)
    np.testing.assert_allclose(x[1], normalised(np.stack([255 - big] * 3, axis=2)), atol=1e-4)


def test_colour_channels_keep_their_order():
    x = to_input(torch.from_numpy(COLOUR[None]), 21)
    np.testing.assert_allclose(
        x[0], normalised(np.stack([slow_bilinear(COLOUR[..., c].astype(float), 21) for c in range(3)], 2)), atol=1e-4
    )


def test_shrinking_is_antialiased_as_pillow_does_it():
    grey = np.random.default_rng(0).integers(0, 256, (90, 60), dtype=np.uint8)
    wanted = np.asarray(Image.fromarray(grey.astype(np.float32)).resize((16, 16), Image.Resampling.BILINEAR))
    found = to_input(torch.from_numpy(grey[None]), 16)[0, 0].numpy() * 0.229 + 0.485
    np.testing.assert_allclose(found * 255, wanted, atol=1e-2)


def test_images_of_the_input_size_pass_unchanged():
    x = to_input(torch.from_numpy(COLOUR[None, :6, :6]), 6)
    np.testing.assert_allclose(x[0], normalised(COLOUR[:6, :6]), atol=1e-6)


def saved(tmp_path, image: Image.Image, name: str, **options):
    path = tmp_path / name
    image.save(path, **options)
    return path


@pytest.mark.parametrize("name", ["p.png", "p.bmp", "p.tiff", "p.gif", "p.webp", "p.ppm", "p.tga"])
def test_formats_without_loss_give_the_pixels_saved(tmp_path, name):
    image = Image.fromarray(COLOUR if not name.endswith("gif") else RAMP)
    options = {"lossless": True} if name.endswith("webp") else {}
    found = read_image(saved(tmp_path, image, name, **options))
    assert found.mode == "RGB" and found.size == (8, 6)
    np.testing.assert_array_equal(np.asarray(found), np.asarray(image.convert("RGB")))


@pytest.mark.parametrize(
    ("mode", "name", "pixel"),
    [
        ("1", "p.png", (255, 255, 255)),
        ("L", "p.jpg", (180, 180, 180)),
        ("P", "p.png", (180, 90, 40)),
        ("CMYK", "p.tiff", (180, 90, 40)),
        ("CMYK", "p.jpg", (180, 90, 40)),
        ("YCbCr", "p.jpg", (180, 90, 40)),
        ("RGBX", "p.tiff", (180, 90, 40)),
    ],
)
def test_every_mode_becomes_rgb(tmp_path, mode, name, pixel):
    colour = pixel if mode not in ("1", "L") else (pixel[0],) * 3
    image = Image.new("RGB", (16, 16), colour)
    image = image.convert("P", palette=Image.Palette.ADAPTIVE) if mode == "P" else image.convert(mode)
    found = np.asarray(read_image(saved(tmp_path, image, name))).astype(int)
    assert found.shape == (16, 16, 3)
    assert np.abs(found - pixel).max() <= 4  # of JPEG and of YCbCr


@pytest.mark.parametrize(("mode", "colour"), [("RGBA", (200, 100, 50, 128)), ("LA", (200, 128))])
def test_transparent_pixels_are_shown_on_black(tmp_path, mode, colour):
    found = read_image(saved(tmp_path, Image.new(mode, (2, 2), colour), "p.png")).getpixel((0, 0))
    wanted = [round(value * 128 / 255) for value in (colour[:3] if mode == "RGBA" else (200, 200, 200))]
    assert np.abs(np.subtract(found, wanted)).max() <= 1


def test_a_transparent_palette_colour_is_shown_on_black(tmp_path):
    image = Image.new("P", (2, 1))
    image.putpalette([200, 100, 50, 10, 20, 30])
    image.putpixel((1, 0), 1)
    found = read_image(saved(tmp_path, image, "p.png", transparency=0))
    assert found.getpixel((0, 0)) == (0, 0, 0) and found.getpixel((1, 0)) == (10, 20, 30)


def test_16_bits_keep_the_high_ones(tmp_path):
    values = (RAMP.astype(np.uint16) * 257).astype(np.uint16)
    for name in ("p.png", "p.tiff"):
        found = np.asarray(read_image(saved(tmp_path, Image.fromarray(values), name)))
        np.testing.assert_array_equal(found, np.stack([RAMP] * 3, 2))


def test_floats_are_scaled_by_1_or_255(tmp_path):
    for white in (1, 255):
        values = (RAMP / 255 * white).astype(np.float32)
        found = np.asarray(read_image(saved(tmp_path, Image.fromarray(values), "p.tiff")))
        np.testing.assert_array_equal(found[..., 0], RAMP)
    values[0, 0] = np.nan
    with pytest.raises(FileError, match="not finite"):
        read_image(saved(tmp_path, Image.fromarray(values), "p.tiff"))


def test_rotation_noted_in_exif_is_applied(tmp_path):
    exif = Image.Exif()
    exif[0x0112] = 6  # turn by 90 degrees clockwise
    found = read_image(saved(tmp_path, Image.fromarray(COLOUR), "p.png", exif=exif))
    np.testing.assert_array_equal(np.asarray(found), np.rot90(COLOUR, -1))


def test_an_animation_gives_its_first_frame(tmp_path):
    frames = [Image.new("RGB", (4, 4), colour) for colour in ("red", "blue")]
    path = saved(tmp_path, frames[0], "p.gif", save_all=True, append_images=frames[1:])
    assert read_image(path).getpixel((0, 0)) == (255, 0, 0)


def test_a_picture_becomes_a_batch_of_one():
    batch = from_pil(Image.fromarray(COLOUR))
    assert batch.shape == (1, 6, 8, 3) and batch.dtype == torch.uint8
    np.testing.assert_array_equal(batch[0], COLOUR)
    assert from_pil(Image.fromarray(RAMP)).shape == (1, 6, 8, 3)


def png_bytes(width: int, height: int) -> bytes:
    """A PNG that claims a size and holds one byte of data."""
    chunks = [(b"IHDR", struct.pack(">IIBBBBB", width, height, 8, 0, 0, 0, 0)), (b"IDAT", zlib.compress(b"\0")), (b"IEND", b"")]
    body = b"".join(struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data)) for kind, data in chunks)
    return b"\x89PNG\r\n\x1a\n" + body


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (b"", "is empty"),
        (b"not a picture", "not a picture that can be read"),
        (png_bytes(64, 64), "damaged"),
        (png_bytes(10_001, 10_000), "too large: 10001 x 10000 px"),
        (png_bytes(40_000, 40_000), "too large"),
    ],
)
def test_bad_content_is_refused_by_name(tmp_path, content, words):
    path = tmp_path / "p.png"
    path.write_bytes(content)
    with pytest.raises(FileError, match=words) as caught:
        read_image(path)
    assert "p.png" in caught.value.message and caught.value.hint


@pytest.mark.parametrize("kind", ["PNG", "JPEG", "TIFF", "GIF", "BMP", "WEBP"])
def test_truncated_pictures_are_refused(tmp_path, kind):
    buffer = io.BytesIO()
    Image.fromarray(np.random.default_rng(0).integers(0, 256, (64, 64, 3), dtype=np.uint8)).save(buffer, kind)
    path = tmp_path / "p"
    path.write_bytes(buffer.getvalue()[: len(buffer.getvalue()) // 2])
    with pytest.raises(FileError, match=str(path)):
        read_image(path)


@pytest.mark.parametrize(("path", "words"), [("none.png", "missing"), (".", "is a folder"), ("https://example.org/a.png", "web address")])
def test_places_without_a_picture_are_refused(tmp_path, monkeypatch, path, words):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(FileError, match=words):
        read_image(images.Path(path))

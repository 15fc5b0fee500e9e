"""Saliency models: what pops out does, numbers against slow references, and maps from files."""

import math

import h5py
import numpy as np
import pytest
import torch
from PIL import Image

from hsal_cli.errors import FileError, UsageError
from hsal_cli.features.saliency.cells import proportional, to_cells
from hsal_cli.features.saliency.itti import itti_saliency, promote
from hsal_cli.features.saliency.models import saliency_model
from hsal_cli.features.saliency.spectral import spectral_residual
from hsal_cli.features.settings import SALIENCY, PrecomputeSettings

LONG, WIDE, STEP = 12, 3, 24  # px, of the search displays


def display(odd: tuple[int, int], kind: str) -> torch.Tensor:
    """A search display uint8 (1, 96, 96, 3): 4 x 4 upright grey bars, of which one differs in one feature."""
    image = np.full((96, 96, 3), 40, np.uint8)
    for row in range(4):
        for column in range(4):
            y, x = 12 + STEP * row, 12 + STEP * column
            is_odd = (row, column) == odd
            high, wide = (WIDE, LONG) if is_odd and kind == "orientation" else (LONG, WIDE)
            odd_colour = {"colour": (170, 80, 80), "intensity": (220, 220, 220), "orientation": (110, 110, 110)}[kind]
            top, left = y - high // 2, x - wide // 2
            image[top : top + high, left : left + wide] = odd_colour if is_odd else (110, 110, 110)
    return torch.from_numpy(image)[None]


@pytest.mark.parametrize("kind", ["colour", "intensity", "orientation"])
def test_in_ittis_model_the_one_item_that_differs_pops_out(kind):
    for odd in ((1, 2), (2, 0)):
        maps = to_cells(itti_saliency(display(odd, kind)), (4, 4))[0]
        assert divmod(int(maps.argmax()), 4) == odd
        others = maps.flatten()[torch.arange(16) != 4 * odd[0] + odd[1]]
        assert maps[odd] > 1.5 * others.max()


def test_ittis_model_sees_colour_where_there_is_no_other_difference():
    image = torch.full((1, 80, 80, 3), 90, dtype=torch.uint8)
    image[:, 20:30, 50:60] = torch.tensor([140, 65, 65], dtype=torch.uint8)  # red of the same intensity
    maps = to_cells(itti_saliency(image), (8, 8))[0]
    assert divmod(int(maps.argmax()), 8) == (2, 5)
    assert itti_saliency(image.float().mean(3).byte()).max() == 0  # in grey, nothing is left


def test_maps_do_not_depend_on_the_rest_of_the_batch_nor_on_grey_given_as_colour():
    draw = torch.Generator().manual_seed(0)
    images = torch.randint(0, 256, (3, 50, 40), generator=draw, dtype=torch.uint8)
    for model in (itti_saliency, spectral_residual):
        together = model(images)
        for row in range(3):
            torch.testing.assert_close(model(images[row : row + 1])[0], together[row], rtol=1e-4, atol=1e-5)
        torch.testing.assert_close(model(images[..., None].expand(-1, -1, -1, 3)), together, rtol=1e-3, atol=1e-4)


def test_an_image_without_contrast_has_no_saliency_and_odd_sizes_work():
    for model in (itti_saliency, spectral_residual):
        for size in ((1, 1), (3, 200), (64, 64)):
            assert model(torch.full((2, *size), 77, dtype=torch.uint8)).abs().max() == 0
        assert model(torch.randint(0, 256, (1, 5, 300, 3), dtype=torch.uint8)).isfinite().all()
    assert proportional((300, 100), 64) == (64, 21) and proportional((1, 500), 64) == (1, 64)


def slow_promote(map_):
    """N of one map as lists, by its definition: a peak is above its eight neighbours; a plateau of equals is one peak."""
    low, high = map_.min(), map_.max()
    x = (map_ - low) / (high - low)
    height, width = x.shape
    peaks = []
    for i in range(height):
        for j in range(width):
            around = [
                (a, b) for a in (i - 1, i, i + 1) for b in (j - 1, j, j + 1) if (a, b) != (i, j) and 0 <= a < height and 0 <= b < width
            ]
            if x[i, j] > 0.1 and all(x[i, j] > x[c] if c < (i, j) else x[i, j] >= x[c] for c in around):
                peaks.append(x[i, j])
    peaks = sorted(peaks)[:-1]
    return x * (1 - (sum(peaks) / len(peaks) if peaks else 0)) ** 2


def test_the_normalisation_operator_is_ittis():
    draw = np.random.default_rng(3)
    maps = draw.random((2, 3, 9, 7))
    maps[1, 2] = np.round(maps[1, 2] * 3)  # many equal neighbours
    found = promote(torch.from_numpy(maps)).numpy()
    for row in range(2):
        for place in range(3):
            np.testing.assert_allclose(found[row, place], slow_promote(maps[row, place]), atol=1e-9)
    one, two = np.zeros((9, 9)), np.zeros((9, 9))
    one[2, 2:4] = 5.0  # one peak, two pixels wide
    two[2, 2] = two[6, 6] = 5.0
    assert promote(torch.from_numpy(one)[None, None]).max() == 1.0 and promote(torch.from_numpy(two)[None, None]).max() == 0.0
    assert promote(torch.full((1, 1, 4, 4), 3.0)).abs().max() == 0.0


def test_the_spectral_residual_is_what_its_equations_say():
    """Against numpy's transform and loops, on an image of the model's own size, so that nothing is resized."""
    image = np.random.default_rng(0).integers(0, 256, (64, 48), dtype=np.uint8)
    image[20:24, 30:36] = 255
    spectrum = np.fft.fft2(image / 255)
    amplitude = np.log(np.abs(spectrum))
    smooth = sum(np.roll(amplitude, (a, b), (0, 1)) for a in (-1, 0, 1) for b in (-1, 0, 1)) / 9
    raw = np.abs(np.fft.ifft2(np.exp(amplitude - smooth + 1j * np.angle(spectrum)))) ** 2
    kernel = np.array([math.exp(-(d**2) / (2 * 2.5**2)) for d in range(-5, 6)])
    kernel /= kernel.sum()
    padded = np.pad(raw, 5)
    wanted = np.zeros_like(raw)
    for i in range(64):
        for j in range(48):
            wanted[i, j] = kernel @ padded[i : i + 11, j : j + 11] @ kernel
    found = spectral_residual(torch.from_numpy(image)[None])[0].numpy()
    np.testing.assert_allclose(found, wanted, rtol=2e-3, atol=1e-5 * wanted.max())


def test_the_spectral_residual_finds_a_patch_in_noise():
    draw = np.random.default_rng(5)
    for top, left in ((18, 40), (38, 10)):
        image = draw.normal(90, 3, (70, 70)).clip(0, 255).astype(np.uint8)
        image[top + 2 : top + 8, left + 2 : left + 8] += 80
        maps = to_cells(spectral_residual(torch.from_numpy(image)[None]), (7, 7))[0]
        assert divmod(int(maps.argmax()), 7) == ((top + 5) // 10, (left + 5) // 10)


def test_cells_are_means_over_their_area_whatever_the_sizes():
    for size, cells in (((12, 9), (4, 3)), ((10, 10), (7, 7)), ((5, 4), (14, 7)), ((3, 8), (1, 1))):
        map_ = torch.rand(2, *size, dtype=torch.float64)
        fine = map_.repeat_interleave(cells[0], 1).repeat_interleave(cells[1], 2)  # each pixel in parts that fit whole cells
        wanted = fine.unfold(1, size[0], size[0]).unfold(2, size[1], size[1]).mean((3, 4))
        torch.testing.assert_close(to_cells(map_, cells), wanted)
        torch.testing.assert_close(to_cells(map_, cells).mean((1, 2)), map_.mean((1, 2)))


def test_every_model_gives_a_map_of_the_volumes_cells():
    images, volumes = torch.randint(0, 256, (2, 30, 40), dtype=torch.uint8), torch.rand(2, 6, 5, 3)
    for name in SALIENCY:
        model = saliency_model(name)
        maps = model(images, volumes, ["test/0", "test/1"])
        assert maps.shape == (2, 5, 3) and maps.dtype == torch.float32 and maps.min() >= 0 and maps.max() > 0
        assert model.name == model.digest == name
    centre = saliency_model("center")(images, volumes, [])
    assert centre[0].argmax() == 2 * 3 + 1
    torch.testing.assert_close(centre[0], centre[1].flip(0).flip(1))
    torch.testing.assert_close(centre[0, 0, 1] / centre[0, 2, 1], torch.tensor(math.exp(-(0.4**2) / (2 * 0.25**2))))


@pytest.mark.parametrize("name", ["iti", "", "file", "file:", "Itti"])
def test_an_unknown_model_is_refused_with_those_there_are(name):
    with pytest.raises(UsageError) as caught:
        PrecomputeSettings(saliency=name)
    assert ("file:PATH" if name.startswith("file") else "itti") in caught.value.hint


VOLUMES = torch.zeros(1, 1, 2, 2)
STACK = np.arange(3 * 4 * 4, dtype=np.float32).reshape(3, 4, 4)
QUARTERS = torch.from_numpy(STACK[2].reshape(2, 2, 2, 2).mean((1, 3)))


def found(path, name) -> torch.Tensor:
    return saliency_model(f"file:{path}")(torch.zeros(1, 9, 9), VOLUMES, [name])[0]


def test_maps_come_from_stacks_folders_and_single_files(tmp_path):
    np.save(tmp_path / "test.npy", STACK)
    (tmp_path / "train").mkdir()
    np.save(tmp_path / "train" / "0002.npy", STACK[2])
    Image.fromarray(STACK[2].astype(np.uint8)).save(tmp_path / "train" / "5.png")
    Image.fromarray(STACK[2].astype(np.uint8)).save(tmp_path / "photo.png")
    with h5py.File(tmp_path / "maps.h5", "w") as file:
        file["test"], file["train/saliency"] = STACK, STACK
    for path, name in (
        (tmp_path, "test/2"),
        (tmp_path, "train/2"),
        (tmp_path, "train/5"),
        (tmp_path, "some/where/photo.jpg"),
        (tmp_path / "photo.png", "other.png"),
        (tmp_path / "train" / "0002.npy", "other.png"),
        (tmp_path / "maps.h5", "test/2"),
        (tmp_path / "maps.h5", "train/2"),
    ):
        torch.testing.assert_close(found(path, name), QUARTERS)


def test_maps_that_are_missing_or_unusable_are_named(tmp_path):
    np.save(tmp_path / "test.npy", STACK)
    np.save(tmp_path / "flat.npy", STACK[0, 0])
    np.save(tmp_path / "minus.npy", -STACK[0])
    np.save(tmp_path / "words.npy", np.array(["a"]))
    (tmp_path / "text.npy").write_text("text")
    (tmp_path / "text.h5").write_text("text")
    (tmp_path / "x.txt").write_text("text")
    for path, name, words in (
        (tmp_path / "nowhere", "test/0", "there are no saliency maps"),
        (tmp_path / "x.txt", "test/0", "neither a folder nor"),
        (tmp_path, "test/3", "holds 3 maps, none for image 3"),
        (tmp_path, "train/0", "no map of train image 0"),
        (tmp_path, "photo.png", "no map of photo.png"),
        (tmp_path / "flat.npy", "photo.png", "rows and columns"),
        (tmp_path / "minus.npy", "photo.png", "negative"),
        (tmp_path / "words.npy", "photo.png", "array of numbers"),
        (tmp_path / "text.npy", "photo.png", "not a readable NPY"),
        (tmp_path / "text.h5", "test/0", "not a readable HDF5"),
        (tmp_path / "minus.npy", "test/0", "one map"),
    ):
        with pytest.raises(FileError, match=words):
            found(path, name)


def test_other_maps_at_the_same_place_have_another_digest(tmp_path):
    (tmp_path / "test").mkdir()
    np.save(tmp_path / "test" / "0.npy", STACK[0])
    digests = [saliency_model(f"file:{tmp_path}").digest]
    np.save(tmp_path / "test" / "1.npy", STACK[1])
    digests.append(saliency_model(f"file:{tmp_path}").digest)
    np.save(tmp_path / "test" / "1.npy", STACK[2])
    digests.append(saliency_model(f"file:{tmp_path}").digest)
    assert len(set(digests)) == 3 and all(len(digest) == 69 for digest in digests)

"""Synthetic street numbers: digits of several typefaces on walls and plates, in perspective, blurred, noisy and of any contrast.

They stand in for SVHN (section 5) where its images are not at hand. Image i of a split depends on the seed, the split, i, the typefaces and
the labels' file alone. A picture is painted at the size that SVHN's image has, as far as the target shows that, cut to its frame, and
squashed to a square.
"""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
from PIL import Image, ImageFilter

from hsal_cli.errors import UsageError
from hsal_cli.progress import SILENT, Reporter
from hsal_cli.scenes.gather import Example, parts_of
from hsal_cli.scenes.make import write_composed
from hsal_cli.scenes.scene_file import write_scenes
from hsal_cli.scenes.settings import StreetSettings
from hsal_cli.scenes.street.frames import Finder, Frame, clipped, cut, drawing, framed, number_frame
from hsal_cli.scenes.street.plans import MOST_DIGITS, NumberPlan, draw_plan, read_plans
from hsal_cli.scenes.street.typefaces import HEIGHT, Levels, Typeface, find_typefaces, letters
from hsal_cli.scenes.street.wall import LUMA, Rect, against, clouds, colour, plate, wall
from hsal_cli.settings import as_dict
from hsal_cli.storage.files import digest_of_file

STREAM = 1 << 61  # keeps these random streams apart from the scenes' and the strokes'
FINER = 1.25  # a picture's longer side over the target's side, at most; more would not be seen
INK = 96  # grey value of a digit's mask from which a pixel counts as its ink
NARROWEST, WIDEST = 0.55, 1.35  # how far a digit is narrowed or widened to fill its box
DIGITS = [str(digit) for digit in range(10)]
LEGIBLE = 36.0  # least difference in brightness of digits and ground, of 255, before noise

Box = tuple[int, int, int, int]


class StreetPainter:
    """Paints image i of a split.

    Args:
        settings: size and seed.
        split: "train" or "test".
        faces: the typefaces.
        signs: letters that may stand beside a number.
        plans: what SVHN shows; None: drawn from a model of it.
    """

    def __init__(self, settings: StreetSettings, split: str, faces: list[Typeface], signs: list[Levels], plans: list[NumberPlan] | None):
        self.settings, self.split, self.faces, self.signs, self.plans = settings, split, faces, signs, plans
        self.shape = (settings.image_size, settings.image_size, 3)
        self.most = MOST_DIGITS if plans is None else max(len(plan.digits) for plan in plans)

    def compose(self, index: int) -> tuple[np.ndarray, list[int], list[Box]]:
        """Paints one image.

        Returns:
            The image, uint8 (S, S, 3); its digits in random order; for each the box of its ink: x0, y0, x1, y1 in px, half-open.
        """
        seen, digits, found = self._picture(index)
        side = self.settings.image_size
        image = seen.resize((side, side), Image.Resampling.BILINEAR)
        return np.asarray(image), digits, [_squashed(box, seen.size, side) for box in found]

    def example(self, index: int) -> Example:
        """One image in its own size, painted now."""
        seen, digits, found = self._picture(index)
        return Example(f"{self.split} {index}", lambda: seen, digits, np.array(found, np.float64))

    def _picture(self, index: int) -> tuple[Image.Image, list[int], list[Rect]]:
        """Paints one image and cuts it to its frame: the picture, its digits in random order, and for each the box of its ink in px."""
        key = np.array([self.settings.seed, STREAM | (self.split == "test") << 40 | index], np.uint64)
        rng = np.random.Generator(np.random.Philox(key=key))
        plan = draw_plan(rng, self.split) if self.plans is None else self.plans[index % len(self.plans)]
        side = self.settings.image_size
        x0, y0, x1, y1 = self._frame(index, plan)
        # Where a frame is yet to be found, nothing of the picture can be known not to be seen.
        scale = 1.0 if self.settings.frame == "found" else min(1.0, FINER * side / max(1, x1 - x0, y1 - y0))
        size = tuple(max(8, round(length * scale)) for length in plan.size)
        finer = np.array([*size, *size]) / np.array([*plan.size, *plan.size])
        boxes = plan.boxes * finer
        canvas, found = self._paint(rng, size, plan.digits, boxes)
        x0, y0, x1, y1 = (round(value) for value in np.array([x0, y0, x1, y1]) * finer)
        seen = cut(Image.fromarray(self._seen(rng, canvas, boxes)), (x0, y0, max(x1, x0 + 1), max(y1, y0 + 1)), f"{self.split} {index}")
        found = [(left - x0, top - y0, right - x0, bottom - y0) for left, top, right, bottom in found]
        order = np.argsort(rng.random(len(plan.digits)))
        return seen, [plan.digits[place] for place in order], [found[place] for place in order]

    def _frame(self, index: int, plan: NumberPlan) -> Frame:
        """What is cut out, in px of the plan: by the boxes of the labels, not of the ink, as of SVHN's own images."""
        width, height = plan.size
        if self.settings.frame != "number":
            return 0, 0, width, height
        jittered = self.settings.frame_jitter and self.split == "train"
        frame = number_frame(plan.boxes, drawing(self.settings.seed, index) if jittered else None)
        return clipped(frame, plan.size)

    def _paint(
        self, rng: np.random.Generator, size: tuple[int, int], digits: list[int], boxes: np.ndarray
    ) -> tuple[np.ndarray, list[Rect]]:
        """Paints wall, plate and digits: float32 (H, W, 3) in 0..255, and the box of each digit's ink in px."""
        room = (boxes[:, 0].min(), boxes[:, 1].min(), boxes[:, 2].max(), boxes[:, 3].max())
        ground = colour(rng)
        picture = wall(rng, size, ground, room)
        if rng.random() < 0.5:
            ground = against(rng, ground, 30 + 140 * rng.random() ** 1.5)
            plate(rng, picture, ground, room)
        canvas = np.asarray(picture, np.float32).copy()
        contrast = LEGIBLE + 12 + 190 * rng.random() ** 1.4 if rng.random() < 0.85 else LEGIBLE + 20 * rng.random()
        paint = against(rng, ground, contrast)
        if self.signs and rng.random() < 0.25:
            self._sign(rng, canvas, room, paint)
        face = self.faces[int(rng.random() * len(self.faces))]
        style = _Style(rng, paint, ground, float((boxes[:, 3] - boxes[:, 1]).mean()))
        return canvas, [style.stamp(rng, canvas, face.digits[digit], box) for digit, box in zip(digits, boxes, strict=True)]

    def _sign(self, rng: np.random.Generator, canvas: np.ndarray, room: Rect, paint: np.ndarray) -> None:
        """Letters beside or above the number, some cut by the image's edge."""
        width = canvas.shape[1]
        tall = (room[3] - room[1]) * (0.25 + 0.6 * rng.random())
        shade = paint if rng.random() < 0.6 else colour(rng)
        above = rng.random() < 0.4
        x = width * rng.random() if above else room[2] + tall * (0.3 + 0.7 * rng.random())
        y = room[1] - 1.3 * tall if above else room[1] + (room[3] - room[1] - tall) * rng.random()
        if not above and rng.random() < 0.5:
            x = room[0] - tall * (1.4 + rng.random())
        for _ in range(1 + int(rng.random() * (5 if above else 1.6))):
            levels = self.signs[int(rng.random() * len(self.signs))]
            wide = tall * levels[0].width / levels[0].height
            clear = y + tall < room[1] - 1 or x > room[2] + 1 or x + wide < room[0] - 1
            if clear and x < width and y + tall > 0:
                mask, left, top = _warped(levels, np.array([[x, y], [x + wide, y], [x + wide, y + tall], [x, y + tall]]))
                _blend(canvas, mask, left, top, shade)
            x += wide + 0.15 * tall

    def _seen(self, rng: np.random.Generator, canvas: np.ndarray, boxes: np.ndarray) -> np.ndarray:
        """What a camera makes of it: shadow, blur, light and colour, noise. uint8 (H, W, 3)."""
        height, width = canvas.shape[:2]
        if rng.random() < 0.2:
            canvas *= _shadow(rng, width, height)[..., None]
        tall = float((boxes[:, 3] - boxes[:, 1]).mean())
        radius = min(0.3 + 0.05 * tall * rng.random() ** 2, 0.055 * tall)
        blurred = Image.fromarray(np.clip(canvas, 0, 255).astype(np.uint8)).filter(ImageFilter.GaussianBlur(radius))
        canvas = np.asarray(blurred, np.float32)
        if rng.random() < 0.12:  # the camera's car moves
            steps = max(2, round(tall * 0.1 * rng.random()))
            padded = np.pad(canvas, ((0, 0), (0, steps - 1), (0, 0)), mode="edge")
            canvas = sum(padded[:, step : step + width] for step in range(steps)) / steps
        gain = 0.55 + 0.45 * rng.random() ** 0.5
        lift = (255 - 255 * gain) * rng.random()
        cast = 1 + 0.12 * (rng.random(3, dtype=np.float32) - 0.5)
        canvas = (canvas * gain + lift) * cast
        noise = 1 + 9 * rng.random() ** 3
        grain = rng.standard_normal((height, width, 1), dtype=np.float32)
        canvas = canvas + noise * (grain + clouds(rng, (width, height), max(2, width // 4), max(2, height // 4))[..., None] * (0.6 * cast))
        return np.clip(canvas, 0, 255).astype(np.uint8)


class _Style:
    """How the digits of one number are put up: their colour, slant, perspective, depth and outline."""

    def __init__(self, rng: np.random.Generator, paint: np.ndarray, ground: np.ndarray, tall: float):
        self.paint = paint
        self.slant = 0.1 * rng.standard_normal() if rng.random() < 0.6 else 0.0
        self.keystone = 0.07 * rng.standard_normal()
        self.turn = 0.03 * rng.standard_normal()
        self.ramp = 25 * rng.standard_normal() if rng.random() < 0.5 else 0.0
        darker = float(paint @ LUMA) > float(ground @ LUMA)
        self.depth = (0.02 + 0.06 * rng.random()) * tall if rng.random() < 0.4 else 0.0
        self.depth_x, self.depth_y = self.depth * (1 if rng.random() < 0.5 else -1), self.depth
        self.under = ground * (0.35 + 0.4 * rng.random()) if darker or rng.random() < 0.5 else ground * 0.5 + 127
        self.outline = against(rng, paint, 60 + 80 * rng.random()) if rng.random() < 0.12 and tall > 14 else None
        self.jitter = 0.03 if rng.random() < 0.8 else 0.09

    def stamp(self, rng: np.random.Generator, canvas: np.ndarray, levels: Levels, box: np.ndarray) -> Rect:
        """Paints one digit and returns the box of its ink, which lies within `box` or nearly so, as far as the image shows it."""
        x0, y0, x1, y1 = (float(value) for value in box)
        tall = y1 - y0
        natural = tall * levels[0].width / levels[0].height
        wide = min(max(x1 - x0, NARROWEST * natural), WIDEST * natural)
        middle, half = (x0 + x1) / 2, wide / 2
        lean = self.slant * tall / 2
        half = max(half - abs(lean) / 2, 0.3 * half)
        taper = self.keystone * tall / 2
        tilt = self.turn + self.jitter * rng.standard_normal()
        corners = np.array(
            [
                [-half + lean, -tall / 2 + max(taper, 0)],
                [half + lean, -tall / 2 - min(taper, 0)],
                [half - lean, tall / 2 + min(taper, 0)],
                [-half - lean, tall / 2 - max(taper, 0)],
            ]
        )
        turn = np.array([[math.cos(tilt), math.sin(tilt)], [-math.sin(tilt), math.cos(tilt)]])
        mask, left, top = _warped(levels, corners @ turn + np.array([middle, (y0 + y1) / 2]))
        if self.depth:
            _blend(canvas, mask * 0.8, left + round(self.depth_x), top + max(1, round(self.depth_y)), self.under)
        if self.outline is not None:
            wider = Image.fromarray(np.pad(np.rint(255 * mask).astype(np.uint8), 1)).filter(ImageFilter.MaxFilter(3))
            _blend(canvas, np.asarray(wider, np.float32) / 255, left - 1, top - 1, self.outline)
        ramp = np.linspace(-self.ramp, self.ramp, len(mask), dtype=np.float32)[:, None, None]
        _blend(canvas, mask, left, top, np.clip(self.paint + ramp, 0, 255))
        ink = mask * 255 >= min(INK, 0.5 * 255 * float(mask.max()))
        columns, lines = np.flatnonzero(ink.any(axis=0)), np.flatnonzero(ink.any(axis=1))
        if not len(columns):
            return x0, y0, x1, y1
        return left + float(columns[0]), top + float(lines[0]), left + float(columns[-1]) + 1, top + float(lines[-1]) + 1


def _warped(levels: Levels, corners: np.ndarray) -> tuple[np.ndarray, int, int]:
    """Draws a glyph into a quadrangle.

    Args:
        levels: its drawings, large to small.
        corners: (4, 2) x, y where its corners go: top left, top right, bottom right, bottom left; px.

    Returns:
        mask float32 (h, w) in 0..1, and the place of its upper left corner, x and y.
    """
    low, high = np.floor(corners.min(axis=0)).astype(int) - 1, np.ceil(corners.max(axis=0)).astype(int) + 1
    width, height = (int(length) for length in np.maximum(high - low, 2))
    tall = float(corners[2, 1] + corners[3, 1] - corners[0, 1] - corners[1, 1]) / 2
    level = min(max(int(math.log2(HEIGHT / max(tall, 1.0))), 0), len(levels) - 1)
    glyph = levels[level]
    (x, y), (u, v) = (corners - low).T, (np.array([0, glyph.width, glyph.width, 0.0]), np.array([0, 0, glyph.height, glyph.height * 1.0]))
    # Eight equations for the projective map from the mask to the glyph, as Pillow wants it.
    one, nil = np.ones(4), np.zeros(4)
    rows = np.concatenate(
        [
            np.stack([x, y, one, nil, nil, nil, -u * x, -u * y], axis=1),
            np.stack([nil, nil, nil, x, y, one, -v * x, -v * y], axis=1),
        ]
    )
    try:
        terms = np.linalg.solve(rows, np.concatenate([u, v]))
    except np.linalg.LinAlgError:
        return np.zeros((height, width), np.float32), int(low[0]), int(low[1])
    drawn = glyph.transform((width, height), Image.Transform.PERSPECTIVE, terms.tolist(), Image.Resampling.BILINEAR)
    return np.asarray(drawn, np.float32) / 255, int(low[0]), int(low[1])


def _blend(canvas: np.ndarray, mask: np.ndarray, left: int, top: int, paint: np.ndarray) -> None:
    """Paints through a mask, as far as it lies on the canvas; `paint` is one colour or one a line of the mask, (h, 1, 3)."""
    x0, y0 = max(left, 0), max(top, 0)
    x1, y1 = min(left + mask.shape[1], canvas.shape[1]), min(top + mask.shape[0], canvas.shape[0])
    if x0 >= x1 or y0 >= y1:
        return
    part = mask[y0 - top : y1 - top, x0 - left : x1 - left, None]
    paint = paint[y0 - top : y1 - top] if paint.ndim == 3 else paint
    window = canvas[y0:y1, x0:x1]
    window += part * (paint - window)


def _shadow(rng: np.random.Generator, width: int, height: int) -> np.ndarray:
    """A cast shadow with a straight soft edge: a factor for each pixel, float32 (H, W)."""
    angle, place = 2 * math.pi * rng.random(), rng.random() - 0.5
    y, x = np.ogrid[:height, :width]
    across = (x / width - 0.5) * math.cos(angle) + (y / height - 0.5) * math.sin(angle) - 0.6 * place
    return (1 - (0.25 + 0.35 * rng.random()) * np.clip(0.5 + across / 0.04, 0, 1)).astype(np.float32)


def _squashed(box: Rect, size: tuple[int, int], side: int) -> Box:
    """A box of the picture as one of the square image: whole px, inside, never empty."""
    width, height = size
    x0, x1 = (min(max(round(x * side / width), 0), side) for x in (box[0], box[2]))
    y0, y1 = (min(max(round(y * side / height), 0), side) for y in (box[1], box[3]))
    x0, y0 = min(x0, side - 1), min(y0, side - 1)
    return x0, y0, max(x1, x0 + 1), max(y1, y0 + 1)


def make_street_numbers(
    settings: StreetSettings, out: Path, workers: int | None = None, reporter: Reporter = SILENT, finder: Finder | None = None
) -> Path:
    """Makes a scene file of street numbers.

    Args:
        settings: the recipe.
        out: the file to write; one that exists is replaced.
        workers: processes that paint; None: one a core. What is painted does not depend on it.
        reporter: hears of the typefaces, and the progress.
        finder: finds the frames where they are to be found; then one process paints, and the finder's network takes the other cores.

    Returns:
        `out`.

    Raises:
        FileError: the labels cannot be read, or the file cannot be written; Interrupted: stopped on request.
    """
    plans = read_plans(Path(settings.svhn_labels).expanduser()) if settings.svhn_labels else {"train": None, "test": None}
    faces = find_typefaces(system=settings.typefaces == "auto")
    if not faces:
        raise UsageError("no typeface was found", "take --typefaces auto")
    signs = letters()
    sources = len({face.source for face in faces})
    reporter.say(f"{len(faces)} typefaces from {sources} sources; numbers and places: {settings.svhn_labels or 'a model of SVHN'}")
    wanted = {"train": settings.train * max(1, settings.frame_jitter), "test": settings.test}
    sizes = {split: count for split, count in wanted.items() if count}
    painters = {split: StreetPainter(settings, split, faces, signs, plans[split]) for split in sizes}
    config = {
        "dataset": "street-numbers",
        **as_dict(settings),
        "svhn_labels_sha256": digest_of_file(Path(settings.svhn_labels).expanduser()) if settings.svhn_labels else None,
        "faces": [[face.name, face.source] for face in faces],
    }
    if finder is not None:
        config["found"], side = dict(finder.config), settings.image_size
        most = max(painter.most for painter in painters.values())
        with (
            write_scenes(out, config, DIGITS) as writer,
            reporter.track("Painting street-numbers", sum(sizes.values()), "images") as advance,
        ):
            for split, count in sizes.items():
                pictures = framed(map(painters[split].example, range(count)), settings, split, finder, config["found"])
                writer.write_split(split, parts_of(pictures, side, "squash", most, True, reporter, advance), (count, side, side, 3))
        return out
    return write_composed(out, config, DIGITS, painters, sizes, workers, reporter)

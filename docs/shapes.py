"""Draws pictures of one to six coloured shapes into shapes/, and shapes/labels.csv: a line a picture, its shapes, no boxes.

python docs/shapes.py [TRAIN] [boxes]: 200 pictures to learn from, or as many as said, and 500 to test with; boxes: a line a shape, boxed.
"""

import csv
import math
import random
import sys
from pathlib import Path

from PIL import Image, ImageDraw, ImageFilter

SIDES = {"circle": 40, "square": 4, "triangle": 3, "star": 10}
TRAIN, TEST, BOXES = int([*sys.argv, 200][1]), 500, "boxes" in sys.argv


def colour():
    return tuple(random.randint(0, 255) for _ in range(3))


def contrast(one, other):
    return sum(abs(a - b) for a, b in zip(one, other, strict=True))


Path("shapes").mkdir(exist_ok=True)
with open("shapes/labels.csv", "w", newline="") as file:
    rows = csv.writer(file)
    rows.writerow(["image", "split", "label", "x0", "y0", "x1", "y1"] if BOXES else ["image", "split", "labels"])
    for number in range(TEST + TRAIN):  # the test pictures first: they are the same whatever TRAIN is
        random.seed(number)
        ground = colour()
        picture = Image.effect_noise((128, 96), random.uniform(0, 80)).filter(ImageFilter.GaussianBlur(random.uniform(0.5, 2)))
        picture = Image.blend(Image.new("RGB", picture.size, ground), picture.convert("RGB"), 0.25)
        draw, boxes, names = ImageDraw.Draw(picture), [], []
        wanted = random.randint(1, 6)
        while len(names) < wanted:
            name, radius, turn, paint = random.choice(list(SIDES)), random.uniform(8, 18), random.uniform(0, 2 * math.pi), colour()
            x, y = random.uniform(radius, 128 - radius), random.uniform(radius, 96 - radius)
            box = [round(value) for value in (x - radius, y - radius, x + radius, y + radius)]
            if contrast(paint, ground) < 120 or any(box[0] < b[2] and b[0] < box[2] and box[1] < b[3] and b[1] < box[3] for b in boxes):
                continue
            reach = [radius * (0.45 if name == "star" and corner % 2 else 1) for corner in range(SIDES[name])]
            angles = [turn + 2 * math.pi * corner / SIDES[name] for corner in range(SIDES[name])]
            draw.polygon([(x + r * math.cos(a), y + r * math.sin(a)) for r, a in zip(reach, angles, strict=True)], paint)
            boxes.append(box)
            names.append(name)
        picture.save(f"shapes/{number}.png")
        split = "test" if number < TEST else "train"
        for name, box in zip(names, boxes, strict=True) if BOXES else [(";".join(names), [])]:
            rows.writerow([f"{number}.png", split, name, *box])

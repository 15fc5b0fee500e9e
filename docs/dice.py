"""Draws 1,500 pictures of one to four dice into dice/, and dice/labels.csv: a line a die, its number of pips and its box."""

import csv
import random
from pathlib import Path

from PIL import Image, ImageDraw

PIPS = {1: "4", 2: "08", 3: "048", 4: "0268", 5: "02468", 6: "023568"}  # of the nine places on a face, row by row
Path("dice").mkdir(exist_ok=True)
random.seed(0)
with open("dice/labels.csv", "w", newline="") as file:
    csv.writer(file).writerow(["image", "label", "x0", "y0", "x1", "y1"])
    for number in range(1500):
        table = Image.new("RGB", (160, 120), random.choice(["darkgreen", "sienna", "midnightblue", "dimgray"]))
        for cell in random.sample(range(12), random.randint(1, 4)):
            pips, side, draw = random.randint(1, 6), random.randint(24, 34), ImageDraw.Draw(table)
            x, y = cell % 4 * 40 + random.randint(0, 40 - side), cell // 4 * 40 + random.randint(0, 40 - side)
            draw.rounded_rectangle((x, y, x + side - 1, y + side - 1), side // 5, random.choice(["white", "ivory", "gold", "tomato"]))
            for column, row in (divmod(int(place), 3)[::-1] for place in PIPS[pips]):
                left, top = x + side * (0.14 + 0.28 * column), y + side * (0.14 + 0.28 * row)
                draw.ellipse((left, top, left + side / 7, top + side / 7), "black")
            csv.writer(file).writerow([f"{number}.png", pips, x, y, x + side, y + side])
        table.save(f"dice/{number}.png")

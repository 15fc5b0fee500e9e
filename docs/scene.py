"""Draws scene.jpg, 3000 x 1500 px: a red boat on the sea, buoys, clouds, a beach. It stands in for a photograph, free of any licence."""

import random

from PIL import Image, ImageDraw, ImageFilter

WIDTH, HEIGHT, SEA, BEACH = 3000, 1500, 600, 1200
BANDS = [
    (0, SEA, (90, 150, 215), (200, 222, 240)),
    (SEA, BEACH, (40, 95, 130), (70, 140, 160)),
    (BEACH, HEIGHT, (200, 180, 140), (170, 145, 105)),
]
random.seed(0)
scene = Image.new("RGB", (WIDTH, HEIGHT))
draw = ImageDraw.Draw(scene)
for top, bottom, first, last in BANDS:
    for y in range(top, bottom):
        part = (y - top) / (bottom - top)
        draw.line((0, y, WIDTH, y), tuple(round(a + (b - a) * part) for a, b in zip(first, last, strict=True)))
for _ in range(900):  # waves, longer the nearer they are
    y = random.randint(SEA + 5, BEACH - 5)
    x, half = random.randint(0, WIDTH), 6 + (y - SEA) // 8
    draw.line((x - half, y, x + half, y), random.choice([(95, 160, 180), (35, 85, 120), (130, 185, 200)]), 2 + (y - SEA) // 120)
for _ in range(1500):  # pebbles
    x, y, r = random.randint(0, WIDTH), random.randint(BEACH + 10, HEIGHT), random.randint(2, 6)
    draw.ellipse((x - 2 * r, y - r, x + 2 * r, y + r), random.choice([(150, 130, 95), (215, 198, 165), (120, 105, 85)]))
clouds = Image.new("L", (WIDTH, HEIGHT))
for middle in (420, 1500, 2480):
    for _ in range(14):
        x, y, r = middle + random.randint(-260, 260), random.randint(130, 260), random.randint(50, 110)
        ImageDraw.Draw(clouds).ellipse((x - 2 * r, y - r, x + 2 * r, y + r), 200)
scene.paste((250, 250, 252), mask=clouds.filter(ImageFilter.GaussianBlur(30)))
draw.polygon([(1900, 760), (2420, 760), (2340, 880), (1980, 880)], (190, 40, 30))  # the boat
draw.rectangle((2150, 300, 2164, 760), (90, 60, 40))
draw.polygon([(2180, 320), (2180, 740), (2440, 740)], (250, 248, 240))
draw.polygon([(2134, 380), (2134, 740), (1940, 740)], (235, 232, 220))
for x, y, r, colour in ((520, 900, 46, (240, 150, 20)), (1120, 760, 30, (240, 150, 20)), (900, 1060, 62, (225, 200, 30))):
    draw.ellipse((x - r, y - r, x + r, y + r), colour)  # buoys
    draw.rectangle((x - r // 6, y - 2 * r, x + r // 6, y - r), (60, 60, 60))
scene.filter(ImageFilter.GaussianBlur(1.5)).save("scene.jpg", quality=90)

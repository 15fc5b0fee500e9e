"""What the frames of scene files look like, to compare painted street numbers with genuine ones: `python docs/frames.py FILE.h5 ...`.

Of each image, in grey values of 0 to 1: the contrast (the 95th percentile less the 5th), the sharpness (the 99th percentile of the steps
between neighbouring pixels, as a share of the contrast), the noise (median of the absolute Laplacian, as a share of the contrast), and the
height and width of the boxes as shares of the frame's side. Printed: the median, and in brackets the 10th and the 90th percentile.
"""

import sys
from pathlib import Path

import numpy as np

import hsal_cli as hsal

MOST = 1000  # images of a split

for name in sys.argv[1:]:
    found: dict[str, list[float]] = {"contrast": [], "sharpness": [], "noise": [], "box height": [], "box width": []}
    for scenes in (hsal.Scenes(name, "train"), hsal.Scenes(name, "test")):
        for index in range(min(MOST, len(scenes))):
            image, labels, boxes = scenes[index]
            grey = np.asarray(image, np.float64).mean(axis=-1) / 255
            low, high = np.percentile(grey, [5, 95])
            contrast = max(high - low, 1 / 255)
            steps = np.concatenate([np.abs(np.diff(grey, axis=axis)).ravel() for axis in (0, 1)])
            around = grey[:-2, 1:-1] + grey[2:, 1:-1] + grey[1:-1, :-2] + grey[1:-1, 2:]
            found["contrast"].append(contrast)
            found["sharpness"].append(np.percentile(steps, 99) / contrast)
            found["noise"].append(np.median(np.abs(4 * grey[1:-1, 1:-1] - around)) / contrast)
            for x0, y0, x1, y1 in boxes[labels >= 0].tolist():
                found["box height"].append((y1 - y0) / grey.shape[0])
                found["box width"].append((x1 - x0) / grey.shape[1])
    print(f"{Path(name).name}, {len(found['contrast']):,} images")
    for kind, values in found.items():
        low, middle, high = np.percentile(values, [10, 50, 90])
        print(f"    {kind:10}  {middle:.3f} ({low:.3f} to {high:.3f})")

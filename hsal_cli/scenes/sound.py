"""What labels and boxes of a split must be: the one check that the readers and writers of scene and feature files, and `hsal check`, share.

Files hold both as int16, in which 40,000 would become -25,536 without a word. So values are checked as they come, in their own type.
"""

from __future__ import annotations

import numpy as np

LARGEST = int(np.iinfo(np.int16).max)  # label, and side of an image with boxes in px


def sound_labels(labels: np.ndarray, classes: int, images: int) -> np.ndarray:
    """Checks the multisets of a split; one may hold no object at all.

    Args:
        labels: (N, L), padded with -1 behind the labels.
        classes: K; labels lie in 0..K-1.
        images: N.

    Returns:
        The same as int16.

    Raises:
        ValueError: not integers of that shape, a label that is no class, or one behind the padding; names the row and the value.
    """
    if labels.dtype.kind not in "iu":
        raise ValueError(f"labels have type {labels.dtype}, not integers")
    if labels.ndim != 2 or len(labels) != images or labels.shape[1] < 1:
        raise ValueError(f"labels have shape {labels.shape}, not ({images}, L)")
    padding, highest = labels == -1, min(classes - 1, LARGEST)
    outside = ((labels < 0) & ~padding) | (labels > highest)
    if outside.any():
        row, column = np.argwhere(outside)[0]
        raise ValueError(f"row {row} has a label outside 0 to {highest} (-1 pads): {labels[row, column]}")
    behind = (padding[:, :-1] & ~padding[:, 1:]).any(axis=1)
    if behind.any():
        row = int(behind.argmax())
        raise ValueError(f"row {row} has a label behind the padding: {labels[row].tolist()}")
    return labels.astype(np.int16)


def sound_classes(names: list[str]) -> list[str]:
    """The same class names.

    Raises:
        ValueError: more than labels can tell apart.
    """
    if len(names) > LARGEST + 1:
        raise ValueError(f"there are {len(names):,} classes, and a label is at most {LARGEST:,}")
    return names


def sound_boxes(boxes: np.ndarray, labels: np.ndarray, image_size: tuple[int, int]) -> np.ndarray:
    """Checks the boxes of a split.

    Args:
        boxes: (N, L, 4) x0, y0, x1, y1 in px, half-open; what stands beside padding does not count.
        labels: (N, L), padded with -1, checked.
        image_size: height and width, px.

    Returns:
        The same as int16.

    Raises:
        ValueError: not integers of that shape, or a box that is empty, leaves the image, or lies beyond 32,767 px; names row and box.
    """
    if boxes.dtype.kind not in "iu":
        raise ValueError(f"boxes have type {boxes.dtype}, not integers")
    if boxes.shape != (*labels.shape, 4):
        raise ValueError(f"boxes have shape {boxes.shape}, not {(*labels.shape, 4)}")
    height, width = image_size
    x0, y0, x1, y1 = np.moveaxis(boxes, 2, 0)
    wrong = (x0 < 0) | (y0 < 0) | (x1 <= x0) | (y1 <= y0) | (x1 > min(width, LARGEST)) | (y1 > min(height, LARGEST))
    wrong &= labels >= 0
    if wrong.any():
        row, column = np.argwhere(wrong)[0]
        box = boxes[row, column].tolist()
        beyond = f", or lies beyond the {LARGEST:,} px that boxes may have" if max(image_size) > LARGEST else ""
        raise ValueError(f"row {row} has a box that is empty or leaves the image of {width}x{height} px{beyond}: {box}")
    # Only what stands beside padding can be cut off here.
    return boxes.astype(np.int64).clip(np.iinfo(np.int16).min, LARGEST).astype(np.int16)

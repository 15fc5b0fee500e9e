"""What the tests of labels share: small pictures, and what a scene file made of them holds."""

import json
from pathlib import Path

from PIL import Image

from hsal_cli.errors import HsalError
from hsal_cli.scenes.folder import make_from_folder
from hsal_cli.scenes.readers.labels import Notes
from hsal_cli.scenes.scene_file import open_scenes
from hsal_cli.scenes.settings import FolderSettings
from hsal_cli.vision.images import FORMATS, read_image

SIZE = (40, 20)


def draw(folder: Path, *names: str, size: tuple[int, int] = SIZE, **saving) -> Path:
    """Draws a picture under each name, below the folder."""
    for name in names:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", size, (40, 90, 10)).save(folder / name, **saving)
    return folder


def write(path: Path, text: str | bytes | dict | list) -> Path:
    """Writes a file: bytes as they are, texts in UTF-8, all else as JSON."""
    path.parent.mkdir(parents=True, exist_ok=True)
    text = text if isinstance(text, str | bytes) else json.dumps(text)
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    return path


class Made:
    """A scene file made of a folder.

    Attributes:
        held: for each split, the labels of each image, by name and in order; and in `boxes` their boxes, or None.
        classes: the class names.
        skipped: what was skipped -> reason.
        remarks: the sentences.
        error: what ended it, or None.
    """

    def __init__(self, images: Path, labels: Path, **changes):
        out, notes = images.parent / "made.h5", Notes()
        out.unlink(missing_ok=True)
        self.error, self.held, self.boxes, self.classes = None, {}, {}, []
        settings = {"images": str(images), "labels": str(labels), "image_size": 40, "test_share": 0.0, **changes}
        try:
            assert make_from_folder(FolderSettings(**settings), out, read_image, FORMATS, notes=notes) is notes
        except HsalError as error:
            self.error = error
            assert not out.exists()
        self.skipped = {row["what"]: row["reason"] for row in notes.skipped}
        self.remarks = notes.remarks
        if self.error is None:
            with open_scenes(out) as scenes:
                self.classes = scenes.classes
                for name in scenes.splits:
                    split = scenes.split(name)
                    self.held[name] = [[scenes.classes[label] for label in row if label >= 0] for row in split.labels]
                    rows = [None] * len(split) if split.boxes is None else split.boxes
                    self.boxes[name] = [
                        None if row is None else row[: len(own)].tolist() for row, own in zip(rows, self.held[name], strict=True)
                    ]

    @property
    def train(self) -> list[list[str]]:
        """The labels of the training images."""
        assert self.error is None, self.error
        return self.held["train"]

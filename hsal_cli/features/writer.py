"""Writing the feature file so that an interrupted run continues: it grows as NAME.partial and takes its name when it is whole.

Attribute `done` of each split there counts the rows that are safely on the disk. Rows that were never written read as NaN, never as
zeros. HDF5 does not keep its bookkeeping safe when a writer is killed: attribute `open` tells, and the rows are then moved to a fresh file.
"""

from __future__ import annotations

import contextlib
import dataclasses
import json
import shutil
import time
from collections import deque
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import torch
from torch import Tensor

from hsal_cli.errors import FileError, first_line
from hsal_cli.features.table import FORMAT, map_shape
from hsal_cli.features.views import ViewedScenes
from hsal_cli.progress import Reporter
from hsal_cli.scenes.scene_file import SceneFile
from hsal_cli.storage.atomic import atomic_write, cannot_write, clear_after_the_dead, sync, take_place
from hsal_cli.storage.files import digest_of_array, refuse_link, regular
from hsal_cli.storage.hdf5 import attribute, opened, put_text, reading, seal, stamp
from hsal_cli.storage.steady import SteadyFile

BLOCK_BYTES = 1 << 20  # size of an HDF5 chunk of volumes, about
CACHE_BYTES = 64 << 20  # chunks that a batch fills in part stay in memory until they are full
SAVE_EVERY_S = 10.0  # a killed run loses at most this much work
HDF5 = b"\x89HDF\r\n\x1a\n"  # how its files begin
WAITING = 4  # batches that may wait to be written
# The newest layout whose files can be read after their writer was killed; it has checksums of almost all of HDF5's own bookkeeping.
LAYOUT = ("v108", "latest")
LARGEST_BITS = 0x7BFF  # of 65,504, the largest float16


@dataclasses.dataclass(frozen=True)
class Origin:
    """What features are made from.

    Attributes:
        scenes: the open scene file.
        backbone: where the activation model is.
        backbone_digest: sha256 of its weights.
        volume_shape: (C, h, w).
        fine, fine_side: how many of the C are a finer stage's or a window's, and its cells along a side of one of the volume.
        input_size: side that images are resized to, px.
        saliency, saliency_digest: name and digest of the saliency model.
        digest: of the features.
        config: every setting, for the record.
    """

    scenes: SceneFile | ViewedScenes
    backbone: Path
    backbone_digest: str
    volume_shape: tuple[int, int, int]
    fine: int
    fine_side: int
    input_size: int
    saliency: str
    saliency_digest: str
    digest: str
    config: dict[str, Any]


def partial_of(out: Path) -> Path:
    """What a feature file is called until it is whole."""
    return out.with_name(out.name + ".partial")


@contextlib.contextmanager
def features_to_fill(out: Path, origin: Origin, batch_size: int, reporter: Reporter) -> Iterator[FeatureWriter]:
    """Yields a writer of the partial file, which knows where to go on; then gives the file its name.

    Where the block raises, what was written stays for the next run. A partial file of other origin, or damaged, is begun anew. FileError:
    it cannot be written, or another process is writing it.
    """
    partial = partial_of(out)
    try:
        clear_after_the_dead(partial)
        refuse_link(partial)
        if partial.exists() and not may_be_ours(partial):
            raise FileError(f"{partial} exists and was not made by hsal, so it is not replaced", "move it, or name another file with --out")
        if not (partial.exists() and _can_continue(partial, origin, reporter)):
            with SteadyFile(partial, "w", libver=LAYOUT) as file:
                _lay_out(file, origin)
        with SteadyFile(partial, "r+", libver=LAYOUT, rdcc_nbytes=CACHE_BYTES) as file:
            _describe(file, origin)
            starts = {name: _first_row(file[name], batch_size) for name in origin.scenes.splits}
            for name, group in file.items():
                group.attrs["done"] = _whole_chunks(group, starts[name])
                _count_from_here(group)
            file.attrs["open"] = True
            file.flush()
            if any(starts.values()):
                reporter.say(f"continuing after {sum(starts.values()):,} images")
            try:
                with FeatureWriter(file, partial, origin, starts) as writer:
                    yield writer
                file.check()
                for group in file.values():
                    group.attrs["cut_off"] = int(group["cut"][()].sum())
                    del group["cut"]
                seal(file, origin.digest)
            finally:
                file.flush()
                file.attrs["open"] = False
        sync(partial)
        take_place(partial, out)
    except BlockingIOError as error:
        raise FileError(f"{partial} is being written by another process", "wait for it, or name another file with --out") from error
    except OSError as error:
        raise cannot_write(partial, error) from error


def may_be_ours(partial: Path) -> bool:
    """Whether a file begins as HDF5 does, or was begun and never written."""
    if partial.is_symlink():
        return False
    with regular(partial).open("rb") as stream:
        return stream.read(len(HDF5)) in (HDF5, b"", bytes(len(HDF5)))


def _first_row(group: h5py.Group, batch_size: int) -> int:
    """Where to go on: at the batches of a run without interruption, so that the last bit of each number is the same too."""
    done = int(group.attrs["done"])
    return done if done == len(group["volumes"]) else done // batch_size * batch_size


def _whole_chunks(group: h5py.Group, rows: int) -> int:
    """How many of the first rows lie in chunks that no later row touches: a kill may tear the chunk that is being written."""
    block = group["volumes"].chunks[0]
    return rows if rows == len(group["volumes"]) else rows // block * block


def _count_from_here(group: h5py.Group) -> None:
    """Lays out how many activations of each row were cut off, as long as a file is not whole: what is written again counts once."""
    if "cut" in group:
        return
    volumes, done = group["volumes"], int(group.attrs["done"])
    counts = np.zeros(len(volumes), np.int32)
    for start in range(0, done, volumes.chunks[0]):
        stop = min(start + volumes.chunks[0], done)
        counts[start:stop] = _cut_off(volumes[start:stop])
    group.create_dataset("cut", data=counts)


def _cut_off(volumes: np.ndarray) -> np.ndarray:
    """How many activations of each row, float16, are the most that there is."""
    return (np.ascontiguousarray(volumes).view(np.uint16) == LARGEST_BITS).sum((1, 2, 3), dtype=np.int32)


def _can_continue(partial: Path, origin: Origin, reporter: Reporter) -> bool:
    """Looks at a partial file; where its writer was killed, moves its rows to a fresh file, or gives them up and says why."""
    try:
        with opened(partial) as old:
            if attribute(old, "digest") != origin.digest:
                reporter.say(f"{partial} belongs to other scenes, another backbone or saliency model; starting over")
                return False
            if not old.attrs["open"]:
                for _ in _read_through(old, origin):
                    pass
                return True
            size, free = partial.stat().st_size, shutil.disk_usage(partial.parent).free
            if free >= size:
                _rescue(old, partial, origin)
                return True
    except (BlockingIOError, MemoryError):
        raise
    except Exception as error:  # h5py raises almost anything on damaged files
        said = first_line(error)
        reporter.say(f"{partial} cannot be continued ({said}); starting over")
        return False
    raise FileError(
        f"no room to rescue {partial}, whose writer was killed: it needs {size / 1e9:.2f} GB, and {free / 1e9:.2f} GB are free",
        f"free some space, or delete {partial} to start over",
    )


def _read_through(old: h5py.File, origin: Origin) -> Iterator[tuple[str, slice, np.ndarray]]:
    """Reads all rows that a partial file holds, as (dataset, rows, values), and raises ValueError where it is not what its origin says."""
    for name in origin.scenes.splits:
        split, group = origin.scenes.split(name), old[name]
        for part, shape in _parts(origin).items():
            data, done = group[part], int(group.attrs["done"])
            if data.shape != (len(split), *shape):
                raise ValueError(f"{name}/{part} has another shape")
            for start in range(0, done, data.chunks[0]):
                rows = slice(start, min(start + data.chunks[0], done))
                values = data[rows]  # HDF5 checks each chunk's checksum as it reads
                if not np.isfinite(values).all():
                    raise ValueError(f"{name}/{part} has a gap")
                yield f"{name}/{part}", rows, values
        for part, values in (("labels", split.labels), ("boxes", split.boxes)):
            if values is not None and not np.array_equal(group[part][()], values):
                raise ValueError(f"{name}/{part} differs")


def _rescue(old: h5py.File, partial: Path, origin: Origin) -> None:
    with atomic_write(partial) as temporary, SteadyFile(temporary, "w", libver=LAYOUT) as new:
        _lay_out(new, origin)
        for place, rows, values in _read_through(old, origin):
            new[place][rows] = values
        for name, group in old.items():
            new[name].attrs["done"] = int(group.attrs["done"])


def _parts(origin: Origin) -> dict[str, tuple[int, ...]]:
    """What is computed of each row, and its shape."""
    return {"volumes": origin.volume_shape, "saliency": map_shape(origin.volume_shape, origin.fine, origin.fine_side)}


def _lay_out(file: h5py.File, origin: Origin) -> None:
    """Writes all but the volumes and saliency maps."""
    _describe(file, origin)
    file.attrs["open"] = True
    block = max(1, BLOCK_BYTES // (2 * int(np.prod(origin.volume_shape))))
    for name in origin.scenes.splits:
        split, group = origin.scenes.split(name), file.create_group(name)
        group.attrs["image_size"], group.attrs["done"] = split.image_size, 0
        for part, shape in _parts(origin).items():
            chunk, kind = (min(block, len(split)), *shape), np.float16 if part == "volumes" else np.float32
            group.create_dataset(part, (len(split), *shape), kind, chunks=chunk, fletcher32=True, fillvalue=np.nan)
        for part, values in (("labels", split.labels), ("boxes", split.boxes)):
            if values is not None:
                group.create_dataset(part, data=values, chunks=True, fletcher32=True)
                put_text(group, f"{part}_digest", digest_of_array(values))
    file.attrs["open"] = False


def _describe(file: h5py.File, origin: Origin) -> None:
    """Writes the root attributes; again where a file is continued, for HDF5 keeps no checksum of them."""
    scenes = origin.scenes
    stamp(file, FORMAT, origin.config)
    texts = {"digest": origin.digest, "classes": json.dumps(scenes.classes), "scenes_digest": scenes.digest}
    texts |= {"backbone_digest": origin.backbone_digest, "saliency": origin.saliency, "saliency_digest": origin.saliency_digest}
    for name, text in texts.items():
        put_text(file, name, text)
    file.attrs["input_size"], file.attrs["volume_shape"], file.attrs["fine"] = origin.input_size, origin.volume_shape, origin.fine
    file.attrs["fine_side"] = origin.fine_side
    file.attrs["image_size"] = scenes.split(scenes.splits[0]).image_size


class FeatureWriter:
    """Writes batches in a thread of its own, the only one to use the file; on leaving, all that was put is on the disk and counted.

    Attributes:
        starts: split -> the first row to compute.
    """

    def __init__(self, file: SteadyFile, path: Path, origin: Origin, starts: dict[str, int]):
        self._file, self._path, self._origin, self.starts = file, path, origin, starts
        self._writer = ThreadPoolExecutor(1, "feature-writer")
        self._waiting: deque[Future[None]] = deque()
        self._done: dict[str, int] = {}
        self._error: BaseException | None = None
        self._saved = time.monotonic()

    def __enter__(self) -> FeatureWriter:
        return self

    def __exit__(self, kind: object, error: object, trace: object) -> None:
        self._writer.shutdown()
        if self._error is None:
            self._save(exactly=True)
        elif kind is None and isinstance(self._error, (KeyError, RuntimeError, ValueError)):
            # h5py raises almost anything where a file's own structure is damaged.
            said = str(self._error).splitlines()[0].strip("'\"")
            raise FileError(f"{self._path} is damaged: {said}", "delete it, and run the same command again") from self._error
        elif kind is None:
            raise self._error

    def put(self, split: str, start: int, volumes: Tensor, saliency: Tensor) -> None:
        """Hands over the rows from `start` on; waits only while too many wait to be written.

        Args:
            volumes: float16 (n, C, h, w), contiguous; on any device.
            saliency: float32 (n, h, w) or (n, 2h, 2w), on the same.

        Raises:
            OSError: an earlier write failed. FileError: an earlier batch was not finite, or its saliency below 0.
        """
        if self._error is not None:
            raise self._error
        ready = None
        if volumes.device.type == "cuda":
            # The copies run behind the forward pass; only the writer waits for them.
            stream = torch.cuda.current_stream(volumes.device)
            volumes, saliency = _to_pinned(volumes), _to_pinned(saliency)
            ready = torch.cuda.Event()
            ready.record(stream)
        self._waiting.append(self._writer.submit(self._try, split, start, volumes, saliency, ready))
        if len(self._waiting) > WAITING:
            self._waiting.popleft().result()

    def _try(self, *batch: Any) -> None:
        if self._error is not None:
            return  # or rows behind a gap would count as done
        try:
            self._write(*batch)
            if time.monotonic() - self._saved > SAVE_EVERY_S:
                self._save(exactly=False)
                self._saved = time.monotonic()
        except BaseException as error:  # raised again by put() or on leaving, in the thread that can handle it
            self._error = error

    def _write(self, split: str, start: int, volumes: Tensor, saliency: Tensor, ready: torch.cuda.Event | None) -> None:
        if ready is not None:
            ready.synchronize()
        saliency = saliency.cpu()
        if not saliency.isfinite().all():
            raise FileError(f"backbone {self._origin.backbone} gives volumes that are not finite", "train another one with: hsal finetune")
        if bool((saliency < 0).any()):
            raise FileError(f"saliency model {self._origin.saliency} gives values below 0", "have it give maps of numbers from 0 up")
        stop = start + len(volumes)
        with reading(self._path, split, f"delete {self._path}, and run the same command again"):
            rows = volumes.cpu().numpy()
            self._file[split]["volumes"][start:stop] = rows
            self._file[split]["cut"][start:stop] = _cut_off(rows)
            self._file[split]["saliency"][start:stop] = saliency.numpy()
        self._file.check()
        self._done[split] = stop

    def _save(self, exactly: bool) -> None:
        """Counts rows as done, but only when they are on the disk; `exactly`: the file is closed next, so no chunk can be torn."""
        self._file.flush()
        self._file.check()
        sync(self._path)
        for split, rows in self._done.items():
            self._file[split].attrs["done"] = rows if exactly else _whole_chunks(self._file[split], rows)
        self._file.flush()


def _to_pinned(tensor: Tensor) -> Tensor:
    return torch.empty(tensor.shape, dtype=tensor.dtype, pin_memory=True).copy_(tensor, non_blocking=True)

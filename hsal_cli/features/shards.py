"""Precomputing by several workers: each writes its stretch of every split into a shard beside the feature file, and worker 0 joins them."""

from __future__ import annotations

import contextlib
import dataclasses
import glob
from collections.abc import Iterator
from pathlib import Path

import torch

from hsal_cli import distributed
from hsal_cli.errors import FileError
from hsal_cli.features.table import FORMAT, MADE_BY
from hsal_cli.features.writer import FeatureWriter, Origin, features_to_fill, may_be_ours, partial_of
from hsal_cli.progress import Reporter
from hsal_cli.scenes.scene_file import SceneFile, SceneSplit
from hsal_cli.storage.files import digest_of, refuse_link
from hsal_cli.storage.hdf5 import attribute, open_hdf5, reading

AGAIN = f"run again: {MADE_BY}"


@dataclasses.dataclass(frozen=True)
class Target:
    """Where one worker writes.

    Attributes:
        writer: of the file, in which the first row of a split is `rows[split].start`.
        rows: split -> the rows still to be computed, counted in the scene file.
        first: split -> the first row that the file holds.
        done: rows that it holds already.
    """

    writer: FeatureWriter
    rows: dict[str, range]
    first: dict[str, int]
    done: int


class Stretch:
    """Stands in for a scene file where a shard is laid out: of each split this worker's rows, of which there is at least one."""

    def __init__(self, scenes: SceneFile, batch_size: int):
        self._scenes, self.classes, self.digest = scenes, scenes.classes, scenes.digest
        self.rows = {name: distributed.stretch(len(scenes.split(name)), batch_size) for name in scenes.splits}
        self.splits = [name for name in scenes.splits if self.rows[name]]

    def split(self, name: str) -> SceneSplit:
        """Labels and boxes of this worker's rows."""
        whole, rows = self._scenes.split(name), slice(self.rows[name].start, self.rows[name].stop)
        return dataclasses.replace(whole, labels=whole.labels[rows], boxes=None if whole.boxes is None else whole.boxes[rows])


@contextlib.contextmanager
def target_of(out: Path, origin: Origin, batch_size: int, reporter: Reporter) -> Iterator[Target | None]:
    """Yields what this worker has to compute and where it writes that: the feature file itself, or with others its shard of it.

    None where there is nothing to compute. Interrupted, the same number of workers go on where they were.

    Raises:
        FileError: it cannot be written, or another process is writing it.
    """
    stretch = Stretch(origin.scenes, batch_size)
    if distributed.current().size == 1:
        place = out
    else:
        place = shard_of(out)
        origin = dataclasses.replace(origin, scenes=stretch, digest=_digest(origin, stretch))
        if not stretch.splits or _is_whole(place, origin.digest):
            yield None
            return
    with features_to_fill(place, origin, batch_size, reporter) as (writer, starts):
        first = {name: stretch.rows[name].start for name in stretch.splits}
        rows = {name: range(first[name] + starts[name], stretch.rows[name].stop) for name in stretch.splits}
        yield Target(writer, rows, first, sum(starts.values()))


def shard_of(out: Path, rank: int | None = None) -> Path:
    """The shard of a worker: this one's, or that of another rank."""
    own = distributed.current()
    return out.with_name(f"{out.name}.shard-{own.rank if rank is None else rank}-of-{own.size}")


def shards_of(out: Path) -> list[Path]:
    """All shards beside a feature file, whole or not."""
    return sorted(out.parent.glob(f"{glob.escape(out.name)}.shard-*-of-*"))


def join(out: Path, origin: Origin, batch_size: int, reporter: Reporter) -> None:
    """Makes the feature file of the shards of all workers, and removes these; to be called by worker 0 when all are written.

    Raises:
        FileError: a shard is damaged, or the file cannot be written.
    """
    size = distributed.current().size
    with features_to_fill(out, origin, batch_size, reporter) as (writer, starts), contextlib.ExitStack() as stack:
        total = sum(len(origin.scenes.split(name)) for name in origin.scenes.splits)
        advance = stack.enter_context(reporter.track("joining", total, "images", sum(starts.values())))
        ends = dict.fromkeys(origin.scenes.splits, 0)
        for place in (shard_of(out, rank) for rank in range(size)):
            if not place.exists():  # there were fewer batches than workers
                continue
            with open_hdf5(place, FORMAT, MADE_BY) as file:
                for name, group in list(file.items()):  # h5py holds its lock between the items, and the writer's thread would wait for it
                    before, count = ends[name], len(group["volumes"])
                    ends[name] += count
                    first = max(starts[name] - before, 0)
                    for start in range(first, count, batch_size):
                        reporter.check_stop(AGAIN)
                        with reading(place, name, f"delete {place}, and run the same command again"):
                            parts = [torch.from_numpy(group[part][start : start + batch_size]) for part in ("volumes", "saliency")]
                        writer.put(name, before + start, *parts)
                        advance(len(parts[0]))
        for name, count in ends.items():
            if count != len(origin.scenes.split(name)):
                raise FileError(f"the shards of {out} hold {count} of {len(origin.scenes.split(name))} images of {name}", AGAIN)
    for place in shards_of(out):
        if may_be_ours(place):
            place.unlink()


def held(out: Path) -> int:
    """Bytes that the shards, and the unfinished feature file, take already."""
    return sum(place.stat().st_size for place in (*shards_of(out), partial_of(out)) if place.is_file())


def _digest(origin: Origin, stretch: Stretch) -> str:
    return digest_of([origin.digest, {name: [stretch.rows[name].start, stretch.rows[name].stop] for name in stretch.splits}])


def _is_whole(place: Path, digest: str) -> bool:
    """Whether a shard has been written to its end; one of other features, or damaged, is written anew."""
    if not place.exists():
        return False
    refuse_link(place)
    try:
        with open_hdf5(place, FORMAT, MADE_BY) as file:
            if attribute(file, "digest") == digest:
                return True
    except FileError:
        if not may_be_ours(place):
            raise
    place.unlink()
    return False

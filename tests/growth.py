"""What each stage costs as work grows: `python tests/growth.py FOLDER [IMAGES...]` in a checkout; a table, FOLDER/growth.json, growth.png.

Images of 100 px, seen at 56 px by an untrained LCNet of a third of the width, whose volume has 32 channels: features of 3 KB an image,
3.1 GB for a million. Where they are over 1 GB, training reads them in windows. Each stage is a command in a process of its own, start
included. What is made is kept, so that a run that was ended goes on; a folder for a million images takes about 12 GB.
"""

from __future__ import annotations

import json
import os
import shlex
import sys
import time
from pathlib import Path
from typing import Any

SIZES = (1_000, 10_000, 100_000, 1_000_000)
TEST = 1_000  # images of the test split, whatever the size; they are made and precomputed too
BACKBONE = "finetune --yes --arch timm:lcnet_035 --channels 32 --weights none --data single.h5 --input-size 56 --out backbone"
BRIEF = "--mode full --full-images 64 --epoch-images 64 --validation 8"
STAGES = {
    "make-data": "make-data mnist-multiset --train {images} --test {test} --out {images}.h5",
    "precompute": "precompute --resolution own --data {images}.h5 --backbone backbone --out {images}.features.h5",
    "train": "train --yes --variant columns --data {images}.features.h5 --backbone backbone --epochs 1 --memory-budget 1 "
    "--out run-{images}",
    "eval": "eval --run run-{images} --data {images}.features.h5 --split train",
}


def timed(folder: Path, words: str) -> dict[str, float]:
    """Runs a command of hsal in a folder; wall seconds, processor seconds, and the memory of its largest process in GB."""
    start = time.perf_counter()
    child = os.posix_spawn(
        sys.executable,
        [sys.executable, "-c", f"import os; os.chdir({str(folder)!r}); from hsal_cli.main import run; run()", *shlex.split(words)],
        os.environ,
    )
    _, status, used = os.wait4(child, 0)
    if status:
        sys.exit(f"hsal {words} ended with {os.waitstatus_to_exitcode(status)}")
    return {"seconds": time.perf_counter() - start, "processor": used.ru_utime + used.ru_stime, "memory": used.ru_maxrss / 1e6}


def measured(folder: Path, sizes: list[int]) -> list[dict[str, Any]]:
    """One row for each stage of each size; those that growth.json has are taken from it."""
    kept = folder / "growth.json"
    rows = json.loads(kept.read_text()) if kept.exists() else []
    if not (folder / "backbone").exists():
        timed(folder, "make-data mnist-single --train 200 --test 20 --out single.h5")
        timed(folder, f"{BACKBONE} {BRIEF}")
    for images in sizes:
        for stage, words in STAGES.items():
            if not any((row["stage"], row["images"]) == (stage, images) for row in rows):
                done = images + TEST * (stage in ("make-data", "precompute"))
                rows.append({"stage": stage, "images": images, "done": done} | timed(folder, words.format(images=images, test=TEST)))
                kept.write_text(json.dumps(rows, indent=1))
    return [row for row in rows if row["images"] in sizes]


def drawn(rows: list[dict[str, Any]], out: Path) -> None:
    """Rate and memory of each stage over the number of images."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(9, 3.6), layout="constrained")
    rates, memory = figure.subplots(1, 2)
    for stage in STAGES:
        own = [row for row in rows if row["stage"] == stage]
        images = [row["images"] for row in own]
        rates.plot(images, [row["done"] / row["processor"] for row in own], marker="o", label=stage)
        memory.plot(images, [row["memory"] for row in own], marker="o", label=stage)
    for axes, title in ((rates, "images a second of processor time"), (memory, "GB, largest process")):
        axes.set(xscale="log", xlabel="images", title=title)
    rates.set(yscale="log")
    memory.set(ylim=(0, None))
    rates.legend()
    figure.savefig(out, dpi=110)


def main(folder: str, *sizes: str) -> None:
    place = Path(folder).resolve()
    place.mkdir(parents=True, exist_ok=True)
    rows = measured(place, [int(size) for size in sizes] or list(SIZES))
    drawn(rows, place / "growth.png")
    print("| images | stage | seconds | images/s | images/s of processor time | GB, largest process |\n|---|---|---|---|---|---|")
    for row in rows:
        rate, alone = row["done"] / row["seconds"], row["done"] / row["processor"]
        print(f"| {row['images']:,} | {row['stage']} | {row['seconds']:.1f} | {rate:,.0f} | {alone:,.0f} | {row['memory']:.2f} |")


if __name__ == "__main__":
    main(*sys.argv[1:])

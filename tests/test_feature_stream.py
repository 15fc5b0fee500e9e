"""Features larger than memory: what is read, in which order, how much is held, and that training resumes exactly."""

import dataclasses
from pathlib import Path

import pytest
import torch
from children import Nursery
from evaluation_parts import write_features
from learning_parts import SMALL, StoppingReporter, assert_equal, easy_table, without

from hsal_cli.errors import Interrupted, UsageError
from hsal_cli.features import stream as feature_stream
from hsal_cli.features import table as feature_file
from hsal_cli.features.stream import FeatureStream, window_rows
from hsal_cli.features.table import open_features
from hsal_cli.runs.settings import TrainSettings
from hsal_cli.storage import checkpoints
from hsal_cli.training.train import resume, train

CPU = torch.device("cpu")
NAMES = ["one", "two"]
ROWS, BLOCK = 90, 4
ROW_BYTES = 3 * 3 * (2 * 2 + 4)
BUDGET = ROWS * ROW_BYTES / 10 / 1e9  # GB: a tenth of the features
SETTINGS = TrainSettings(epochs=2, batch_size=7, validation=0.2)


@pytest.fixture(autouse=True)
def small_blocks(monkeypatch) -> None:
    monkeypatch.setattr(feature_file, "BLOCK_ROWS", BLOCK)
    monkeypatch.setattr(feature_stream, "BLOCK_ROWS", BLOCK)


@pytest.fixture(scope="module")
def features(tmp_path_factory) -> Path:
    return write_features(tmp_path_factory.mktemp("data") / "easy.features.h5", {"train": easy_table(ROWS)}, classes=NAMES)


def test_an_epoch_shows_every_row_once_in_an_order_of_its_own_and_reads_a_window_at_a_time(features) -> None:
    table, rows = easy_table(ROWS), torch.arange(ROWS)[torch.arange(ROWS) % 5 != 2]
    stream, orders = FeatureStream(features, "train", 3 * BLOCK), []
    for epoch in (0, 1, 0):
        orders.append(stream.shuffled(rows, torch.Generator().manual_seed(epoch)))
        assert torch.equal(orders[-1].sort().values, rows)
        for some in orders[-1].split(7):
            found, expected = stream.select(some), table.select(some)
            for name in ("volumes", "saliency", "labels", "boxes"):
                assert_equal(getattr(found, name), getattr(expected, name))
    assert torch.equal(orders[0], orders[2]) and not torch.equal(orders[0], orders[1])
    # Rows that stand together in the file do not in the order, though both are of one window.
    assert ((orders[0][1:] - orders[0][:-1]).abs() <= 1).float().mean() < 0.25
    assert torch.equal(torch.cat(list(stream.parts())), table.volumes)
    stream.close()


def test_never_more_than_the_budget_is_held(features) -> None:
    with open_features(features) as file:
        window = window_rows(file, "train", BUDGET)
    assert window == BLOCK  # two windows of 4 rows are 8 of 90
    stream = FeatureStream(features, "train", window)
    most = 0
    for some in stream.shuffled(torch.arange(ROWS), torch.Generator()).split(7):
        stream.select(some)
        held = [future.result() for future in stream._held.values()]
        most = max(most, sum(volumes.nbytes + saliency.nbytes for _, volumes, saliency in held))
    assert 0 < most <= BUDGET * 1e9
    stream.close()


def test_what_fits_is_read_once(features, monkeypatch, tmp_path) -> None:
    with open_features(features) as file:
        assert window_rows(file, "train", ROWS * ROW_BYTES / 1e9) == 0
        with pytest.raises(UsageError, match="too little"):
            window_rows(file, "train", 1e-9)
        memory = tmp_path / "meminfo"
        monkeypatch.setattr(feature_stream, "MEMORY", memory)
        assert window_rows(file, "train", None) == 0  # a system that does not tell
        memory.write_text(f"MemTotal: 9 kB\nMemAvailable: {3 * ROWS * ROW_BYTES // 1024} kB\n")
        assert window_rows(file, "train", None) == 0
        monkeypatch.setenv("LOCAL_WORLD_SIZE", "2")  # two processes share it
        assert window_rows(file, "train", None) > 0


@pytest.mark.parametrize("after", [3, 13])
def test_training_on_windows_learns_from_all_rows_and_resumes_exactly(after, features, tmp_path) -> None:
    whole = train(features, tmp_path / "whole", SMALL, SETTINGS, CPU, memory=BUDGET)
    assert whole.config.window == BLOCK
    with pytest.raises(Interrupted):
        train(features, tmp_path / "run", SMALL, SETTINGS, CPU, StoppingReporter(after), memory=BUDGET)
    resumed = resume(tmp_path / "run", CPU)
    mine, theirs = (checkpoints.load(run.checkpoints, "last") for run in (resumed, whole))
    assert_equal(mine.weights, theirs.weights)
    assert_equal(mine.state, theirs.state)
    assert [without(row) for row in resumed.rows()] == [without(row) for row in whole.rows()]


def test_lists_are_ordered_from_left_to_right_there_too(features, tmp_path) -> None:
    settings = dataclasses.replace(SETTINGS, task="list", epochs=1)
    run = train(features, tmp_path / "run", SMALL, settings, CPU, memory=BUDGET)
    assert len(run.rows()) == 1


@pytest.mark.slow
@pytest.mark.timeout(900)
@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="the limit is set by what Linux tells of a process")
def test_features_ten_times_what_a_process_may_hold_are_trained_on(monkeypatch, tmp_path) -> None:
    monkeypatch.undo()  # blocks of their real size
    few, rows = easy_table(500, classes=64, side=7), 240_000
    repeated = torch.arange(rows) % len(few)
    write_features(tmp_path / "large.features.h5", {"train": few.select(repeated)}, classes=[str(name) for name in range(64)])
    size = (tmp_path / "large.features.h5").stat().st_size
    words = ["train", "--data", "large.features.h5", "--epochs", "1", "--batch-size", "256", "--validation", "0.002"]
    for value in ("meta_encode=16", "meta_hidden=16", "controller_encode=32", "controller_hidden=32"):
        words += ["--set", value]
    nursery = Nursery(small=False)
    try:
        whole = nursery.run(tmp_path, *words, "--memory-budget", "100", "--out", "whole", memory=size // 10)
        windows = nursery.run(tmp_path, *words, "--memory-budget", "0.015", "--out", "windows", memory=size // 10)
    finally:
        nursery.close()
    assert whole["code"] == 1 and "memory" in whole["err"] and "Traceback" not in whole["err"], whole["err"]
    assert windows["code"] == 0, windows["err"]

"""What all tests share: real MNIST where it is at hand, small thread counts."""

import contextlib
import io
import os
import runpy
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

os.environ.setdefault("OMP_NUM_THREADS", "1")  # make test runs one process a core
# Files of more than ten seconds begin first, so that two workers end together; xdist keeps the order with --no-loadscope-reorder.
LONG = ("test_gpu_path.py", "test_faults_process.py", "test_streams_and_signals.py", "test_reproduce.py", "test_pipeline.py")
LONG += ("test_workers_faults.py", "test_train_policy.py", "test_precompute.py", "test_two_looks.py", "test_bench.py")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    items.sort(key=lambda item: LONG.index(item.path.name) if item.path.name in LONG else len(LONG))


@pytest.fixture
def seconds_given(monkeypatch: pytest.MonkeyPatch) -> None:
    """Plans take the speeds of every stage as given, 100 images a second, in place of a measurement of many seconds."""
    from hsal_cli.bench import estimate

    monkeypatch.setattr(estimate, "seconds_of", lambda works, *_: [sum(work.images.values()) / 100 for work in works])


@pytest.fixture(scope="session")
def mnist_dir() -> Path:
    """The folder with the four canonical MNIST files: HSAL_MNIST_DIR, else ../shared/mnist beside the checkout."""
    for place in (os.environ.get("HSAL_MNIST_DIR"), Path(__file__).parents[2] / "shared" / "mnist"):
        if place and (Path(place) / "train-images-idx3-ubyte.gz").is_file():
            return Path(place)
    pytest.skip("real MNIST is not at hand: set HSAL_MNIST_DIR to the folder with its IDX files")


@pytest.fixture(scope="session")
def worker_nursery() -> Iterator[object]:
    """Runs commands in several workers (see worker_parts)."""
    from worker_parts import Nursery

    found = Nursery()
    yield found
    found.close()


@pytest.fixture(scope="session")
def worker_place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with what the workers' commands start from."""
    from worker_parts import make_place

    return make_place(tmp_path_factory.mktemp("workers"))


CASES = Path(__file__).parents[2] / "shared" / "cases"  # inputs on which hsal once failed


@pytest.fixture
def case(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[str], Path]:
    """Makes a case of that name in an empty folder, and goes there."""

    def make(name: str) -> Path:
        if not (CASES / name).is_dir():
            pytest.skip("the cases are not at hand: they lie in ../shared/cases beside some checkouts")
        for file in (CASES / name).iterdir():
            shutil.copy(file, tmp_path)
        monkeypatch.chdir(tmp_path)
        monkeypatch.setenv("CASES", str(CASES))
        monkeypatch.syspath_prepend(str(CASES))
        with contextlib.redirect_stdout(io.StringIO()):
            runpy.run_path("make.py")
        return tmp_path

    return make

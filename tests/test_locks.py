"""One writer at a time, also where file systems have no locks, as on clusters."""

import errno
import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import h5py
import numpy as np
import pytest
from fault_parts import left_behind, small_scenes

from hsal_cli.errors import FileError
from hsal_cli.scenes.scene_file import open_scenes
from hsal_cli.storage.atomic import atomic_write, only_writer
from hsal_cli.storage.steady import SteadyFile
from hsal_cli.upkeep.check import check_path
from hsal_cli.upkeep.contents import look_into

NO_FLOCK = "#include <errno.h>\nint flock(int number, int wanted) { (void)number; (void)wanted; errno = ENOLCK; return -1; }\n"


@pytest.fixture(params=["no locks available", "not implemented", "switched off", "real locks"])
def locks(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """Makes the file system refuse locks, in each way that it may, or leaves it as it is."""
    codes = {"no locks available": errno.ENOLCK, "not implemented": errno.ENOSYS}
    if request.param in codes:

        def refuse(*_, **__):
            raise OSError(codes[request.param], os.strerror(codes[request.param]))

        monkeypatch.setattr("filelock.lock_descriptor", refuse)
    elif request.param == "switched off":
        monkeypatch.setenv("HDF5_USE_FILE_LOCKING", "FALSE")
    return request.param


def test_a_second_writer_of_a_folder_is_refused_with_or_without_locks(locks: str, tmp_path: Path) -> None:
    folder = tmp_path / "run"
    with only_writer(folder):
        with pytest.raises(FileError, match="run is being written by another process"), only_writer(folder):
            pytest.fail("two writers")
        with only_writer(tmp_path / "other"):
            pass
    with only_writer(folder):
        pass
    assert left_behind(tmp_path) == []


def test_a_second_writer_of_an_hdf5_file_is_refused_with_or_without_locks(locks: str, tmp_path: Path) -> None:
    path = tmp_path / "a.h5"
    with SteadyFile(path, "w") as file:
        file["x"] = [1, 2]
        file.flush()
        with pytest.raises(BlockingIOError):
            SteadyFile(path, "r+")
        if locks == "real locks":  # only these keep readers away, too
            for read in (open_scenes, look_into):
                with pytest.raises(FileError, match=r"a\.h5 is being written by another process"):
                    read(path)
            assert "is being written by another process" in check_path(path).faults[0]
    with SteadyFile(path, "r+") as file:
        assert file["x"][()].tolist() == [1, 2]
    assert left_behind(tmp_path) == []


def test_what_the_dead_held_is_free_again_with_or_without_locks(locks: str, tmp_path: Path) -> None:
    code = (
        "import errno, os, sys\nfrom pathlib import Path\nimport filelock\n"
        "def refuse(*_, **__): raise OSError(errno.ENOLCK, 'no')\n"
        "if sys.argv[2] == 'yes': filelock.lock_descriptor = refuse\n"
        "from hsal_cli.storage.atomic import only_writer\nfrom hsal_cli.storage.steady import SteadyFile\n"
        "with only_writer(Path(sys.argv[1])), SteadyFile(Path(sys.argv[1]) / 'a.h5', 'w'): os.kill(os.getpid(), 9)"
    )
    done = subprocess.run([sys.executable, "-c", code, str(tmp_path), "no" if locks == "real locks" else "yes"])
    assert done.returncode == -signal.SIGKILL
    assert locks == "real locks" or left_behind(tmp_path) == [".lock", ".lock.lock", "a.h5.lock"]
    with only_writer(tmp_path), SteadyFile(tmp_path / "a.h5", "w") as file:
        file["x"] = [3]
    assert left_behind(tmp_path) == []


def test_what_a_dead_machine_left_does_not_block_or_is_named_with_the_command_that_removes_it(locks: str, tmp_path: Path) -> None:
    for name in (".lock", ".lock.lock"):
        (tmp_path / name).write_text("123\nsomewhere-else\n9\n")
    if locks != "real locks":
        with pytest.raises(FileError, match=r"of the machine somewhere-else, as .*lock says") as caught, only_writer(tmp_path):
            pytest.fail("the lock was not heeded")
        assert caught.value.hint.endswith(f"rm {tmp_path / '.lock.lock'}")
        subprocess.run(caught.value.hint.rpartition(": ")[2], shell=True, check=True)
    with only_writer(tmp_path):
        pass
    assert not (tmp_path / ".lock").exists()


def test_the_lock_of_a_dead_writers_temporary_file_goes_with_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    code = (
        "import os, sys\nfrom pathlib import Path\nfrom hsal_cli.storage.atomic import atomic_write\n"
        "from hsal_cli.storage.steady import SteadyFile\n"
        "with atomic_write(Path(sys.argv[1])) as temporary, SteadyFile(temporary, 'w'): os.kill(os.getpid(), 9)"
    )
    environment = {**os.environ, "HDF5_USE_FILE_LOCKING": "FALSE"}
    assert subprocess.run([sys.executable, "-c", code, str(tmp_path / "a.h5")], env=environment).returncode == -signal.SIGKILL
    assert len(list(tmp_path.iterdir())) == 2
    with atomic_write(tmp_path / "a.h5") as temporary:
        temporary.write_bytes(b"x")
    assert [path.name for path in tmp_path.iterdir()] == ["a.h5"]


@pytest.mark.skipif(shutil.which("gcc") is None or sys.platform != "linux", reason="a C compiler makes the file system that has no locks")
def test_files_are_written_and_read_where_the_system_itself_has_no_locks(tmp_path: Path) -> None:
    (tmp_path / "no.c").write_text(NO_FLOCK)
    subprocess.run(["gcc", "-shared", "-fPIC", "-o", "no.so", "no.c"], cwd=tmp_path, check=True)
    code = (
        "import sys\nimport numpy as np\nfrom pathlib import Path\nfrom hsal_cli.errors import FileError\n"
        "from hsal_cli.scenes.scene_file import open_scenes, write_scenes\n"
        "if len(sys.argv) > 1:\n"
        "    with write_scenes(Path('s.h5'), {}, ['a']) as writer:\n"
        "        writer.write_split('train', iter([(np.ones((2, 4, 4), np.uint8), np.array([[0], [-1]]), None)]), (2, 4, 4))\n"
        "try:\n    with open_scenes('s.h5') as file: print(file.computed_digest() == file.digest)\n"
        "except FileError as error: print(error.message)"
    )
    base = {**os.environ, "LD_PRELOAD": str(tmp_path / "no.so")}
    base.pop("HDF5_USE_FILE_LOCKING", None)

    def run(*words: str, **more: str) -> str:
        done = subprocess.run([sys.executable, "-c", code, *words], cwd=tmp_path, env={**base, **more}, capture_output=True, text=True)
        assert done.returncode == 0, done.stderr
        return done.stdout

    assert run("write") == "True\n" and left_behind(tmp_path) == []
    assert run(HDF5_USE_FILE_LOCKING="FALSE") == "True\n"
    # Where HDF5 is told to lock all the same, that is said, and what to do.
    assert run(HDF5_USE_FILE_LOCKING="TRUE") == "s.h5 cannot be locked: No locks available\n"


def test_a_file_that_cannot_be_locked_is_called_that_and_the_variable_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = small_scenes(tmp_path / "s.h5")

    def refuse(*_, **__):
        raise OSError(errno.ENOLCK, "Unable to synchronously open file (unable to lock file, errno = 37)")

    monkeypatch.setattr(h5py, "File", refuse)
    for read in (open_scenes, look_into):
        with pytest.raises(FileError, match=r"s\.h5 cannot be locked: No locks available") as caught:
            read(path)
        assert "set HDF5_USE_FILE_LOCKING=FALSE" in caught.value.hint


def test_a_dataset_whose_compression_is_not_there_is_called_that_and_not_damaged(tmp_path: Path) -> None:
    with h5py.File(small_scenes(tmp_path / "s.h5"), "r+") as file:
        shape = file["train/images"].shape
        del file["train/images"], file.attrs["attributes_digest"]
        made = h5py.h5p.create(h5py.h5p.DATASET_CREATE)
        made.set_chunk(shape)
        made.set_filter(32001, h5py.h5z.FLAG_OPTIONAL, (2, 2, 1, 1))
        data = h5py.h5d.create(file["train"].id, b"images", h5py.h5t.NATIVE_UINT8, h5py.h5s.create_simple(shape), made)
        data.write_direct_chunk((0,) * len(shape), bytes(40), 0)
    wanted = r"s\.h5: train/images needs filter 32001, which this HDF5 lacks$"
    for read in (open_scenes, look_into):
        with pytest.raises(FileError, match=wanted) as caught:
            read(tmp_path / "s.h5")
        assert "HDF5_PLUGIN_PATH" in caught.value.hint
    with h5py.File(tmp_path / "gzip.h5", "w") as file:
        for name in ("format", "classes"):
            file.attrs[name] = {"format": "hsal-scenes", "classes": '["a"]'}[name]
        file.create_dataset("train/images", data=np.zeros((2, 4, 4), np.uint8), compression="gzip", shuffle=True)
        file["train/labels"] = [[0], [-1]]
    open_scenes(tmp_path / "gzip.h5").close()

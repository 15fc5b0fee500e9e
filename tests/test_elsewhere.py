"""Systems without fcntl, resource and /proc, such as Windows: every module is imported there, and the paths of the CPU work."""

import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
ELSEWHERE = """
import builtins, importlib, io, os, pkgutil, sys

for name in ("fcntl", "resource", "termios", "pwd", "grp"):
    sys.modules[name] = None  # importing it raises ImportError

def of_proc(path):
    return isinstance(path, (str, bytes, os.PathLike)) and os.fsdecode(path).startswith("/proc")

def without_proc(call):
    def answer(path, *more, **named):
        if of_proc(path):
            raise FileNotFoundError(2, "No such file or directory", os.fsdecode(path))
        return call(path, *more, **named)
    return answer

builtins.open = io.open = without_proc(io.open)
os.open, os.stat = without_proc(os.open), without_proc(os.stat)
"""


def run(code: str, folder: Path = ROOT) -> str:
    found = subprocess.run([sys.executable, "-c", ELSEWHERE + code], capture_output=True, text=True, timeout=240, cwd=folder)
    assert found.returncode == 0, found.stderr
    return found.stdout


def test_every_module_is_imported_without_fcntl_resource_and_proc():
    found = run("""
import hsal_cli
names = [module.name for module in pkgutil.walk_packages(hsal_cli.__path__, "hsal_cli.") if not module.name.endswith("__main__")]
for name in names:
    importlib.import_module(name)
print(len(names))
""")
    assert int(found) == len([path for path in (ROOT / "hsal_cli").rglob("*.py") if path.name != "__main__.py"]) - 1


def test_data_is_made_and_read_and_the_machine_described_without_them(tmp_path):
    found = run(
        f"""
sys.path.insert(0, {str(ROOT)!r})
from pathlib import Path
from hsal_cli.features.stream import _free_memory
from hsal_cli.storage.documents import read_document
from hsal_cli.storage.atomic import write_json
from hsal_cli.upkeep.doctor import examine
from hsal_cli.vision.devices import choose_device
write_json(Path("a.json"), {{"a": 1}})
print(read_document(Path("a.json"), dict, "hsal"), _free_memory(), choose_device("cpu"))
print({{finding.what: finding.found for finding in examine()}}["memory"])
""",
        tmp_path,
    )
    assert found.splitlines() == ["{'a': 1} None cpu", "unknown: this system does not say"]


@pytest.mark.slow
def test_commands_from_data_to_labels_work_without_them(tmp_path):
    found = run(
        f"""
sys.path.insert(0, {str(ROOT)!r})
from hsal_cli.app import call
for words in (
    "make-data mnist-set --train 8 --test 2 --digits strokes --out s.h5",
    "train --data s.h5 --backbone {ROOT}/data/pretrained/backbone --epochs 1 --batch-size 4 --out run",
    "predict {ROOT}/docs/example.png --run run",
):
    sys.argv = ["hsal", *words.split()]
    call()
""",
        tmp_path,
    )
    assert "example.png" in found and (tmp_path / "run" / "status.json").is_file()

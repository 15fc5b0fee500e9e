"""The wheel carries the trained policies, and every package, so that --pretrained works once it is installed."""

import json
import os
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
BUILD = "import sys; from setuptools.build_meta import build_wheel; print(build_wheel(sys.argv[1]))"


@pytest.fixture(scope="module")
def wheel(tmp_path_factory) -> zipfile.ZipFile:
    """A wheel built from a copy of the checkout, whose data/pretrained holds a few bytes."""
    pytest.importorskip("setuptools", minversion="77", reason="a wheel cannot be built without setuptools")
    checkout = tmp_path_factory.mktemp("checkout")
    for name in ("pyproject.toml", "setup.py", "MANIFEST.in", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, checkout / name)
    shutil.copytree(ROOT / "hsal_cli", checkout / "hsal_cli", ignore=shutil.ignore_patterns("__pycache__"))
    pretrained = checkout / "data" / "pretrained"
    policies = ("mnist-multiset.rl", "mnist-multiset.multiset", "mnist-multiset.paper", "mnist-search.rl")
    for name in (*policies, "look"):
        (pretrained / name).mkdir(parents=True)
        (pretrained / name / "weights.safetensors").write_bytes(b"weights")
    (pretrained / "manifest.json").write_text(json.dumps({"policies": {name: {} for name in policies}, "look": {}}))
    (pretrained / ".hidden").write_text("not for others")
    stale = checkout / "build" / "lib" / "hsal_cli" / "pretrained" / "old.rl"
    stale.mkdir(parents=True)
    (stale / "weights.safetensors").write_bytes(b"old")
    done = subprocess.run(
        [sys.executable, "-c", BUILD, str(checkout / "dist")],
        cwd=checkout,
        env={key: value for key, value in os.environ.items() if key != "PYTHONPATH"},
        capture_output=True,
        text=True,
        timeout=240,
    )
    assert done.returncode == 0, done.stderr
    return zipfile.ZipFile(next((checkout / "dist").glob("*.whl")))


def test_the_wheel_holds_the_trained_policies(wheel) -> None:
    found = {name.removeprefix("hsal_cli/pretrained/") for name in wheel.namelist() if name.startswith("hsal_cli/pretrained/")}
    assert found == {"manifest.json", "mnist-multiset.rl/weights.safetensors"}
    assert wheel.read("hsal_cli/pretrained/mnist-multiset.rl/weights.safetensors") == b"weights"
    assert json.loads(wheel.read("hsal_cli/pretrained/manifest.json")) == {"policies": {"mnist-multiset.rl": {}}}, "the others are left out"


def test_the_wheel_names_what_it_is_and_no_address_that_leads_nowhere(wheel) -> None:
    name = next(name for name in wheel.namelist() if name.endswith(".dist-info/METADATA"))
    lines = wheel.read(name).decode().splitlines()
    assert {"Classifier: Typing :: Typed", "Classifier: Operating System :: POSIX :: Linux", "Provides-Extra: play"} <= set(lines)
    assert any(line.startswith("Keywords: ") for line in lines)
    assert not [line for line in lines if line.startswith(("Home-page:", "Project-URL:", "Download-URL:"))]


def test_what_the_wheel_is_made_of_is_under_60_mb() -> None:
    shipped = [
        path
        for path in (ROOT / "data" / "pretrained").rglob("*")
        if path.parent.suffix not in (".multiset", ".paper") and path.parent.name not in ("look", "mnist-search.rl", "mnist-set.rl")
    ]
    weights = sum(path.stat().st_size for path in shipped if path.is_file())
    others = sum(path.stat().st_size for path in (ROOT / "hsal_cli").rglob("*") if path.is_file() and path.suffix != ".pyc")
    assert weights + others < 63_500_000  # weights in float16 shrink by 6% when packed


def test_the_wheel_holds_every_module_and_preset_and_nothing_else_of_the_checkout(wheel) -> None:
    wanted = {str(path.relative_to(ROOT)) for kind in ("*.py", "*.toml", "*.pyi", "py.typed") for path in (ROOT / "hsal_cli").rglob(kind)}
    assert wanted <= set(wheel.namelist())
    assert {name.split("/")[0].split("-")[0] for name in wheel.namelist()} == {"hsal_cli", "hsal"}

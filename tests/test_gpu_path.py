"""Runs gpu_path.py, all stages on a pretended GPU, in a process of its own: a registered device changes torch for all that follows."""

import subprocess
import sys
from pathlib import Path

import pytest


@pytest.mark.timeout(900)
def test_every_stage_runs_on_a_pretended_gpu() -> None:
    cases = Path(__file__).with_name("gpu_path.py")
    ran = subprocess.run([sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", cases], capture_output=True, text=True)
    if " passed" not in ran.stdout and " skipped" in ran.stdout:
        pytest.skip(ran.stdout.strip().splitlines()[-1])
    assert ran.returncode == 0, ran.stdout[-6000:] + ran.stderr[-2000:]

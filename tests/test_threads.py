"""Threads: as many as there are cores to use, that spin while they wait only where nothing else runs, and a line where they share cores."""

import os

import pytest

from hsal_cli import threads


@pytest.fixture
def machine(monkeypatch, tmp_path):
    """A machine of four cores, of which a process may use some, at some load."""

    def pretend(usable: int = 4, quota: str = "max 100000", load: float = 0.0, running: str = "1/80") -> None:
        monkeypatch.setattr(os, "sched_getaffinity", lambda pid: set(range(usable)), raising=False)
        monkeypatch.setattr(os, "cpu_count", lambda: 4)
        monkeypatch.setattr(os, "getloadavg", lambda: (load, 0.0, 0.0), raising=False)
        (tmp_path / "cpu.max").write_text(quota)
        (tmp_path / "loadavg").write_text(f"0.20 0.18 0.12 {running} 11206\n" if running else "")
        monkeypatch.setattr(threads, "QUOTA", tmp_path / "cpu.max")
        monkeypatch.setattr(threads, "LOADAVG", tmp_path / "loadavg")

    for name in ("OMP_NUM_THREADS", "OMP_WAIT_POLICY", "GOMP_SPINCOUNT"):
        monkeypatch.setenv(name, "")
        monkeypatch.delenv(name)
    return pretend


@pytest.mark.parametrize(
    ("usable", "quota", "found"),
    [(4, "max 100000", 4), (2, "max 100000", 2), (4, "150000 100000", 2), (4, "50000 100000", 1), (2, "800000 100000", 2), (4, "", 4)],
)
def test_cores_are_those_of_the_affinity_and_of_the_control_groups_quota(machine, usable, quota, found):
    machine(usable, quota)
    assert threads.cores() == found


def test_threads_are_no_more_than_the_cores_and_share_them_without_spinning(machine):
    machine(quota="150000 100000")
    threads.prepare()
    assert os.environ["OMP_WAIT_POLICY"] == "PASSIVE" and os.environ["OMP_NUM_THREADS"] == "2" and "GOMP_SPINCOUNT" not in os.environ


@pytest.mark.parametrize(("running", "spins"), [("1/80", True), ("2/80", False), ("9/80", False), ("", False), ("odd", False)])
def test_threads_spin_where_nothing_else_runs(machine, running, spins):
    machine(running=running)
    threads.prepare()
    assert os.environ["OMP_WAIT_POLICY"] == "PASSIVE" and ("GOMP_SPINCOUNT" in os.environ) is spins


@pytest.mark.parametrize(
    ("count", "running", "spins"), [("2", "3/80", True), ("2", "4/80", False), ("8", "1/80", False), ("2,1", "2/80", False)]
)
def test_fewer_threads_than_cores_leave_room_for_others(machine, monkeypatch, count, running, spins):
    machine(running=running)
    monkeypatch.setenv("OMP_NUM_THREADS", count)
    threads.prepare()
    assert ("GOMP_SPINCOUNT" in os.environ) is spins


def test_what_runs_for_a_moment_does_not_keep_threads_from_spinning(machine, monkeypatch):
    machine(running="2/80")
    monkeypatch.setattr(threads.time, "sleep", lambda seconds: machine())
    threads.prepare()
    assert "GOMP_SPINCOUNT" in os.environ


def test_what_the_user_set_stays(machine, monkeypatch):
    machine(usable=1)
    monkeypatch.setenv("OMP_WAIT_POLICY", "ACTIVE")
    monkeypatch.setenv("OMP_NUM_THREADS", "3")
    threads.prepare()
    assert os.environ["OMP_WAIT_POLICY"] == "ACTIVE" and os.environ["OMP_NUM_THREADS"] == "3" and "GOMP_SPINCOUNT" not in os.environ


def test_a_spin_that_the_user_set_stays(machine, monkeypatch):
    machine()
    monkeypatch.setenv("GOMP_SPINCOUNT", "7")
    threads.prepare()
    assert os.environ["GOMP_SPINCOUNT"] == "7"


@pytest.mark.parametrize(("load", "count", "said"), [(0, 4, False), (3, 4, True), (3, 1, False), (1, 2, False)])
@pytest.mark.parametrize("known", [True, False])
def test_a_line_says_where_threads_would_share_cores_with_others(machine, load, count, said, known):
    machine(load=load, running=f"{load + 1}/80" if known else "")
    assert bool(threads.advice(count)) is said
    assert not said or "OMP_NUM_THREADS=1" in threads.advice(count)


def test_what_ran_a_minute_ago_is_no_load(machine):
    machine(load=4.0)
    assert threads.advice(4) is None


def test_of_a_larger_machine_the_share_of_the_own_cores_counts(machine):
    machine(usable=2, running="2/80")
    assert threads.advice(2) is None
    machine(usable=2, running="4/80")
    assert "at a load of 1.5" in threads.advice(2)

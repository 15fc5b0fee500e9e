"""Tries every fault that the tests know, and writes the table of docs/reliability.md: `python tests/reliability.py` (about 15 minutes).

A test that tries a fault carries the mark `fault(number, what, tried)`; ALSO names older tests that do without.
"""

from __future__ import annotations

import platform
import sys
import time
from collections import defaultdict
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
FAULTS = {
    1: "Killed or stopped, then resumed",
    2: "Ctrl-C and SIGTERM",
    3: "Damaged checkpoints and runs",
    4: "Checkpoints of another architecture or class list",
    5: "Damaged or unfit HDF5 files",
    6: "Features of another backbone or scene file",
    7: "Full disks, two writers, readers while it is written",
    8: "Output that is somebody else's",
    9: "No network, damaged downloads",
    10: "Devices that are not there, out of memory",
    11: "Losses and gradients that are not finite, collapse",
    12: "Images of every kind",
    13: "Values that cannot be used",
    14: "Terminals",
    15: "Moved runs, finished runs, clocks, workers that die",
    16: "Folders and reports that are replaced",
    17: "Full disks under logs, metrics and checkpoints; closed pipes, terminals that go away",
    18: "Signals before a command runs, variables of torchrun that cannot be",
    19: "Scores on other data than the run's own",
    20: "A resume that fails, checkpoints of another run",
    21: "Workers that were given different things",
    22: "Documents of odd form: JSON of any kind of damage, values of wrong types",
    23: "Metrics",
    24: "Training states",
    25: "HDF5 attributes",
    26: "Settings files",
    27: "report.json",
    28: "One odd run beside others",
    29: "Every value of every document replaced",
    30: "HDF5 that takes data from other files",
    31: "Names in documents that lead elsewhere, pipes and devices",
    32: "Files of others that would be removed or replaced, links",
    33: "Modes and owners of files",
    34: "Words that steer a terminal or a page",
    35: "Archives, downloads and headers without bound",
    36: "Names of any length, and bytes that are not UTF-8",
    37: "Picture formats that start other programs",
    38: "Labels that other programs wrote",
    39: "Images without any object",
    40: "File systems without locks",
    41: "Digits as others lay them out, scene files of other programs",
    "fuzz": "Any byte of any file that is read",
}
# files of which every test tries a fault -> its number; what is tried is the test's name
WHOLE = {
    "test_label_cases.py": 38,
    "test_readers.py": 38,
    "test_label_names.py": 38,
    "test_label_hints.py": 38,
    "test_empty_images.py": 39,
    "test_locks.py": 40,
    "test_data_cases.py": 41,
}
# file::test (parametrised or not) -> (number of the fault, what is tried)
ALSO = {
    "test_loop.py::test_a_stopped_training_resumes_to_exactly_what_it_would_have_been": (1, "stopped after a step of any epoch, resumed"),
    "test_precompute.py::test_an_interrupted_run_continues_to_the_same_file": (1, "precompute stopped after any batch, run again"),
    "test_precompute.py::test_a_killed_run_leaves_no_feature_file_and_only_sound_rows_are_kept": (1, "precompute killed while it writes"),
    "test_console.py::test_the_second_signal_leaves_at_once": (2, "a second signal"),
    "test_files.py::test_a_damaged_file_is_named_before_anything_of_it_is_used": (3, "checkpoint flipped, cut, an HTML page, gone"),
    "test_files.py::test_a_manifest_that_says_nothing_useful_is_refused": (3, "manifest without meaning"),
    "test_files.py::test_a_state_that_carries_code_is_refused_and_runs_none_though_its_checksum_fits": (3, "malicious pickle"),
    "test_files.py::test_a_damaged_checkpoint_is_passed_over_for_the_newest_good_one_and_that_is_noted": (
        3,
        "previous good step used, and said",
    ),
    "test_evaluation_loading.py::test_weights_that_do_not_fit_are_named_with_their_shapes": (4, "policy weights that do not fit"),
    "test_vision_weights.py::test_weights_of_another_network_are_refused_with_the_first_differences": (
        4,
        "backbone weights of another network",
    ),
    "test_scenes_file.py::test_a_file_with_a_fault_is_refused_by_file_split_and_row": (5, "scene files written by others, with a fault"),
    "test_vision_features.py::test_what_is_not_a_whole_feature_file_is_refused_by_name": (5, "feature files that are none"),
    "test_files.py::test_only_a_whole_file_of_the_format_is_opened": (5, "missing, folder, HTML page, cut, other kind, newer version"),
    "test_precompute.py::test_features_of_other_origin_are_refused_by_name_and_replaced_only_on_request": (6, "features of other origin"),
    "test_train_policy.py::test_resuming_on_other_features_is_refused": (6, "run resumed on other features"),
    "test_finetune.py::test_resuming_on_other_scenes_is_refused": (6, "run resumed on other scenes"),
    "test_precompute.py::test_a_file_that_another_process_writes_is_left_to_it": (7, "two precomputations of one file"),
    "test_precompute.py::test_a_disk_that_fills_up_is_an_error_of_two_lines_and_the_run_continues_afterwards": (
        7,
        "disk full while precomputing",
    ),
    "test_files.py::test_what_is_not_a_run_is_never_replaced": (8, "output folder that is no run"),
    "test_precompute.py::test_what_is_no_feature_file_is_never_replaced": (8, "output file that is no feature file"),
    "test_vision_weights.py::test_imagenet_without_a_network_fails_and_names_the_ways_out": (9, "no network, no weights"),
    "test_vision_weights.py::test_a_truncated_file_in_the_cache_is_refused_by_name": (9, "truncated weights in the cache"),
    "test_vision_weights.py::test_a_download_of_something_else_is_not_cached": (9, "a login page instead of weights"),
    "test_vision_devices.py::test_a_device_that_is_not_there_is_refused_and_never_replaced_by_the_cpu": (10, "cuda, cuda:7, mps, nonsense"),
    "test_loop.py::test_a_loss_that_is_not_finite_ends_training_and_keeps_the_last_good_checkpoint": (11, "loss not finite"),
    "test_loop.py::test_weights_that_are_not_finite_are_never_saved": (11, "weights not finite"),
    "test_images.py::test_truncated_pictures_are_refused": (12, "truncated pictures of six formats"),
    "test_settings.py::test_a_value_that_cannot_be_used_is_named": (13, "values out of range or of a wrong type"),
    "test_settings.py::test_every_fault_of_a_file_is_named_at_once_with_the_nearest_names": (13, "settings file with several faults"),
    "test_console.py::test_a_reader_that_leaves_is_no_error": (14, "| head"),
    "test_console.py::test_without_a_terminal_progress_is_a_line_every_few_seconds": (14, "no TTY: a line every few seconds"),
    "test_scenes_make.py::test_a_worker_that_dies_is_an_error_and_not_a_wait_without_end": (15, "worker process killed"),
}


class Table:
    """A pytest plugin that notes how each trial ended."""

    def __init__(self) -> None:
        self.tried: dict[tuple[str, str], int] = defaultdict(int)
        self.outcomes: dict[tuple[str, str], set[str]] = defaultdict(set)
        self._known: dict[str, tuple[tuple[str, str], int]] = {}

    def pytest_collection_modifyitems(self, items: list[pytest.Item]) -> None:
        wanted = []
        for item in items:
            mark = item.get_closest_marker("fault")
            name = f"{item.path.name}::{item.name.partition('[')[0]}"
            if mark is not None:
                each = 1 if hasattr(item, "callspec") and mark.kwargs["tried"] > 1 and _is_list(item, mark.kwargs["tried"]) else None
                self._known[item.nodeid] = (mark.args[0], mark.args[1]), each or mark.kwargs["tried"]
            elif name in ALSO:
                self._known[item.nodeid] = ALSO[name], 1
            elif item.path.name in WHOLE:
                self._known[item.nodeid] = (WHOLE[item.path.name], item.originalname.removeprefix("test_").replace("_", " ")), 1
            else:
                continue
            wanted.append(item)
        items[:] = wanted

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        if report.nodeid not in self._known or not (report.when == "call" or report.outcome != "passed"):
            return
        row, tried = self._known[report.nodeid]
        self.tried[row] += tried
        self.outcomes[row].add(report.outcome)


def _is_list(item: pytest.Item, tried: int) -> bool:
    """Whether a test tries one of its cases at each call, as many cases as `tried` says."""
    same = [other for other in item.session.items if other.nodeid.partition("[")[0] == item.nodeid.partition("[")[0]]
    return len(same) == tried


def write(table: Table, seconds: float, target: Path, quick: bool) -> None:
    """Writes the table as Markdown."""
    import h5py
    import torch

    lines = [
        "# Faults tried, and how they end",
        "",
        "Written by `make reliability`, which runs the tests named `fault` and those that have long tried such things; do not edit.",
        *(
            ["This time without the slow tests (`python tests/reliability.py --quick`), which try 20 kills and 500 damaged bytes each."]
            if quick
            else []
        ),
        f"Last run: Python {platform.python_version()}, torch {torch.__version__.split('+')[0]}, h5py {h5py.__version__}, "
        f"{platform.system()}, {seconds / 60:.0f} minutes; {sum(table.tried.values()):,} trials.",
        "",
        "A fault ends well where the command leaves with a two-line error and its exit code, or goes on as if nothing had happened, and",
        "where no file of before is lost, no damaged one is used, and no temporary one is left. Each row is a test that fails otherwise.",
    ]
    for number, title in FAULTS.items():
        rows = sorted(row for row in table.tried if row[0] == number)
        if not rows:
            continue
        lines += ["", f"## {title}", "", "| fault | tried | outcome |", "|---|---:|---|"]
        for row in rows:
            lines.append(f"| {row[1].replace('|', chr(92) + '|')} | {table.tried[row]:,} | {_words(table.outcomes[row])} |")
    target.parent.mkdir(exist_ok=True)
    target.write_text("\n".join(lines) + "\n", encoding="utf-8")


def _words(outcomes: set[str]) -> str:
    if "failed" in outcomes:
        return "**does not end well**"
    return "ends well" if outcomes == {"passed"} else "ends well, partly not tried here" if "passed" in outcomes else "not tried here"


def main(arguments: list[str]) -> int:
    """Runs the tests, the slow ones too unless `--quick` is given, and writes docs/reliability.md."""
    table, start = Table(), time.monotonic()
    sys.path.insert(0, str(ROOT))
    marks = "not slow" if "--quick" in arguments else "slow or not slow"
    code = pytest.main([str(ROOT / "tests"), "-m", marks, "-p", "no:cacheprovider", "-q"], plugins=[table])
    if code in (pytest.ExitCode.OK, pytest.ExitCode.TESTS_FAILED):
        write(table, time.monotonic() - start, ROOT / "docs" / "reliability.md", "--quick" in arguments)
    return int(code)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))

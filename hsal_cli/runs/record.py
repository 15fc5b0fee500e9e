"""Training runs as they were left: what each was, how it went, and which of them differ by their seed alone."""

from __future__ import annotations

import contextlib
import dataclasses
import math
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar

from hsal_cli.errors import FileError, HsalError
from hsal_cli.policy.variant import PAPER_CELLS, Variant, stored_variant
from hsal_cli.progress import SILENT, Reporter
from hsal_cli.runs.documents import Evaluation, Status, rank, read_evaluation
from hsal_cli.runs.places import PLACES
from hsal_cli.runs.run import EVALUATIONS, SCORED, Run, open_run, recover

T = TypeVar("T")
TABLE_OF = {"policy": "train", "count": "train", "backbone": "finetune"}  # the table of config.json that holds the seed and the epochs
SCORE_OF = {"policy": "exact_match", "count": "exact_match", "backbone": "accuracy"}  # by which the best epoch is chosen
MOST_NAMED = 3  # settings that a name is made of; where more differ, folders serve as names


@dataclasses.dataclass(frozen=True)
class Record:
    """A run as it was left.

    Attributes:
        path: its folder.
        kind: "policy", "count" (the direct baseline) or "backbone".
        state: running, stopped, failed or finished.
        config: config.json.
        rows: one row of metrics an epoch, in order; empty where none was finished.
        status: status.json.
        evaluation: eval.json, None where there is none of the run's own data.
        note: why an eval.json that is there is not shown; else "".
        backbone: the run behind the features of a policy, where it is still there.
    """

    path: Path
    kind: str
    state: str
    config: dict[str, Any]
    rows: list[dict[str, Any]]
    status: Status
    evaluation: Evaluation | None
    note: str = ""
    backbone: Record | None = None

    @property
    def settings(self) -> dict[str, Any]:
        """How it was trained: the settings of `hsal train` or `hsal finetune`."""
        return self.config.get(TABLE_OF[self.kind], {})

    @property
    def variant(self) -> Variant | None:
        """That of its policy; beta and reach are those of the paper's maps where hsal 0.1 left them open. None where it cannot be read."""
        try:
            return stored_variant(self.config, PAPER_CELLS, self.path)
        except HsalError:
            return None

    @property
    def score(self) -> str:
        """The metric by which its best epoch is chosen."""
        return SCORE_OF[self.kind]

    @property
    def best(self) -> dict[str, Any] | None:
        """The row of the best epoch (see `rank`); None where none was finished."""
        scored = [row for row in self.rows if self.score in row]
        return max(scored, key=lambda row: rank(row, self.score)) if scored else None

    @property
    def flat(self) -> dict[str, Any]:
        """config.json without its tables: `train.epochs`, `variant.mask` ..."""
        flat: dict[str, Any] = {}
        for key, value in self.config.items():
            flat |= {f"{key}.{name}": part for name, part in value.items()} if isinstance(value, dict) else {key: value}
        return flat

    def curve(self, metric: str) -> list[tuple[int, float]]:
        """(epoch, value) wherever a metric was logged and is finite."""
        return [(row["epoch"], row[metric]) for row in self.rows if _is_number(row.get(metric)) and _is_number(row.get("epoch"))]


@dataclasses.dataclass(frozen=True)
class Group:
    """Runs, at least one, that differ by their seed alone; `name`: what sets them apart from the other groups, in words."""

    name: str
    records: list[Record]


def _is_number(value: Any) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool) and math.isfinite(value)


def best_of(records: Sequence[Record]) -> Record:
    """The run with the best score on held-out images, the first of equals."""
    return max(records, key=lambda record: record.best[record.score] if record.best else -math.inf)


def groups(records: list[Record]) -> list[Group]:
    """Puts runs together that differ by their seed alone, in the order of their first one, and names each by what sets it apart."""
    found: dict[str, list[Record]] = {}
    for record in records:
        found.setdefault(str(sorted(_identity(record).items())), []).append(record)
    parts = list(found.values())
    identities = [_identity(part[0]) for part in parts]
    apart = differing(identities)
    names = [_name(part[0], identity, apart) for part, identity in zip(parts, identities, strict=True)]
    if len(apart) > MOST_NAMED or len(set(names)) < len(names):
        names = _folders([part[0].path for part in parts])
    return [Group(name, part) for name, part in zip(names, parts, strict=True)]


def differing(settings: Sequence[Mapping[str, Any]]) -> list[str]:
    """The keys of flat settings whose values are not the same in all of them."""
    keys = dict.fromkeys(key for each in settings for key in each)
    return [key for key in keys if any(each.get(key) != settings[0].get(key) for each in settings)]


def _identity(record: Record) -> dict[str, Any]:
    """Everything that makes a run what it is, but for its seed, as flat settings; data are known by digest, not by place."""
    known = {f"{TABLE_OF[record.kind]}.seed", *(place for place in PLACES if f"{place}_digest" in record.config)}
    known |= {"classes", "volume_shape"}  # told by the digests, and not noted by older versions
    return {"kind": record.kind, **{key: value for key, value in record.flat.items() if key not in known}}


def _name(record: Record, identity: dict[str, Any], differing: list[str]) -> str:
    if not differing:
        return str(identity.get("train.objective", record.path.resolve().name))
    words = []
    for key in differing:
        place = key.removesuffix("_digest")
        if place in PLACES:
            words += [f"{place} {Path(record.config[place]).name}"] if record.config.get(place) else []
        elif key == "kind" and identity.get("train.objective"):
            continue  # the objective tells it
        elif key == "train.objective":
            words.append(str(identity.get(key)))
        elif identity.get(key) is not None:
            words.append(f"{key.rpartition('.')[2].replace('_', ' ')} {str(identity[key])[:24]}")
    return ", ".join(words) or record.path.resolve().name


def _folders(paths: list[Path]) -> list[str]:
    """The shortest ends of the paths that tell them apart."""
    whole = [path.resolve().parts for path in paths]
    for length in range(1, max(map(len, whole)) + 1):
        ends = ["/".join(parts[-length:]) for parts in whole]
        if len(set(ends)) == len(ends):
            return ends
    return [f"{'/'.join(parts)} ({number + 1})" for number, parts in enumerate(whole)]


def run_summary(record: Record) -> dict[str, Any]:
    """A run in figures.

    Returns:
        Plain JSON types: `kind`, `state`, `started`, `updated`, `epochs`, `seconds` of training, `best` and `last`: the metrics of these
        epochs (None where none was finished), `test`: scores of eval.json (None without), `config`; and `note`, where an
        eval.json is not shown.
    """
    wanted, said = ("dataset", "split", "examples", "exact_match", "macro_f1"), record.evaluation
    return {
        "kind": record.kind,
        "state": record.state,
        "started": record.status.started,
        "updated": record.status.updated,
        "epochs": len(record.rows),
        "seconds": math.fsum(row.get("seconds", 0.0) for row in record.rows),
        "best": record.best,
        "last": record.rows[-1] if record.rows else None,
        "test": {key: getattr(said, key) for key in wanted} if said else None,
        **({"note": record.note} if record.note else {}),
        "config": record.config,
    }


def read_some(read: Callable[[Path], T], paths: Sequence[Path], reporter: Reporter) -> list[T]:
    """Reads runs; of several, one that cannot be read is named and passed over, and FileError raised where none can."""
    found, first = [], None
    for path in paths:
        try:
            found.append(read(path))
        except FileError as error:
            first = first or error
            if len(paths) > 1:
                reporter.warn(f"passed over: {error.message} ({error.hint})")
    if first is not None and not found:
        raise first
    return found


def evaluations(
    paths: Sequence[Path],
    dataset: str | None = None,
    reporter: Reporter = SILENT,
    stated: Callable[[Path], Evaluation | None] = lambda path: None,
) -> list[tuple[Path, Evaluation]]:
    """(run, its evaluation) for each run, on the test split of its own data or on another data set; of several, one that was not
    evaluated so, or cannot be read, is named and passed over.

    Args:
        paths: the runs.
        dataset: the name of another data set, on which all of them were evaluated with `hsal eval --data`.
        reporter: told what was passed over.
        stated: what is known of a path that is no run's: an evaluation, taken as it is, or None.

    Raises:
        FileError: none was evaluated so, or two were evaluated on different data, as their digests say, or where one has none their names.
    """
    found = read_some(lambda path: (path, stated(path) or _evaluation_on(open_run(path, SCORED), dataset)), paths, reporter)
    for place, (path, document) in enumerate(found):
        for other, before in found[:place]:
            told = None not in (document.scenes_digest, before.scenes_digest)
            for key in ("scenes_digest" if told else "dataset", "split", "examples"):
                value, first = getattr(document, key), getattr(before, key)
                if value != first:
                    raise FileError(
                        f"{path} was evaluated on {key} {value}, {other} on {first}",
                        "evaluate each on the same file, hsal eval --run RUN --data FILE, then: hsal compare RUN... --data NAME",
                    )
    return found


def _evaluation_on(run: Run, dataset: str | None) -> Evaluation:
    place, own = run.path / f"eval.{dataset}.json", None
    if dataset is None or (run.path / EVALUATIONS["best"]).is_file():
        own = run.evaluation()
        if dataset is None or (own.dataset == dataset and not place.is_file()):
            return own
    named = read_evaluation(place, f"hsal eval --run {run.path} --data FILE, a file named {dataset}")
    # Scores on other features of the run's own data lie beside its own.
    return own if own is not None and own.scenes_digest == named.scenes_digest is not None else named


def read_record(path: Path) -> Record:
    """Reads a run of any kind back, with its metrics and, if there is one, its evaluation.

    Raises:
        FileError: there is no run, or its files cannot be read.
    """
    recover(path)
    if not (path / "status.json").is_file():
        raise FileError(f"{path} is not a run of hsal", "make one with: hsal train, or hsal finetune")
    run = Run(path)
    status = run.status
    evaluation, note = None, ""
    if (path / EVALUATIONS["best"]).exists():
        evaluation = read_evaluation(path / EVALUATIONS["best"], f"hsal eval --run {path}")
        if run.other_data(evaluation):
            evaluation, note = None, f"eval.json holds scores on {run.other_data(evaluation)}, not on the test split of the run's own data"
    backbone = None
    if place := run.config.raw.get("backbone"):
        with contextlib.suppress(FileError):
            backbone = read_record(Path(place))
    return Record(path, status.kind, status.state, run.config.raw, run.rows(), status, evaluation, note, backbone)

"""What a network that learned counts names by itself, with no policy: scored as a policy is, and kept as the eval.json of its run."""

from __future__ import annotations

from pathlib import Path

import torch

from hsal_cli import distributed
from hsal_cli.evaluation.flops import backbone_flops
from hsal_cli.evaluation.metrics import label_counts, multiset_metrics, trivial_baselines
from hsal_cli.evaluation.settings import EvalSettings
from hsal_cli.features.settings import dataset_of
from hsal_cli.finetuning.objects import CountedImages, overlap
from hsal_cli.finetuning.reading import read_objects
from hsal_cli.progress import Reporter
from hsal_cli.runs.run import EVALUATIONS, Run
from hsal_cli.scenes.scene_file import open_scenes
from hsal_cli.scenes.settings import frame_of
from hsal_cli.storage.atomic import write_json
from hsal_cli.storage.checkpoints import Checkpoint
from hsal_cli.vision.backbone import ActivationModel

DEFAULTS = EvalSettings()


def score_counts(
    run: Run, best: Checkpoint, model: ActivationModel, scenes: Path, batch_size: int, device: torch.device, reporter: Reporter
) -> dict[str, float]:
    """Scores the rounded counts of a run's best network on all images of the test split.

    Args:
        run: where eval.json is written, in the form of `evaluation.files.evaluate_file`, objective "counts".
        best: the run's best checkpoint.
        model: with its weights, on `device`.
        scenes: the scene file, whose test split holds an image at least.
        batch_size: images a forward pass.
        device: where to compute.
        reporter: progress.

    Returns:
        `test_accuracy`, how far the counts overlap with the true ones, `test_exact_match` and `test_macro_f1`, in [0, 1].
    """
    test = read_objects(scenes, "test", "counts")
    assert isinstance(test, CountedImages)
    true, found = test.counted(model, batch_size, device, reporter)
    with open_scenes(scenes) as file:
        classes, digest, frame = file.classes, file.digest, frame_of(file.config)
        trained = label_counts(torch.from_numpy(file.split("train").labels), len(classes))
    scores = multiset_metrics(true, found, classes, DEFAULTS.resamples, DEFAULTS.seed)
    seen, looks = backbone_flops(model)[0], None if frame == "found" else 0
    document = {
        "dataset": dataset_of(scenes),
        "split": "test",
        **scores,
        "baselines": trivial_baselines(trained, true),
        "scenes": str(scenes),
        "scenes_digest": digest,
        "frame": frame,
        "checkpoint": str(best.path),
        "objective": "counts",
        "parameters": sum(parameter.numel() for parameter in model.parameters()),
        "flops": {"policy": 0, "looks": looks, "backbone": seen, "windows": 0, "image": None if looks is None else seen},
    }
    if distributed.current().leads:
        write_json(run.path / EVALUATIONS["best"], document)
    accuracy = float(overlap(torch.from_numpy(found), torch.from_numpy(true)).mean())
    return {"test_accuracy": accuracy, "test_exact_match": scores["exact_match"], "test_macro_f1": scores["macro_f1"]}

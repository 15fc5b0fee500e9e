"""hsal eval, visualize and predict on a toy run: what they write and print, and what they refuse."""

import dataclasses
import json
import shutil

import h5py
import numpy as np
import pytest
import torch
import typer
from evaluation_parts import NAMES, small_policy, small_table, write_features, write_run
from PIL import Image
from typer.testing import CliRunner

import hsal_cli as hsal
from hsal_cli.commands.eval import eval_
from hsal_cli.commands.predict import predict, words
from hsal_cli.commands.visualize import visualize
from hsal_cli.errors import FileError
from hsal_cli.main import app as whole
from hsal_cli.models.load import find_backbone, load_model, load_policy
from hsal_cli.models.look import look, look_at_files
from hsal_cli.models.seen import Look, to_json
from hsal_cli.policy.count_classifier import CountClassifier
from hsal_cli.policy.set_predictor import SetPredictor
from hsal_cli.storage.atomic import write_sealed
from hsal_cli.storage.checkpoints import write_checkpoint
from hsal_cli.vision.backbone import ActivationModel
from hsal_cli.vision.images import from_pil, read_image, to_input

app = typer.Typer()
app.command("eval")(eval_)
app.command("visualize")(visualize)
app.command("predict")(predict)


def call(*words, code=0):
    found = CliRunner().invoke(app, [str(word) for word in words])
    if found.exception is not None and not isinstance(found.exception, SystemExit):
        found.said = f"{found.exception}"
        assert found.exception.exit_code == code, found.said
    else:
        found.said = found.stderr
        assert found.exit_code == code, found.output
    return found


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """A folder with a backbone run, a policy run on it, its features, and three images, one of them damaged."""
    root = tmp_path_factory.mktemp("toy")
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = ActivationModel("resnet18", len(NAMES), input_size=96, resolution=3)
    meta = {
        "kind": "backbone",
        "arch": "resnet18",
        "input_size": 96,
        "resolution": 3,
        "classes": NAMES,
        "weights": "random",
        "accuracy": 0.5,
    }
    folder = root / "runs" / "finetune" / "checkpoints" / "epoch-1"
    write_checkpoint(folder, model.state_dict(), None, meta)
    digest = json.loads((folder / "manifest.json").read_text())["sha256"]["weights.safetensors"]
    shape = (512, 3, 3)
    tables = {name: small_table(6, seed=seed, shape=shape) for seed, name in enumerate(("train", "test"))}
    write_features(root / "toy.features.h5", tables, backbone_digest=digest)
    policy = small_policy(shape=shape)
    with torch.no_grad():
        policy.controller.label.bias[policy.stop] -= 3  # so that something is named
    write_run(root / "runs" / "policy", policy, backbone_digest=digest, backbone="runs/finetune", features="toy.features.h5")
    config = {"features": "toy.features.h5", "features_digest": "f" * 64, "scenes_digest": "s" * 64, "train": {"objective": "rl"}}
    write_sealed(root / "runs" / "policy" / "config.json", config)
    generator = np.random.default_rng(0)
    Image.fromarray(generator.integers(0, 256, (40, 70, 3), dtype=np.uint8)).save(root / "colour.jpg")
    Image.fromarray(generator.integers(0, 256, (64, 64), dtype=np.uint8)).save(root / "grey.png")
    (root / "damaged.png").write_bytes(b"no picture at all")
    return root


def write_scenes(path, classes):
    with h5py.File(path, "w") as file:
        file.attrs["format"], file.attrs["classes"] = "hsal-scenes", json.dumps(classes)
        file["test/images"], file["test/labels"] = np.zeros((2, 8, 8), np.uint8), np.zeros((2, 1), np.int16)
    return path


@pytest.fixture
def here(place, monkeypatch):
    monkeypatch.chdir(place)
    yield place
    for made in [*place.rglob("*.hsal.png"), *place.rglob("eval*.json")]:
        made.unlink()


def test_eval_writes_its_json_into_the_newest_run_and_prints_tables(here):
    found = call("eval", "--resamples", 20)
    document = json.loads((here / "runs" / "policy" / "eval.json").read_text())
    assert document["dataset"] == "toy" and document["split"] == "test" and document["examples"] == 6
    for text in ("exact match", "macro F1", "attn_saliency", "glimpse_hit", "most frequent multiset", "owl"):
        assert text in found.stdout
    as_json = call("eval", "--resamples", 20, "--run", "runs/policy", "--json", "--out", here / "eval-too.json")
    assert json.loads(as_json.stdout) == document == json.loads((here / "eval-too.json").read_text())


def test_eval_takes_settings_and_a_checkpoint_folder(here):
    checkpoint = here / "runs" / "policy" / "checkpoints" / "epoch-1"
    found = json.loads(call("eval", "--json", "--run", checkpoint, "--split", "train", "--sample", 2, "--max-steps", 1).stdout)
    assert (found["split"], found["sample"], found["max_steps"]) == ("train", 2, 1)
    assert not (checkpoint / "eval.json").exists()


def test_eval_refuses_what_does_not_fit(here):
    write_features(here / "other.features.h5", {"test": small_table(3, shape=(512, 3, 3))}, backbone_digest="0" * 64)
    assert "another backbone" in call("eval", "--data", "other.features.h5", code=1).said
    assert "missing" in call("eval", "--data", "nowhere.h5", code=1).said
    (here / "text.h5").write_text("text")
    assert "not an HDF5 file" in call("eval", "--data", "text.h5", code=1).said
    assert "no run at nowhere" in call("eval", "--run", "nowhere", code=1).said
    assert "device" in call("eval", "--device", "abacus", code=2).said
    assert "batch_size" in call("eval", "--batch-size", 0, code=2).said
    assert "'nosplit'" in call("eval", "--split", "nosplit", code=1).said
    # eval.json is of the run's own data: a run that cannot say what those were is refused.
    half = shutil.copytree(here / "runs" / "policy", here / "half")
    (half / "config.json").unlink()
    assert "half/config.json" in call("eval", "--run", "half", code=1).said and not (half / "eval.json").exists()


def test_eval_of_a_scene_file_uses_the_features_of_the_policys_own_backbone(here, monkeypatch):
    write_scenes(here / "scenes.h5", NAMES)
    asked = []

    def ensure_features(scenes, backbone, reporter, device, settings):
        asked.append((scenes.name, find_backbone(load_policy(here / "runs" / "policy")).path == backbone, settings.saliency))
        return here / "toy.features.h5"

    monkeypatch.setattr("hsal_cli.experiments.pipeline.ensure_features", ensure_features)
    monkeypatch.setattr("hsal_cli.commands.eval.begin", lambda *_: None)
    call("eval", "--data", "scenes.h5", "--resamples", 2)
    assert asked == [("scenes.h5", True, "activation")]


def test_images_need_not_show_every_class_that_the_policy_knows(here):
    """Labels count in the order of a file's own classes, scores in that of the policy's."""
    digest = json.loads((here / "runs/finetune/checkpoints/epoch-1/manifest.json").read_text())["sha256"]["weights.safetensors"]
    table = small_table(6, seed=1, shape=(512, 3, 3))
    few = torch.where(table.labels == 1, 0, table.labels)  # no image shows the policy's class 1
    write_features(here / "all.features.h5", {"test": table.labelled(few, table.boxes)}, backbone_digest=digest)
    other = torch.tensor([1, -1, 0, -1])[few]  # the last place is that of -1
    seen = [NAMES[2], NAMES[0]]
    write_features(here / "few.features.h5", {"test": table.labelled(other, table.boxes)}, backbone_digest=digest, classes=seen)
    whole, part = (json.loads(call("eval", "--data", f"{name}.features.h5", "--json", "--resamples", 5).stdout) for name in ("all", "few"))
    assert part["by_class"] == whole["by_class"] and part["exact_match"] == whole["exact_match"] and part["micro_f1"] > 0


def unseen(monkeypatch):
    """From here on it fails to show an image to a policy."""
    # Not `look` itself: a module that is imported meanwhile would keep what stands in for it.
    monkeypatch.setattr("hsal_cli.models.look._rolled_out", lambda *_, **__: pytest.fail("the policy was shown an image"))


def test_true_labels_that_the_policy_cannot_name_are_refused_before_it_looks(here, monkeypatch):
    unseen(monkeypatch)
    assert "no class 'ferret'" in call("visualize", "grey.png", "--labels", "ferret", code=2).said
    assert "write commas between them: --labels cat,owl" in call("visualize", "grey.png", "--labels", "cat owl", code=2).exception.hint
    assert not (here / "grey.hsal.png").exists()


@pytest.mark.parametrize(
    ("classes", "words_", "said"),
    [(["cat", "dog", "yak"], (), "yak"), (NAMES, ("--split", "train"), "no split 'train'")],
)
def test_scenes_that_the_policy_cannot_be_evaluated_on_are_refused_before_features_are_computed(here, monkeypatch, classes, words_, said):
    monkeypatch.setattr("hsal_cli.experiments.pipeline.ensure_features", lambda *_: pytest.fail("features are computed"))
    assert said in call("eval", "--data", write_scenes(here / "others.h5", classes), *words_, code=1).said


def test_where_there_is_no_policy_that_is_said_and_none_is_trained(here, monkeypatch):
    monkeypatch.setattr("hsal_cli.runs.run.newest", lambda kind, **_: None)
    monkeypatch.setattr("hsal_cli.models.shipped.own_folder", lambda: None)
    before = sorted(here.rglob("*"))
    for words_ in (("eval", "--resamples", 2), ("predict", "grey.png"), ("visualize", "grey.png")):
        assert "no trained policy in runs/" in call(*words_, code=1).said
    assert sorted(here.rglob("*")) == before


def test_no_policy_is_trained_for_images_that_are_not_there(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for command in ("predict", "visualize"):
        assert "x.png" in call(command, "x.png", code=1).said
    assert not list(tmp_path.iterdir())


def test_predict_names_the_labels_of_each_image(here):
    found = call("predict", "colour.jpg", "grey.png")
    lines, sure = zip(*(line.split("   lowest probability ") for line in found.stdout.splitlines()), strict=True)
    assert [line.split(":")[0] for line in lines] == ["colour.jpg", "grey.png"]
    assert all(set(line.split(": ")[1].split()) <= {*NAMES, "-"} for line in lines)
    documents = json.loads(call("predict", "colour.jpg", "grey.png", "--json").stdout)
    assert [f"{document['image']}: {words(document['labels'])}" for document in documents] == list(lines)
    assert [f"{document['lowest_probability']:.2f}" for document in documents] == list(sure)
    warned = [f"{document['image']}: {why}" for document in documents for why in document["warnings"]]
    assert warned and all(why in found.stderr for why in warned)
    for document in documents:
        assert document["labels"] == [step["label"] for step in document["steps"]]
        for step in document["steps"]:
            assert step.keys() == {"label", "probability", "glimpses", "glimpses_px", "boxes_px", "mask", "priority", "saliency"}
            assert 0 <= step["probability"] <= 1 and np.shape(step["glimpses"]) == (2, 2)
            assert all(np.shape(step[name]) == (3, 3) for name in ("mask", "priority", "saliency"))


def test_glimpses_are_in_pixels_of_the_image_as_well_as_in_cells(here):
    document = json.loads(call("predict", "colour.jpg", "--json").stdout)[0]
    assert document["size"] == [40, 70] and document["steps"]
    for step in document["steps"]:
        for (row, column), middle, box in zip(step["glimpses"], step["glimpses_px"], step["boxes_px"], strict=True):
            edges = [70 * column / 3, 40 * row / 3, 70 * (column + 1) / 3, 40 * (row + 1) / 3]
            assert box == pytest.approx(edges, abs=0.06)
            assert middle == pytest.approx([40 * (row + 0.5) / 3, 70 * (column + 0.5) / 3], abs=0.11)


@pytest.mark.parametrize("lying", [True, False])
def test_a_model_of_padded_images_sees_pictures_padded_and_tells_px_of_the_picture(lying, here):
    policy = load_policy(here / "runs" / "policy")
    backbone = find_backbone(policy)
    picture = np.array(Image.open(here / "colour.jpg"))
    square = np.empty((70, 70, 3), np.uint8)
    square[:] = picture.reshape(-1, 3).mean(0).round()
    square[15:55] = picture
    square, picture = (square, picture) if lying else (square.swapaxes(0, 1).copy(), picture.swapaxes(0, 1).copy())
    of_padded = dataclasses.replace(policy, meta=dataclasses.replace(policy.meta, fit="pad"))
    (seen,), (same,) = (look([torch.from_numpy(image)], backbone, shown) for image, shown in ((picture, of_padded), (square, policy)))
    assert np.array_equal(seen.image, square) and seen.labels == same.labels and np.array_equal(seen.glimpses, same.glimpses)
    document, (height, width) = to_json(seen), picture.shape[:2]
    assert document["size"] == [height, width] and document["steps"]
    (across, down) = (0, 15) if lying else (15, 0)
    for step in document["steps"]:
        for (row, column), middle, box in zip(step["glimpses"], step["glimpses_px"], step["boxes_px"], strict=True):
            x0, x1 = (min(max(70 * (column + edge) / 3 - across, 0), width) for edge in (0, 1))
            y0, y1 = (min(max(70 * (row + edge) / 3 - down, 0), height) for edge in (0, 1))
            assert box == pytest.approx([x0, y0, x1, y1], abs=0.06) and middle == pytest.approx([(y0 + y1) / 2, (x0 + x1) / 2], abs=0.11)


def test_json_has_a_list_of_numbers_on_one_line(here):
    text = call("predict", "colour.jpg", "--json").stdout
    steps = json.loads(text)[0]["steps"]
    assert f'"size": {[40, 70]}' in text and text.count("\n") < 12 + 50 * len(steps)


def test_counts_of_a_folder_become_a_table_that_make_data_reads(here):
    photos = here / "photos" / "more"
    photos.mkdir(parents=True)
    for number, name in enumerate(("b.png", "a.jpg")):
        Image.open(here / ("grey.png", "colour.jpg")[number]).save(photos / name)
    named = call("predict", "photos", "--csv", "counts.csv").stdout.splitlines()
    rows = (here / "counts.csv").read_text().splitlines()
    assert rows[0] == ",".join(["image", *NAMES]) and [row.split(",")[0] for row in rows[1:]] == [
        "photos/more/a.jpg",
        "photos/more/b.png",
    ]
    for line, row in zip(named, rows[1:], strict=True):
        found = line.split(": ")[1].split()
        assert row.split(",")[1:] == [str(found.count(name)) for name in NAMES]
    assert "exists" in call("predict", "photos", "--csv", "counts.csv", code=2).said
    call("predict", "photos", "--csv", "counts.csv", "--overwrite")
    (here / "mine.csv").write_text("a,b\n")
    assert "not replaced" in call("predict", "photos", "--csv", "mine.csv", "--overwrite", code=2).said
    from hsal_cli.commands.make_data import app

    words_ = ["folder", "--images", ".", "--labels", "counts.csv", "--labels-format", "counts", "--test-share", "0", "--out", "seen.h5"]
    assert CliRunner().invoke(app, words_).exit_code == 0
    for made in ("counts.csv", "mine.csv", "seen.h5"):
        (here / made).unlink()
    shutil.rmtree(here / "photos")


@pytest.fixture(scope="module")
def counters(place):
    """A count classifier and a set predictor on the same backbone, in a folder without any policy."""
    root = place / "counters"
    meta = {key: value for key, value in load_policy(place / "runs" / "policy").checkpoint.meta.items() if key != "variant"}
    shutil.copytree(place / "runs" / "finetune", root / "runs" / "finetune")
    torch.manual_seed(1)
    models = {"count": CountClassifier(3, (512, 3, 3), most=2), "set": SetPredictor(3, (512, 3, 3), queries=4)}
    for number, (objective, model) in enumerate(models.items()):
        if objective == "count":
            torch.nn.init.normal_(model.counts.bias, std=9)
        sizes = {"most": 2, "hidden": model.hidden, "queries": getattr(model, "queries", None)}
        run = root / "runs" / f"x-{objective}"
        write_checkpoint(
            run / "checkpoints" / "epoch-1", model.state_dict(), None, meta | {"kind": "count", "objective": objective, "count": sizes}
        )
        (run / "checkpoints" / "index.json").write_text(json.dumps({"last": "epoch-1", "best": "epoch-1"}))
        (run / "status.json").write_text(json.dumps({"kind": "count", "state": "finished", "updated": f"{2025 - number}"}))
    (root / "photos").mkdir()
    for name in ("grey.png", "colour.jpg"):
        shutil.copy(place / name, root / "photos" / name)
    return root


@pytest.mark.parametrize("objective", ["count", "set"])
def test_a_direct_baseline_names_and_counts_and_tells_of_no_meta_step(objective, counters, monkeypatch):
    monkeypatch.chdir(counters)
    run = ("--run", f"runs/x-{objective}")
    loaded = load_model(counters / "runs" / f"x-{objective}")
    pictures = [from_pil(read_image(counters / "photos" / name)) for name in ("colour.jpg", "grey.png")]
    volumes = find_backbone(loaded).volumes(torch.cat([to_input(picture, 96) for picture in pictures]))
    counts = loaded.policy.predict(volumes).tolist()
    assert sum(map(sum, counts))
    found = call("predict", "photos", *run, "--csv", f"{objective}.csv")
    named = [[name for name, count in zip(NAMES, row, strict=True) for _ in range(count)] for row in counts]
    assert found.stdout.splitlines() == [f"photos/colour.jpg: {words(named[0])}", f"photos/grey.png: {words(named[1])}"]
    rows = (counters / f"{objective}.csv").read_text().splitlines()
    assert rows[0] == ",".join(["image", *NAMES]) and [list(map(int, row.split(",")[1:])) for row in rows[1:]] == counts
    documents = json.loads(call("predict", "photos", *run, "--json").stdout)
    for document, labels, row in zip(documents, named, counts, strict=True):
        told = {"labels": labels, "counts": dict(zip(NAMES, row, strict=True)), "steps": [], "warnings": []}
        assert document == {"image": document["image"], "size": document["size"], **told}
    assert "takes no steps" in call("predict", "photos", *run, "--max-steps", 3, code=2).said
    model = hsal.load(run[1], device="cpu")
    seen = model(["photos/colour.jpg", "photos/grey.png"])
    assert [look.labels for look in seen] == named and not seen[0].probabilities.size
    assert seen[0].masks.shape == seen[0].glimpses.shape == (0, 0, 0)
    with pytest.raises(hsal.HsalError, match="takes no steps"):
        model("photos/grey.png", max_steps=3)
    with pytest.raises(hsal.HsalError, match="has no policy"):
        _ = model.policy
    for command in ("visualize", "play"):
        refused = CliRunner().invoke(
            whole, [command, "photos/grey.png", *run] if command == "visualize" else [command, *run, "--port", "0"]
        )
        assert f"hsal predict IMAGE --run runs/x-{objective}" in refused.exception.hint


def test_the_counter_is_meant_where_runs_hold_no_policy(counters, monkeypatch):
    monkeypatch.chdir(counters)
    monkeypatch.setattr("hsal_cli.models.shipped.load_shipped", lambda *_: pytest.fail("a pretrained policy is taken"))
    found = call("predict", "photos/grey.png")
    assert "no trained policy in runs/: using runs/x-count, which counts" in found.stderr
    assert found.stdout == call("predict", "photos/grey.png", "--run", "runs/x-count").stdout
    monkeypatch.chdir(counters.parent)  # whose policy goes before a counter
    shutil.copytree(counters / "runs" / "x-count", "runs/newer")
    try:
        assert "lowest probability" in call("predict", "grey.png").stdout
    finally:
        shutil.rmtree("runs/newer")


def test_why_many_images_may_be_wrong_is_told_one_by_one_of_the_first_alone(here):
    for number in range(6):
        shutil.copy(here / "colour.jpg", here / f"many-{number}.jpg")
    images = sorted(here.glob("many-*.jpg"))
    found, documents = call("predict", *images, "--max-steps", 1), json.loads(call("predict", *images, "--max-steps", 1, "--json").stdout)
    notes = [line for line in found.stderr.splitlines() if line.startswith("Note: ")]
    assert [line.split(":")[1].strip() for line in notes[:3]] == list(map(str, images[:3])) and len(notes) == 4
    assert notes[3] == "Note: and 3 more: the cap of meta-steps came before stop 3; --json has the warnings of each image"
    assert all(len(document["warnings"]) == 1 for document in documents)
    for image in images:
        image.unlink()


def test_how_images_differ_is_counted_where_many_do():
    from hsal_cli.commands.policies import warned

    class Told:
        def __init__(self):
            self.lines = []

        def warn(self, line):
            self.lines.append(line)

    unlike = [["a"], [], ["b"], ["a"], ["a", "b"], ["b"], ["b"]]
    looks_ = [Look("x", np.zeros((1, 1, 3), np.uint8), [], 1.0, None if why == ["b"] else "stopped", unlike=why) for why in unlike]
    shown, told = [*((str(place), look) for place, look in enumerate(looks_)), ("damaged", FileError("no picture", "another"))], Told()
    assert list(warned(shown, told)) == shown
    assert [line.split(":")[0] for line in told.lines] == ["0", "2", "2", "3", "and 3 more"]
    assert told.lines[-1].startswith(
        "and 3 more: unlike the images of training 3 (b 3, a 1); the cap of meta-steps came before stop 2; --json"
    )


def test_a_picture_is_an_svg_or_a_pdf_where_out_says_so(here):
    from xml.etree import ElementTree

    call("visualize", "colour.jpg", "--labels", "cat", "--out", "x.svg")
    tree = ElementTree.fromstring((here / "x.svg").read_bytes())
    texts = ["".join(text.itertext()) for text in tree.iter("{http://www.w3.org/2000/svg}text")]
    assert {"named", "step 1"} <= set(texts) and any(text.startswith("predicted {") for text in texts)
    assert next(tree.iter("{http://www.w3.org/2000/svg}image")).get("href").startswith("data:image/png;base64,")
    found = call("visualize", "colour.jpg", "--out", "x.pdf", "--gif").stdout
    assert "x.pdf" in found and "x.gif" in found and (here / "x.pdf").read_bytes().startswith(b"%PDF-")
    for name in ("x.svg", "x.pdf"):
        call("visualize", "colour.jpg", "--out", name)  # what hsal made is replaced
        (here / name).write_text("mine")
        assert "not made by hsal" in call("visualize", "colour.jpg", "--out", name, code=1).said
        (here / name).unlink()
    for name in ("x.jpg", "x.eps", "x.json"):
        assert "neither a folder nor" in call("visualize", "colour.jpg", "--out", name, code=2).said
        assert not (here / name).exists()
    (here / "x.gif").unlink()


def test_a_bad_image_is_named_and_the_others_are_still_done(here):
    found = call("predict", "damaged.png", "grey.png", "missing.png", code=1)
    assert found.stdout.startswith("grey.png: ") and len(found.stdout.splitlines()) == 1
    errors = [line for line in found.stderr.splitlines() if "the cap of" not in line]
    assert len(errors) == 4 and "damaged.png" in errors[0] and "missing.png" in errors[2]
    assert errors[1].startswith("Hint: ") and errors[3].startswith("Hint: ")
    call("visualize", "damaged.png", "grey.png", code=1)
    assert (here / "grey.hsal.png").is_file()


def test_visualize_puts_a_picture_beside_each_image_and_makes_it_again(here):
    for _ in range(2):
        found = call("visualize", "colour.jpg", "grey.png")
        assert "colour.hsal.png" in found.stdout
    for name in ("colour", "grey"):
        with Image.open(here / f"{name}.hsal.png") as picture:
            assert picture.format == "PNG" and picture.width > 200
    documents = json.loads(call("visualize", "grey.png", "--json").stdout)
    assert documents[0]["picture"] == "grey.hsal.png"
    assert {key: documents[0][key] for key in documents[0] if key != "picture"} == json.loads(call("predict", "grey.png", "--json").stdout)[
        0
    ]


def test_visualize_chooses_names_that_do_not_collide(here):
    Image.open(here / "grey.png").save(here / "colour.png")
    call("visualize", "colour.jpg", "colour.png", "--out", "pictures")
    assert sorted(path.name for path in (here / "pictures").iterdir()) == ["colour.jpg.hsal.png", "colour.png.hsal.png"]
    call("visualize", "grey.png", "--out", here / "named.png", "--labels", "cat, owl")
    with Image.open(here / "named.png") as picture:
        assert picture.info["Software"].startswith("hsal ")


def test_visualize_puts_an_animation_and_a_replay_beside_the_picture(here):
    folder = here / "all"
    for _ in range(2):  # what hsal made is made again
        document = json.loads(call("visualize", "grey.png", "--gif", "--html", "--out", folder, "--json").stdout)[0]
    assert [document[key] for key in ("picture", "animation", "replay")] == [str(folder / f"grey.hsal.{e}") for e in ("png", "gif", "html")]
    with Image.open(folder / "grey.hsal.gif") as film:
        assert film.n_frames == 4 * len(document["labels"]) + 1
    assert f"predicted {{{', '.join(sorted(document['labels']))}}}" in (folder / "grey.hsal.html").read_text()
    assert "no image left" in call("visualize", folder / "grey.hsal.gif", code=2).said
    (folder / "mine.html").write_text("mine")
    assert "was not made by hsal" in call("visualize", "grey.png", "--html", "--out", folder / "mine.html", code=1).said
    assert (folder / "mine.html").read_text() == "mine" and not (folder / "mine.png").exists()
    assert "neither a folder" in call("visualize", "grey.png", "--out", folder / "new.html", code=2).said


def test_visualize_replaces_nothing_that_hsal_did_not_make(here):
    before = (here / "grey.png").read_bytes()
    found = call("visualize", "grey.png", "--out", "grey.png", code=1)
    assert "was not made by hsal" in found.said and (here / "grey.png").read_bytes() == before


def test_visualize_passes_over_its_own_pictures_and_refuses_what_is_ambiguous(here):
    call("visualize", "grey.png")
    assert "passing over 1 picture" in call("visualize", "grey.png", "grey.hsal.png").stderr
    assert not (here / "grey.hsal.hsal.png").exists()
    assert "no image left" in call("visualize", "grey.hsal.png", code=2).said
    assert "one image" in call("visualize", "grey.png", "colour.jpg", "--labels", "cat", code=2).said
    assert "one file" in call("visualize", "grey.png", "colour.jpg", "--out", "x.png", code=2).said
    assert "neither a folder" in call("visualize", "grey.png", "--out", "colour.jpg", code=2).said


def test_looking_at_tensors_and_files_is_the_same_whatever_the_batch(here, monkeypatch):
    policy = load_policy(here / "runs" / "policy")
    backbone = find_backbone(policy)
    grey, colour = (np.array(Image.open(here / name)) for name in ("grey.png", "colour.jpg"))
    together = [to_json(found) for found in look([torch.from_numpy(grey), torch.from_numpy(colour)[None]], backbone, policy)]
    assert [document.pop("image") for document in together] == ["1", "2"]
    monkeypatch.setattr("hsal_cli.models.look.BATCH", 1)
    for document, (path, found) in zip(together, look_at_files([here / "grey.png", here / "colour.jpg"], backbone, policy), strict=True):
        alone = to_json(found)
        assert alone.pop("image") == str(path)
        assert alone["labels"] == document["labels"] and alone["stop_probability"] == pytest.approx(document["stop_probability"], abs=1e-3)


@pytest.mark.parametrize("command", ["eval", "visualize", "predict"])
def test_help_names_what_matters(command):
    found = CliRunner().invoke(app, [command, "--help"], env={"COLUMNS": "120"})
    assert found.exit_code == 0
    for option in ("--run", "--device", "--json"):
        assert option in found.stdout


def test_a_multiset_on_one_line():
    assert (words(["3", "5"]), words(["traffic light", "cat"]), words([])) == ("3 5", "traffic light, cat", "-")

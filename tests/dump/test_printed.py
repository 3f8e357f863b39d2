"""What a dump and `stats` print of how the teacher was run, and whether it knows anything."""

import json

import numpy as np
import pytest
import tiny
from PIL import Image

import logitcache
from logitcache.models import save_weights
from logitcache.runtime.wording import chance_words, class_map_words, is_chance, preprocessing_words


def test_preprocessing_is_printed_with_where_it_came_from(run, npz, tmp_path):
    weights = tmp_path / "weights.safetensors"
    notes = {"preprocessing": {"mean": [0.1, 0.2, 0.3]}}
    logitcache.models.save_weights(tiny.net(tiny.CLASSES).state_dict(), weights, notes)
    words = f"dump --teacher tiny:net --teacher-weights {weights} --data arrays:{npz} --std 0.5 --out c.zarr".split()
    done = run(*words)
    assert "teacher tiny:net sees 16 x 16 pixels (data), mean 0.1, 0.2, 0.3 (weights), std 0.5 (option)" in done.stderr
    shown = " ".join(run("info", "c.zarr").stdout.split())
    assert "16 x 16 pixels (data), mean 0.1, 0.2, 0.3 (weights), std 0.5 (option)" in shown
    run("stats", "c.zarr", "--report", "c.html")
    assert "mean 0.1, 0.2, 0.3 (weights), std 0.5 (option)" in (tmp_path / "c.html").read_text()


def test_settings_that_the_weights_do_not_record_are_not_said_to_be_theirs(run, tmp_path):
    """A file of weights without notes on a network of timm, and a folder of images, whose sizes may differ."""
    timm = pytest.importorskip("timm")
    weights = tmp_path / "weights.safetensors"
    save_weights(timm.create_model("resnet10t", num_classes=2).state_dict(), weights, {"preprocessing": {"std": [0.5]}})
    for name in ("cat", "dog"):
        (tmp_path / "images" / name).mkdir(parents=True)
        Image.new("RGB", (40, 30), "red" if name == "cat" else "blue").save(tmp_path / "images" / name / "1.png")
    words = f"dump --teacher timm:resnet10t --teacher-weights {weights} --data imagefolder:images --out c.zarr".split()
    words += ["--batch-size", "2", "--workers", "0"]
    said = (
        "sees 176 x 176 pixels (timm's configuration), center crop of 0.875 (timm's configuration), "
        "mean 0.485, 0.456, 0.406 (timm's configuration), std 0.5 (weights)"
    )
    assert said in run(*words).stderr
    done = run(
        *[
            "dump",
            "--teacher",
            "tiny:net",
            "--data",
            "imagefolder:images",
            "--mean",
            "0.5",
            "--out",
            "d.zarr",
            *words[-4:],
        ]
    )
    assert (
        "sees 224 x 224 pixels (default), center crop of 0.875 (default), mean 0.5 (option), std 0.229, 0.224, 0.225 (default)"
        in done.stderr
    )


def test_a_class_map_is_printed(run, npz, tmp_path):
    (tmp_path / "map.json").write_text(json.dumps([6, 0, 1, 2, 3]))
    words = (
        f"dump --teacher tiny:seven --teacher-classes 7 --class-map map.json --data arrays:{npz} --out c.zarr".split()
    )
    said = "class 0 is 6, class 1 is 0, class 2 is 1, class 3 is 2, class 4 is 3, of 7"
    assert f"classes: {said}" in run(*words).stderr
    assert f"class map {said}" in " ".join(run("info", "c.zarr").stdout.split())


def test_words_of_preprocessing():
    entry = {"image_size": 224, "crop_pct": 0.875, "resize": "center-crop", "mean": [0.5] * 3, "std": [0.1, 0.2, 0.3]}
    assert preprocessing_words(entry) == "224 x 224 pixels, center crop of 0.875, mean 0.5, std 0.1, 0.2, 0.3"
    assert preprocessing_words({"length": 9}) == "length 9"
    many = {"classes": 1000, "indices": list(range(9))}
    assert class_map_words(many, [f"c{n}" for n in range(9)]).endswith("c4 is 4 and 4 more, of 1,000")
    assert class_map_words(None, []) == ""


@pytest.mark.parametrize(("right", "chance"), [(100, True), (115, True), (160, False), (999, False)])
def test_chance_is_told_from_a_poor_teacher(right, chance):
    assert is_chance(right, 1000, 10) == chance
    assert not is_chance(right // 10, 100, 10)  # too few to tell


def test_a_teacher_that_knows_nothing_is_said_by_both(run, tmp_path):
    pixels = np.random.RandomState(0).randint(0, 256, (1200, 8, 8, 3)).astype(np.uint8)
    np.savez(tmp_path / "noise.npz", images=pixels, labels=np.random.RandomState(1).randint(0, 10, 1200))
    done = run(*["dump", "--teacher", "tiny:net", "--data", "arrays:noise.npz", "--out", "c.zarr"])
    found = logitcache.cache_stats(tmp_path / "c.zarr")
    said = chance_words("tiny:net", found.views[0].accuracy, 1200, 10)
    assert "crop" not in chance_words("hf:x", 0.0, 1200, 512, text=True)
    assert "whose ids must be those of the teacher, its weights" in chance_words("hf:x", 0.0, 1200, 512, text=True)
    assert "Suspect, in this order: mean and std, image size and crop, the order of its classes" in said
    assert said in done.stderr
    assert f"c.zarr: {said}" in run("stats", "c.zarr").stdout
    assert found.chance == said

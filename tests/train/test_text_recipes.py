"""The recipes for instructions: each is read, says what the papers' scripts say, and runs a step on the teacher that ships."""

import json
import tomllib

import pytest
import tiny

import logitcache
from logitcache.methods import METHODS

pytest.importorskip("transformers")
pytest.importorskip("rouge_score")

RECIPES = sorted((tiny.HERE.parent / "recipes/dolly").glob("*.toml"))
LINES = [
    {"instruction": "Tell a story.", "context": "", "response": "Once upon a time there was a cat.", "category": "x"},
    {"instruction": "Say it.", "context": "Lily had a ball.", "response": "Lily had a red ball."},
]


@pytest.fixture(scope="module")
def cache(tmp_path_factory):
    folder = tmp_path_factory.mktemp("dolly")
    (folder / "answers.jsonl").write_text("".join(json.dumps(one) + "\n" for one in LINES))
    logitcache.dump_logits(
        "hf:stories-mini", f"jsonl:{folder}/answers.jsonl", folder / "a.zarr", top_k=64, sequence_length=512
    )
    return folder


@pytest.mark.parametrize("recipe", RECIPES, ids=lambda path: path.stem)
def test_a_recipe_runs_on_any_teacher(recipe, cache, run, tmp_path):
    """From instructions to the ROUGE-L of an epoch."""
    words = ["--student", "hf:stories-mini?layers=0,4", "--test-data", f"jsonl:{cache}/answers.jsonl", "--epochs", "1"]
    less = ["--generate-tokens", "4", "--device", "cpu"]
    done = run("train", str(cache / "a.zarr"), "--config", str(recipe), *words, *less, "--out", "r")
    assert done.exit_code == 0, done.output
    record = json.loads((tmp_path / "r/run.json").read_text())
    settings, written = record["settings"], tomllib.loads(recipe.read_text())
    assert 0 <= record["results"]["rouge_l"] <= 1
    assert written["method"] in METHODS
    assert settings["method"] == written["method"]
    assert (settings["lr"], settings["weight_decay"], settings["clip_grad"]) == (5e-4, 0.01, 1.0)
    assert settings["betas"] == [0.9, 0.999]
    assert (settings["ce_weight"], settings["kd_weight"]) == ((0.5, 0.5) if recipe.stem == "minillm-kd" else (0, 1))
    assert (settings["parameters"] or {}).get("skew") == (None if recipe.stem == "minillm-kd" else 0.1)
    assert (written["epochs"], settings["temperature"], settings["loss_on"]) == (20, 1, "completion")
    assert f"--config recipes/dolly/{recipe.name}" in recipe.read_text()


def test_there_are_three():
    assert len(RECIPES) == 3

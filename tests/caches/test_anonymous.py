"""What a cache that is shared says about the machine that made it."""

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
import tiny
import torch

import logitcache
from logitcache.caches.anonymous import anonymous
from logitcache.errors import CacheMismatchError, InputError
from logitcache.store import open_cache

SECRETS = ("host-7781", "user-8812", "photos-9934")


@pytest.fixture
def private(tmp_path, monkeypatch):
    """A function that dumps data in a folder of a user, on a host with a name; returns the cache's path and the data's."""
    monkeypatch.setattr("socket.gethostname", lambda: SECRETS[0])
    monkeypatch.chdir(tmp_path)
    folder = tmp_path / SECRETS[1] / SECRETS[2]
    folder.mkdir(parents=True)
    pixels, labels, classes = tiny.arrays()
    np.savez(folder / "data.npz", images=pixels, labels=labels, classes=np.array(classes))
    weights = folder / "weights.pth"
    torch.save(tiny.net(tiny.CLASSES).state_dict(), weights)
    data = f"arrays:{folder}/data.npz"
    logitcache.dump_logits("tiny:net", data, "c.zarr", teacher_weights=str(weights), batch_size=64)
    return tmp_path / "c.zarr", data, weights


def found_in(path: Path) -> set[str]:
    """The secrets that any byte of any file of a folder, or a name, gives away."""
    files = [path] if path.is_file() else [one for one in path.rglob("*") if one.is_file()]
    said = b"\n".join([*(one.read_bytes() for one in files), *(str(one.relative_to(path)).encode() for one in files)])
    words = {one for one in SECRETS if one.encode() in said}
    return words | {one for one in ("--anonymous", "weights.pth", "/tmp") if one.encode() in said}


def test_no_byte_of_an_anonymous_slice_names_the_machine(private, run):
    path, data, weights = private
    assert found_in(path) >= set(SECRETS)
    assert run("slice", "c.zarr", "--anonymous", "--out", "shared.zarr").exit_code == 0
    shared = path.with_name("shared.zarr")
    assert not found_in(shared)
    whole, part = open_cache(path), open_cache(shared)
    assert (part.manifest.samples, part.manifest.views) == (whole.manifest.samples, whole.manifest.views)
    assert part.manifest.teachers[0]["weights_sha256"] == whole.manifest.teachers[0]["weights_sha256"]
    for name, column in whole.rows(0, whole.teacher, np.arange(300)).items():
        assert np.array_equal(column, part.rows(0, part.teacher, np.arange(300))[name])
    asked = run("verify", "shared.zarr")
    assert asked.exit_code == 1
    assert "does not record the path of its data" in asked.stderr and "--data" in asked.stderr
    assert (
        run("verify", "shared.zarr", "--data", data, "--replay", "8", "--teacher-weights", str(weights)).exit_code == 0
    )
    words = ["--student", "tiny:still", "--epochs", "1", "--out", "run", "--data", data]
    assert run("train", "shared.zarr", *words).exit_code == 0
    assert run("info", "shared.zarr").exit_code == 0


def test_a_slice_that_was_begun_otherwise_is_not_called_anonymous(dump, tmp_path):
    logitcache.slice_cache(dump(), tmp_path / "a.zarr", views=1)
    history = tmp_path / "a.zarr/.logitcache/history.jsonl"
    manifest = open_cache(tmp_path / "a.zarr").manifest
    assert "host" in json.loads(history.read_text())
    assert anonymous(manifest) == manifest  # given as objects: nothing to leave out
    with pytest.raises(CacheMismatchError, match="its history names the host"):
        logitcache.slice_cache(tmp_path / "c.zarr", tmp_path / "a.zarr", views=1, anonymous=True)


def test_an_anonymous_export_has_no_path_in_its_manifest(private, run):
    path, _, _ = private
    for name in ("a.parquet", "a.safetensors"):
        assert run("export", "c.zarr", "--out", name).exit_code == 0
        assert found_in(path.with_name(name)) >= {SECRETS[1], SECRETS[2]}
        assert run("export", "c.zarr", "--anonymous", "--out", f"b-{name}").exit_code == 0
        assert not found_in(path.with_name(f"b-{name}"))
    notes = json.loads(pq.read_schema(path.with_name("b-a.parquet")).metadata[b"logitcache"])
    assert notes["manifest"]["data"]["spec"] == "" and notes["manifest"]["samples"] == 300


@pytest.mark.parametrize(
    ("name", "kept"),
    [
        ("resnet20", "resnet20"),
        ("timm:resnet18.a1_in1k", "timm:resnet18.a1_in1k"),
        ("hf:/home/user-8812/SmolLM2", "hf:SmolLM2"),
        ("hf:photos-9934/SmolLM2/", "hf:SmolLM2"),
        ("/home/user-8812/SmolLM2", "SmolLM2"),
        ("mine.models:net", "mine.models:net"),
    ],
)
def test_of_a_path_a_name_keeps_the_last_part(dump, name, kept):
    manifest = dump().manifest
    (entry,) = manifest.teachers
    member = entry | {"name": name, "weights": "/home/user-8812/w.pth"}
    other = replace(
        manifest,
        data=manifest.data | {"spec": "imagefolder:/home/user-8812/x", "tokenizer": {"source": name}},
        teachers=(entry | {"name": f"mean of {name}", "members": [member]},),
        derived={"by": "average", "from": [{"teachers": [member], "derived": None}]},
    )
    found = anonymous(other)
    assert found.teachers[0]["members"][0]["name"] == found.data["tokenizer"]["source"] == kept
    assert found.teachers[0]["name"] == f"mean of {kept}"
    assert not [one for one in SECRETS if one in json.dumps(found.to_json())]


@pytest.mark.parametrize("spec", ["fashion-mnist-mini", "cifar10:test", "stories-mini"])
def test_names_that_everybody_has_stay(dump, spec):
    manifest = dump().manifest
    assert anonymous(replace(manifest, data=manifest.data | {"spec": spec})).data["spec"] == spec


def test_without_anything_to_leave_out_a_slice_is_refused(dump, tmp_path):
    with pytest.raises(InputError, match="or make it `anonymous`"):
        logitcache.slice_cache(dump(), tmp_path / "a.zarr")

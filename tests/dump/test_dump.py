"""From a teacher to a cache: the right numbers, once, whatever happens on the way."""

import itertools
import json
import re
import shlex
from pathlib import Path

import numpy as np
import pytest
import tiny
import torch
import warm
import zarr
from logitcache.cli.app import app
from tiny import bytes_of
from typer.testing import CliRunner

import logitcache
from logitcache import DumpSettings
from logitcache.data import ArrayImages
from logitcache.data.images.views import View
from logitcache.data.images.views.render import cut
from logitcache.errors import CacheIncompleteError, CacheMismatchError, InputError
from logitcache.store import check_files, open_cache


def by_hand(cache: logitcache.Cache, images: ArrayImages, teacher: torch.nn.Module, view: int) -> torch.Tensor:
    """The teacher's answers, with nothing of ours but the boxes: full batches of 64 in order, from block to block."""
    recipe = View.from_json(cache.manifest.views[view])
    everything = np.arange(len(images))
    boxes = recipe.boxes(everything, np.full(len(images), tiny.SIZE), np.full(len(images), tiny.SIZE))
    pixels = torch.stack([cut(images.image(i), boxes, i) for i in everything])
    mean, std = (torch.tensor(x)[:, None, None] for x in images.normalization)
    answers = []
    with torch.no_grad():
        for start in (0, 64, 128, 192, 256):
            batch = (pixels[start : start + 64].float() / 255 - mean) / std
            padding = 64 - len(batch)
            answers.append(teacher.eval()(torch.cat([batch, batch[-1:].expand(padding, -1, -1, -1)]))[: len(batch)])
    return torch.cat(answers)


def test_plain_zarr_finds_the_teachers_logits(dump, images):
    teacher = tiny.net(tiny.CLASSES)
    cache = dump(teacher=teacher)
    stored = zarr.open(cache.place.path, mode="r")["teachers/sequential/logits"]
    for view in range(2):
        assert (stored[view] == by_hand(cache, images, teacher, view).numpy()).all()
    assert (stored[0] != stored[1]).any()


def test_half_precision_is_the_nearest_and_half_as_large(dump, images, tmp_path):
    teacher = tiny.net(tiny.CLASSES)
    exact = dump(teacher=teacher)
    half = dump(teacher=teacher, precision="f16", out=tmp_path / "half.zarr")
    logits = exact.view(0, "sequential")["logits"]
    assert (half.view(0, "sequential")["logits"] == logits.astype(np.float16)).all()


def test_the_manifest_says_what_train_would_ask(dump, images):
    manifest = dump(mean=[0.1, 0.2, 0.3]).manifest
    assert manifest.classes == images.classes
    assert manifest.teachers[0]["preprocessing"]["mean"] == [0.1, 0.2, 0.3]
    assert manifest.teachers[0]["preprocessing"]["std"] == list(images.normalization[1])
    assert [view["recipe"] for view in manifest.views] == ["pad-crop-flip"] * 2
    assert manifest.teachers[0]["weights_sha256"]
    assert manifest.software.keys() >= {"torch", "torchvision", "zarr", "logitcache"}
    assert manifest.data["digest"] == images.digest()


def test_a_rows_logits_do_not_depend_on_how_rows_were_divided(dump, tmp_path):
    one = dump(block_rows=300)
    other = dump(block_rows=64, out=tmp_path / "other.zarr")
    for view in range(2):
        assert (one.view(view, "sequential")["logits"] == other.view(view, "sequential")["logits"]).all()
        assert (one.digests(view) == other.digests(view)).all()


def test_random_crops_are_dumped_too(dump, tmp_path):
    cache = dump(augment="random-resized-crop-flip", out=tmp_path / "crops.zarr")
    assert cache.manifest.teachers[0]["preprocessing"]["resize"] == "stretch"
    assert len(np.unique(cache.digests(0))) == 300


def test_the_probe_is_the_stored_rows_in_full(dump, tmp_path):
    cache = dump(precision="f16")
    samples, exact = cache.probe("sequential")
    assert len(samples) == 256
    assert (np.diff(samples) > 0).all()
    stored = cache.view(0, "sequential")["logits"][samples]
    assert (exact.astype(np.float16) == stored).all()
    assert (exact != stored).any()


class Interrupted(Exception):
    pass


def stop_after(rows):
    def on_progress(progress):
        if progress.task == "dumping" and progress.done >= rows:
            raise Interrupted

    return on_progress


@pytest.mark.parametrize("rows", [1, 200, 301, 599])
def test_a_dump_that_was_stopped_goes_on_and_leaves_the_same_bytes(dump, tmp_path, rows):
    whole = dump()
    with pytest.raises(Interrupted):
        dump(out=tmp_path / "stopped.zarr", on_progress=stop_after(rows))
    with pytest.raises(CacheIncompleteError):
        open_cache(tmp_path / "stopped.zarr")
    dump(out=tmp_path / "stopped.zarr")
    assert bytes_of(tmp_path / "stopped.zarr") == bytes_of(whole.place.path)


def test_only_what_is_missing_is_computed_again(dump, tmp_path):
    with pytest.raises(Interrupted):
        dump(on_progress=stop_after(450))
    seen = []
    dump(on_progress=lambda progress: seen.append(progress.done))
    assert min(seen) > 300
    dump(on_progress=lambda _: pytest.fail("a finished dump computes nothing"))


def test_more_views_extend_a_cache(dump, tmp_path):
    before = dump(views=1)
    logits = before.view(0, "sequential")["logits"]
    seen = []
    after = dump(views=3, on_progress=lambda progress: seen.append(progress.done))
    assert min(seen) > 300
    assert (after.view(0, "sequential")["logits"] == logits).all()
    whole = dump(views=3, out=tmp_path / "whole.zarr")
    assert bytes_of(after.place.path) == bytes_of(whole.place.path)


def command(npz: Path, out: Path, teacher: str = "tiny:Unhurried") -> list[str]:
    words = f"dump --teacher {teacher} --data arrays:{npz} --out {out} --augment pad-crop-flip --views 4 --batch-size 64 --threads 1"
    return words.split()


def test_a_killed_process_leaves_nothing_half_written_and_is_continued(tmp_path, npz, monkeypatch):
    """SIGKILL to a real process while it dumps; the cache is refused; the same command leaves the bytes of an unbroken dump."""
    dumping = warm.Command("logitcache", command(npz, tmp_path / "killed.zarr"), tmp_path)
    blocks = tmp_path / "killed.zarr/.logitcache/blocks"
    dumping.wait_until(lambda: len(list(blocks.glob("*/[0-9]*.json"))) >= 2)
    dumping.kill()
    with pytest.raises(
        CacheIncompleteError,
        match=r"[23] of 4 blocks are committed. Complete it with:\n  logitcache dump --teacher tiny:Unhurried",
    ):
        open_cache(tmp_path / "killed.zarr")

    monkeypatch.setattr(tiny.Unhurried, "pause", 0)
    arguments = {
        "teacher": "tiny:Unhurried",
        "data": f"arrays:{npz}",
        "augment": "pad-crop-flip",
        "views": 4,
        "batch_size": 64,
    }
    continued = logitcache.dump_logits(**arguments, out=tmp_path / "killed.zarr")
    whole = logitcache.dump_logits(**arguments, out=tmp_path / "whole.zarr")
    assert bytes_of(continued.place.path) == bytes_of(whole.place.path)
    assert not check_files(continued)


@pytest.mark.parametrize(
    ("teacher", "precision", "message"),
    [
        (
            tiny.Poisoned,
            "f32",
            r"logits that are not finite; sample \d+ \(class 'class \d'\), view 0: logit 0 is nan; \d+ rows",
        ),
        (tiny.Loud, "f16", r"logits beyond 65,504, the range of float16; sample 0 .* Use `precision` f32"),
        (tiny.without_logits, "f32", r"teacher Wrapped must return logits \[B, 5\], found dict"),
        (tiny.seven, "f32", r"teacher Sequential returns logits for 7 classes, not 5. .* `class_map`"),
    ],
)
def test_a_teacher_that_cannot_be_stored_is_refused_and_nothing_is_left_to_train_from(
    dump, tmp_path, teacher, precision, message
):
    with pytest.raises(InputError, match=message):
        dump(teacher=teacher(tiny.CLASSES), precision=precision)
    with pytest.raises(logitcache.LogitCacheError):
        open_cache(tmp_path / "c.zarr")


@pytest.mark.parametrize("shape", ["tuple", "dict", "object"])
def test_logits_are_found_in_what_a_network_returns(dump, tmp_path, shape):
    """As Inception, timm's distilled networks, Hugging Face's and people's own give them."""
    wrapped = tiny.Wrapped(tiny.CLASSES)
    wrapped.shape = shape
    found = dump(teacher=wrapped, out=tmp_path / "w.zarr").view(0, "wrapped")["logits"]
    assert (found == dump().view(0, "sequential")["logits"]).all()


@pytest.mark.parametrize("spelling", ["array", "file of a list", "file of names"])
def test_a_teacher_of_more_classes_stores_those_of_the_data(dump, tmp_path, images, spelling):
    picked = [6, 0, 3, 2, 5]
    file = tmp_path / "map.json"
    named = dict(zip([*images.classes, "another"], [*picked, 1], strict=True))
    file.write_text(json.dumps(named if spelling == "file of names" else picked))
    cache = dump(
        teacher=tiny.seven(0),
        teacher_classes=7,
        class_map=np.array(picked) if spelling == "array" else str(file),
        out=tmp_path / "m.zarr",
    )
    whole = by_hand(cache, images, tiny.seven(0), 1).numpy()
    assert (cache.view(1, "sequential")["logits"] == whole[:, picked]).all()
    assert cache.manifest.teachers[0]["class_map"] == {"classes": 7, "indices": picked}
    runs = [
        logitcache.train_student(
            cache=cache, student=tiny.net(tiny.CLASSES), data=images, epochs=1, live_teacher=live, out=tmp_path / str(bool(live))
        )
        for live in (False, tiny.seven(0))
    ]  # fmt: skip
    pairs = zip(*(run.student.state_dict().values() for run in runs), strict=True)
    assert all((a == b).all() for a, b in pairs)


@pytest.mark.parametrize("made", [{}, {"top_k": 2}], ids=str)
def test_more_classes_without_a_map_are_refused(dump, made):
    with pytest.raises(
        InputError, match="`teacher_classes` 7 does not match data with 5 classes; map them with `class_map`"
    ):
        dump(teacher=tiny.seven(0), teacher_classes=7, **made)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("[0, 1, 2]", "must map each of the data's 5 classes to a different class"),
        (
            "[0, 1, 2, 3, 3]",
            "maps 'class 3' and 'class 4' to the same class of the teacher, 3; map them to different ones",
        ),
        ("[0, 1, 2, 3, -1]", "0 or more"),
        ("[0, 1, 2, 3, 7]", "refers to class 7, but the teacher has 7; set the number with `teacher_classes`"),
        ('{"class 0": 1}', r"lacks class 1, class 2, .* \(missing: 4 of the data's classes\)"),
        ("nonsense", "cannot be read as JSON"),
    ],
)
def test_a_class_map_that_is_none_is_refused(dump, tmp_path, content, message):
    (tmp_path / "map.json").write_text(content)
    with pytest.raises(InputError, match=message):
        dump(teacher=tiny.seven(0), teacher_classes=7, class_map=str(tmp_path / "map.json"))


@pytest.mark.parametrize(
    "made", [{"amp": True}, {"channels_last": True}, {"amp": True, "channels_last": True}], ids=str
)
def test_how_the_teacher_is_run_is_recorded_and_repeated_live(dump, tmp_path, images, made):
    cache, plain = dump(**made), dump(out=tmp_path / "plain.zarr")
    ours, theirs = cache.view(0, "sequential")["logits"], plain.view(0, "sequential")["logits"]
    np.testing.assert_allclose(ours, theirs, atol=0.02 if made.get("amp") else 1e-5)
    assert (ours != theirs).any() == bool(made.get("amp"))
    report = logitcache.verify_cache(
        cache.place.path, data=images, replay=100, teacher=tiny.net(tiny.CLASSES), device="cpu"
    )
    assert (report.replayed, report.replay_gap) == (100, 0.0)
    with pytest.raises(CacheMismatchError, match=r"forward\."):
        dump()


def test_logits_that_only_float32_holds_are_stored_there(dump):
    assert np.abs(dump(teacher=tiny.Loud(tiny.CLASSES)).view(0, "loud")["logits"]).max() > 65504


@pytest.mark.parametrize(
    ("changes", "named"),
    [
        ({"seed": 1}, "views.0.seed: there 0, requested 1"),
        ({"augment": "none"}, "views.0.recipe: there 'pad-crop-flip', requested 'none'"),
        ({"precision": "f16"}, "encoding.dtype"),
        ({"batch_size": 32}, "batch_size: there 64, requested 32"),
        ({"threads": 2}, "threads: there 1, requested 2"),
        ({"mean": [0.5, 0.5, 0.5]}, "preprocessing.mean"),
        ({"data": ArrayImages(tiny.arrays()[0][::-1], tiny.arrays()[1][::-1], tiny.arrays()[2])}, "data.digest"),
    ],
)
def test_another_dump_into_the_same_path_is_refused(dump, changes, named):
    dump()
    with pytest.raises(CacheMismatchError, match=f"(?s)is a different cache; nothing in it was touched.*{named}"):
        dump(**changes)


def test_fewer_views_than_there_are_are_said_in_words_and_both_remedies_work(dump, tmp_path):
    cache = dump()
    before = bytes_of(tmp_path / "c.zarr")
    with pytest.raises(
        CacheMismatchError, match=r"already has 2 views, but `views` is 1; .* pass `views` 2 or more.*"
    ) as raised:
        dump(views=1)
    assert dump(views=2).fingerprint == cache.fingerprint
    assert bytes_of(tmp_path / "c.zarr") == before
    line = re.search("`(logitcache [^`]+)`", str(raised.value))[1].replace("PATH", str(tmp_path / "one.zarr"))
    assert CliRunner().invoke(app, shlex.split(line)[1:]).exit_code == 0
    assert len(open_cache(tmp_path / "one.zarr").manifest.views) == 1


def test_a_path_below_a_file_is_said(dump, tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(InputError, match=r"file/c.zarr cannot be a cache because .*file is a file"):
        dump(out=tmp_path / "file" / "c.zarr")


def test_other_versions_are_named_and_can_be_accepted(dump, monkeypatch):
    dump()
    monkeypatch.setattr("logitcache.dump.job.installed_version", lambda package: f"{package}-of-tomorrow")
    with pytest.raises(CacheMismatchError, match=r"(?s)software.torch: there .*, or pass `allow_mixed` to accept that"):
        dump()
    with pytest.raises(CacheMismatchError, match="Repeat the options it was made with"):
        dump(seed=1)
    assert dump(allow_mixed=True).manifest.software["torch"] != "torch-of-tomorrow"


def test_another_teacher_into_the_same_path_is_refused(dump):
    dump()
    changed = tiny.net(tiny.CLASSES)
    with torch.no_grad():
        changed[0].bias += 1e-3
    with pytest.raises(CacheMismatchError, match=r"teachers.0.weights_sha256"):
        dump(teacher=changed)


def test_an_untrained_teacher_by_name_is_refused(dump):
    with pytest.raises(InputError, match="teacher resnet8 has no weights, so its logits would be noise"):
        dump(teacher="resnet8")


@pytest.mark.parametrize(
    ("bad", "message"),
    [
        ({"views": 0}, "`views` must be 1 or more, not 0"),
        ({"batch_size": 0}, "`batch_size` must be 1 or more, or auto, not 0"),
        ({"seed": -1}, "`seed` must be 0 or more, not -1"),
        ({"seed": 2**64}, "`seed` must be below"),
        ({"test_time_views": "flop"}, "unknown test-time views 'flop'; did you mean 'flip'"),
        ({"encoding": "topp"}, "unknown encoding 'topp'; did you mean 'topk'"),
    ],
)
def test_values_that_mean_nothing_are_refused(dump, bad, message):
    with pytest.raises(ValueError, match=message):
        dump(**bad)


@pytest.mark.parametrize(
    ("top_k", "precision"),
    tiny.usual(itertools.product([None, 2], ["f32", "f16", "u8"]), [(None, "f16"), (None, "f32"), (2, "u8")]),
)
def test_every_encoding_is_dumped_continued_verified_and_described(dump, tmp_path, images, top_k, precision):
    whole = dump(precision=precision, top_k=top_k)
    assert whole.manifest.encoding["kind"] == ("full" if top_k is None else "topk")
    with pytest.raises(Interrupted):
        dump(out=tmp_path / "stopped.zarr", precision=precision, top_k=top_k, on_progress=stop_after(301))
    dump(out=tmp_path / "stopped.zarr", precision=precision, top_k=top_k)
    assert bytes_of(tmp_path / "stopped.zarr") == bytes_of(whole.place.path)
    report = logitcache.verify_cache(whole.place.path, data=images)
    assert report.ok
    assert report.probe_gap == 0
    exact = dump(precision="f32", out=tmp_path / "exact.zarr")
    ours, theirs = (logitcache.cache_stats(cache).views[1] for cache in (whole, exact))
    assert (ours.accuracy, ours.mis_instruction_rate) == (theirs.accuracy, theirs.mis_instruction_rate)
    assert ours.confidence == pytest.approx(theirs.confidence, abs=2e-3)


def test_a_top_k_row_is_read_with_zarr_and_numpy_alone(dump, images, tmp_path):
    """As docs/format.md says it."""
    group = zarr.open(dump(top_k=2, precision="u8").place.path)["teachers/sequential"]
    ids = group["ids"][1].astype("int64").cumsum(1)
    top, step = group["scale"][1][:, :1], group["scale"][1][:, 1:]
    codes = group["values"][1]
    logits = np.where(codes == 255, top + group["label"][1][:, None], top - step * codes)
    assert (ids == images.labels[:, None]).any(1).all()
    assert (np.diff(ids, axis=1) > 0).all()
    mass = np.exp(logits).sum(1) + np.exp(group["rest"][1][:, 2].astype("float32") + top[:, 0])
    exact = np.exp(dump(precision="f32", out=tmp_path / "exact.zarr").view(1, "sequential")["logits"]).sum(1)
    np.testing.assert_allclose(mass, exact, rtol=0.01)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"encoding": "topk", "top_k": 4}, "top-k 4 of 5 classes leaves no rest; keep every class"),
        ({"encoding": "full", "top_k": 2}, "`encoding` full stores every class; leave out `top_k`"),
        ({"encoding": "sparse"}, "unknown encoding 'sparse'"),
    ],
)
def test_encodings_that_mean_nothing_are_refused(dump, changes, message):
    with pytest.raises(logitcache.LogitCacheError, match=message):
        dump(**changes)


def test_many_classes_choose_the_largest_and_few_choose_all():
    from logitcache.dump.job import choose_encoding

    assert choose_encoding(DumpSettings(), 1000).to_json() == {"kind": "full", "dtype": "f16"}
    assert choose_encoding(DumpSettings(), 1001).to_json()["k"] == 64
    assert choose_encoding(DumpSettings(top_k=5, precision="u8"), 100).to_json() == {
        "kind": "topk",
        "k": 5,
        "dtype": "u8",
        "stats_ddof": 0,
    }


def test_the_callers_network_comes_back_as_it_was(dump):
    teacher = tiny.net(tiny.CLASSES).train()
    dump(teacher=teacher)
    assert all(module.training for module in teacher.modules())
    assert all(parameter.requires_grad for parameter in teacher.parameters())


def test_recipes_of_other_sizes_do_not_pair(dump):
    with pytest.raises(InputError, match="augmentations none,random-resized-crop-flip cannot be combined"):
        dump(augment="none,random-resized-crop-flip")


def test_more_memory_than_there_is_is_one_sentence(dump):
    with pytest.raises(InputError, match="out of memory with batches of 1,000,000,000,000,000; lower `batch_size`"):
        dump(batch_size=10**15)


@pytest.mark.parametrize("mean", [[0.5, 0.5], []])
def test_a_mean_is_one_number_or_three(dump, mean):
    with pytest.raises(InputError, match="mean and std must be one number each, or three"):
        dump(mean=mean or [0.1] * 4)


def test_an_unknown_device_is_refused(dump):
    with pytest.raises(InputError, match="unknown device 'gpu'; expected auto, cpu, cuda"):
        dump(device="gpu")


def test_a_path_that_is_not_a_cache_is_refused_before_data_and_teacher_are_opened(dump, tmp_path):
    (tmp_path / "notes.txt").touch()
    with pytest.raises(InputError, match="exists and is not a logit cache; nothing in it was touched"):
        dump(out=tmp_path, data=f"arrays:{tmp_path / 'none.npz'}", teacher="tiny:none")

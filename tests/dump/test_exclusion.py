"""Samples that are left out: nothing that was dumped is lost, and nobody reads their rows."""

import itertools
import json
import os
import subprocess
import sys
import time

import numpy as np
import pytest
import sequences
import tiny
import torch
from PIL import Image
from tiny import bytes_of, columns_of, folder_of

import logitcache
from logitcache.data import MappedImages
from logitcache.dump.dump import probe_rows
from logitcache.errors import CacheIncompleteError, CacheMismatchError, InputError, UnreadableError
from logitcache.store import open_cache
from logitcache.train.train import train_student

BAD = (5, 37)


@pytest.fixture
def folder(tmp_path):
    """Sixty images."""
    return folder_of(tmp_path / "d", 60)


def files(folder):
    return sorted(folder.rglob("*.png"))


@pytest.fixture
def damaged(folder):
    """Sixty images, of which two are none."""
    for sample in BAD:
        files(folder)[sample].write_bytes(b"no image")
    return folder


@pytest.fixture
def dump(tmp_path):
    """Dump the tiny teacher over a folder: 60 samples in four blocks, two views."""

    def make(folder, out="c.zarr", **more):
        arguments = {
            "augment": "pad-crop-flip",
            "views": 2,
            "image_size": 16,
            "batch_size": 8,
            "block_rows": 16,
            "workers": 0,
            "precision": "f32",
        }
        data = folder if isinstance(folder, MappedImages) else f"imagefolder:{folder}"
        return logitcache.dump_logits(tiny.net(tiny.CLASSES), data, tmp_path / out, **(arguments | more))

    return make


def records(path):
    return sorted(path.rglob(".logitcache/blocks/*/*.json"))


@pytest.mark.parametrize(
    ("augment", "how"),
    tiny.usual(
        itertools.product(
            ["pad-crop-flip", "random-resized-crop-flip", "pad-crop-flip+mixup", "none+cutmix"], ["file", "skip"]
        ),
        [("random-resized-crop-flip", "file"), ("pad-crop-flip+mixup", "skip")],
    ),
)
def test_a_dump_that_met_an_unreadable_sample_goes_on_and_keeps_its_blocks(dump, folder, tmp_path, augment, how):
    done = [0]
    with pytest.raises(CacheIncompleteError):
        dump(
            folder,
            augment=augment,
            should_stop=lambda: done[0] >= 32,  # two blocks
            on_progress=lambda progress: done.__setitem__(0, progress.done),
        )
    keep = files(folder)[37].read_bytes()
    files(folder)[37].write_bytes(b"no image")
    with pytest.raises(UnreadableError) as raised:
        dump(folder, augment=augment)
    name = files(folder)[37].relative_to(folder).as_posix()
    assert str(raised.value).endswith(f"at the dump, or with `exclude` FILE, a file with the line {name}")
    before = {file: file.stat().st_mtime_ns for file in records(tmp_path / "c.zarr")}
    assert len(before) == 2
    (tmp_path / "bad.txt").write_text(f"# damaged\n\n{name}\n")
    remedy = {"exclude": tmp_path / "bad.txt"} if how == "file" else {"skip_unreadable": True}
    cache = dump(folder, augment=augment, **remedy)
    assert cache.manifest.excluded == (37,)
    files(folder)[37].write_bytes(keep)
    dump(folder, "other.zarr", augment=augment, exclude=[37])
    assert bytes_of(tmp_path / "c.zarr") == bytes_of(tmp_path / "other.zarr")


def test_blocks_before_the_one_that_failed_stay_as_they_are(tmp_path):
    pixels, labels, _ = tiny.arrays()
    odd = next(sample for sample in range(200, 300) if sample not in probe_rows(0, 300, 5))

    class Items:
        targets = labels

        def __len__(self):
            return 300

        def __getitem__(self, sample):
            if sample == odd:
                raise OSError("bad sector")
            return pixels[sample], labels[sample]

    make = {"image_size": 16, "batch_size": 16, "block_rows": 32, "workers": 0}
    with pytest.raises(UnreadableError, match=f"sample {odd} of Items"):
        logitcache.dump_logits(tiny.net(5), Items(), tmp_path / "c.zarr", **make)
    before = {file: file.stat().st_mtime_ns for file in (tmp_path / "c.zarr").rglob("teachers/*/logits/c/*/*/*")}
    assert len(before) >= 4
    logitcache.dump_logits(tiny.net(5), Items(), tmp_path / "c.zarr", skip_unreadable=True, **make)
    assert all(file.stat().st_mtime_ns == time for file, time in before.items())
    logitcache.dump_logits(tiny.net(5), Items(), tmp_path / "d.zarr", exclude=[odd], **make)
    assert bytes_of(tmp_path / "c.zarr") == bytes_of(tmp_path / "d.zarr")


def test_only_blocks_that_show_a_sample_are_written_again(dump, folder, tmp_path, monkeypatch):
    dump(folder)
    times = {file: file.stat().st_mtime_ns for file in (tmp_path / "c.zarr").rglob("teachers/*/logits/c/*/*/*")}
    assert len(times) == 8
    cache = dump(folder, exclude=(37,))
    written = [file for file, before in times.items() if file.stat().st_mtime_ns != before]
    assert sorted(file.parent.name for file in written) == ["2", "2"]
    assert cache.manifest.excluded == (37,)
    dump(folder, "other.zarr", exclude=(37,))
    assert bytes_of(tmp_path / "c.zarr") == bytes_of(tmp_path / "other.zarr")


def test_what_is_left_out_keeps_its_place_and_its_label(dump, damaged, tmp_path):
    cache, plain = dump(damaged, skip_unreadable=True), dump(folder_of(tmp_path / "e", 60), "e.zarr")
    kept = cache.kept()
    assert len(kept) == 58
    assert not set(BAD) & set(kept.tolist())
    assert (cache.labels() == plain.labels()).all()
    for view in range(2):
        logits, digests = columns_of(cache, view)["logits"], cache.digests(view)
        assert (logits[kept] == columns_of(plain, view)["logits"][kept]).all()
        assert (digests[kept] == plain.digests(view)[kept]).all()
        assert (logits[list(BAD)] == 0).all()
        assert (digests[list(BAD)] == 0).all()
    rows, exact = cache.probe("sequential")
    assert not set(BAD) & set(rows.tolist())
    assert (exact == columns_of(cache)["logits"][rows]).all()
    assert cache.fingerprint != plain.fingerprint
    assert "excluded" not in json.loads((tmp_path / "e.zarr/zarr.json").read_text())["attributes"]["logitcache"]


@pytest.mark.parametrize(
    "encoding", [{"top_k": 2, "precision": "u8"}, {"precision": "u8"}, {"top_k": 2, "precision": "f16"}]
)
def test_every_encoding_leaves_samples_out(dump, damaged, tmp_path, encoding):
    cache = dump(damaged, skip_unreadable=True, **encoding)
    assert logitcache.verify_cache(tmp_path / "c.zarr").ok
    assert cache.manifest.excluded == BAD
    result = train_student(cache, tiny.still(tiny.CLASSES), epochs=1, out=tmp_path / "run", workers=0)
    assert np.isfinite(result.metrics[-1]["loss"])


def test_the_same_command_keeps_what_was_left_out(dump, damaged, tmp_path):
    cache = dump(damaged, skip_unreadable=True)
    before = bytes_of(tmp_path / "c.zarr")
    assert dump(damaged).fingerprint == cache.fingerprint  # neither option is needed again
    assert bytes_of(tmp_path / "c.zarr") == before
    more = dump(damaged, views=3)
    assert more.manifest.excluded == BAD
    dump(damaged, "other.zarr", views=3, skip_unreadable=True)
    assert bytes_of(tmp_path / "c.zarr") == bytes_of(tmp_path / "other.zarr")


def test_damaged_blocks_are_repaired_without_what_is_left_out(dump, damaged, tmp_path):
    dump(damaged, skip_unreadable=True)
    before = bytes_of(tmp_path / "c.zarr")
    chunk = tmp_path / "c.zarr/teachers/sequential/logits/c/0/2/0"
    chunk.write_bytes(chunk.read_bytes()[:-9] + b"x" * 9)
    assert logitcache.verify_cache(tmp_path / "c.zarr", repair=True).repaired
    dump(damaged)
    assert bytes_of(tmp_path / "c.zarr") == before


def test_a_sample_that_fails_in_one_view_alone_is_left_out_of_all(tmp_path):
    class Flaky(Pictures):
        reads = 0

        def __getitem__(self, sample):
            self.reads += sample == 37
            if sample == 37 and self.reads in (5, 6):  # after a pass for labels, the probe twice and the first view
                raise OSError("the disk stumbled")
            return super().__getitem__(sample)

    make = {"image_size": 16, "batch_size": 8, "block_rows": 16, "workers": 0, "views": 3}
    seen = []
    given = make | {"skip_unreadable": True, "on_progress": seen.append}
    cache = logitcache.dump_logits(tiny.net(3), Flaky(), tmp_path / "c.zarr", **given)
    assert cache.manifest.excluded == (37,)
    assert (
        seen[-1].done == max(one.done for one in seen) == seen[-1].total
    )  # rows that are written again are counted anew
    logitcache.dump_logits(tiny.net(3), Pictures(), tmp_path / "d.zarr", exclude=[37], **make)
    ours, theirs = bytes_of(tmp_path / "c.zarr"), bytes_of(tmp_path / "d.zarr")
    differing = {name for name in ours if ours[name] != theirs[name]}
    assert differing <= {
        "zarr.json",
        "labels/c/0",
        ".logitcache/complete.json",
    }  # without a list, its class is known to one alone


class Pictures:
    """Sixty items, without a list of labels; item 37 does something else."""

    def __init__(self, odd=None, listed=False):
        self.odd = odd
        if listed:
            self.targets = [number % 3 for number in range(60)]

    def __len__(self):
        return 60

    def __getitem__(self, sample):
        if sample == 37 and self.odd:
            return self.odd()
        return Image.fromarray(np.full((16, 16, 3), sample, np.uint8)), sample % 3


def fail():
    raise KeyError("annotation missing")


def nothing():
    return None


def shape():
    return np.zeros((2, 16, 16), np.uint8), 1


class Lazy:
    """An image that fails when it is used."""

    def __array__(self, *_, **__):
        raise OSError("no such blob")


def lazy():
    return Lazy(), 1


@pytest.mark.parametrize(
    ("odd", "listed"),
    tiny.usual(
        itertools.product([fail, nothing, shape, lazy], [False, True]),
        [(fail, False), (nothing, True), (shape, False), (lazy, True)],
    ),
)
@pytest.mark.parametrize("workers", [0, pytest.param(2, marks=pytest.mark.slow)])
def test_an_item_that_fails_can_be_left_out(tmp_path, odd, listed, workers):
    make = {"image_size": 16, "batch_size": 8, "block_rows": 16, "workers": workers}
    data, out = Pictures(odd, listed), tmp_path / "c.zarr"
    with pytest.raises(UnreadableError, match="sample 37 .* the line 37"):
        logitcache.dump_logits(tiny.net(3), data, out, **make)
    cache = logitcache.dump_logits(tiny.net(3), data, out, skip_unreadable=True, **make)
    assert cache.manifest.excluded == (37,)
    by_name = logitcache.dump_logits(tiny.net(3), data, tmp_path / "d.zarr", exclude=[37], **make)
    assert (by_name.fingerprint == cache.fingerprint) or not listed  # without a list its class may not be known
    result = train_student(cache, tiny.still(3), data=data, epochs=1, out=tmp_path / "run", workers=0)
    assert np.isfinite(result.metrics[-1]["loss"])
    mended = Pictures(listed=listed)
    assert len(logitcache.open(cache).loader(mended, workers=0).data) == 60


def test_a_sample_that_is_left_out_is_never_touched(tmp_path):
    def never():
        raise AssertionError

    data = Pictures(never)
    cache = logitcache.dump_logits(tiny.net(3), data, tmp_path / "c.zarr", image_size=16, exclude=[37], workers=0)
    train_student(cache, tiny.still(3), data=data, epochs=2, out=tmp_path / "run", workers=0)
    assert logitcache.verify_cache(tmp_path / "c.zarr", data=data, replay=60, teacher=tiny.net(3)).ok


@pytest.mark.parametrize("link", ["nowhere", "permission"])
def test_names_that_cannot_be_opened_are_left_out_too(dump, folder, monkeypatch, link):
    path = files(folder)[37]
    if link == "nowhere":
        path.unlink()
        path.symlink_to(folder / "nothing")
    else:
        monkeypatch.setattr(os, "geteuid", lambda: 1000)
        monkeypatch.setattr(os, "access", lambda one, _: str(one) != str(path))
    with pytest.raises(UnreadableError, match="or leave it out"):
        dump(folder)
    assert dump(folder, skip_unreadable=True).manifest.excluded == (37,)


def test_when_most_of_a_block_cannot_be_read_the_disk_is_to_blame(dump, folder, tmp_path):
    for file in files(folder)[20:]:
        file.write_bytes(b"")
    with pytest.raises(
        UnreadableError, match="40 of 60 samples .*cannot be read.* so `skip_unreadable` did not skip any"
    ) as raised:
        dump(folder, skip_unreadable=True, block_rows=60)
    assert "and 20 more" in str(raised.value)
    assert dump(folder, block_rows=60, exclude=range(20, 60)).manifest.excluded == tuple(range(20, 60))


def test_nothing_left_is_refused(dump, folder):
    with pytest.raises(InputError, match="all 60 samples are excluded"):
        dump(folder, exclude=range(60))


@pytest.mark.parametrize(
    ("text", "said"),
    [
        (
            "# fine\n\nclass 9/000.png\n",
            r"line 3 of .*bad.txt is 'class 9/000.png', which is not a sample of the data set",
        ),
        (
            "60\n",
            "line 1 of .* is '60', which is not a sample of the data set; write an id from 0 to 59, or a path relative to the folder",
        ),
        ("3\n-1\n", "line 2 of .* is '-1', which is not a sample"),
        (
            "\x89PNG\r\n\0\0",
            "samples cannot be excluded, because .*bad.txt is not a text file; name a file with one sample per line",
        ),
    ],
)
def test_a_line_that_names_nothing_is_an_error_with_its_number(dump, folder, tmp_path, text, said):
    (tmp_path / "bad.txt").write_text(text)
    with pytest.raises(InputError, match=said):
        dump(folder, exclude=str(tmp_path / "bad.txt"))


def test_a_file_that_is_not_there_says_what_it_is_needed_for(dump, folder, tmp_path):
    with pytest.raises(
        InputError, match=r"no.txt cannot be read \(No such file or directory\); name a file .* or leave it out"
    ):
        dump(folder, exclude=str(tmp_path / "no.txt"))
    with pytest.raises(InputError, match=r"cannot be read \(Is a directory\)"):
        dump(folder, exclude=str(tmp_path))
    with pytest.raises(InputError, match="sample 60 cannot be excluded, because the data set has samples 0 to 59"):
        dump(folder, exclude=[60])


def test_names_that_are_not_utf8_are_found_as_they_are_printed(dump, folder, tmp_path):
    odd = files(folder)[3].with_name(os.fsdecode(b"caf\xe9.png"))
    files(folder)[3].rename(odd)
    sample = sorted(file.relative_to(folder).as_posix() for file in folder.rglob("*.png")).index(
        f"{odd.parent.name}/{odd.name}"
    )
    (tmp_path / "bad.txt").write_text(f"{odd.parent.name}/caf\\xe9.png\r\n")
    assert dump(folder, exclude=tmp_path / "bad.txt").manifest.excluded == (sample,)


@pytest.fixture
def cache(dump, damaged):
    return dump(damaged, skip_unreadable=True)


def test_training_leaves_them_out_cached_and_live(cache, tmp_path, caplog):
    caplog.set_level("INFO", "logitcache")
    caplog.clear()
    made = {"epochs": 2, "batch_size": 16, "workers": 0, "method": "kd"}
    cached = train_student(cache, tiny.net(tiny.CLASSES), out=tmp_path / "a", **made)
    live = train_student(cache, tiny.net(tiny.CLASSES), out=tmp_path / "b", live_teacher=tiny.net(tiny.CLASSES), **made)
    for one, other in zip(cached.student.state_dict().values(), live.student.state_dict().values(), strict=True):
        assert torch.equal(one, other)
    assert [m["loss"] for m in cached.metrics] == [m["loss"] for m in live.metrics]
    assert cached.results["agreement_rows"] == 58
    assert caplog.text.count("using 58 of 60 samples; 2 are left out") == 2


def test_a_bounded_memory_leaves_them_out_too(cache, tmp_path):
    from logitcache.train.order import Windows, only, shuffled

    kept = cache.kept()
    bounded = Windows(60, 16, 1, 0, kept=kept)
    windows = bounded.epoch(0)
    assert np.array_equal(np.sort(np.concatenate([order for _, order in windows])), kept)
    assert windows[0][0] == bounded.first(0)
    assert np.array_equal(np.sort(only(shuffled(60, 0, 0), kept)), kept)
    budget = 2 * 16 * cache.fields("sequential").itemsize
    result = train_student(
        cache, tiny.still(tiny.CLASSES), epochs=2, workers=0, out=tmp_path / "r", memory_budget=budget
    )
    assert np.isfinite(result.metrics[-1]["loss"])


def test_training_can_leave_out_more_and_records_which(cache, damaged, tmp_path):
    files(damaged)[11].write_bytes(b"broken after the dump")
    made = {"epochs": 1, "batch_size": 16, "workers": 0}
    with pytest.raises(UnreadableError) as raised:
        train_student(cache, tiny.still(tiny.CLASSES), out=tmp_path / "a", **made)
    line = str(raised.value).rpartition("a file with the line ")[2]
    (tmp_path / "bad.txt").write_text(line + "\n")
    result = train_student(cache, tiny.still(tiny.CLASSES), out=tmp_path / "b", exclude=tmp_path / "bad.txt", **made)
    assert result.results["agreement_rows"] == 57
    assert json.loads((tmp_path / "b/run.json").read_text())["settings"]["exclude"] == [5, 11, 37]
    same = train_student(cache, tiny.still(tiny.CLASSES), out=tmp_path / "c", exclude=[11], **made)
    assert same.results["agreement_rows"] == 57


def test_mixed_views_refuse_more_at_the_training_and_the_remedy_works(dump, folder, tmp_path):
    cache = dump(folder, augment="pad-crop-flip+mixup")
    with pytest.raises(CacheMismatchError, match="Run the dump's command again with this `exclude` added"):
        train_student(cache, tiny.still(tiny.CLASSES), epochs=1, workers=0, out=tmp_path / "r", exclude=[11])
    files(folder)[11].write_bytes(b"broken")
    cache = dump(folder, augment="pad-crop-flip+mixup", exclude=[11])
    train_student(cache, tiny.still(tiny.CLASSES), epochs=2, workers=0, out=tmp_path / "r")
    assert logitcache.verify_cache(tmp_path / "c.zarr").ok


def test_a_loop_of_ones_own_leaves_them_out(cache, damaged):
    rows = logitcache.open(cache)
    loader = rows.loader(workers=0, batch_size=16)
    seen = torch.cat([batch.samples for batch in loader.epoch(0)])
    assert sorted(seen.tolist()) == cache.kept().tolist()
    assert len(loader) == 4
    loader.close()
    with pytest.raises(InputError, match="leaves out sample 5"):
        rows[5]


def test_evaluations_leave_them_out(cache, dump, tmp_path):
    stats = logitcache.cache_stats(cache)
    assert [view.rows for view in stats.views] == [58, 58]
    assert stats.health.constant_rows == 0
    assert not any(set(BAD) & {one.first, one.second} for one in stats.duplicates)
    assert not set(BAD) & {one.sample for one in stats.odd}
    assert stats.probe.rows == 58
    assert logitcache.cache_fidelity(cache).rows == 58
    assert logitcache.verify_cache(tmp_path / "c.zarr", replay=120, teacher=tiny.net(tiny.CLASSES)).ok


def test_caches_made_of_it_leave_them_out(cache, dump, damaged, tmp_path):
    part = logitcache.slice_cache(cache, tmp_path / "part.zarr", samples=(0, 20))
    assert part.manifest.excluded == (5,)
    rest = logitcache.slice_cache(cache, tmp_path / "rest.zarr", samples=(20, 60))
    assert rest.manifest.excluded == (37,)
    merged = logitcache.merge_caches([part, rest], tmp_path / "merged.zarr")
    assert merged.manifest.excluded == BAD
    assert logitcache.verify_cache(tmp_path / "merged.zarr").ok
    other = dump(damaged, "seed.zarr", seed=1, exclude=[5, 37, 40])
    both = logitcache.merge_caches([cache, other], tmp_path / "both.zarr")
    assert both.manifest.excluded == (5, 37, 40)
    assert [view.rows for view in logitcache.cache_stats(both).views] == [57] * 4
    logitcache.export_cache(cache, tmp_path / "rows.safetensors", view_ids=[0])
    from safetensors.numpy import load_file

    assert load_file(tmp_path / "rows.safetensors")["sample"].tolist() == cache.kept().tolist()


def test_a_mean_of_teachers_leaves_out_what_any_leaves_out(dump, folder, tmp_path):
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(9)
        other = tiny.student(tiny.CLASSES)
    one = dump(folder, "one.zarr", exclude=[5])
    make = {"image_size": 16, "batch_size": 8, "block_rows": 16, "workers": 0, "precision": "f32"}
    two = logitcache.dump_logits(
        other, f"imagefolder:{folder}", tmp_path / "two.zarr", augment="pad-crop-flip", views=2, exclude=[37], **make
    )
    mean = logitcache.merge_caches([one, two], tmp_path / "mean.zarr", average=True)
    assert mean.manifest.excluded == BAD
    assert logitcache.verify_cache(tmp_path / "mean.zarr").ok


def test_an_unfinished_dump_says_what_its_blocks_leave_out(dump, damaged, tmp_path):
    asked = iter([False, True])
    with pytest.raises(CacheIncompleteError):
        dump(damaged, skip_unreadable=True, should_stop=lambda: next(asked, True))
    assert 5 in open_cache(tmp_path / "c.zarr", unfinished=True).manifest.excluded
    assert logitcache.cache_stats(tmp_path / "c.zarr").health.constant_rows == 0


@pytest.mark.slow
@pytest.mark.parametrize("augment", ["pad-crop-flip", "pad-crop-flip+mixup"])
def test_a_dump_that_skips_and_is_killed_ends_in_the_same_bytes(tmp_path, augment):
    folder = folder_of(tmp_path / "d", 120)
    for sample in (3, 50, 51, 119):
        files(folder)[sample].write_bytes(b"no image")
    program = (
        "import sys, logitcache, tiny, torch; torch.set_num_threads(1); "
        f"logitcache.dump_logits(tiny.Unhurried(5), {f'imagefolder:{folder}'!r}, sys.argv[1], augment={augment!r}, views=3, image_size=16, "
        "batch_size=8, block_rows=8, workers=0, skip_unreadable=True, threads=1)"
    )
    environment = os.environ | {"PYTHONPATH": str(tiny.HERE)}
    command = [sys.executable, "-c", program]
    subprocess.run([*command, str(tmp_path / "whole.zarr")], env=environment, check=True)
    for blocks in (2, 20, 35):
        child = subprocess.Popen([*command, str(tmp_path / "c.zarr")], env=environment)
        while len(list((tmp_path / "c.zarr").rglob("blocks/*/*.json"))) < blocks and child.poll() is None:
            time.sleep(0.02)
        child.kill()
        child.wait()
    subprocess.run([*command, str(tmp_path / "c.zarr")], env=environment, check=True)
    assert bytes_of(tmp_path / "c.zarr") == bytes_of(tmp_path / "whole.zarr")


def test_caches_that_mix_and_leave_out_different_samples_are_merged_after_the_remedy(dump, folder, tmp_path):
    make = {"augment": "pad-crop-flip+mixup", "views": 1}
    dump(folder, "a.zarr", samples=(0, 30), exclude=[5], **make)
    dump(folder, "b.zarr", samples=(30, 60), **make)
    both = [tmp_path / "a.zarr", tmp_path / "b.zarr"]
    with pytest.raises(CacheMismatchError, match="Run the dump's own command of each with the same `exclude`"):
        logitcache.merge_caches(both, tmp_path / "c.zarr")
    dump(folder, "b.zarr", samples=(30, 60), exclude=[5], **make)
    merged = logitcache.merge_caches(both, tmp_path / "c.zarr")
    assert merged.manifest.excluded == (5,)
    assert logitcache.verify_cache(tmp_path / "c.zarr").ok


def test_the_commands_own_words_work_when_its_file_is_gone(run, folder, tmp_path):
    (tmp_path / "bad.txt").write_text("5\n")
    words = f"dump --teacher tiny:net --data imagefolder:{folder} --image-size 16 --workers 0 --out c.zarr --exclude bad.txt"
    assert run(*words.split()).exit_code == 0
    own = open_cache(tmp_path / "c.zarr").command
    assert "--exclude bad.txt" in own
    chunk = next((tmp_path / "c.zarr").rglob("digests/c/0/0"))
    chunk.write_bytes(b"torn")
    assert "--repair" in run("train", "c.zarr", "--student", "resnet8").stderr
    assert run("verify", "--repair", "c.zarr").exit_code == 1
    (tmp_path / "bad.txt").unlink()
    refused = run(*own.split()[1:])
    assert refused.exit_code == 1
    assert "or leave it out if an existing cache records all samples to exclude" in refused.stderr
    done = run(*words.replace(" --exclude bad.txt", "").split())
    assert done.exit_code == 0
    assert open_cache(tmp_path / "c.zarr").manifest.excluded == (5,)
    assert run("verify", "c.zarr").exit_code == 0


def test_samples_of_several_rows_are_left_out_with_all_their_rows(tmp_path):
    data = sequences.make("train")
    make = {"batch_size": 8, "block_rows": 64, "precision": "f32", "views": 2}
    with pytest.raises(CacheIncompleteError):
        asked = iter([False, True])
        logitcache.dump_logits(
            sequences.teacher(5), data, tmp_path / "c.zarr", should_stop=lambda: next(asked, True), **make
        )
    cache = logitcache.dump_logits(sequences.teacher(5), data, tmp_path / "c.zarr", exclude=[0, 17, 18, 60], **make)
    whole = logitcache.dump_logits(sequences.teacher(5), data, tmp_path / "whole.zarr", **make)
    logitcache.dump_logits(sequences.teacher(5), data, tmp_path / "d.zarr", exclude=[0, 17, 18, 60], **make)
    assert bytes_of(tmp_path / "c.zarr") == bytes_of(tmp_path / "d.zarr")
    kept = cache.kept_rows()
    lengths = np.diff(data.offsets)
    assert (~kept).sum() == lengths[[0, 17, 18, 60]].sum()
    for view in range(2):
        ours, theirs = (columns_of(one, view, "net")["logits"] for one in (cache, whole))
        assert (ours[kept] == theirs[kept]).all()
        assert (ours[~kept] == 0).all()
    assert logitcache.verify_cache(tmp_path / "c.zarr", data=data, replay=90, teacher=sequences.teacher(5)).ok
    assert logitcache.cache_stats(cache).views[0].rows == kept.sum()
    result = train_student(cache, sequences.teacher(5), data=data, epochs=1, out=tmp_path / "run", test_data=None)
    assert np.isfinite(result.metrics[-1]["loss"])
    with pytest.raises(InputError, match="`skip_unreadable` and `check_data` are not supported by the renderer"):
        logitcache.dump_logits(sequences.teacher(5), data, tmp_path / "e.zarr", check_data=True, **make)


def test_nothing_is_said_of_rows_where_no_sample_can_be_read(tmp_path, caplog):
    for name in "ab":
        (tmp_path / "images" / name).mkdir(parents=True)
        (tmp_path / "images" / name / "0.png").write_bytes(b"no image")
    with pytest.raises(InputError, match="all 2 samples are excluded"):
        logitcache.dump_logits(
            teacher=tiny.net(2),
            data=f"imagefolder:{tmp_path / 'images'}",
            out=tmp_path / "c.zarr",
            skip_unreadable=True,
            image_size=8,
        )
    assert not [message for message in caplog.messages if "probabilities" in message]

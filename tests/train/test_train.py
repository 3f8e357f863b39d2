"""From a cache to a student: the promise that the cache changes nothing, and that nothing wrong gets through."""

import itertools
import json
import re
import threading
from collections import Counter
from dataclasses import replace

import numpy as np
import pytest
import tiny
import torch
import warm
from PIL import Image

import logitcache
from logitcache import TrainSettings
from logitcache.data import ArrayImages
from logitcache.data.images.views import View
from logitcache.errors import CacheIncompleteError, CacheMismatchError, CorruptCacheError, InputError, StoppedError
from logitcache.methods import METHODS, Method
from logitcache.methods.kd import kd
from logitcache.train.optimize import learning_rate


@pytest.fixture
def train(tmp_path, images, test_images):
    """Train the tiny student for three epochs of the tiny cache."""

    def go(**changes):
        arguments = {
            "cache": tmp_path / "c.zarr",
            "student": "tiny:student",
            "method": "kd",
            "data": images,
            "test_data": test_images,
            "epochs": 3,
            "batch_size": 48,
            "workers": 0,
            "out": tmp_path / "run",
        }
        return logitcache.train_student(**(arguments | changes))

    return go


def weights(result):
    return {name: value.clone() for name, value in result.student.state_dict().items()}


def metrics_of(run):
    return [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]


def same(one, other):
    return one.keys() == other.keys() and all(torch.equal(one[name], other[name]) for name in one)


@pytest.mark.parametrize(
    ("method", "augment", "threads"),
    [  # every two values meet once
        ("kd", "pad-crop-flip", 1),
        ("kd", "random-resized-crop-flip", 2),
        ("rld", "pad-crop-flip", 2),
        ("rld", "random-resized-crop-flip", 1),
    ],
)
def test_cached_is_live(dump, train, tmp_path, method, augment, threads):
    """Promise 1: three epochs over two views, shuffled, give the same weights, bit for bit, from the cache and beside the teacher.

    The student's batches (48) are not the teacher's (64), the last of both are short, and the teacher has batch normalisation and dropout.
    """
    teacher = tiny.net(tiny.CLASSES)
    dump(teacher=teacher, augment=augment, threads=threads)
    cached = train(method=method, out=tmp_path / "cached")
    live = train(method=method, out=tmp_path / "live", live_teacher=teacher)
    assert same(weights(cached), weights(live))
    assert cached.results["loss"] == live.results["loss"]
    assert json.loads((tmp_path / "live/run.json").read_text())["cache"]["logits"] == "live"


LEARNING = [name for name, one in METHODS.items() if one.divergence]


@pytest.mark.parametrize("method", tiny.usual(LEARNING, ["clkd", "kd", "rld", "tad"]))
def test_cached_is_live_for_every_method_also_where_it_was_stopped(dump, train, tmp_path, method):
    """Two views, shuffled; the cached run is stopped in the middle of its second epoch, and resumed."""
    teacher = tiny.net(tiny.CLASSES)
    dump(teacher=teacher, augment="pad-crop-flip", threads=1)
    arguments = {"method": method, "lr": 0.01, "epochs": 2}
    asked = iter([False] * 9 + [True])
    with pytest.raises(StoppedError, match="step 3 of 7 of epoch 2"):
        train(out=tmp_path / "cached", should_stop=lambda: next(asked), **arguments)
    cached = train(out=tmp_path / "cached", resume=True, **arguments)
    live = train(out=tmp_path / "live", live_teacher=teacher, **arguments)
    assert same(weights(cached), weights(live))
    if METHODS[method].ignores_labels and METHODS[method].refine is None:
        dump(teacher=teacher, augment="cifar+mixup+cutmix", threads=1, out=tmp_path / "mixed.zarr")
        mixed = arguments | {"cache": tmp_path / "mixed.zarr", "epochs": 1}
        cached, live = train(out=tmp_path / "a", **mixed), train(out=tmp_path / "b", live_teacher=teacher, **mixed)
        assert same(weights(cached), weights(live))


@pytest.mark.parametrize("method", tiny.usual(["kd", "dist"], ["kd"]))
def test_cached_is_live_where_rows_are_changed_and_mixed(dump, train, tmp_path, method):
    """Each row of the second view has two labels; RandAugment, erasing, mixup and CutMix are rendered again for the student."""
    teacher, few = tiny.net(tiny.CLASSES), ArrayImages(*(one[:100] for one in tiny.arrays()[:2]), tiny.arrays()[2])
    dump(teacher=teacher, data=few, augment="cifar-strong+erasing+mixup+cutmix", block_rows=64)
    cached = train(method=method, data=few, epochs=2, out=tmp_path / "cached")
    live = train(method=method, data=few, epochs=2, out=tmp_path / "live", live_teacher=teacher)
    assert same(weights(cached), weights(live))
    alone = train(method="ce", data=few, epochs=2, out=tmp_path / "ce")
    assert not same(weights(cached), weights(alone))


def test_cross_entropy_weighs_both_labels_of_a_mixed_row(dump, train, images, tmp_path):
    cache = dump(augment="mixup(alpha=1)", views=1)
    view = View.from_json(cache.manifest.views[0])
    mixed = view.mixed(np.arange(300), 300)
    torch.manual_seed(3)
    student = tiny.still(tiny.CLASSES)
    shown = [images.images[np.arange(300)].int(), images.images[mixed.partners].int()]
    share = torch.from_numpy(mixed.weights)[:, None, None, None]
    pixels = (shown[0] * share + shown[1] * (256 - share) + 128) // 256
    mean, std = (torch.tensor(x)[:, None, None] for x in images.normalization)
    log_p = student((pixels / 255 - mean) / std).log_softmax(1).detach()
    own, other = (-log_p[np.arange(300), labels] for labels in (images.labels, images.labels[mixed.partners]))
    weight = share.flatten() / 256
    expected = float((weight * own + (1 - weight) * other).mean())
    train(student=student, method="ce", epochs=1, batch_size=300, lr=1e-30, out=tmp_path / "ce")
    assert metrics_of(tmp_path / "ce")[0]["ce"] == pytest.approx(expected, rel=1e-5)


@pytest.mark.parametrize("changes", [{"method": "rld"}, {"method": "loca"}, {"method": "kd", "refine": "swap"}])
def test_a_method_that_reads_the_label_refuses_mixed_rows(dump, train, tmp_path, changes):
    dump(augment="none+cutmix")
    with pytest.raises(
        CacheMismatchError, match=r"uses the label of a row.*none\+cutmix.*Choose a method that does not \(ce, atkd"
    ):
        train(**changes)
    assert not (tmp_path / "run").exists()
    train(method="loca", refine="none")


def test_a_rounded_cache_is_not_live(dump, train, tmp_path):
    """The test above can fail: half precision is enough to be seen."""
    teacher = tiny.net(tiny.CLASSES)
    dump(teacher=teacher, precision="f16")
    cached = train(out=tmp_path / "cached")
    assert not same(weights(cached), weights(train(out=tmp_path / "live", live_teacher=teacher)))


def test_methods_and_seeds_and_settings_change_the_student(dump, train, tmp_path):
    dump()
    first = weights(train(out=tmp_path / "a"))
    assert same(first, weights(train(out=tmp_path / "b")))
    for number, changes in enumerate(
        [{"method": "rld"}, {"seed": 1}, {"parameters": {"temperature": 2}}, {"standardize": True}]
    ):
        assert not same(first, weights(train(out=tmp_path / f"c{number}", **changes)))


def halved(student, teacher, labels):
    """Half of KD."""
    return 0.5 * kd(student, teacher, labels)


def test_a_loss_in_hand_trains_as_its_name_does(dump, train, tmp_path):
    dump()
    words = {"epochs": 1, "parameters": {"beta": 4.0}, "kd_warmup": 0.0}
    named = train(method="rld", ce_weight=1.0, kd_weight=1.0, out=tmp_path / "a", **words)
    words.pop("parameters")
    assert same(weights(named), weights(train(method=logitcache.get_loss("rld", beta=4), out=tmp_path / "b", **words)))
    own = Method("KD.", "-", kd, ce_weight=0.1, kd_weight=0.9)
    half = train(method="kd", ce_weight=1.0, kd_weight=0.5, out=tmp_path / "c", epochs=1)
    assert same(weights(half), weights(train(method=halved, out=tmp_path / "d", epochs=1)))
    assert same(weights(train(out=tmp_path / "e", epochs=1)), weights(train(method=own, out=tmp_path / "f", epochs=1)))
    names = [json.loads((tmp_path / run / "run.json").read_text())["settings"]["method"] for run in "bdf"]
    assert names == ["get_loss(rld, beta=4)", f"{__name__}:halved", "Method(logitcache.methods.kd:kd)"]


def test_a_run_of_a_loss_in_hand_is_resumed_with_the_same(dump, train, tmp_path, monkeypatch):
    dump()
    monkeypatch.chdir(tmp_path)
    loss, words = logitcache.get_loss("rld", beta=4), {"epochs": 2, "out": None}
    whole = train(method=loss, **words)
    assert whole.out.name == "get_loss-rld-beta=4-tiny-student"
    asked = iter([False] * 9 + [True])
    with pytest.raises(StoppedError):
        train(method=loss, epochs=2, out=tmp_path / "r", should_stop=lambda: next(asked))
    with pytest.raises(
        CacheMismatchError, match=r"method: there 'get_loss\(rld, beta=4\)', requested 'get_loss\(rld, beta=5\)'"
    ):
        train(method=logitcache.get_loss("rld", beta=5), epochs=2, out=tmp_path / "r", resume=True)
    assert same(weights(whole), weights(train(method=loss, epochs=2, out=tmp_path / "r", resume=True)))


def test_a_function_in_hand_refuses_what_it_may_not_understand(dump, train, tmp_path):
    dump(top_k=3, out=tmp_path / "top.zarr")
    with pytest.raises(
        CacheMismatchError, match="halved is a plain function, which is assumed to need every logit of a row"
    ):
        train(cache=tmp_path / "top.zarr", method=halved)
    dump(augment="cifar+mixup", out=tmp_path / "mixed.zarr")
    with pytest.raises(CacheMismatchError, match="halved is a plain function, which is assumed to use the label"):
        train(cache=tmp_path / "mixed.zarr", method=halved)
    with pytest.raises(InputError, match="unknown parameter 'temperature' of .*halved; expected none"):
        train(cache=tmp_path / "mixed.zarr", method=halved, temperature=2.0)
    assert not (tmp_path / "run").exists()
    for cache in ("top.zarr", "mixed.zarr"):  # a composed loss brings its own needs
        assert train(
            cache=tmp_path / cache, method=logitcache.get_loss("kd"), epochs=1, out=tmp_path / f"r{cache}"
        ).results


def test_the_teacher_is_worth_something(dump, train, tmp_path):
    """A student of a good teacher, without labels, learns the classes."""
    teacher = train(cache=None, method="ce", epochs=20, lr=0.1, out=tmp_path / "teacher").student
    dump(teacher=teacher, views=4)
    found = train(epochs=12, ce_weight=0.0, kd_weight=1.0, lr=0.05, out=tmp_path / "student")
    assert found.results["test_accuracy"] > 0.6  # chance is 0.2
    assert found.results["teacher_agreement"] > 0.6


class Stopped(Exception):
    pass


@pytest.mark.parametrize(
    ("opt", "after"), tiny.usual(itertools.product(["sgd", "adamw"], [1, 2]), [("sgd", 2), ("adamw", 1)])
)
def test_a_resumed_run_ends_like_an_unbroken_one(dump, train, tmp_path, after, opt):
    dump()

    def stop(metrics):
        if metrics["epoch"] == after:
            raise Stopped

    settings = {"opt": opt, "lr": 0.01, "sched": "cosine", "warmup_epochs": 1, "method": "rld"}
    whole = train(out=tmp_path / "whole", **settings)
    with pytest.raises(Stopped):
        train(on_epoch=stop, **settings)
    with (tmp_path / "run/metrics.jsonl").open("a") as file:
        file.write('{"epoch": 99}\n')  # an epoch that was measured but whose state was never saved
    resumed = train(resume=True, **settings)
    assert same(weights(resumed), weights(whole))
    read = [metrics_of(tmp_path / run) for run in ("run", "whole")]
    timeless = [[{k: v for k, v in epoch.items() if "second" not in k} for epoch in run] for run in read]
    assert timeless[0] == timeless[1]


def test_a_killed_run_resumes_from_the_command_line(tmp_path, npz, dump, run, monkeypatch):
    """SIGKILL to a real process while it trains; `--resume --out RUN` alone knows the rest."""
    dump(data=f"arrays:{npz}")
    words = f"train {tmp_path}/c.zarr --student tiny:Unhurried --method rld --epochs 6 --lr 0.001 --out".split()
    command = warm.Command("logitcache", [*words, tmp_path / "killed"], tmp_path)
    command.wait_until((tmp_path / "killed/checkpoint.pt").exists)
    command.kill()
    monkeypatch.setattr(tiny.Unhurried, "pause", 0)
    assert not logitcache.compare_runs([tmp_path / "killed"])[0].finished
    assert run("train", "--resume", "--out", "killed").exit_code == 0
    assert run(*words, "whole").exit_code == 0
    assert (tmp_path / "killed/student.safetensors").read_bytes() == (
        tmp_path / "whole/student.safetensors"
    ).read_bytes()
    assert len(metrics_of(tmp_path / "killed")) == 6


def test_a_finished_run_is_not_trained_again(dump, train):
    dump()
    first = train()
    again = train(resume=True, on_progress=lambda _: pytest.fail("trains again"))
    assert same(weights(first), weights(again))
    assert again.results == first.results


def test_a_finished_run_gives_its_weights_into_a_module_too(dump, train):
    dump()
    first = train(student=tiny.student(5))
    again = train(student=tiny.student(5), resume=True)
    assert same(weights(first), weights(again))


def test_worker_processes_change_no_weight_nor_does_stopping_between_epochs(dump, train, tmp_path):
    """The student has dropout: nothing but its own seed may draw from the global generator."""
    dump(augment="random-resized-crop-flip")

    def stop(_metrics):
        raise Stopped

    alone = weights(train(out=tmp_path / "alone", workers=0))
    assert same(alone, weights(train(out=tmp_path / "one", workers=1)))
    with pytest.raises(Stopped):
        train(workers=1, on_epoch=stop)
    assert same(alone, weights(train(workers=1, resume=True)))


@pytest.mark.parametrize("average", [None, 0.9])
def test_a_run_stops_in_an_evaluation_too_and_loses_nothing(dump, train, images, tmp_path, average):
    """An epoch has 7 steps and asks after 6 of them; two batches of test data ask once for each network; the end of an epoch asks."""
    dump()
    given = {"test_data": images, "model_ema_decay": average}
    whole = train(out=tmp_path / "whole", **given)
    asked, last_of_evaluation = [], (6 + (1 if average is None else 2) + 1) + 6 + (1 if average is None else 2)

    def should_stop():
        asked.append(1)
        return len(asked) == last_of_evaluation

    with pytest.raises(
        StoppedError, match="stopped on request after the last step of epoch 2, before its evaluation. Resume"
    ):
        train(should_stop=should_stop, **given)
    assert [one["epoch"] for one in metrics_of(tmp_path / "run")] == [1]
    resumed = train(resume=True, **given)
    assert same(weights(whole), weights(resumed))
    timed = {"seconds", "images_per_second"}
    found, expected = (
        [{name: value for name, value in one.items() if name not in timed} for one in metrics_of(tmp_path / run)]
        for run in ("run", "whole")
    )
    assert found == expected


def test_a_run_without_a_cache_goes_on_with_its_own_data_alone(train, images, tmp_path):
    def stop(_metrics):
        raise Stopped

    settings = {"cache": None, "method": "ce"}
    with pytest.raises(Stopped):
        train(**settings, on_epoch=stop)
    for changed in ({"data": change("labels")}, {"test_data": images}):
        with pytest.raises(CacheMismatchError, match="was started with other data"):
            train(**settings, resume=True, **changed)
    train(**settings, resume=True)


def test_metrics_that_were_lost_are_written_again_from_the_checkpoint(dump, train, tmp_path):
    dump()

    def stop(metrics):
        if metrics["epoch"] == 2:
            raise Stopped

    with pytest.raises(Stopped):
        train(on_epoch=stop)
    (tmp_path / "run/metrics.jsonl").write_text('{"epoch": 1, "lo')
    assert logitcache.compare_runs([tmp_path / "run"])[0].test_accuracy is None
    train(resume=True)
    assert [epoch["epoch"] for epoch in metrics_of(tmp_path / "run")] == [1, 2, 3]


def test_a_slip_leaves_no_run_behind(dump, train, tmp_path):
    dump()
    for slip in ({"opt": "sgdd"}, {"lr": 0}, {"method": "rdl"}, {"student": "resnet9"}, {"parameters": {"x": 1.0}}):
        with pytest.raises(logitcache.LogitCacheError):
            train(**slip)
        assert not (tmp_path / "run").exists()


def test_weights_beside_a_module_are_loaded_or_refused(dump, train, tmp_path):
    dump()
    trained = train(out=tmp_path / "a")
    module = tiny.student(5)
    train(
        student=module, student_weights=str(tmp_path / "a/student.safetensors"), epochs=1, lr=1e-30, out=tmp_path / "b"
    )
    gap = (module[-1].weight - trained.student[-1].weight).abs().max()
    assert gap < 1e-6
    with pytest.raises(InputError, match="there is no weights file"):
        train(student=tiny.student(5), student_weights="no/such/file", out=tmp_path / "c")


def test_a_live_teacher_comes_back_in_the_mode_it_was_in(dump, train):
    teacher = tiny.net(tiny.CLASSES).train()
    teacher[1].eval()
    dump(teacher=teacher)
    train(live_teacher=teacher)
    assert teacher.training
    assert not teacher[1].training
    assert all(parameter.requires_grad for parameter in teacher.parameters())


def test_rows_that_the_label_changed_are_counted_in_every_epoch(dump, train, images, tmp_path):
    """LoCa acts on the rows that the teacher gets wrong, in the view of that epoch."""
    cache = dump()
    train(method="loca")
    slug = cache.teachers[0]
    wrong = [float((cache.view(v, slug)["logits"].argmax(1) != images.labels).mean()) for v in (0, 1, 0)]
    assert [epoch["refined_rows"] for epoch in metrics_of(tmp_path / "run")] == pytest.approx(wrong)
    train(method="kd", out=tmp_path / "kd")
    assert "refined_rows" not in metrics_of(tmp_path / "kd")[0]


@pytest.fixture
def reads(monkeypatch):
    """Every part of a cache that is decoded, in order: a view, and its blocks or None for all; only the first is waited for."""
    found, waited, view = [], [], logitcache.Cache.view

    def counted(self, index, teacher, blocks=None):
        found.append((index, blocks))
        waited.append(threading.current_thread() is threading.main_thread())
        return view(self, index, teacher, blocks)

    monkeypatch.setattr(logitcache.Cache, "view", counted)
    yield found
    assert sum(waited) <= 2


def test_the_view_that_is_read_ahead_is_the_next_one(dump, train, reads):
    """Three views rotate over five epochs: each is decoded when its turn comes, and never twice. One more may be begun at the end."""
    dump(views=3)
    train(epochs=5)
    assert [index for index, _ in reads[:5]] == [0, 1, 2, 0, 1]
    assert len(reads) <= 6


def test_the_pair_that_is_read_ahead_is_the_next_one(dump, train, reads):
    dump(augment="none,pad-crop-flip", views=3)
    train(method="sld", epochs=3)
    counts = Counter(index for index, _ in reads)
    assert all(counts[view] == 1 for view in range(2, 6))
    assert all(counts[view] in (1, 2) for view in range(2))  # the first pair may be begun once more at the end


def test_the_window_that_is_read_ahead_is_the_next_one(dump, train, reads):
    """One block a window, three windows an epoch: every block of every view is decoded once, for two epochs and one window."""
    dump()
    train(epochs=2, memory_budget=2 * 128 * 20)
    assert Counter(reads[:6]) == Counter((view, (block,)) for view in (0, 1) for block in range(3))
    assert [view for view, _ in reads[:6]] == [0, 0, 0, 1, 1, 1]
    assert len(reads) <= 7


@pytest.mark.parametrize("method", ["sld", "mlkd"])
def test_cached_is_live_over_pairs_of_views(dump, train, tmp_path, method):
    """A weak and another view of every image, four epochs over two pairs; each step sees both."""
    teacher = tiny.net(tiny.CLASSES)
    cache = dump(teacher=teacher, augment="none,pad-crop-flip")
    assert [(view["recipe"], view["group"]) for view in cache.manifest.views] == [
        ("none", 0),
        ("pad-crop-flip", 0),
        ("none", 1),
        ("pad-crop-flip", 1),
    ]
    cached = train(method=method, epochs=4, out=tmp_path / "cached")
    assert same(weights(cached), weights(train(method=method, epochs=4, out=tmp_path / "live", live_teacher=teacher)))
    assert [epoch["views"] for epoch in metrics_of(tmp_path / "cached")] == [[0, 1], [2, 3], [0, 1], [2, 3]]
    alone = train(method=method, epochs=4, pair_views=False, out=tmp_path / "alone")
    assert [epoch["view"] for epoch in metrics_of(tmp_path / "alone")] == [0, 1, 2, 3]
    assert not same(weights(cached), weights(alone))


def test_the_objective_of_a_pair_is_the_sum_over_its_views(dump, train, tmp_path):
    """Two views alike give twice the loss, and a step twice as long: the same weights at half the rate without momentum."""
    dump(augment="none,none")
    settings = {"method": "kd", "momentum": 0.0, "weight_decay": 0.0, "epochs": 1, "student": "tiny:still"}
    pair = train(pair_views=True, lr=0.01, out=tmp_path / "pair", **settings)
    single = train(lr=0.02, out=tmp_path / "single", **settings)
    first, second = (metrics_of(tmp_path / run)[0] for run in ("pair", "single"))
    assert first["loss"] == pytest.approx(2 * second["loss"], rel=1e-5)
    assert first["train_accuracy"] == second["train_accuracy"]
    for name, value in weights(pair).items():
        torch.testing.assert_close(value, weights(single)[name], atol=1e-6, rtol=1e-4)


@pytest.mark.parametrize("top_k", [None, 2])
def test_a_view_beyond_the_memory_budget_streams_in_windows(dump, train, tmp_path, top_k):
    """Cached = live all the same; every sample once an epoch; batches of one window hold samples of its blocks alone."""
    teacher = tiny.net(tiny.CLASSES)
    cache = dump(teacher=teacher, top_k=top_k, block_rows=64)
    row = json.loads((tmp_path / "c.zarr/zarr.json").read_text())["attributes"]["logitcache"]["encoding"]
    width = 20 if row["kind"] == "full" else 3 * (1 + 4) + 8 + 1  # and a byte that keeps float32 where it may lie
    budget = 2 * 2 * 64 * width + 5  # two blocks and the next two
    windowed = train(memory_budget=budget, out=tmp_path / "windowed")
    assert [epoch["windows"] for epoch in metrics_of(tmp_path / "windowed")] == [3, 3, 3]
    assert not same(weights(windowed), weights(train(out=tmp_path / "whole")))
    assert same(weights(train(memory_budget=10**9, out=tmp_path / "much")), weights(train(out=tmp_path / "whole2")))
    if top_k is None:
        live = train(memory_budget=budget, live_teacher=teacher, out=tmp_path / "live")
        assert same(weights(windowed), weights(live))
    with pytest.raises(InputError, match=r"`memory_budget` 100 bytes is too small: one block of .* take"):
        train(memory_budget=100, out=tmp_path / "none")
    assert cache.manifest.blocks == 5


def test_windows_hold_every_sample_once_and_whole_blocks(dump, train, tmp_path, monkeypatch):
    from logitcache.train.loop import Loop

    seen = []
    original = Loop._windows

    def watched(self, epoch):
        found = original(self, epoch)
        seen.append([(blocks, np.concatenate(batches)) for blocks, batches in found])
        return found

    monkeypatch.setattr(Loop, "_windows", watched)
    dump(block_rows=64)
    train(memory_budget=2 * 2 * 64 * 20, epochs=2)
    for windows in seen:
        assert sorted(np.concatenate([order for _, order in windows])) == list(range(300))
        for blocks, order in windows:
            assert set(order // 64) == set(blocks)
            assert not (np.diff(order) == 1).all()
    assert seen[0][0][0] != seen[1][0][0] or seen[0][1][0] != seen[1][1][0]


def test_a_resumed_windowed_run_ends_like_an_unbroken_one(dump, train, tmp_path):
    dump(block_rows=64)
    budget = 2 * 2 * 64 * 20

    def stop(_metrics):
        raise Stopped

    with pytest.raises(Stopped):
        train(memory_budget=budget, on_epoch=stop)
    resumed = train(memory_budget=budget, resume=True)
    assert same(weights(resumed), weights(train(memory_budget=budget, out=tmp_path / "whole")))


def test_a_top_k_cache_trains_what_it_serves_and_refuses_the_rest(dump, train, tmp_path):
    dump(top_k=2, precision="u8")
    train(method="rld", out=tmp_path / "rld")
    first = metrics_of(tmp_path / "rld")[0]
    assert 0 < first["unranked_rows"] < first["refined_rows"] < 1
    bucket = weights(train(method="kd", tail="bucket", out=tmp_path / "bucket"))
    assert not same(bucket, weights(train(method="kd", out=tmp_path / "uniform")))
    for changes, reason in (
        ({"method": "clkd"}, "clkd needs every logit of a row"),
        ({"method": "kd", "standardize": True}, "z-scoring needs every logit of a row"),
        ({"method": "normkd"}, r"a per-row temperature \(deviation\) needs every logit of a row"),
    ):
        with pytest.raises(
            CacheMismatchError,
            match=rf"stores the 2 largest of 5 logits, and {reason}. Dump again with `encoding` full",
        ):
            train(**changes, out=tmp_path / "refused")
    assert not (tmp_path / "refused").exists()


def test_a_cache_that_serves_too_little_names_the_dump_that_would_serve(run, npz):
    line = f"dump --teacher tiny:net --data arrays:{npz} --views 2 --top-k 2 --precision u8 --out c.zarr"
    assert run(*line.split()).exit_code == 0
    refused = run("train", "c.zarr", "--student", "tiny:student", "--method", "clkd")
    assert refused.exit_code == 1
    command = refused.stderr.splitlines()[1].strip()
    assert command.endswith("--out c-full.zarr --views 2 --precision u8 --encoding full")
    assert run(*command.split()[1:]).exit_code == 0
    assert run("train", "c-full.zarr", "--student", "tiny:student", "--method", "clkd", "--epochs", "1").exit_code == 0


def test_a_bucket_needs_something_left_out(dump, train):
    dump()
    with pytest.raises(InputError, match="stores every class, so there is no tail for `tail` bucket"):
        train(tail="bucket")


def test_pairs_that_are_not_there_are_refused_with_the_dump_that_makes_them(dump, train):
    dump()
    with pytest.raises(CacheMismatchError, match=r"has no pairs of views. Dump them with `augment` RECIPE,RECIPE"):
        train(pair_views=True)


def test_a_run_that_exists_is_refused_and_left_alone(dump, train, tmp_path):
    dump()
    train()
    before = {file.name: file.read_bytes() for file in (tmp_path / "run").iterdir()}
    with pytest.raises(InputError, match="already holds a run; nothing in it was touched. Resume it with `resume`"):
        train()
    with pytest.raises(CacheMismatchError, match=r"is a run with other settings:\n  lr: there 0.05, requested 0.1"):
        train(resume=True, lr=0.1)
    assert {file.name: file.read_bytes() for file in (tmp_path / "run").iterdir()} == before
    with pytest.raises(InputError, match="holds no run to resume"):
        train(resume=True, out=tmp_path / "elsewhere")


def test_an_unusable_folder_for_the_run_is_refused_before_the_data_are_opened(train, tmp_path):
    """Neither the cache nor the data nor the student exists, so each would be refused if it were opened first."""
    nowhere = {"cache": tmp_path / "none.zarr", "student": "tiny:none", "data": f"arrays:{tmp_path / 'none.npz'}"}
    for name, written in (("run", "run.json"), ("other", "notes.txt")):
        (tmp_path / name).mkdir()
        (tmp_path / name / written).write_text("{}")
    (tmp_path / "file").touch()
    with pytest.raises(InputError, match="already holds a run; nothing in it was touched"):
        train(**nowhere)
    with pytest.raises(InputError, match="exists, is not empty and holds no run"):
        train(out=tmp_path / "other", **nowhere)
    with pytest.raises(InputError, match="file is a file"):
        train(out=tmp_path / "file", **nowhere)
    with pytest.raises(InputError, match="holds no run to resume"):
        train(out=tmp_path / "new", resume=True, **nowhere)


def test_a_run_resumed_with_another_cache_is_refused(dump, train, tmp_path):
    dump()

    def stop(_metrics):
        raise Stopped

    with pytest.raises(Stopped):
        train(on_epoch=stop)
    dump(seed=9, out=tmp_path / "other.zarr")
    with pytest.raises(CacheMismatchError, match="was started with another cache"):
        train(resume=True, cache=tmp_path / "other.zarr")


def test_a_run_leaves_weights_metrics_and_settings(dump, train, tmp_path):
    cache = dump()
    result = train()
    record = json.loads((tmp_path / "run/run.json").read_text())
    assert record["settings"]["method"] == "kd"
    assert record["cache"]["fingerprint"] == cache.fingerprint
    assert record["cache"]["memory_bytes_per_row"] == 20
    assert record["results"] == result.results
    metrics = metrics_of(tmp_path / "run")
    assert [epoch["view"] for epoch in metrics] == [0, 1, 0]
    assert metrics[-1]["test_accuracy"] == result.results["test_accuracy"]
    stored = logitcache.models.load_network("tiny:student", 5, str(tmp_path / "run/student.safetensors"))
    assert same(stored.module.state_dict(), weights(result))
    assert stored.preprocessing["mean"] == cache.manifest.teachers[0]["preprocessing"]["mean"]


def test_metrics_are_what_their_names_say(dump, train, test_images):
    dump()
    result = train()
    with torch.no_grad():
        mean, std = (torch.tensor(x)[:, None, None] for x in ArrayImages(*tiny.arrays()).normalization)
        logits = result.student.eval()((test_images.images.float() / 255 - mean) / std)
    labels = torch.from_numpy(test_images.labels)
    assert result.results["test_accuracy"] == pytest.approx(float((logits.argmax(1) == labels).float().mean()))
    assert result.results["test_loss"] == pytest.approx(
        float(torch.nn.functional.cross_entropy(logits, labels)), rel=1e-5
    )


def test_an_unfinished_cache_is_refused_with_its_command(train, tmp_path, npz, monkeypatch):
    def stop(_progress):
        raise Stopped

    with pytest.raises(Stopped):
        logitcache.dump_logits(
            teacher="tiny:net", data=f"arrays:{npz}", out=tmp_path / "c.zarr", views=2, on_progress=stop
        )
    command = rf"logitcache dump --teacher tiny:net --data arrays:{npz} --out .*c.zarr --views 2"
    with pytest.raises(CacheIncompleteError, match=rf"0 of 2 blocks are committed. Complete it with:\n  {command}"):
        train()


def change(what):
    pixels, labels, names = (x.copy() for x in tiny.arrays())
    match what:
        case "pixels":
            pixels = 255 - pixels
        case "labels":
            labels[4] = (labels[4] + 1) % 5
        case "length":
            pixels, labels = pixels[:-1], labels[:-1]
        case "classes":
            names[1] = "another"
    return ArrayImages(pixels, labels, names)


@pytest.mark.parametrize(
    ("what", "message"),
    [
        ("pixels", r"has different samples \(digest .*\) from this data set"),
        ("labels", r"has different labels: sample 4 is 'class \d' in the cache and 'class \d' here; 1 of 300 differ"),
        ("length", r"has 300 samples, but this data set has 299"),
        ("classes", r"has 5 classes, but this data set has 5; first difference 'class 1' against 'another'"),
    ],
)
def test_other_data_is_refused(dump, train, what, message):
    dump()
    with pytest.raises(CacheMismatchError, match=message):
        train(data=change(what))


def test_pixels_that_change_behind_the_sample_list_are_refused(dump, train, tmp_path):
    """Files are listed by name, so new pixels under old names are found by the digests of the views."""
    spec = f"imagefolder:{tiny.folder_of(tmp_path / 'images', 80)}"
    dump(data=spec, image_size=16)
    train(data=spec, workers=0, out=tmp_path / "before")
    for path in (tmp_path / "images").rglob("*.png"):
        alter(path)
    with pytest.raises(
        CacheMismatchError, match=r"was shown different pixels: view 0, sample 0 \(class 0/001\.png\) has digest"
    ):
        train(data=spec, workers=0, out=tmp_path / "after")


def alter(path):
    """Change the lowest bit of every pixel of an image."""
    with Image.open(path) as image:
        image.point(lambda value: value ^ 1).save(path)


@pytest.mark.parametrize("sample", [0, 13, 23])
def test_one_changed_image_is_found_wherever_it_is(dump, train, tmp_path, sample):
    """24 images in three blocks; `verify` looks at all of them, `train` at 64 drawings of a sample before each epoch."""
    folder = tiny.folder_of(tmp_path / "images", 24)
    spec = f"imagefolder:{folder}"
    cache = dump(data=spec, image_size=16, block_rows=8)
    assert cache.manifest.blocks == 3
    assert logitcache.verify_cache(cache.place.path, data=spec).ok
    alter(sorted(folder.rglob("*.png"))[sample])
    problem = rf"was shown different pixels: view \d, sample {sample} \(class .*png\) has digest .*; 1 of \d+ samples"
    assert re.search(problem, logitcache.verify_cache(cache.place.path, data=spec).pixels_problem or "")
    with pytest.raises(CacheMismatchError, match=problem):
        train(data=spec, test_data=None, workers=0, epochs=6)


def test_another_live_teacher_is_refused(dump, train):
    dump()
    other = tiny.net(tiny.CLASSES)
    with torch.no_grad():
        other[-1].bias += 1
    with pytest.raises(CacheMismatchError, match="the live teacher Sequential has weights sha256 .* was dumped with"):
        train(live_teacher=other)


def test_damage_met_while_training_stops_it(dump, train):
    cache = dump()
    chunk = cache.place.path / "teachers/sequential/logits/c/1/2/0"
    content = bytearray(chunk.read_bytes())
    content[10] ^= 1
    chunk.write_bytes(content)
    with pytest.raises(CorruptCacheError, match="view 1, block 2"):
        train()


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"cache": None}, "method kd needs a teacher's logits; pass a cache"),
        ({"cache": None, "method": "ce", "data": None}, "pass a cache, or with `method` ce a data set"),
        ({"augment": "none"}, r"has its own views \(pad-crop-flip\); leave out `augment`"),
        ({"epochs": 0}, "`epochs` must be 1 or more, not 0"),
        ({"lr": 0}, "`lr` must be greater than 0, not 0"),
        ({"lr": float("nan")}, "`lr` must be greater than 0, not nan"),
        ({"weight_decay": float("nan")}, "`weight_decay` must be 0 or more, not nan"),
        ({"decay_rate": float("nan")}, "`decay_rate` must be 0 or more, not nan"),
        ({"temperature": 2.0, "parameters": {"temperature": 3.0}}, "temperature is set twice"),
        ({"opt": "sgdd"}, "unknown optimizer 'sgdd'; did you mean 'sgd'"),
        ({"sched": "cosin"}, "unknown schedule 'cosin'; did you mean 'cosine'"),
        ({"method": "kdd"}, "unknown method 'kdd'; did you mean 'kd'"),
        ({"student": "resnet9"}, "unknown network 'resnet9'"),
        ({"lr": 1e9}, "the loss is .* in epoch 1, so training has diverged. Lower `lr`"),
    ],
)
def test_requests_that_mean_nothing_are_refused(dump, train, changes, message):
    dump()
    with pytest.raises(logitcache.LogitCacheError, match=message):
        train(**changes)


def test_test_data_of_other_classes_is_refused(dump, train):
    dump()
    other = ArrayImages(tiny.arrays("test")[0], tiny.arrays("test")[1], ["a", "b", "c", "d", "e"])
    with pytest.raises(CacheMismatchError, match=r"the test data has different classes \(a, b, c, d, e, ...; 5\)"):
        train(test_data=other)


def test_labels_alone_train_without_a_cache(train, tmp_path):
    result = train(cache=None, method="ce", augment="pad-crop-flip")
    assert "teacher_agreement" not in result.results
    assert json.loads((tmp_path / "run/run.json").read_text())["cache"] is None
    views = [epoch["view"] for epoch in metrics_of(tmp_path / "run")]
    assert views == [0, 1, 2]


def test_bfloat16_autocast_trains(dump, train):
    dump()
    assert np.isfinite(train(amp=True).results["loss"])


def test_a_student_may_have_its_own_input_size(dump, train, tmp_path):
    dump(augment="random-resized-crop-flip")
    train(image_size=24)
    record = json.loads((tmp_path / "run/run.json").read_text())
    assert record["student"]["preprocessing"]["image_size"] == 24


SCHEDULE = TrainSettings(lr=1.0)


@pytest.mark.parametrize(
    ("epoch", "rate"), [(0, 1), (149, 1), (150, 0.1), (179, 0.1), (180, 0.01), (210, 0.001), (239, 0.001)]
)
def test_the_papers_steps(epoch, rate):
    assert learning_rate(SCHEDULE, epoch, 0, 10) == pytest.approx(rate)


def test_cosine_falls_to_nothing_after_its_warm_up():
    settings = replace(SCHEDULE, sched="cosine", epochs=10, warmup_epochs=2)
    rates = [learning_rate(settings, epoch, step, 5) for epoch in range(10) for step in range(5)]
    assert rates[:10] == pytest.approx([(i + 1) / 10 for i in range(10)])
    assert rates[10] == 1.0
    assert rates[30] == pytest.approx(0.5)
    assert rates[-1] < 0.01
    assert rates[10:] == sorted(rates[10:], reverse=True)


def test_chosen_milestones_are_kept():
    settings = replace(SCHEDULE, decay_milestones=[3, 5], decay_rate=0.5)
    assert [learning_rate(settings, epoch, 0, 1) for epoch in (2, 3, 4, 5)] == [1, 0.5, 0.5, 0.25]

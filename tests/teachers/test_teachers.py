"""Several teachers in one pass, their mean, test-time views, and how a forward pass is run."""

import json

import numpy as np
import pytest
import tiny
import torch
from torch import nn

import logitcache
from logitcache.errors import InputError, UnknownNameError
from logitcache.store import open_cache
from logitcache.teachers.forward import largest_fitting


def other() -> nn.Module:
    """A second teacher, of another name and with other weights."""
    network = tiny.Wrapped(tiny.CLASSES)
    with torch.no_grad():
        network.net[0].bias += 0.3
    return network


class Counting(nn.Module):
    """A teacher that answers with something of the size of its batch, and remembers the sizes."""

    def __init__(self):
        super().__init__()
        self.net, self.sizes = tiny.net(tiny.CLASSES), []

    def forward(self, x):
        self.sizes.append(len(x))
        return self.net(x) + len(x)


BOTH = {"augment": "pad-crop-flip", "precision": "f32"}


@pytest.fixture
def two(dump):
    return dump(teacher=[tiny.net(tiny.CLASSES), other()])


def test_a_teacher_is_given_full_batches_alone(dump, images, tmp_path):
    """In a dump, where a block of 44 rows is the last one; beside a student whose batches are of 48 rows and 12; and in a replay."""
    teacher = Counting()
    cache = dump(teacher=teacher)
    assert len(teacher.sizes) >= 2 * 5
    assert set(teacher.sizes) == {64}
    train = {"cache": cache, "student": "tiny:still", "data": images, "epochs": 2, "batch_size": 48}
    cached = logitcache.train_student(**train, out=tmp_path / "cached").student.state_dict()
    teacher.sizes.clear()
    live = logitcache.train_student(**train, out=tmp_path / "live", live_teacher=teacher).student.state_dict()
    assert len(teacher.sizes) == 2 * 7
    assert set(teacher.sizes) == {64}
    assert all(torch.equal(live[name], value) for name, value in cached.items())
    teacher.sizes.clear()
    assert logitcache.verify_cache(cache.place.path, data=images, replay=101, teacher=teacher, device="cpu").ok
    assert teacher.sizes
    assert set(teacher.sizes) == {64}


def test_a_row_does_not_depend_on_where_it_falls(dump, tmp_path):
    """Sample 280 stands in the last, short batch of all, or first of 20, alone in its dump, or in the middle of a full batch."""
    teacher = Counting()
    found = []
    for number, (first, last) in enumerate([(0, 300), (280, 300), (280, 281), (250, 300), (200, 290)]):
        part = dump(teacher=teacher, samples=(first, last), out=tmp_path / f"{number}.zarr")
        found.append([part.view(view, "counting")["logits"][280 - first] for view in (0, 1)])
    assert all(np.array_equal(one, found[0]) for one in found)
    assert set(teacher.sizes) == {64}


def test_each_of_several_teachers_is_stored_as_it_would_be_alone(dump, two, tmp_path):
    assert two.teachers == ["sequential", "wrapped"]
    for slug, network in (("sequential", tiny.net(tiny.CLASSES)), ("wrapped", other())):
        alone = dump(teacher=network, out=tmp_path / f"{slug}.zarr")
        for view in (0, 1):
            assert np.array_equal(two.view(view, slug)["logits"], alone.view(view, slug)["logits"])
        assert np.array_equal(two.probe(slug)[1], alone.probe(slug)[1])
        part = logitcache.slice_cache(two, tmp_path / f"{slug}-part.zarr", teacher=slug)
        assert part.teachers == [slug]
        assert np.array_equal(part.view(1, slug)["logits"], alone.view(1, slug)["logits"])


def test_teachers_may_look_through_eyes_of_their_own(dump, images, tmp_path):
    """Weights that carry a size and a normalisation keep them beside a teacher that has others."""
    first, second = tmp_path / "a.safetensors", tmp_path / "b.safetensors"
    from logitcache.models import save_weights

    for file, size, mean in ((first, 12, [0.1, 0.2, 0.3]), (second, 20, [0.5, 0.5, 0.5])):
        save_weights(tiny.net(tiny.CLASSES).state_dict(), file, {"preprocessing": {"mean": mean, "image_size": size}})
    cache = dump(teacher=["tiny:net", "tiny:net"], teacher_weights=[str(first), str(second)])
    assert cache.teachers == ["tiny-net", "tiny-net-2"]
    looks = [entry["preprocessing"] for entry in cache.manifest.teachers]
    assert [(look["image_size"], look["mean"][0]) for look in looks] == [(12, 0.1), (20, 0.5)]
    for slug, file in zip(cache.teachers, (first, second), strict=True):
        alone = dump(teacher="tiny:net", teacher_weights=str(file), out=tmp_path / f"{slug}.zarr")
        assert np.array_equal(cache.view(0, slug)["logits"], alone.view(0, "tiny-net")["logits"])
    assert logitcache.verify_cache(cache.place.path, data=images, replay=50).replay_gap == 0


def test_training_chooses_one_of_several(two, dump, images, tmp_path):
    arguments = {"cache": two, "student": "tiny:still", "data": images, "epochs": 2}
    with pytest.raises(InputError, match=r"holds several teachers \(sequential, wrapped\); choose one with `teacher`"):
        logitcache.train_student(**arguments, out=tmp_path / "none")
    with pytest.raises(UnknownNameError, match="did you mean 'wrapped'"):
        logitcache.train_student(**arguments, teacher="wraped", out=tmp_path / "none")
    chosen = logitcache.train_student(**arguments, teacher="wrapped", out=tmp_path / "chosen")
    assert json.loads((tmp_path / "chosen/run.json").read_text())["cache"]["teacher"] == "wrapped"
    alone = dump(teacher=other(), out=tmp_path / "alone.zarr")
    expected = logitcache.train_student(**(arguments | {"cache": alone}), out=tmp_path / "expected")
    for one, same in zip(chosen.student.parameters(), expected.student.parameters(), strict=True):
        assert torch.equal(one, same)


def test_the_commands_describe_each_of_several(two, run, tmp_path):
    path = str(two.place.path)
    assert "choose one with --cached-teacher" in run("stats", path).stderr
    shown = run("stats", path, "--cached-teacher", "wrapped", "--json")
    assert json.loads(shown.stdout)["manifest"]["teachers"][0]["name"] == "Wrapped"
    assert run("export", path, "--cached-teacher", "sequential", "--out", "x.safetensors").exit_code == 0
    assert run("fidelity", path, "--cached-teacher", "wrapped", "--method", "kd").exit_code == 0
    verified = run("verify", path, "--check-rows", "0")
    assert verified.exit_code == 0, verified.stderr
    assert "choose one with --cached-teacher" in run("merge", path, path, "--out", "m.zarr").stderr


def test_damage_to_the_second_teacher_is_found(two, run):
    file = next((two.place.path / "teachers/wrapped/logits/c/1").glob("0/0"))
    data = bytearray(file.read_bytes())
    data[100] ^= 1
    file.write_bytes(bytes(data))
    done = run("verify", str(two.place.path), "--check-rows", "0")
    assert done.exit_code == 1
    assert "teachers/wrapped/logits/c/1" in done.stdout


def test_the_mean_of_several_is_that_of_their_caches(dump, two, images, tmp_path):
    cache = dump(teacher=[tiny.net(tiny.CLASSES), other()], average=True, out=tmp_path / "mean.zarr")
    assert cache.teachers == ["mean"]
    assert [member["name"] for member in cache.manifest.teachers[0]["members"]] == ["Sequential", "Wrapped"]
    apart = [logitcache.slice_cache(two, tmp_path / f"{slug}.zarr", teacher=slug) for slug in two.teachers]
    merged = logitcache.merge_caches(apart, tmp_path / "merged.zarr", average=True)
    for view in (0, 1):
        assert np.array_equal(cache.view(view, "mean")["logits"], merged.view(view, "mean")["logits"])
    with pytest.raises(InputError, match="pass each with its own `teacher`"):
        dump(average=True, out=tmp_path / "one.zarr")


def test_cached_is_live_for_a_mean_with_test_time_views(npz, run, tmp_path):
    """From the command line, with teachers of different sizes, so that each is shown the same rendition its own way."""
    from logitcache.models import save_weights

    words = []
    for name, size in (("a", 12), ("b", 20)):
        network = tiny.net(tiny.CLASSES)
        with torch.no_grad():
            network[0].bias += size / 40
        save_weights(network.state_dict(), tmp_path / f"{name}.safetensors", {"preprocessing": {"image_size": size}})
        words += ["--teacher", "tiny:net", "--teacher-weights", f"{name}.safetensors"]
    data = ["--data", f"arrays:{npz}"]
    more = ["--average", "--test-time-views", "flip", "--precision", "f32", "--augment", "cifar", "--views", "2"]
    done = run("dump", *words, *data, *more, "--out", "m.zarr")
    assert done.exit_code == 0, done.stderr
    train = ["train", "m.zarr", "--student", "tiny:still", "--epochs", "2"]
    assert run(*train, "--out", "cached").exit_code == 0
    done = run(*train, "--live-teacher", "--out", "live")
    assert done.exit_code == 0, done.stderr
    assert (tmp_path / "cached/student.safetensors").read_bytes() == (
        tmp_path / "live/student.safetensors"
    ).read_bytes()
    done = run("verify", "m.zarr", "--replay", "40")
    assert done.exit_code == 0, done.stdout
    assert "its logits agree within rounding" in done.stdout
    assert open_cache(tmp_path / "m.zarr").command == (
        "logitcache dump --teacher tiny:net --teacher tiny:net "
        f"--data arrays:{npz} --out {tmp_path}/m.zarr --teacher-weights a.safetensors --teacher-weights b.safetensors --average "
        "--test-time-views flip --augment cifar --views 2 --precision f32"
    )


def test_a_test_time_view_is_the_mean_with_the_mirror_image(dump, images, tmp_path):
    network = tiny.net(tiny.CLASSES).eval()
    cache = dump(teacher=network, augment="none", views=1, test_time_views="flip")
    shown = (images.images.float() / 255 - torch.tensor(images.normalization[0])[:, None, None]) / torch.tensor(
        images.normalization[1]
    )[:, None, None]
    with torch.inference_mode():
        expected = (network(shown) + network(shown.flip(-1))) / 2
    assert np.allclose(cache.view(0, "sequential")["logits"], expected, atol=1e-5)
    with pytest.raises(UnknownNameError, match="test-time views"):
        dump(test_time_views="flop", out=tmp_path / "x.zarr")


@pytest.mark.parametrize(
    ("teachers", "weights", "words"),
    [
        (["tiny:net", "tiny:net"], ["a"], "2 teachers but one `teacher_weights` a"),
        (["tiny:net"], ["a", "b"], "1 teachers but 2 `teacher_weights`"),
        (["tiny:net", "tiny:net", "tiny:net"], ["a", "b"], "3 teachers but 2 `teacher_weights`"),
    ],
)
def test_weights_that_do_not_belong_to_teachers_are_refused(dump, teachers, weights, words):
    with pytest.raises(InputError, match=words):
        dump(teacher=teachers, teacher_weights=weights)


@pytest.mark.parametrize(
    ("room", "most", "expected"),
    [(64, 8192, 64), (300, 8192, 256), (10**9, 8192, 8192), (10**9, 300, 256), (10**9, 40, 40)],
)
def test_the_largest_batch_that_fits_is_found_by_doubling(room, most, expected):
    def attempt(rows):
        if rows > room:
            raise InputError("memory ran out")

    assert largest_fitting(attempt, most) == expected
    with pytest.raises(InputError):
        largest_fitting(attempt, 10**11, first=10**10)


def test_an_automatic_batch_size_is_recorded_and_kept(dump, run, npz):
    words = ["dump", "--teacher", "tiny:net", "--data", f"arrays:{npz}", "--out", "c.zarr", "--batch-size"]
    assert run(*words, "auto").exit_code == 0
    assert open_cache("c.zarr").manifest.batch_size == 256
    assert run(*words, "auto", "--views", "2").exit_code == 0
    assert open_cache("c.zarr").manifest.batch_size == 256
    done = run(*words, "0")
    assert done.exit_code == 2
    assert "expected a positive integer" in done.stderr


@pytest.mark.slow
def test_a_compiled_teacher_is_recorded_and_runs_so_again(dump, images, tmp_path):
    network = tiny.net(tiny.CLASSES)
    cache = dump(teacher=network, compiled=True)
    assert cache.manifest.forward["compiled"]
    plain = dump(teacher=network, out=tmp_path / "plain.zarr")
    gap = np.abs(cache.view(0, "sequential")["logits"] - plain.view(0, "sequential")["logits"]).max()
    assert gap < 1e-4
    arguments = {"cache": cache, "student": "tiny:still", "data": images, "epochs": 2}
    cached = logitcache.train_student(**arguments, out=tmp_path / "cached")
    live = logitcache.train_student(**arguments, live_teacher=network, out=tmp_path / "live")
    for one, same in zip(cached.student.parameters(), live.student.parameters(), strict=True):
        assert torch.equal(one, same)


class Dropping(nn.Module):
    """Drops in evaluation mode too, as `functional.dropout` does by default."""

    def __init__(self, classes):
        super().__init__()
        self.net = tiny.net(classes)

    def forward(self, x):
        return nn.functional.dropout(self.net(x), 0.5)


class Unruly(nn.Module):
    """Its batch normalisation stays in training mode, so that a row depends on its neighbours."""

    def __init__(self, classes):
        super().__init__()
        self.net = tiny.net(classes)

    def forward(self, x):
        self.net[1].train()
        return self.net(x)


class Shuffling(nn.Module):
    """A row depends on its place in the batch."""

    def __init__(self, classes):
        super().__init__()
        self.net = tiny.net(classes)

    def forward(self, x):
        return self.net(x) * torch.arange(1, len(x) + 1)[:, None]


@pytest.mark.parametrize("kind", [Dropping, Shuffling])
def test_a_teacher_that_is_no_function_of_its_input_is_refused_before_anything_is_stored(dump, tmp_path, kind):
    with pytest.raises(
        InputError, match=f"teacher {kind.__name__} is not a function of its input: on the same samples"
    ):
        dump(teacher=kind(tiny.CLASSES))
    assert not list((tmp_path / "c.zarr").rglob("c/0/*"))


def test_a_teacher_whose_rows_depend_on_their_neighbours_is_refused(dump):
    with pytest.raises(InputError, match="teacher Unruly is not a function of its input"):
        dump(teacher=Unruly(tiny.CLASSES))


def random_head(classes):
    return tiny.student(classes)


def test_a_factory_with_random_weights_is_refused(dump, monkeypatch):
    monkeypatch.syspath_prepend(str(tiny.HERE / "teachers"))
    with pytest.raises(InputError, match="test_teachers:random_head is initialized with different weights each time"):
        dump(teacher="test_teachers:random_head")


@pytest.mark.parametrize(
    ("last", "said"),
    [(nn.Softmax(1), "seems to return probabilities"), (nn.LogSoftmax(1), "returns log-probabilities")],
)
def test_rows_that_are_no_raw_logits_are_reported(dump, caplog, last, said):
    dump(teacher=nn.Sequential(tiny.net(tiny.CLASSES), last))
    assert [record.levelname for record in caplog.records if said in record.getMessage()] == ["WARNING"]


def test_a_teacher_at_chance_is_reported_with_its_preprocessing(dump, caplog, monkeypatch):
    monkeypatch.setattr("logitcache.runtime.wording._ENOUGH", 100)
    wrong = nn.Sequential(tiny.net(tiny.CLASSES), Constant())
    dump(teacher=wrong)
    assert any(
        "which is chance (20.00%)" in one and "mean and std" in one and "`class_map`" in one for one in caplog.messages
    )


class Constant(nn.Module):
    """Always prefers the first class."""

    def forward(self, x):
        return x * 0 + torch.tensor([1.0, 0, 0, 0, 0])

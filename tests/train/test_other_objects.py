"""Other people's objects: data sets of torch and torchvision, students and teachers that return more than a tensor."""

import pytest
import tiny
import torch
from PIL import Image
from torch import nn
from torch.utils.data import Dataset

import logitcache
from logitcache.data import as_samples
from logitcache.errors import InputError


class Pictures(Dataset):
    """Map-style, as most people write them: items are (PIL image, label); no attribute says what the labels are."""

    def __init__(self, split="train"):
        self.pixels, self.labels, _ = tiny.arrays(split)

    def __len__(self):
        return len(self.labels)

    def __getitem__(self, index):
        return Image.fromarray(self.pixels[index]), int(self.labels[index])


class Answering(nn.Module):
    """A student that returns its logits in some other shape."""

    def __init__(self, shape):
        super().__init__()
        self.net, self.shape = tiny.still(tiny.CLASSES), shape

    def forward(self, x):
        wrapped = tiny.Wrapped.forward
        return wrapped(self, x)


def test_a_torch_dataset_is_taken_wherever_data_is(dump, tmp_path):
    cache = dump(data=Pictures(), image_size=tiny.SIZE)
    common = {"student": tiny.still(tiny.CLASSES), "epochs": 1, "out": tmp_path / "run"}
    found = logitcache.train_student(cache=cache, data=Pictures(), test_data=Pictures("test"), **common)
    assert "test_accuracy" in found.results
    assert logitcache.verify_cache(tmp_path / "c.zarr", data=Pictures(), replay=8, teacher=tiny.net(tiny.CLASSES)).ok
    batch = next(iter(logitcache.open(cache).loader(Pictures(), batch_size=8).epoch(0)))
    assert batch.images.shape == (8, 3, tiny.SIZE, tiny.SIZE)
    assert len(logitcache.wrap(Pictures(), cache)) == tiny.SAMPLES
    small = {"teacher": tiny.net(tiny.CLASSES), "image_size": tiny.SIZE}
    plan = logitcache.plan_dump(data=Pictures(), out=tmp_path / "p.zarr", **small)
    assert plan.rows == tiny.SAMPLES


class Changed(nn.Module):
    """A student of which something is done to the logits."""

    def __init__(self, change):
        super().__init__()
        self.net, self.change = tiny.still(tiny.CLASSES), change

    def forward(self, x):
        return self.change(self.net(x))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (torch.detach, "has no gradient"),
        (lambda logits: (100 * logits).long(), "has no gradient"),
        (
            lambda logits: logits.to(torch.complex64),
            r"must return logits \[B, 5\], found a tensor .* of complex numbers",
        ),
        (lambda logits: logits if logits.requires_grad else logits / 0, "the loss of an evaluation is nan"),
    ],
)
def test_a_student_that_cannot_be_trained_is_a_sentence(dump, tmp_path, change, message):
    cache = dump(data=Pictures(), image_size=tiny.SIZE, views=1)
    with pytest.raises(InputError, match=message):
        logitcache.train_student(
            cache=cache, data=Pictures(), student=Changed(change), epochs=1, workers=0, out=tmp_path / "run"
        )


def test_arrays_and_names_are_data_too(tmp_path):
    pixels, labels, classes = tiny.arrays()
    cache = logitcache.dump_logits(
        teacher=tiny.net(tiny.CLASSES), data=(pixels, labels, classes), out=tmp_path / "c.zarr"
    )
    assert cache.manifest.classes == tuple(classes)
    with pytest.raises(InputError, match="the data set is of type int; expected a map-style data set of"):
        as_samples(3)


@pytest.mark.parametrize("shape", ["tuple", "dict", "object"])
def test_a_student_may_return_what_a_teacher_may(dump, images, test_images, tmp_path, shape):
    cache = dump()
    plain = tiny.still(tiny.CLASSES)
    wrapped = Answering(shape)
    wrapped.net.load_state_dict(plain.state_dict())
    common = {"cache": cache, "data": images, "test_data": test_images, "epochs": 2}
    ours = logitcache.train_student(student=plain, out=tmp_path / "plain", **common)
    theirs = logitcache.train_student(student=wrapped, out=tmp_path / "wrapped", **common)
    expected = ours.student.state_dict()
    assert all(torch.equal(expected[name.removeprefix("net.")], x) for name, x in theirs.student.state_dict().items())
    assert ours.results["test_accuracy"] == theirs.results["test_accuracy"]


def test_a_student_without_logits_is_one_sentence(dump, images, tmp_path):
    with pytest.raises(InputError, match=r"the student must return logits \[B, 5\], found dict"):
        logitcache.train_student(
            cache=dump(), data=images, student=Answering("nothing"), epochs=1, out=tmp_path / "run"
        )


class Failing(nn.Module):
    """Works while it is trained, and fails when it is evaluated."""

    def __init__(self):
        super().__init__()
        self.net, self.frozen = tiny.still(tiny.CLASSES), nn.BatchNorm2d(3).eval()

    def forward(self, x):
        if not self.training:
            raise FloatingPointError
        return self.net(x)


def test_an_evaluation_that_fails_leaves_every_mode_as_it_was(dump, images, test_images, tmp_path):
    student = Failing()
    with pytest.raises(
        InputError,
        match=r"in evaluation mode, the student fails on an input of shape \[1, 3, 16, 16\]: FloatingPointError\.",
    ):
        logitcache.train_student(
            cache=dump(), data=images, test_data=test_images, student=student, epochs=1, out=tmp_path / "run"
        )
    assert student.training
    assert student.net.training


class Dtypes(nn.Module):
    """Remembers in which precision it was evaluated."""

    def __init__(self):
        super().__init__()
        self.net, self.seen = tiny.still(tiny.CLASSES), set()

    def forward(self, x):
        found = self.net(x)
        self.seen.add((self.training, found.dtype, x.is_contiguous(memory_format=torch.channels_last)))
        return found


def test_evaluation_runs_in_the_precision_and_layout_of_training(dump, images, test_images, tmp_path):
    student = Dtypes()
    logitcache.train_student(
        cache=dump(),
        data=images,
        test_data=test_images,
        student=student,
        epochs=1,
        amp=True,
        channels_last=True,
        out=tmp_path / "run",
    )
    assert student.seen == {(True, torch.bfloat16, True), (False, torch.bfloat16, True)}


def test_nothing_is_read_ahead_after_the_last_epoch(dump, images, tmp_path, monkeypatch):
    cache, read = dump(views=3), []
    view = type(cache).view

    def counted(self, index, *more):
        read.append(index)
        return view(self, index, *more)

    monkeypatch.setattr(type(cache), "view", counted)
    rows = type(cache).rows
    monkeypatch.setattr(type(cache), "rows", lambda self, *more: pytest.fail("rows of a view in memory are read again"))
    logitcache.train_student(cache=cache, student="tiny:still", data=images, epochs=1, out=tmp_path / "one")
    assert read == [0]
    read.clear()
    monkeypatch.setattr(type(cache), "rows", rows)
    logitcache.train_student(cache=cache, student="tiny:still", data=images, epochs=2, out=tmp_path / "two")
    assert read == [0, 1]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"student": 5}, r"train_student\(cache, student\) takes a path or a Cache, .* and int"),
        ({"student": tiny.student}, "and function. Call a factory with the number of classes first"),
        ({"cache": 3}, "a cache must be a path, an address or a Cache, not int"),
        ({"callbacks": 3}, "callbacks must be a logitcache.Callbacks object, not 3"),
        ({"should_stop": True}, "should_stop must be a function, not True"),
        ({"method": nn.KLDivLoss()}, "method .* cannot be called with student, teacher and labels"),
        ({"method": nn.PReLU()}, "cannot be called with student|has trainable parameters"),
        ({"method": lambda s, t, y: y}, r"returned torch.int64 \[48\]; expected"),
        ({"opt": torch.optim.LBFGS}, "LBFGS evaluates the loss several times per step"),
        (
            {"opt": lambda parameters: torch.optim.SGD([nn.Parameter(torch.zeros(1))], lr=1)},
            "does not contain 4 of the student's 4 parameters",
        ),
    ],
)
def test_an_object_that_cannot_serve_is_one_sentence(dump, images, tmp_path, changes, message):
    arguments = {"cache": dump(), "data": images, "student": "tiny:still", "epochs": 1, "batch_size": 48}
    with pytest.raises(InputError, match=message):
        logitcache.train_student(**(arguments | changes), out=tmp_path / "run")


def test_a_student_of_which_nothing_can_be_trained_is_refused(dump, images, tmp_path):
    student = tiny.still(tiny.CLASSES).requires_grad_(False)
    with pytest.raises(InputError, match="no parameter of the student requires gradients"):
        logitcache.train_student(dump(), student, data=images, epochs=1, out=tmp_path / "run")


def test_a_part_in_training_mode_says_how_a_student_is_to_be_trained(dump, images, tmp_path):
    student = tiny.student(tiny.CLASSES).eval()
    student[5].train()  # dropout
    before = student[1].running_mean.clone()
    logitcache.train_student(dump(), student, data=images, epochs=1, out=tmp_path / "run")
    assert torch.equal(student[1].running_mean, before)
    whole = tiny.student(tiny.CLASSES).eval()
    logitcache.train_student(dump(), whole, data=images, epochs=1, out=tmp_path / "whole")
    assert not torch.equal(whole[1].running_mean, before)


def test_two_dumps_of_swapped_arguments_are_one_sentence(tmp_path):
    with pytest.raises(InputError, match="a teacher must be the name of a network or a module, not function"):
        logitcache.dump_logits(tiny.net, tiny.arrays(), tmp_path / "c.zarr")


class Grey(nn.Module):
    """A network of one channel."""

    def __init__(self, classes):
        super().__init__()
        self.net = nn.Sequential(
            nn.Conv2d(1, 8, 3, stride=2), nn.ReLU(), nn.AdaptiveAvgPool2d(2), nn.Flatten(), nn.Linear(32, classes)
        )

    def forward(self, x):
        return self.net(x)


def grey_arrays():
    pixels, labels, _ = tiny.arrays()
    return pixels[..., 0], labels


def test_networks_of_grey_images_take_grey_images(tmp_path):
    torch.manual_seed(0)
    teacher = Grey(tiny.CLASSES)
    cache = logitcache.dump_logits(teacher, grey_arrays(), tmp_path / "c.zarr", precision="f32", batch_size=300)
    preprocessing = cache.manifest.teachers[0]["preprocessing"]
    assert preprocessing["channels"] == 1
    pixels = torch.from_numpy(grey_arrays()[0])[:, None].float() / 255
    with torch.no_grad():
        expected = teacher((pixels - preprocessing["mean"][0]) / preprocessing["std"][0])
    assert torch.allclose(logitcache.open_dataset(cache).logits(range(300)), expected, atol=1e-5)
    for student in (Grey(tiny.CLASSES), "tiny:still"):  # another student sees three channels
        logitcache.train_student(cache, student, data=grey_arrays(), epochs=1, out=tmp_path / type(student).__name__)
    with pytest.raises(InputError, match="the network takes images with one channel, but these have three"):
        logitcache.dump_logits(teacher, tiny.arrays()[:2], tmp_path / "d.zarr")


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16, torch.float16])
def test_weights_of_any_precision_are_run_in_it(dump, images, tmp_path, dtype):
    exact = logitcache.open_dataset(dump(out=tmp_path / "exact.zarr")).logits(range(64))
    cache = dump(teacher=tiny.net(tiny.CLASSES).to(dtype))
    found = logitcache.open_dataset(cache).logits(range(64))
    assert found.dtype == torch.float32
    assert torch.allclose(found, exact, atol=1e-5 if dtype is torch.float64 else 0.05)
    student = tiny.still(tiny.CLASSES).to(torch.float64 if dtype is torch.float64 else dtype)
    logitcache.train_student(cache, student, data=images, epochs=1, lr=0.01, out=tmp_path / "run")


class Picky(nn.Module):
    """Insists on a size."""

    def __init__(self, classes):
        super().__init__()
        self.net = tiny.still(classes)

    def forward(self, x):
        if x.shape[-1] != 24:
            raise AssertionError("Wrong image height! Expected 24")
        return self.net(x)


def test_a_network_that_insists_on_a_size_is_one_sentence_with_the_remedy(dump, images, tmp_path):
    said = r"fails on an input of shape \[.*, 3, 16, 16\]: AssertionError: Wrong image height! Expected 24. Try another `image_size`"
    with pytest.raises(InputError, match=f"teacher Picky {said}"):
        dump(teacher=Picky(tiny.CLASSES), out=tmp_path / "t.zarr")
    cache = dump(teacher=Picky(tiny.CLASSES), image_size=24)
    with pytest.raises(InputError, match=f"the student {said}"):
        logitcache.train_student(cache, Picky(tiny.CLASSES), data=images, image_size=16, epochs=1, out=tmp_path / "a")
    logitcache.train_student(cache, Picky(tiny.CLASSES), data=images, epochs=1, out=tmp_path / "b")

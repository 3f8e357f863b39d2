"""Label-aware methods on real errors: the demo's teacher on strongly cropped images that it has not seen."""

import numpy as np
import pytest
import torch
from torch.nn import functional as F

from logitcache.data import Renderer, load_data, preprocessing_for
from logitcache.data.images.views import make_views
from logitcache.methods import METHODS, get_loss
from logitcache.models import load_network

LABEL_AWARE = {"dkd", "rc", "wsld", "loca", "swap", "sld", "rld", "revision"}


@pytest.fixture(scope="module")
def batch():
    """Teacher and student logits of 500 test images, and labels."""
    images = load_data("fashion-mnist-mini:test")
    (view,) = make_views("random-resized-crop-flip", 1, 0)
    teacher = load_network("resnet20", 10, "demo")
    eyes = preprocessing_for(images, view.recipe, teacher.preprocessing)
    samples = np.arange(0, 2000, 4)
    (rendered,) = Renderer(images, [eyes]).batches(view, [samples])
    with torch.no_grad():
        logits = teacher.module.eval()(eyes.normalize(rendered.inputs[0]))
    random = torch.Generator().manual_seed(0)
    return (
        torch.randn(logits.shape, generator=random).double(),
        logits.double(),
        torch.from_numpy(images.labels[samples]),
    )


@pytest.fixture(scope="module")
def wrong(batch):
    _, teacher, labels = batch
    found = teacher.argmax(1) != labels
    assert 50 < found.sum() < 450  # as real teachers do
    return found


def changed(one, other):
    return ~torch.isclose(one, other, rtol=1e-6)


@pytest.mark.parametrize(
    ("one", "other"),
    [
        (get_loss("loca"), get_loss("kd")),
        (get_loss("swap"), get_loss("kd")),
        (get_loss("sld"), get_loss("kd", temperature=(1, 2, 3, 4, 5, 6))),
        (get_loss("dkd", refine="loca"), get_loss("dkd")),
        (get_loss("atkd", refine="swap"), get_loss("atkd")),
        (get_loss("rld", preset="same-t"), get_loss("dkd")),
    ],
    ids=["loca", "swap", "sld", "dkd+loca", "atkd+swap", "rld"],
)
def test_it_acts_on_the_rows_that_the_teacher_gets_wrong_and_on_no_others(batch, wrong, one, other):
    assert torch.equal(changed(one(*batch), other(*batch)), wrong)
    assert torch.equal(one.refined_rows(batch[1], batch[2]), wrong)


def test_the_second_term_of_sld_acts_where_the_student_is_wrong(batch):
    student, _, labels = batch
    acts = changed(get_loss("sld", student_swap=True)(*batch), get_loss("sld")(*batch))
    assert torch.equal(acts, student.argmax(1) != labels)


def test_revision_pulls_wrong_rows_towards_the_label_and_right_ones_to_the_teacher(batch, wrong):
    student, teacher, labels = batch
    student = student.clone().requires_grad_()
    get_loss("revision")(student, teacher, labels).backward()
    right = student.detach()[~wrong].requires_grad_()
    ((right - teacher[~wrong]).square().mean() * 4 + F.cross_entropy(right, labels[~wrong])).backward()
    torch.testing.assert_close(student.grad[~wrong], right.grad)
    towards_label = -student.grad[wrong].gather(1, labels[wrong][:, None])
    assert (towards_label > 0).float().mean() > 0.9
    assert get_loss("revision").refined_rows(teacher, labels).sum() == wrong.sum()


@pytest.mark.parametrize("name", sorted(name for name, method in METHODS.items() if method.divergence))
def test_labels_matter_exactly_to_the_methods_that_use_them(batch, name):
    student, teacher, labels = batch
    loss = get_loss(name)
    same = torch.equal(loss(student, teacher, labels), loss(student, teacher, (labels + 1) % 10))
    assert same == (name not in LABEL_AWARE)

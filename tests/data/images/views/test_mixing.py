import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from logitcache.data.images.views import Mixed, blend, make_views
from logitcache.errors import InputError

MANY = np.arange(20000)


def drawn(recipe, samples=MANY, total=20000, view=0, seed=0):
    return make_views(recipe, view + 1, seed)[view].mixed(samples, total)


@given(
    st.sampled_from(["mixup", "cutmix", "mixup+cutmix(p=0.5)"]),
    st.permutations(list(range(12))),
    st.integers(0, 2**64 - 1),
    st.integers(0, 300),
)
def test_a_partner_depends_on_seed_view_and_sample_alone(recipe, order, seed, view):
    order = np.array(order)
    together = drawn(recipe, order, 50, view, seed)
    alone = [drawn(recipe, np.array([sample]), 50, view, seed) for sample in order]
    for field in ("partners", "weights", "boxes"):
        assert getattr(together, field).tolist() == [getattr(one, field)[0].tolist() for one in alone]


@pytest.mark.parametrize("alpha", [0.02, 0.2, 0.8, 1.0, 3.0, 100.0])
def test_mixup_weights_have_the_beta_distribution(alpha):
    ours = drawn(f"mixup(alpha={alpha})").weights / 256
    with torch.random.fork_rng():
        torch.manual_seed(0)
        theirs = torch.distributions.Beta(alpha, alpha).sample((200000,)).numpy()
    levels = np.linspace(0.05, 0.95, 10)
    for level in levels:
        assert abs((ours <= level).mean() - (theirs <= level).mean()) < 0.015
    assert abs(ours.var() / theirs.var() - 1) < 0.04


def test_partners_are_drawn_from_the_whole_data_set_evenly():
    found = drawn("mixup", total=10).partners
    assert np.abs(np.bincount(found, minlength=10) / len(found) - 0.1).max() < 0.01


def test_a_cutmix_weight_is_the_share_of_pixels_that_stay():
    found = drawn("cutmix", np.arange(300))
    own, partners = (
        torch.zeros(300, 1, 256, 256, dtype=torch.uint8),
        torch.full((300, 1, 256, 256), 255, dtype=torch.uint8),
    )
    stays = (blend(own, partners, found) == 0).float().mean((1, 2, 3)).numpy()
    assert np.abs(stays - found.weights / 256).max() <= 0.5 / 256
    assert 0.2 < stays.mean() < 0.8
    assert stays.std() > 0.15


def test_p_leaves_rows_alone_and_two_steps_take_turns():
    assert abs((drawn("cutmix(p=0.25)").weights == 256).mean() - 0.75) < 0.02
    both = drawn("mixup(alpha=1)+cutmix")
    cut = (both.boxes[:, 1] > both.boxes[:, 0]) & (both.boxes[:, 3] > both.boxes[:, 2])
    assert 0.45 < cut.mean() < 0.52


def test_pixels_are_blended_in_integers():
    own, partner = torch.tensor([[[[10, 200]]]], dtype=torch.uint8), torch.tensor([[[[50, 0]]]], dtype=torch.uint8)
    for weight in (0, 77, 255, 256):
        mixed = Mixed(np.array([0]), np.array([weight]), np.zeros((1, 4), np.int64))
        expected = [(weight * a + (256 - weight) * b + 128) // 256 for a, b in ((10, 50), (200, 0))]
        assert blend(own, partner, mixed).flatten().tolist() == expected
        assert blend(list(own), list(partner), mixed)[0].flatten().tolist() == expected


def test_a_partner_of_another_size_is_brought_to_the_rows():
    own, partner = torch.zeros(3, 4, 6, dtype=torch.uint8), torch.full((1, 9, 5), 100, dtype=torch.uint8)
    half = Mixed(np.array([0]), np.array([128]), np.zeros((1, 4), np.int64))
    assert torch.equal(blend([own], [partner], half)[0], torch.full((3, 4, 6), 50, dtype=torch.uint8))


@pytest.mark.parametrize(
    "recipe", ["mixup(alpha=0)", "cutmix(p=2)", "mixup(alpha=nan)", "mixup(alpha=1e+3)", "cutmix(alpha=1e16)"]
)
def test_values_that_mean_nothing_are_refused(recipe):
    with pytest.raises(InputError, match="alpha|p of "):
        drawn(recipe)

import itertools
from functools import cache
from hashlib import sha256

import pytest
import tiny
import torch
from torch import Tensor, nn

from logitcache.models.cifar import CIFAR_NETWORKS

# At 100 classes: parameters, digest of the state dict's names and shapes, least and largest of `_logits`.
# All computed with transcriptions of the networks of mdistiller and RepDistiller, not with ours.
EXPECTED = {
    "resnet110": (1_736_564, "c6e9176cff1a7fee", (-9.5834e07, 1.1869e08)),
    "resnet14": (181_108, "dc881d5570e2148d", (-54.251, 74.98)),
    "resnet20": (278_324, "649926fcf6240e69", (-25.39, 19.583)),
    "resnet32": (472_756, "eee1916dfc5fb1e3", (-277.28, 240.79)),
    "resnet32x4": (7_433_860, "632a5be2e9d2198d", (-188.75, 261.23)),
    "resnet44": (667_188, "f532b91b42661858", (-640.53, 806.28)),
    "resnet56": (861_620, "2fac08358d132b70", (-47299, 38579)),
    "resnet8": (83_892, "c7e36ff449432b48", (-10.579, 9.9284)),
    "resnet8x4": (1_233_540, "c7572c24d425e097", (-4.1335, 3.1152)),
    "wrn-16-1": (180_916, "c86622e01c0182ef", (-25.296, 32.536)),
    "wrn-16-2": (703_284, "e6a57f3ddf2bbfc4", (-6.4211, 6.0302)),
    "wrn-40-1": (569_780, "d0752782d5324ce6", (-102.89, 116.24)),
    "wrn-40-2": (2_255_156, "cf299ba03b832625", (-165.66, 226.83)),
    "vgg11": (9_277_284, "c01653e99717593a", (-0.9828, 0.90353)),
    "vgg13": (9_462_180, "7ff3cbdb2a68220a", (-0.72562, 0.633)),
    "vgg16": (14_774_436, "671ffc473361af0f", (-0.78794, 0.94407)),
    "vgg19": (20_086_692, "68d64a6eacb282aa", (-0.80081, 0.76255)),
    "vgg8": (3_965_028, "af0a4ac2401e1baa", (-1.1327, 0.91917)),
    "mobilenetv2": (812_836, "da613af71c09a1df", (-0.82416, 1.1952)),
    "shufflenetv1": (949_258, "a6a7e5aaad503399", (-3.3605, 3.5318)),
    "shufflenetv2": (1_355_528, "453a84f2a0f166f6", (-1.0131, 0.92997)),
}

SIZES = [(16, 24), (28, 28), (32, 32), (64, 64)]
every_network = pytest.mark.parametrize("name", CIFAR_NETWORKS)


@cache  # building a network takes longer than running it; the tests that share it change nothing in it
def _network(name: str) -> nn.Module:
    return CIFAR_NETWORKS[name](7).eval()


def _logits(network: nn.Module) -> Tensor:
    """Run a network as initialised, but for normalisations that would be nearly the identity in eval mode."""
    for module in network.modules():
        if isinstance(module, nn.BatchNorm2d):
            nn.init.normal_(module.weight)
            nn.init.normal_(module.bias)
    with torch.no_grad():
        logits: Tensor = network.eval()(10 * torch.randn(1, 3, 32, 32))
    return logits


def test_the_networks_are_those_of_the_literature() -> None:
    assert list(CIFAR_NETWORKS) == list(EXPECTED)


@every_network
def test_parameters_are_as_many_as_published(name: str) -> None:
    with torch.device("meta"):
        network = CIFAR_NETWORKS[name](100)
    assert sum(parameter.numel() for parameter in network.parameters()) == EXPECTED[name][0]


@every_network
def test_names_and_shapes_of_the_state_are_those_of_published_checkpoints(name: str) -> None:
    with torch.device("meta"):
        state = CIFAR_NETWORKS[name](100).state_dict()
    lines = sorted(f"{key} {list(value.shape)}" for key, value in state.items())
    assert sha256("\n".join(lines).encode()).hexdigest()[:16] == EXPECTED[name][1]


@every_network
def test_initialisation_and_logits_at_32_px_are_those_of_the_originals(name: str) -> None:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        logits = _logits(CIFAR_NETWORKS[name](100))
    assert (logits.min().item(), logits.max().item()) == pytest.approx(EXPECTED[name][2], rel=3e-4)


@pytest.mark.parametrize(
    ("name", "size"),
    tiny.usual(itertools.product(CIFAR_NETWORKS, SIZES), [*zip(CIFAR_NETWORKS, itertools.cycle(SIZES), strict=False)]),
    ids=str,
)
def test_images_of_any_size_give_one_row_of_logits_each(name: str, size: tuple[int, int]) -> None:
    with torch.no_grad():
        logits = _network(name)(torch.rand(2, 3, *size))
    assert logits.shape == (2, 7)
    assert logits.isfinite().all()


@pytest.mark.parametrize("size", [32, 64])
def test_the_last_block_of_a_vgg_sees_4_x_4_pixels_at_32_and_at_64_px(size: int) -> None:
    seen: list[torch.Size] = []
    network = _network("vgg8")
    with (
        torch.no_grad(),
        network.get_submodule("block4").register_forward_pre_hook(lambda _, x: seen.append(x[0].shape)),
    ):
        network(torch.rand(1, 3, size, size))
    assert seen == [(1, 512, 4, 4)]


@every_network
def test_gradient_reaches_every_parameter(name: str) -> None:
    # In eval mode, because normalising by the batch would cancel the biases of VGG's convolutions.
    network = _network(name)
    names, parameters = zip(*network.named_parameters(), strict=True)
    gradients = torch.autograd.grad(network(torch.rand(2, 3, 16, 16)).sum(), parameters)
    assert [key for key, gradient in zip(names, gradients, strict=True) if not gradient.any()] == []


@every_network
def test_a_row_does_not_depend_on_its_neighbour_in_eval_mode(name: str) -> None:
    images = torch.rand(2, 3, 16, 16)
    others = torch.stack([images[0], 10 * torch.randn(3, 16, 16)])
    with torch.no_grad():
        logits, changed = _network(name)(images), _network(name)(others)
    torch.testing.assert_close(changed[0], logits[0], rtol=1e-4, atol=0)
    assert not torch.equal(changed[1], logits[1])

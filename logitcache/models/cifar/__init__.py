"""The CIFAR networks of the distillation literature, by name.

State-dict names and results at 32 px match RepDistiller and mdistiller, so their weights can be loaded.
"""

from collections.abc import Callable
from functools import partial

from torch import nn

from logitcache.models.cifar.mobilenetv2 import MobileNetV2
from logitcache.models.cifar.resnet import ResNet
from logitcache.models.cifar.shufflenetv1 import ShuffleNetV1
from logitcache.models.cifar.shufflenetv2 import ShuffleNetV2
from logitcache.models.cifar.vgg import VGG
from logitcache.models.cifar.wide_resnet import WideResNet

__all__ = ["CIFAR_NETWORKS"]

_NARROW = (16, 16, 32, 64)
_WIDE = (32, 64, 128, 256)

# Name -> constructor that takes num_classes. Networks map images, [B, 3, H, W] with H, W >= 16, to logits.
CIFAR_NETWORKS: dict[str, Callable[[int], nn.Module]] = {
    "resnet110": partial(ResNet, 110, _NARROW),
    "resnet14": partial(ResNet, 14, _NARROW),
    "resnet20": partial(ResNet, 20, _NARROW),
    "resnet32": partial(ResNet, 32, _NARROW),
    "resnet32x4": partial(ResNet, 32, _WIDE),
    "resnet44": partial(ResNet, 44, _NARROW),
    "resnet56": partial(ResNet, 56, _NARROW),
    "resnet8": partial(ResNet, 8, _NARROW),
    "resnet8x4": partial(ResNet, 8, _WIDE),
    "wrn-16-1": partial(WideResNet, 16, 1),
    "wrn-16-2": partial(WideResNet, 16, 2),
    "wrn-40-1": partial(WideResNet, 40, 1),
    "wrn-40-2": partial(WideResNet, 40, 2),
    "vgg11": partial(VGG, (1, 1, 2, 2, 2)),
    "vgg13": partial(VGG, (2, 2, 2, 2, 2)),
    "vgg16": partial(VGG, (2, 2, 3, 3, 3)),
    "vgg19": partial(VGG, (2, 2, 4, 4, 4)),
    "vgg8": partial(VGG, (1, 1, 1, 1, 1)),
    "mobilenetv2": MobileNetV2,
    "shufflenetv1": ShuffleNetV1,
    "shufflenetv2": ShuffleNetV2,
}

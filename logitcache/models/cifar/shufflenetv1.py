"""Grouped 1x1 convolutions whose channels are shuffled between groups (ShuffleNet), for small images.

Zhang, Zhou, Lin, Sun: ShuffleNet: An Extremely Efficient Convolutional Neural Network for Mobile Devices.
CVPR 2018. https://arxiv.org/abs/1707.01083

Owns ShuffleNet 1x with 3 groups (Table 1) behind a 1x1 stem without pooling, and the channel shuffle.
State-dict names follow RepDistiller and mdistiller.
"""

import torch
from torch import Tensor, nn
from torch.nn import functional as F

__all__ = ["ShuffleNetV1", "shuffle"]

_GROUPS = 3


def shuffle(x: Tensor, groups: int) -> Tensor:
    """Shuffle the channels of [B, C, H, W], so that channel j of group i becomes channel i of group j."""
    batch, channels, height, width = x.shape
    dealt = x.reshape(batch, groups, channels // groups, height, width).transpose(1, 2)
    return dealt.reshape(x.shape)


class _Bottleneck(nn.Module):
    def __init__(self, in_channels: int, channels: int, stride: int, in_groups: int) -> None:
        super().__init__()
        self.stride = stride
        self.in_groups = in_groups
        # At stride 2 the pooled input makes up the rest of the channels.
        out_channels = channels - in_channels if stride == 2 else channels
        middle = out_channels // 4
        self.conv1 = nn.Conv2d(in_channels, middle, 1, groups=in_groups, bias=False)
        self.bn1 = nn.BatchNorm2d(middle)
        self.conv2 = nn.Conv2d(middle, middle, 3, stride, padding=1, groups=middle, bias=False)
        self.bn2 = nn.BatchNorm2d(middle)
        self.conv3 = nn.Conv2d(middle, out_channels, 1, groups=_GROUPS, bias=False)
        self.bn3 = nn.BatchNorm2d(out_channels)

    def forward(self, x: Tensor) -> Tensor:
        out = shuffle(F.relu(self.bn1(self.conv1(x))), self.in_groups)
        out = F.relu(self.bn2(self.conv2(out)))  # the paper has no ReLU here
        out = self.bn3(self.conv3(out))
        if self.stride == 2:
            return F.relu(torch.cat([out, F.avg_pool2d(x, 3, stride=2, padding=1)], 1))
        return F.relu(out + x)


def _stage(in_channels: int, channels: int, blocks: int, in_groups: int) -> nn.Sequential:
    rest = (_Bottleneck(channels, channels, 1, _GROUPS) for _ in range(blocks - 1))
    return nn.Sequential(_Bottleneck(in_channels, channels, 2, in_groups), *rest)


class ShuffleNetV1(nn.Module):
    """ShuffleNet of three stages, each at half the resolution of the one before.

    Args:
        num_classes: Number of classes.
    """

    def __init__(self, num_classes: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(3, 24, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(24)
        self.layer1 = _stage(24, 240, blocks=4, in_groups=1)  # 24 channels are too few to group
        self.layer2 = _stage(240, 480, blocks=8, in_groups=_GROUPS)
        self.layer3 = _stage(480, 960, blocks=4, in_groups=_GROUPS)
        self.linear = nn.Linear(960, num_classes)

    def forward(self, x: Tensor) -> Tensor:
        """Map images, [B, 3, H, W], to logits, [B, num_classes]."""
        x = F.relu(self.bn1(self.conv1(x)))
        x = self.layer3(self.layer2(self.layer1(x)))
        logits: Tensor = self.linear(x.mean((2, 3)))
        return logits

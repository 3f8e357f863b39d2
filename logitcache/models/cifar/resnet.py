"""Residual networks for small images (ResNet): three stages of basic blocks, 6n + 2 layers deep.

He, Zhang, Ren, Sun: Deep Residual Learning for Image Recognition. CVPR 2016. https://arxiv.org/abs/1512.03385

Owns the networks of Section 4.2 and their wider x4 variants.
State-dict names follow RepDistiller and mdistiller.
"""

from torch import Tensor, nn
from torch.nn import functional as F

__all__ = ["ResNet"]


class _BasicBlock(nn.Module):
    def __init__(self, in_channels: int, channels: int, stride: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(in_channels, channels, 3, stride, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(channels)
        self.conv2 = nn.Conv2d(channels, channels, 3, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(channels)
        self.downsample: nn.Module = nn.Identity()
        if stride != 1 or in_channels != channels:
            # The paper pads with zeros here (option A); the distillation literature projects (option B).
            self.downsample = nn.Sequential(
                nn.Conv2d(in_channels, channels, 1, stride, bias=False),
                nn.BatchNorm2d(channels),
            )

    def forward(self, x: Tensor) -> Tensor:
        out = F.relu(self.bn1(self.conv1(x)))
        out = self.bn2(self.conv2(out))
        return F.relu(out + self.downsample(x))


def _stage(in_channels: int, channels: int, blocks: int, stride: int) -> nn.Sequential:
    rest = (_BasicBlock(channels, channels, 1) for _ in range(blocks - 1))
    return nn.Sequential(_BasicBlock(in_channels, channels, stride), *rest)


class ResNet(nn.Module):
    """A ResNet of three stages, each at half the resolution of the one before.

    Args:
        depth: Number of layers with weights, 6n + 2 for n blocks a stage.
        channels: Channels of the stem and of the three stages.
        num_classes: Number of classes.
    """

    def __init__(self, depth: int, channels: tuple[int, int, int, int], num_classes: int) -> None:
        super().__init__()
        blocks = (depth - 2) // 6
        self.conv1 = nn.Conv2d(3, channels[0], 3, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(channels[0])
        self.layer1 = _stage(channels[0], channels[1], blocks, stride=1)
        self.layer2 = _stage(channels[1], channels[2], blocks, stride=2)
        self.layer3 = _stage(channels[2], channels[3], blocks, stride=2)
        self.fc = nn.Linear(channels[3], num_classes)
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")

    def forward(self, x: Tensor) -> Tensor:
        """Map images, [B, 3, H, W], to logits, [B, num_classes]."""
        x = F.relu(self.bn1(self.conv1(x)))
        x = self.layer3(self.layer2(self.layer1(x)))
        logits: Tensor = self.fc(x.mean((2, 3)))
        return logits

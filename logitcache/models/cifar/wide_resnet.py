"""Wide residual networks (WRN): fewer, wider blocks that normalize before they convolve.

Zagoruyko, Komodakis: Wide Residual Networks. BMVC 2016. https://arxiv.org/abs/1605.07146

Owns the WRN-d-k of Table 1, without dropout.
State-dict names follow RepDistiller and mdistiller.
"""

from torch import Tensor, nn
from torch.nn import functional as F

__all__ = ["WideResNet"]


class _PreactivationBlock(nn.Module):
    def __init__(self, in_channels: int, channels: int, stride: int) -> None:
        super().__init__()
        self.bn1 = nn.BatchNorm2d(in_channels)
        self.conv1 = nn.Conv2d(in_channels, channels, 3, stride, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(channels)
        self.conv2 = nn.Conv2d(channels, channels, 3, padding=1, bias=False)
        self.convShortcut: nn.Module | None = None
        if in_channels != channels:
            self.convShortcut = nn.Conv2d(in_channels, channels, 1, stride, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        active = F.relu(self.bn1(x))
        residual: Tensor = self.conv2(F.relu(self.bn2(self.conv1(active))))
        # A projection sees the activated input, an identity the raw one.
        shortcut: Tensor = x if self.convShortcut is None else self.convShortcut(active)
        return shortcut + residual


class _Stage(nn.Module):
    """Blocks under the name `layer`, which checkpoints expect."""

    def __init__(self, in_channels: int, channels: int, blocks: int, stride: int) -> None:
        super().__init__()
        rest = (_PreactivationBlock(channels, channels, 1) for _ in range(blocks - 1))
        self.layer = nn.Sequential(_PreactivationBlock(in_channels, channels, stride), *rest)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.layer(x)
        return out


class WideResNet(nn.Module):
    """A wide ResNet of three stages, each at half the resolution of the one before.

    Args:
        depth: Number of layers, 6n + 4 for n blocks a stage.
        widening: Factor on the 16, 32 and 64 channels of the stages.
        num_classes: Number of classes.
    """

    def __init__(self, depth: int, widening: int, num_classes: int) -> None:
        super().__init__()
        blocks = (depth - 4) // 6
        self.conv1 = nn.Conv2d(3, 16, 3, padding=1, bias=False)
        self.block1 = _Stage(16, 16 * widening, blocks, stride=1)
        self.block2 = _Stage(16 * widening, 32 * widening, blocks, stride=2)
        self.block3 = _Stage(32 * widening, 64 * widening, blocks, stride=2)
        self.bn1 = nn.BatchNorm2d(64 * widening)
        self.fc = nn.Linear(64 * widening, num_classes)
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")
        nn.init.zeros_(self.fc.bias)

    def forward(self, x: Tensor) -> Tensor:
        """Map images, [B, 3, H, W], to logits, [B, num_classes]."""
        x = self.block3(self.block2(self.block1(self.conv1(x))))
        x = F.relu(self.bn1(x))
        logits: Tensor = self.fc(x.mean((2, 3)))
        return logits

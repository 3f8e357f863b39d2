"""Inverted residuals at half width (MobileNetV2), for small images.

Sandler, Howard, Zhu, Zhmoginov, Chen: MobileNetV2: Inverted Residuals and Linear Bottlenecks. CVPR 2018.
https://arxiv.org/abs/1801.04381

Owns the student that the distillation literature calls MobileNetV2: width 0.5, expansion 6. Unlike Table 2 of
the paper, the second stage keeps its resolution, ReLU is not capped at 6, and the block that does not expand
has its first 1x1 convolution too. State-dict names follow RepDistiller and mdistiller.
"""

from torch import Tensor, nn

__all__ = ["MobileNetV2"]

# Each stage: expansion, channels (half of the paper's), blocks, stride of the first block.
_STAGES = (
    (1, 8, 1, 1),
    (6, 12, 2, 1),
    (6, 16, 3, 2),
    (6, 32, 4, 2),
    (6, 48, 3, 1),
    (6, 80, 3, 2),
    (6, 160, 1, 1),
)


class _InvertedResidual(nn.Module):
    def __init__(self, in_channels: int, channels: int, stride: int, expansion: int) -> None:
        super().__init__()
        expanded = in_channels * expansion
        self.residual = stride == 1 and in_channels == channels
        self.conv = nn.Sequential(
            nn.Conv2d(in_channels, expanded, 1, bias=False),
            nn.BatchNorm2d(expanded),
            nn.ReLU(inplace=True),
            nn.Conv2d(expanded, expanded, 3, stride, padding=1, groups=expanded, bias=False),
            nn.BatchNorm2d(expanded),
            nn.ReLU(inplace=True),
            nn.Conv2d(expanded, channels, 1, bias=False),
            nn.BatchNorm2d(channels),
        )

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.conv(x)
        return x + out if self.residual else out


def _stage(in_channels: int, channels: int, blocks: int, stride: int, expansion: int) -> nn.Sequential:
    rest = (_InvertedResidual(channels, channels, 1, expansion) for _ in range(blocks - 1))
    return nn.Sequential(_InvertedResidual(in_channels, channels, stride, expansion), *rest)


class MobileNetV2(nn.Module):
    """MobileNetV2 at half width; the last convolution keeps its 1280 channels.

    Args:
        num_classes: Number of classes.
    """

    def __init__(self, num_classes: int) -> None:
        super().__init__()
        self.conv1 = nn.Sequential(
            nn.Conv2d(3, 16, 3, stride=2, padding=1, bias=False),
            nn.BatchNorm2d(16),
            nn.ReLU(inplace=True),
        )
        in_channels = 16
        self.blocks = nn.Sequential()
        for expansion, channels, blocks, stride in _STAGES:
            self.blocks.append(_stage(in_channels, channels, blocks, stride, expansion))
            in_channels = channels
        self.conv2 = nn.Sequential(
            nn.Conv2d(in_channels, 1280, 1, bias=False),
            nn.BatchNorm2d(1280),
            nn.ReLU(inplace=True),
        )
        self.classifier = nn.Sequential(nn.Linear(1280, num_classes))
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")
            elif isinstance(module, nn.Linear):
                nn.init.normal_(module.weight, std=0.01)
                nn.init.zeros_(module.bias)

    def forward(self, x: Tensor) -> Tensor:
        """Map images, [B, 3, H, W], to logits, [B, num_classes]."""
        x = self.conv2(self.blocks(self.conv1(x)))
        logits: Tensor = self.classifier(x.mean((2, 3)))
        return logits

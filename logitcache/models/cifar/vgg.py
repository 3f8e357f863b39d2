"""Plain stacks of 3x3 convolutions (VGG), with batch normalization and a single linear layer on top.

Simonyan, Zisserman: Very Deep Convolutional Networks for Large-Scale Image Recognition. ICLR 2015.
https://arxiv.org/abs/1409.1556

Owns configurations A, B, D and E of Table 1 (VGG-11, 13, 16, 19) and the 8-layer student.
State-dict names follow RepDistiller and mdistiller.
"""

from torch import Tensor, nn
from torch.nn import functional as F

__all__ = ["VGG"]


def _block(in_channels: int, channels: int, convolutions: int) -> nn.Sequential:
    layers: list[nn.Module] = []
    for width in [in_channels] + [channels] * (convolutions - 1):
        layers += [nn.Conv2d(width, channels, 3, padding=1), nn.BatchNorm2d(channels), nn.ReLU(inplace=True)]
    return nn.Sequential(*layers)


class VGG(nn.Module):
    """A VGG of five blocks.

    Args:
        convolutions: Number of convolutions in each block.
        num_classes: Number of classes.
    """

    def __init__(self, convolutions: tuple[int, int, int, int, int], num_classes: int) -> None:
        super().__init__()
        self.block0 = _block(3, 64, convolutions[0])
        self.block1 = _block(64, 128, convolutions[1])
        self.block2 = _block(128, 256, convolutions[2])
        self.block3 = _block(256, 512, convolutions[3])
        self.block4 = _block(512, 512, convolutions[4])
        self.classifier = nn.Linear(512, num_classes)
        for module in self.modules():
            if isinstance(module, nn.Conv2d) and module.bias is not None:
                nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")
                nn.init.zeros_(module.bias)
        nn.init.normal_(self.classifier.weight, std=0.01)
        nn.init.zeros_(self.classifier.bias)

    def forward(self, x: Tensor) -> Tensor:
        """Map images, [B, 3, H, W], to logits, [B, num_classes]."""
        height = x.shape[2]
        x = F.max_pool2d(self.block0(x), 2)
        x = F.max_pool2d(self.block1(x), 2)
        x = F.max_pool2d(self.block2(x), 2)
        x = self.block3(x)
        if height >= 64:  # 32 px images would have hardly anything left to pool
            x = F.max_pool2d(x, 2)
        x = self.block4(x)
        logits: Tensor = self.classifier(x.mean((2, 3)))
        return logits

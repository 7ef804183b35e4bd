"""A backbone that trains in milliseconds, for tests that do not depend on the quality of features."""

from fastreid.modeling.backbones import BACKBONE_REGISTRY
from torch import nn


def convolution(channels: int, out: int) -> nn.Conv2d:
    """Return a convolution whose initial weights preserve the differences between images."""
    layer = nn.Conv2d(channels, out, 3, padding=1)
    nn.init.kaiming_normal_(layer.weight)
    nn.init.zeros_(layer.bias)
    return layer


class Block(nn.Module):
    def __init__(self, channels: int) -> None:
        super().__init__()
        self.conv, self.bn2 = convolution(channels, channels), nn.BatchNorm2d(channels)

    def forward(self, x):
        return self.bn2(self.conv(x)).relu()


@BACKBONE_REGISTRY.register()
def build_tiny_backbone(cfg):
    """A backbone with the parts of a ResNet, two blocks in each of four layers, MODEL.BACKBONE.FEAT_DIM channels."""
    channels = cfg.MODEL.BACKBONE.FEAT_DIM
    parts = {"conv1": convolution(3, channels), "bn1": nn.BatchNorm2d(channels), "relu": nn.ReLU(),
             "maxpool": nn.MaxPool2d(2)}
    parts |= {f"layer{i}": nn.Sequential(Block(channels), Block(channels)) for i in (1, 2, 3, 4)}
    backbone = nn.Sequential()
    for name, part in parts.items():
        backbone.add_module(name, part)
    return backbone

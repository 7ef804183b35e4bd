"""Vision transformers cut between two blocks: tokens for the branches, and maps of what they give.

Shapes: B images, P prefix tokens (the class token first, where there is one), h x w patches, C channels.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor, nn


class Grid(NamedTuple):
    """Where the patches are among the tokens: row by row behind `prefix` others, of which the class token is first."""

    rows: int
    columns: int
    prefix: int
    class_token: bool


class MapOfTokens(nn.Module):
    """Tokens (B, P + h * w, C) to the map of the patches (B, C, h, w)."""

    def __init__(self, grid: Grid) -> None:
        super().__init__()
        self.grid = grid

    def forward(self, tokens: Tensor) -> Tensor:
        patches = tokens[:, self.grid.prefix:].transpose(1, 2)  # (B, C, h * w)
        return patches.unflatten(2, (self.grid.rows, self.grid.columns))


class ClassToken(nn.Module):
    """Tokens (B, P + h * w, C) to the class token, as a map of one place (B, C, 1, 1)."""

    def forward(self, tokens: Tensor) -> Tensor:
        return tokens[:, 0, :, None, None]


class OnMap(nn.Module):
    """A map (B, C, h, w) through modules that take tokens, without prefix tokens."""

    def __init__(self, *modules: nn.Module) -> None:
        super().__init__()
        self.layers = nn.Sequential(*modules)

    def forward(self, x: Tensor) -> Tensor:
        tokens = self.layers(x.flatten(2).transpose(1, 2))  # (B, h * w, C)
        return tokens.transpose(1, 2).unflatten(2, x.shape[2:])


class HostTrunk(nn.Module):
    """The host's vision transformer up to a block: images (B, 3, H, W) to tokens.

    Its own forward goes on to the end, and gives the class token alone. The modules check the size of images as before.
    """

    def __init__(self, vit: nn.Module, blocks: int) -> None:
        super().__init__()
        self.patch_embed, self.pos_drop = vit.patch_embed, vit.pos_drop
        self.cls_token, self.pos_embed = vit.cls_token, vit.pos_embed
        self.blocks = nn.Sequential(*vit.blocks[:blocks])

    def forward(self, images: Tensor) -> Tensor:
        patches = self.patch_embed(images)
        tokens = torch.cat([self.cls_token.expand(patches.shape[0], -1, -1), patches], dim=1)
        return self.blocks(self.pos_drop(tokens + self.pos_embed))


class TimmTrunk(nn.Module):
    """A vision transformer of timm up to a block, through its own method, which does more than its modules do."""

    def __init__(self, vit: nn.Module, blocks: int) -> None:
        super().__init__()
        self.vit = vit
        vit.blocks, vit.norm = vit.blocks[:blocks], nn.Identity()

    def forward(self, images: Tensor) -> Tensor:
        return self.vit.forward_features(images)

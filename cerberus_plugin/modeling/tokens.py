"""Modules for vision transformers that are split between two blocks: trunks, and conversions of tokens to feature maps.

Shapes: B images, P prefix tokens (the first is the class token, if there is one), h x w patches, C channels.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor, nn


class Grid(NamedTuple):
    """Layout of the tokens: `prefix` tokens, then the patches row by row.

    Args:
        rows, columns: number of patches.
        prefix: number of tokens before the patches.
        class_token: whether the first token is a class token.
    """

    rows: int
    columns: int
    prefix: int
    class_token: bool


class MapOfTokens(nn.Module):
    """Convert tokens, float (B, P + h * w, C), to the feature map of the patches (B, C, h, w).

    Examples:
        >>> MapOfTokens(Grid(rows=8, columns=4, prefix=1, class_token=True))(torch.zeros(2, 33, 192)).shape
        torch.Size([2, 192, 8, 4])
    """

    def __init__(self, grid: Grid) -> None:
        super().__init__()
        self.grid = grid

    def forward(self, tokens: Tensor) -> Tensor:
        patches = tokens[:, self.grid.prefix:].transpose(1, 2)  # (B, C, h * w)
        return patches.unflatten(2, (self.grid.rows, self.grid.columns))


class ClassToken(nn.Module):
    """Convert tokens, float (B, P + h * w, C), to the class token as a feature map (B, C, 1, 1)."""

    def forward(self, tokens: Tensor) -> Tensor:
        return tokens[:, 0, :, None, None]


class OnMap(nn.Module):
    """Apply modules for tokens to a feature map, float (B, C, h, w); there are no prefix tokens.

    Args:
        modules: applied in order to (B, h * w, C).
    """

    def __init__(self, *modules: nn.Module) -> None:
        super().__init__()
        self.layers = nn.Sequential(*modules)

    def forward(self, x: Tensor) -> Tensor:
        tokens = self.layers(x.flatten(2).transpose(1, 2))  # (B, h * w, C)
        return tokens.transpose(1, 2).unflatten(2, x.shape[2:])


class HostTrunk(nn.Module):
    """The first blocks of FastReID's vision transformer: images, float (B, 3, H, W), to tokens (B, P + h * w, C).

    FastReID's forward pass always runs all blocks and returns only the class token.

    Args:
        vit: FastReID's `VisionTransformer`; its modules are reused.
        blocks: number of blocks to run.
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
    """The first blocks of a timm vision transformer: images, float (B, 3, H, W), to tokens (B, P + h * w, C).

    Calls `forward_features`, which does more than the modules alone, such as adding position embeddings.

    Args:
        vit: timm's `VisionTransformer`; changed in place.
        blocks: number of blocks to run.
    """

    def __init__(self, vit: nn.Module, blocks: int) -> None:
        super().__init__()
        self.vit = vit
        vit.blocks, vit.norm = vit.blocks[:blocks], nn.Identity()

    def forward(self, images: Tensor) -> Tensor:
        return self.vit.forward_features(images)

"""What published weights of people add to timm's models: SOLIDER's semantic scaling, the convolution stem of
TransReID-SSL and CION. Each is a key of MODEL.BACKBONE, so that a checkpoint builds the same model again."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from fastreid.layers.batch_norm import IBN
from timm.models.swin_transformer import PatchMerging, SwinTransformer
from timm.models.vision_transformer import VisionTransformer
from torch import Tensor, nn


class SemanticMerging(PatchMerging):
    """Swin's merging of patches, scaled and shifted by how much semantics is asked for (SOLIDER, arXiv 2303.17602).

    x softplus(W_s (w, 1 - w) + b_s) + W_t (w, 1 - w) + b_t with the semantic weight w. The maps of w are not trained
    further, as its authors fine-tune: buffers scale_weight, shift_weight (C, 2) and scale_bias, shift_bias (C,), which
    scale by 1 and shift by 0 unless weights fill them.
    """

    def __init__(self, merging: PatchMerging, semantic_weight: float) -> None:
        super().__init__(merging.dim, merging.out_dim)
        self.norm, self.reduction = merging.norm, merging.reduction
        self.semantic_weight = semantic_weight
        for kind, bias in (("scale", torch.ones(self.out_dim).expm1().log()), ("shift", torch.zeros(self.out_dim))):
            self.register_buffer(f"{kind}_weight", torch.zeros(self.out_dim, 2))
            self.register_buffer(f"{kind}_bias", bias)

    def forward(self, x: Tensor) -> Tensor:
        """(B, H, W, C) to (B, H / 2, W / 2, out_dim)."""
        w = self.semantic_weight
        scale, shift = (weight[:, 0] * w + weight[:, 1] * (1 - w) + bias
                        for weight, bias in ((self.scale_weight, self.scale_bias),
                                             (self.shift_weight, self.shift_bias)))
        return super().forward(x) * F.softplus(scale) + shift


class ConvolutionStem(nn.Module):
    """Patches of three convolutions, two of them half instance-normalised (TransReID-SSL, arXiv 2111.12084).

    Takes the place of timm's patch embedding, with its attributes. images (B, 3, H, W) to (B, N, C).
    """

    def __init__(self, patches: nn.Module, width: int = 64) -> None:
        super().__init__()
        self.img_size, self.grid_size, self.num_patches = patches.img_size, patches.grid_size, patches.num_patches
        self.patch_size = patches.patch_size

        def block(channels: int, norm: nn.Module, size: int, stride: int) -> tuple[nn.Module, ...]:
            return (nn.Conv2d(channels, width, size, stride, size // 2, bias=False), norm, nn.ReLU(inplace=True))

        self.conv = nn.Sequential(*block(3, IBN(width, "BN"), 7, 2), *block(width, IBN(width, "BN"), 3, 1),
                                  *block(width, nn.BatchNorm2d(width), 3, 1))
        half = [size // 2 for size in self.patch_size]
        self.proj = nn.Conv2d(width, patches.proj.out_channels, half, half)

    def forward(self, x: Tensor) -> Tensor:
        return self.proj(self.conv(x)).flatten(2).transpose(1, 2)


def adapt_timm_model(model: nn.Module, options) -> None:
    """Change a model of timm in place as MODEL.BACKBONE says, before weights are loaded and before it is split.

    Raises:
        ValueError: if the model has not what the options are about.
    """
    if options.SEMANTIC_WEIGHT != -1.0:
        if not isinstance(model, SwinTransformer) or not 0 <= options.SEMANTIC_WEIGHT <= 1:
            raise ValueError(f"MODEL.BACKBONE.SEMANTIC_WEIGHT is {options.SEMANTIC_WEIGHT}, expected 0 to 1 for a Swin "
                             f"of timm, such as swin_base_patch4_window7_224, and -1 for {options.DEPTH}")
        for layer in model.layers[1:]:
            layer.downsample = SemanticMerging(layer.downsample, options.SEMANTIC_WEIGHT)
    if options.CONV_STEM:
        if not isinstance(model, VisionTransformer):
            raise ValueError(f"MODEL.BACKBONE.CONV_STEM is True, which is for timm's vision transformers, and "
                             f"MODEL.BACKBONE.DEPTH is {options.DEPTH}; set CONV_STEM to False")
        if tuple(model.patch_embed.proj.stride) != tuple(model.patch_embed.patch_size):
            raise ValueError(f"MODEL.BACKBONE.CONV_STEM is True and STRIDE_SIZE {tuple(options.STRIDE_SIZE)}: patches "
                             f"overlap or have the stem, not both; set STRIDE_SIZE to {model.patch_embed.patch_size}")
        model.patch_embed = ConvolutionStem(model.patch_embed)

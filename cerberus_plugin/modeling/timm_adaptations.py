"""Changes to timm models that published person-pretrained weights need.

These are SOLIDER's semantic scaling and the convolution stem of TransReID-SSL and CION. Camera embeddings are
those of TransReID, which are trained in fine-tuning. A key of MODEL.BACKBONE enables each, so that a run's
configuration builds the same model again.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from fastreid.layers.batch_norm import IBN
from timm.models.swin_transformer import PatchMerging, SwinTransformer
from timm.models.vision_transformer import VisionTransformer
from torch import Tensor, nn

from .cameras import CameraEmbedding


class SemanticMerging(PatchMerging):
    """Swin's patch merging with SOLIDER's semantic scaling (arXiv 2303.17602).

    The output x of the merging becomes x softplus(W_s (w, 1 - w) + b_s) + W_t (w, 1 - w) + b_t with the semantic weight
    w. W and b are buffers, not trained, as in the authors' fine-tuning: scale_weight and shift_weight, float (C, 2),
    scale_bias and shift_bias, float (C,). Without pretrained weights, they scale by 1 and shift by 0.

    Args:
        merging: timm's module to replace.
        semantic_weight: w, 0 to 1; 0.2 for reID.
    """

    def __init__(self, merging: PatchMerging, semantic_weight: float) -> None:
        super().__init__(merging.dim, merging.out_dim)
        self.norm, self.reduction = merging.norm, merging.reduction
        self.semantic_weight = semantic_weight
        for kind, bias in (("scale", torch.ones(self.out_dim).expm1().log()), ("shift", torch.zeros(self.out_dim))):
            self.register_buffer(f"{kind}_weight", torch.zeros(self.out_dim, 2))
            self.register_buffer(f"{kind}_bias", bias)

    def forward(self, x: Tensor) -> Tensor:
        """Float (B, h, w, C) to (B, h / 2, w / 2, out_dim)."""
        w = self.semantic_weight
        scale, shift = (weight[:, 0] * w + weight[:, 1] * (1 - w) + bias
                        for weight, bias in ((self.scale_weight, self.scale_bias),
                                             (self.shift_weight, self.shift_bias)))
        return super().forward(x) * F.softplus(scale) + shift


class ConvolutionStem(nn.Module):
    """Patch embedding by three convolutions, two of them with IBN (TransReID-SSL, arXiv 2111.12084).

    Replaces timm's patch embedding and has the same attributes. Images, float (B, 3, H, W), to tokens (B, N, C).

    Args:
        patches: timm's patch embedding to replace.
        width: channels of the convolutions.
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
    """Apply MODEL.BACKBONE.SEMANTIC_WEIGHT, CONV_STEM and SIE_CAMERAS to a timm model, in place.

    Call this before weights are loaded and before the model is split.

    Args:
        model: the timm model.
        options: the configuration node MODEL.BACKBONE.

    Raises:
        ValueError: if the model does not support an option.
    """
    if options.SEMANTIC_WEIGHT != -1.0:
        if not isinstance(model, SwinTransformer) or not 0 <= options.SEMANTIC_WEIGHT <= 1:
            raise ValueError(f"MODEL.BACKBONE.SEMANTIC_WEIGHT is {options.SEMANTIC_WEIGHT}, expected 0 to 1 for a Swin "
                             f"of timm, such as swin_base_patch4_window7_224, and -1 for {options.DEPTH}")
        for layer in model.layers[1:]:
            layer.downsample = SemanticMerging(layer.downsample, options.SEMANTIC_WEIGHT)
    if options.CONV_STEM:
        if not isinstance(model, VisionTransformer):
            raise ValueError(f"MODEL.BACKBONE.CONV_STEM is True, which only timm's vision transformers support, "
                             f"but MODEL.BACKBONE.DEPTH is {options.DEPTH}; set CONV_STEM to False")
        if tuple(model.patch_embed.proj.stride) != tuple(model.patch_embed.patch_size):
            raise ValueError(f"MODEL.BACKBONE.CONV_STEM is True and STRIDE_SIZE {tuple(options.STRIDE_SIZE)}: the "
                             "stem does not support overlapping patches; set STRIDE_SIZE to "
                             f"{model.patch_embed.patch_size}")
        model.patch_embed = ConvolutionStem(model.patch_embed)
    if options.SIE_CAMERAS:
        if options.SIE_CAMERAS < 2:
            raise ValueError(f"MODEL.BACKBONE.SIE_CAMERAS is {options.SIE_CAMERAS}, expected 0 (off) or the number of "
                             "cameras of the training set, at least 2")
        if not isinstance(model, VisionTransformer) or model.pos_embed is None:
            raise ValueError(f"MODEL.BACKBONE.SIE_CAMERAS is {options.SIE_CAMERAS}, which only timm's vision "
                             f"transformers with position embeddings support, but MODEL.BACKBONE.DEPTH is "
                             f"{options.DEPTH}; set SIE_CAMERAS to 0")
        model.pos_drop = CameraEmbedding(options.SIE_CAMERAS, model.embed_dim, options.SIE_COE, model.pos_drop)

"""timm models as backbones: MODEL.BACKBONE.NAME build_timm_backbone, MODEL.BACKBONE.DEPTH the name of the model."""

from __future__ import annotations

import difflib

import torch
from fastreid.modeling.backbones import BACKBONE_REGISTRY
from torch import Tensor, nn
from torchvision.ops import Permute

from .chains import calls_of
from .tokens import ClassToken, Grid, MapOfTokens


class TimmBackbone(nn.Module):
    """A timm model without its classifier: images, float (B, 3, H, W), to a feature map (B, C, h, w).

    For a vision transformer with a class token the feature map is the class token, (B, C, 1, 1), as in FastReID's.

    Args:
        timm_model: the whole model, so that parameter names match those of weight files. Modules that
            `forward_features` does not call are replaced by `nn.Identity`, because parameters without a gradient stop
            distributed training.
        size: H, W of the images in pixels.

    Raises:
        ValueError: if `forward_features` does not return a feature map.
    """

    def __init__(self, timm_model: nn.Module, size: tuple[int, int]) -> None:
        super().__init__()
        from timm.models.vision_transformer import VisionTransformer

        self.timm_model = timm_model
        self.size = size
        self.grid: Grid | None = None
        self.nhwc = getattr(timm_model, "output_fmt", "NCHW") == "NHWC"
        self.to_map: nn.Module = Permute([0, 3, 1, 2]) if self.nhwc else nn.Identity()
        if isinstance(timm_model, VisionTransformer):
            self.grid = Grid(*timm_model.patch_embed.grid_size, timm_model.num_prefix_tokens,
                             timm_model.has_class_token)
            self.to_map = ClassToken() if self.grid.class_token else MapOfTokens(self.grid)
        calls = calls_of(self, size)
        features = calls[""][0][1]
        if not isinstance(features, Tensor) or features.dim() != 4:
            raise ValueError(f"MODEL.BACKBONE.DEPTH: timm's {type(timm_model).__name__} returns no feature map; use "
                             "a convolutional network, a vision transformer (vit_*, deit3_*) or a Swin (swin_*)")
        for name, child in timm_model.named_children():
            path = f"timm_model.{name}"
            if next(child.parameters(), None) is not None and not any(
                    called == path or called.startswith(f"{path}.") for called in calls):
                setattr(timm_model, name, nn.Identity())

    def forward(self, images: Tensor) -> Tensor:
        return self.to_map(self.timm_model.forward_features(images))


@BACKBONE_REGISTRY.register()
def build_timm_backbone(cfg) -> TimmBackbone:
    """Build a timm model with random weights.

    Nothing is downloaded. The weights of MODEL.BACKBONE.PRETRAIN_PATH are loaded afterwards. Transformers are built for
    images of INPUT.SIZE_TRAIN and accept no other size. A STRIDE_SIZE below the patch size makes the patches of a
    vision transformer overlap. DROP_PATH_RATIO affects models that support stochastic depth.

    Raises:
        ValueError: if timm has no such model, or the model does not support the configuration.
        ImportError: if timm is not installed.
    """
    node, size = cfg.MODEL.BACKBONE, tuple(cfg.INPUT.SIZE_TRAIN)
    timm = _timm()
    from .timm_adaptations import adapt_timm_model

    if node.PRETRAIN and not node.PRETRAIN_PATH:
        raise ValueError("MODEL.BACKBONE.PRETRAIN is True without a PRETRAIN_PATH, and weights of timm are not "
                         "downloaded. Set PRETRAIN_PATH to a weight file, or PRETRAIN to False")
    if ":" in node.DEPTH or not timm.is_model(node.DEPTH):
        near = difflib.get_close_matches(node.DEPTH, timm.list_models(), n=5)
        raise ValueError(f"MODEL.BACKBONE.DEPTH is '{node.DEPTH}', which is not a model of timm {timm.__version__}; "
                         + (f"similar names: {', '.join(near)}" if near else "timm.list_models() lists them"))
    wanted = {"reg_tokens": node.EXTRA_TOKENS, "window_size": node.WINDOW_SIZE}
    # Without always_partition, Swin shrinks its windows to small feature maps, and the relative position tables of
    # weight files have another size.
    model, accepted = _created(timm, node.DEPTH, {key: value for key, value in wanted.items() if value},
                            img_size=size, dynamic_img_size=False, always_partition=True,
                            drop_path_rate=node.DROP_PATH_RATIO)
    if "img_size" in accepted and list(cfg.INPUT.SIZE_TEST) != list(size):
        raise ValueError(f"INPUT.SIZE_TEST is {list(cfg.INPUT.SIZE_TEST)} and SIZE_TRAIN {list(size)}: {node.DEPTH} "
                         "has position embeddings for one image size; set both to the same size")
    _set_stride(model, size, tuple(node.STRIDE_SIZE), node.DEPTH)
    adapt_timm_model(model, node)
    fused = [type(module).__name__ for module in model.modules() if isinstance(module, timm.layers.BatchNormAct2d)]
    if cfg.MODEL.SYNC_BN and fused:
        raise ValueError(f"MODEL.SYNC_BN is True, but {node.DEPTH} has {len(fused)} layers {fused[0]}, which combine "
                         "batch normalisation with the activation; the conversion would lose the activation. Set "
                         "SYNC_BN to False")
    return TimmBackbone(model, size)


def _timm():
    try:
        import timm
    except ImportError as error:
        raise ImportError("MODEL.BACKBONE.NAME build_timm_backbone needs timm: pip install timm") from error
    return timm


def _created(timm, name: str, wanted: dict, **options) -> tuple[nn.Module, dict]:
    """Create a model, dropping options that its class does not support.

    Args:
        timm: the imported package.
        name: of the model.
        wanted: options that the model must support.
        options: further options, dropped if the model does not support them.

    Returns:
        the model, and the options that it supports.
    """
    while True:
        try:
            return timm.create_model(name, pretrained=False, num_classes=0, **wanted, **options), options
        except TypeError as error:
            refused = [key for key in (*wanted, *options) if f"'{key}'" in str(error)]
            if not refused:
                raise
            if set(refused) & set(wanted):
                raise ValueError(f"MODEL.BACKBONE.DEPTH is '{name}', which does not support {refused[0]}: set "
                                 "MODEL.BACKBONE.EXTRA_TOKENS and WINDOW_SIZE to 0") from error
            options = {key: value for key, value in options.items() if key not in refused}


def _set_stride(model: nn.Module, size: tuple[int, int], stride: tuple[int, int], name: str) -> None:
    """Set the stride of a vision transformer's patches, in place; only whole patches are used (TransReID).

    Args:
        size: H, W of the images in pixels.
        stride: rows and columns in pixels.
        name: of the model, for error messages.
    """
    patches = getattr(model, "patch_embed", None)
    convolution = getattr(patches, "proj", None)
    if stride == (16, 16) or isinstance(convolution, nn.Conv2d) and convolution.stride == stride:
        return
    if not isinstance(convolution, nn.Conv2d) or getattr(model, "pos_embed", None) is None:
        raise ValueError(f"MODEL.BACKBONE.STRIDE_SIZE is {list(stride)}, which {name} does not support; set it to "
                         "[16, 16], the default, which has no effect on models other than vision transformers")
    before = patches.num_patches
    convolution.stride = stride
    patches.grid_size = tuple((pixels - kernel) // step + 1
                              for pixels, kernel, step in zip(size, convolution.kernel_size, stride))
    patches.num_patches = patches.grid_size[0] * patches.grid_size[1]
    positions = model.pos_embed.shape[1] - before + patches.num_patches
    model.pos_embed = nn.Parameter(torch.empty(1, positions, model.embed_dim))
    nn.init.trunc_normal_(model.pos_embed, std=0.02)

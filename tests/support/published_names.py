"""Names and shapes of the tensors in published weight files, taken from the public code that wrote them."""

from __future__ import annotations

Shapes = dict[str, tuple[int, ...]]


def _pair(name: str, size: int) -> Shapes:
    return {f"{name}.weight": (size,), f"{name}.bias": (size,)}


def _linear(name: str, rows: int, columns: int, bias: bool = True) -> Shapes:
    return {f"{name}.weight": (rows, columns)} | ({f"{name}.bias": (rows,)} if bias else {})


def _norm(name: str, size: int) -> Shapes:
    return _pair(name, size) | {f"{name}.running_mean": (size,), f"{name}.running_var": (size,)}


def resnet(blocks: tuple[int, ...] = (3, 4, 6, 3), ibn: bool = False, classes: int = 1000) -> Shapes:
    """ResNet with bottlenecks of torchvision; with `ibn` that of IBN-Net, with instance norms in three stages."""
    found = {"conv1.weight": (64, 3, 7, 7)} | _norm("bn1", 64)
    width = 64
    for stage, count in enumerate(blocks, 1):
        inner = 32 * 2**stage
        for block in range(count):
            name = f"layer{stage}.{block}"
            found |= {f"{name}.conv1.weight": (inner, width, 1, 1), f"{name}.conv2.weight": (inner, inner, 3, 3),
                      f"{name}.conv3.weight": (4 * inner, inner, 1, 1)}
            if ibn and stage < 4:
                found |= _pair(f"{name}.bn1.IN", inner // 2) | _norm(f"{name}.bn1.BN", inner // 2)
            else:
                found |= _norm(f"{name}.bn1", inner)
            found |= _norm(f"{name}.bn2", inner) | _norm(f"{name}.bn3", 4 * inner)
            if block == 0:
                found |= {f"{name}.downsample.0.weight": (4 * inner, width, 1, 1)}
                found |= _norm(f"{name}.downsample.1", 4 * inner)
            width = 4 * inner
    return found | (_linear("fc", classes, width) if classes else {})


def vit(width: int = 768, depth: int = 12, tokens: int = 197, patch: int = 16) -> Shapes:
    """ViT without a head, as in DeiT and DINO, and in TransReID, TransReID-SSL and PersonViT."""
    found: Shapes = {"cls_token": (1, 1, width), "pos_embed": (1, tokens, width),
                     "patch_embed.proj.weight": (width, 3, patch, patch), "patch_embed.proj.bias": (width,)}
    for block in range(depth):
        name = f"blocks.{block}"
        found |= _pair(f"{name}.norm1", width) | _linear(f"{name}.attn.qkv", 3 * width, width)
        found |= _linear(f"{name}.attn.proj", width, width) | _pair(f"{name}.norm2", width)
        found |= _linear(f"{name}.mlp.fc1", 4 * width, width) | _linear(f"{name}.mlp.fc2", width, 4 * width)
    return found | _pair("norm", width)


def vit_with_stem(width: int = 384, depth: int = 12) -> Shapes:
    """ViT of TransReID-SSL and CION: three convolutions before patches of half the size."""
    found = vit(width, depth, 129) | {"patch_embed.proj.weight": (width, 64, 8, 8)}
    for place, channels, size in ((0, 3, 7), (3, 64, 3), (6, 64, 3)):
        found[f"patch_embed.conv.{place}.weight"] = (64, channels, size, size)
    for place in (1, 4):
        found |= _pair(f"patch_embed.conv.{place}.IN", 32) | _norm(f"patch_embed.conv.{place}.BN", 32)
    return found | _norm("patch_embed.conv.7", 64)


def vit_with_parts(width: int = 384, depth: int = 12) -> Shapes:
    """ViT of PASS: part tokens, and separate position embeddings of tokens and patches."""
    parts = [name.format(part) for part in (1, 2, 3) for name in ("part_token{}", "part{}_pos")]
    tokens = ["cls_token", "cls_pos", *parts]
    return vit(width, depth, 128) | dict.fromkeys(tokens, (1, 1, width))


def mmcv_swin(width: int = 128, depths: tuple[int, ...] = (2, 2, 18, 2), heads: tuple[int, ...] = (4, 8, 16, 32),
              window: int = 7) -> Shapes:
    """Swin of SOLIDER, without the prefix `backbone.`."""
    found: Shapes = {"patch_embed.projection.weight": (width, 3, 4, 4), "patch_embed.projection.bias": (width,)}
    found |= _pair("patch_embed.norm", width)
    for stage, (depth, number) in enumerate(zip(depths, heads)):
        size = width * 2**stage
        for block in range(depth):
            name = f"stages.{stage}.blocks.{block}"
            found |= _pair(f"{name}.norm1", size) | _pair(f"{name}.norm2", size)
            found |= {f"{name}.attn.w_msa.relative_position_bias_table": ((2 * window - 1)**2, number),
                      f"{name}.attn.w_msa.relative_position_index": (window**2, window**2)}
            found |= _linear(f"{name}.attn.w_msa.qkv", 3 * size, size) | _linear(f"{name}.attn.w_msa.proj", size, size)
            found |= _linear(f"{name}.ffn.layers.0.0", 4 * size, size) | _linear(f"{name}.ffn.layers.1", size, 4 * size)
        if stage < 3:
            found |= _pair(f"stages.{stage}.downsample.norm", 4 * size)
            found |= _linear(f"stages.{stage}.downsample.reduction", 2 * size, 4 * size, bias=False)
        found |= _pair(f"norm{stage}", size)
        for kind in "wb":
            found |= _linear(f"semantic_embed_{kind}.{stage}", width * 2**min(stage + 1, 3), 2)
    return found


def clip_vit(width: int = 768, depth: int = 12, tokens: int = 197, patch: int = 16, text: int = 512) -> Shapes:
    """Image encoder (ViT) of CLIP, without the prefix `visual.`."""
    found: Shapes = {"class_embedding": (width,), "positional_embedding": (tokens, width), "proj": (width, text),
                     "conv1.weight": (width, 3, patch, patch)} | _pair("ln_pre", width) | _pair("ln_post", width)
    for block in range(depth):
        name = f"transformer.resblocks.{block}"
        found |= {f"{name}.attn.in_proj_weight": (3 * width, width), f"{name}.attn.in_proj_bias": (3 * width,)}
        found |= _linear(f"{name}.attn.out_proj", width, width)
        found |= _pair(f"{name}.ln_1", width) | _pair(f"{name}.ln_2", width)
        found |= _linear(f"{name}.mlp.c_fc", 4 * width, width) | _linear(f"{name}.mlp.c_proj", width, 4 * width)
    return found


def clip_resnet() -> Shapes:
    """Image encoder (ResNet-50) of CLIP, without the prefix `visual.`: three convolutions and attention pooling."""
    found = {name: shape for name, shape in resnet(classes=0).items() if name.startswith("layer")}
    for place, channels, width in ((1, 3, 32), (2, 32, 32), (3, 32, 64)):
        found |= {f"conv{place}.weight": (width, channels, 3, 3)} | _norm(f"bn{place}", width)
    found["attnpool.positional_embedding"] = (50, 2048)
    for name, rows in (("q", 2048), ("k", 2048), ("v", 2048), ("c", 1024)):
        found |= _linear(f"attnpool.{name}_proj", rows, 2048)
    return found

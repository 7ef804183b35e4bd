"""Publishers of pretrained weights: how to recognise their files, and which settings a model needs to use them.

Each is a `Source` in `SOURCES`. The first that recognises a file is used. docs/pretrained.md documents them.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from torch import Tensor

from . import names
from .contents import Contents

# Mean and standard deviation of red, green and blue for pixels from 0 to 255.
Normalisation = tuple[tuple[float, float, float], tuple[float, float, float]]
IMAGENET: Normalisation = (123.675, 116.28, 103.53), (58.395, 57.12, 57.375)
HALF: Normalisation = (127.5, 127.5, 127.5), (127.5, 127.5, 127.5)
LUPERSON: Normalisation = (89.896, 79.2, 80.073), (63.872, 64.305, 63.839)
CLIP: Normalisation = (122.7709, 116.746, 104.0937), (68.5005, 66.6322, 70.3232)
NORMALISATIONS = {"ImageNet": IMAGENET, "0.5 / 0.5": HALF, "LUPerson": LUPERSON, "CLIP": CLIP}


@dataclass(frozen=True)
class Source:
    """A publisher of weight files.

    Args:
        name: value of MODEL.BACKBONE.PRETRAIN_SOURCE.
        what: description for the log.
        recognise: returns whether the contents of a file are from this publisher.
        rename: renames tensors to the names of torchvision's ResNet, timm's model or FastReID's backbone.
        normalisations: valid pixel normalisations, the most common first; empty if unknown.
        stem: pooling of a ResNet's stem during pretraining, "padding" or "ceil".
        rows_per_column: rows divided by columns of the grid of position embeddings.
        needs: keys of MODEL.BACKBONE with the values that a timm model needs for these weights.
        sizes: H, W in pixels with which the authors fine-tune; empty if several are common.
        terms: terms of use as stated by the authors, for the log.
    """

    name: str
    what: str
    recognise: Callable[[Contents], bool]
    rename: Callable[[Mapping[str, Tensor]], dict[str, Tensor]] = dict
    normalisations: tuple[Normalisation, ...] = ()
    stem: str = "padding"
    rows_per_column: int = 1
    needs: Mapping[str, Any] = field(default_factory=dict)
    sizes: tuple[tuple[int, int], ...] = ()
    terms: str = ""


USUAL, TALL = (256, 128), (384, 128)
OF_LUPERSON = "trained on LUPerson, whose images are for research only"
AGREEMENT = "available under a signed agreement"
RESNET, VIT, SWIN = "layer4.0.conv1.weight", "blocks.0.attn.qkv.weight", "layers.0.blocks.0.attn.qkv.weight"


def _is_person_vit(contents: Contents) -> bool:
    """Whether a file is a transformer pretrained on person images, which have a grid of patches that is not square.

    Every published pretraining on person images uses 256 x 128 pixels.
    """
    positions = contents.tensors.get("pos_embed")
    if not contents.has(VIT) or positions is None:
        return False
    return "teacher" in contents.outer or math.isqrt(positions.shape[1] - 1) ** 2 != positions.shape[1] - 1


def _is_luperson(contents: Contents) -> bool:
    """Whether a file is LUPerson's ResNet: the names of any ResNet without classifier, so the file name decides."""
    return contents.has(RESNET) and "fc.weight" not in contents.tensors and contents.file_name.startswith("lup")


SOURCES = (
    Source("solider", "SOLIDER's Swin", lambda file: file.has("semantic_embed_w.0.weight"), names.solider, (HALF,),
           needs={"SEMANTIC_WEIGHT": 0.2}, sizes=(TALL,), terms=OF_LUPERSON),
    Source("clip_vit", "CLIP's transformer", lambda file: file.has("class_embedding", "positional_embedding"),
           names.clip_vit, (CLIP, HALF)),
    Source("clip_resnet", "CLIP's ResNet", lambda file: file.has(RESNET, "conv3.weight"), names.clip_resnet,
           (CLIP, HALF)),
    Source("pass", "PASS, with three part tokens", lambda file: file.has("part_token1"), names.with_part_tokens,
           (HALF,), rows_per_column=2, needs={"EXTRA_TOKENS": 3}, sizes=(USUAL, TALL), terms=OF_LUPERSON),
    Source("ics_vit", "TransReID-SSL's or CION's transformer with a convolution stem",
           lambda file: file.has("patch_embed.conv.0.weight"), normalisations=(HALF,), rows_per_column=2,
           needs={"CONV_STEM": True}, sizes=(USUAL, TALL), terms=f"{OF_LUPERSON}; CION's {AGREEMENT}"),
    Source("cion", "CION's ResNet", lambda file: "teacher" in file.outer and file.has(RESNET),
           normalisations=(IMAGENET, HALF), sizes=(TALL, USUAL), terms=AGREEMENT),
    Source("cion_swin", "CION's Swin", lambda file: file.has(SWIN, "norm3.weight"), names.cion_swin, (HALF,),
           sizes=(USUAL,), terms=AGREEMENT),
    Source("person_vit", "a transformer pretrained on people: PersonViT, TransReID-SSL", _is_person_vit,
           normalisations=(HALF,), rows_per_column=2, sizes=(USUAL, TALL), terms=OF_LUPERSON),
    Source("fastreid", "a checkpoint of FastReID",
           lambda file: file.prefix == "backbone." and any(name.startswith("heads.") for name in file.beside),
           stem="ceil"),
    Source("torchreid", "torchreid's OSNet", lambda file: file.has("conv1.conv.weight", "conv2.0.conv1.conv.weight")),
    Source("luperson", "LUPerson's or LUPerson-NL's ResNet", _is_luperson, normalisations=(LUPERSON,),
           sizes=(TALL, USUAL), terms="for research only"),
    Source("imagenet", "a file with the tensor names of torchvision, timm or the model", lambda file: True,
           names.imagenet),
)


def recognise(contents: Contents, name: str = "") -> Source:
    """Find the source of a file.

    Args:
        contents: of the file.
        name: value of MODEL.BACKBONE.PRETRAIN_SOURCE; "" to recognise the source by the names of the tensors.

    Raises:
        ValueError: if no source has this name.

    Examples:
        >>> recognise(Contents({"conv1.weight": Tensor([1.0])})).name
        'imagenet'
    """
    if name:
        found = next((source for source in SOURCES if source.name == name), None)
        if found is None:
            raise ValueError(f"MODEL.BACKBONE.PRETRAIN_SOURCE is '{name}', expected '' (recognise the source by the "
                             f"names of the tensors) or one of {', '.join(source.name for source in SOURCES)}")
        return found
    return next(source for source in SOURCES if source.recognise(contents))

"""Models of other packages that FastReID can build: configuration keys and names of tensors.

Sources: torchreid 0.2.5 (models/osnet.py, resnet.py), the package `reid` 0.1.0rc1 (architectures/) and FastReID's SBS.
BoxMOT uses torchreid's names for OSNet and ResNet-50. The tests compare each entry with FastReID's model.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from torch import Tensor

Prefixes = tuple[tuple[str, str], ...]
# Prefixes of names (in the other package, in FastReID); the first that matches is replaced.
WITHOUT_FC: Prefixes = (("", "backbone."),)
WITH_FC: Prefixes = (("fc.0.", "heads.bottleneck.0."), ("fc.1.", "heads.bottleneck.1."), *WITHOUT_FC)
SBS: Prefixes = (("backbone.", "backbone."), ("pool.", "heads.pool_layer."), ("bottleneck.", "heads.bottleneck.0."))
SBS_OF_FASTREID: Prefixes = (("backbone.", "backbone."), ("heads.", "heads."))


@dataclass(frozen=True)
class Architecture:
    """A model of another package that FastReID can build.

    Args:
        name: in the other package.
        marks: names and shapes of tensors that identify a file of this model.
        prefixes: of the tensors' names, in the other package and in FastReID.
        options: configuration keys with which FastReID builds the model.
        size: H, W in pixels of the images for which the model was published.
        interpolation: with which the other package resizes images.
        in_reid: whether the package `reid` builds the model under this name.
    """

    name: str
    marks: Mapping[str, tuple[int, ...]]
    prefixes: Prefixes
    options: Mapping[str, Any]
    size: tuple[int, int] = (256, 128)
    interpolation: str = "bilinear"
    in_reid: bool = False

    def fits(self, tensors: Mapping[str, Tensor]) -> bool:
        """Whether a file with these tensors contains this model."""
        return all(name in tensors and tuple(tensors[name].shape) == shape for name, shape in self.marks.items())

    def to_host(self, name: str) -> str:
        """Convert a tensor's name to FastReID's; a name that matches no prefix is returned unchanged.

        Examples:
            >>> IN_REID["osnet_x1_0"].to_host("fc.0.weight")
            'heads.bottleneck.0.weight'
        """
        return _replaced(name, self.prefixes)

    def from_host(self, name: str) -> str:
        """Convert FastReID's name of a tensor to that of the other package."""
        return _replaced(name, tuple((ours, theirs) for theirs, ours in self.prefixes))


def _replaced(name: str, prefixes: Prefixes) -> str:
    return next((new + name.removeprefix(old) for old, new in prefixes if name.startswith(old)), name)


def _fc(size: int) -> dict[str, Any]:
    return {"MODEL.HEADS.NAME": "FullyConnectedHead", "MODEL.HEADS.EMBEDDING_DIM": 512,
            "MODEL.HEADS.POOL_LAYER": "GlobalAvgPool", "MODEL.BACKBONE.FEAT_DIM": size}


def _osnet(width: str, stem: int, channels: int, ibn: bool = False) -> Architecture:
    marks = {"conv1.conv.weight": (stem, 3, 7, 7), "fc.0.weight": (512, channels)}
    if ibn:
        marks["conv2.0.IN.weight"] = (stem * 4,)
    return Architecture(f"osnet_{'ibn_' if ibn else ''}{width}", marks, WITH_FC, {
        "MODEL.META_ARCHITECTURE": "Baseline", "MODEL.BACKBONE.NAME": "build_osnet_backbone",
        "MODEL.BACKBONE.DEPTH": width, "MODEL.BACKBONE.WITH_IBN": ibn, **_fc(channels)}, in_reid=not ibn)


def _resnet50(last_stride: int, head: Mapping[str, Any]) -> dict[str, Any]:
    return {"MODEL.META_ARCHITECTURE": "Baseline", "MODEL.BACKBONE.NAME": "build_resnet_backbone",
            "MODEL.BACKBONE.DEPTH": "50x", "MODEL.BACKBONE.LAST_STRIDE": last_stride,
            "MODEL.BACKBONE.STEM_POOL": "padding", "MODEL.BACKBONE.WITH_IBN": False, "MODEL.BACKBONE.WITH_SE": False,
            "MODEL.BACKBONE.WITH_NL": False, **head}


_RESNET50_MARKS = {"conv1.weight": (64, 3, 7, 7), "layer4.2.conv3.weight": (2048, 512, 1, 1)}
_SBS_MARKS = {"backbone.conv1.0.weight": (32, 3, 3, 3), "backbone.layer4.2.conv3.weight": (2048, 512, 1, 1)}
_SBS_OPTIONS = {"MODEL.META_ARCHITECTURE": "Baseline", "MODEL.BACKBONE.NAME": "build_resnest_backbone",
                "MODEL.BACKBONE.DEPTH": "50x", "MODEL.BACKBONE.LAST_STRIDE": 1, "MODEL.BACKBONE.FEAT_DIM": 2048,
                "MODEL.HEADS.NAME": "EmbeddingHead", "MODEL.HEADS.EMBEDDING_DIM": 0, "MODEL.HEADS.WITH_BNNECK": True,
                "MODEL.HEADS.POOL_LAYER": "GeneralizedMeanPoolingP"}
# The first whose marks match is used, so a model with additional marks precedes the others.
ARCHITECTURES = (
    _osnet("x1_0", 64, 512, ibn=True),
    _osnet("x1_0", 64, 512), _osnet("x0_75", 48, 384), _osnet("x0_5", 32, 256), _osnet("x0_25", 16, 128),
    Architecture("resnet50_fc512", {**_RESNET50_MARKS, "fc.0.weight": (512, 2048)}, WITH_FC, _resnet50(1, _fc(2048))),
    Architecture("resnet50", _RESNET50_MARKS, WITHOUT_FC, _resnet50(2, {
        "MODEL.HEADS.NAME": "EmbeddingHead", "MODEL.HEADS.EMBEDDING_DIM": 0, "MODEL.HEADS.WITH_BNNECK": False,
        "MODEL.HEADS.POOL_LAYER": "GlobalAvgPool", "MODEL.BACKBONE.FEAT_DIM": 2048})),
    Architecture("fastreid_sbs_resnest50", {**_SBS_MARKS, "bottleneck.weight": (2048,)}, SBS, _SBS_OPTIONS,
                 size=(384, 128), in_reid=True),
    Architecture("FastReID's sbs_S50", {**_SBS_MARKS, "heads.bottleneck.0.weight": (2048,)}, SBS_OF_FASTREID,
                 _SBS_OPTIONS, size=(384, 128), interpolation="bicubic"),
)
IN_REID = {each.name: each for each in ARCHITECTURES if each.in_reid}

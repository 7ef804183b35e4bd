"""The head of torchreid's models (OSNet, ResNet-50 with fc512), for imported checkpoints: pooling, FC, BN and ReLU."""

from __future__ import annotations

from fastreid.config import configurable
from fastreid.layers import get_norm
from fastreid.modeling.heads.build import REID_HEADS_REGISTRY
from fastreid.modeling.heads.embedding_head import EmbeddingHead
from torch import nn


@REID_HEADS_REGISTRY.register()
class FullyConnectedHead(EmbeddingHead):
    """FastReID's head with the layers of torchreid after the pooling: fully connected with bias, BN and ReLU.

    The output of the ReLU is the embedding and the input of the classifier. MODEL.HEADS.WITH_BNNECK has no effect.

    Args:
        embedding_dim: embedding size, 512 in torchreid.
        host: arguments of FastReID's head.

    Raises:
        ValueError: if `embedding_dim` is not positive.
    """

    @configurable
    def __init__(self, *, embedding_dim: int, **host) -> None:
        if embedding_dim < 1:
            raise ValueError(f"MODEL.HEADS.EMBEDDING_DIM is {embedding_dim}, expected a positive number, such as 512, "
                             "with MODEL.HEADS.NAME FullyConnectedHead")
        super().__init__(embedding_dim=embedding_dim, **host)
        self.bottleneck = nn.Sequential(nn.Conv2d(host["feat_dim"], embedding_dim, 1),
                                        get_norm(host["norm_type"], embedding_dim), nn.ReLU())
        nn.init.normal_(self.bottleneck[0].weight, std=0.01)
        nn.init.zeros_(self.bottleneck[0].bias)

    @classmethod
    def from_config(cls, cfg) -> dict:
        """Arguments from a configuration, see `fastreid.config.configurable`."""
        return super().from_config(cfg)

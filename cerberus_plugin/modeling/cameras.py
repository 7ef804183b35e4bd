"""Camera embeddings of vision transformers (SIE, side information embeddings, of TransReID, arXiv 2102.04378).

Shapes: B images, T tokens, C channels, N cameras of the training set.
"""

from __future__ import annotations

from collections.abc import Mapping
from contextvars import ContextVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .checkpoint_tables import leave

UNFILLED = -2  # of `CameraEmbedding.cameras`; images with an unknown camera have -1

# The cameras of the current batch. A context variable, because several threads can use one model.
_cameras: ContextVar[Tensor | None] = ContextVar("cameras", default=None)


class CameraEmbedding(nn.Module):
    """Add `scale` times the embedding of the camera to all tokens of an image, then apply dropout.

    Replaces `pos_drop` of timm's `VisionTransformer`, which is called after the position embeddings are added. For an
    image whose camera is unknown or is not a camera of the training set, the mean of the N embeddings is added.

    The buffer `cameras`, int64 (N,), has the number of each camera (`data.build.camera_number`).

    Args:
        num_cameras: N.
        width: C.
        scale: weight of the embeddings, lambda in TransReID.
        dropout: the replaced module.
    """

    beginning = False  # see `checkpoint_tables.begin_from_other_weights`

    def __init__(self, num_cameras: int, width: int, scale: float, dropout: nn.Module) -> None:
        super().__init__()
        self.scale = scale
        self.sie_embed = nn.Parameter(torch.empty(num_cameras, width))
        nn.init.trunc_normal_(self.sie_embed, std=0.02)
        self.register_buffer("cameras", torch.full((num_cameras,), UNFILLED, dtype=torch.int64))
        self.dropout = dropout

    def forward(self, tokens: Tensor) -> Tensor:
        """Float (B, T, C) to (B, T, C), for the cameras of `pass_cameras`."""
        mean, cameras = self.sie_embed.mean(dim=0, keepdim=True), _cameras.get()
        if cameras is None:
            return self.dropout(tokens + self.scale * mean)
        same = cameras.to(tokens.device)[:, None] == self.cameras  # (B, N)
        rows = torch.where(same.any(dim=1), same.long().argmax(dim=1), len(self.cameras))
        added = F.embedding(rows, torch.cat([self.sie_embed, mean]))  # (B, C)
        return self.dropout(tokens + self.scale * added[:, None])

    @torch.no_grad()
    def fill(self, cameras: Tensor) -> None:
        """Store the numbers of the cameras of the training set, int64 (N,)."""
        self.cameras.copy_(cameras)

    def _load_from_state_dict(self, state_dict, prefix, *args) -> None:
        found = state_dict.get(f"{prefix}cameras")
        filled = bool((self.cameras != UNFILLED).all())
        if found is not None and filled and not torch.equal(found.cpu(), self.cameras.cpu()):
            if not self.beginning:
                raise ValueError(f"checkpoint: table '{prefix}cameras' differs from that of the training dataset, "
                                 "which has other cameras. Resume with the original dataset.")
            leave(state_dict, prefix, ["cameras", "sie_embed"])
        super()._load_from_state_dict(state_dict, prefix, *args)


def camera_embeddings(model: nn.Module) -> list[CameraEmbedding]:
    """Return the camera embeddings of a model; [] if it has none."""
    return [module for module in model.modules() if isinstance(module, CameraEmbedding)]


def pass_cameras(model: nn.Module) -> None:
    """Pass the cameras of each batch to the camera embeddings of a model; without any, the model is not changed.

    The meta-architectures pass only images to their backbones. Hooks around the forward pass of the model therefore
    set the cameras: field "cameras" of the batch, int64 (B,), unknown if it is absent.

    Args:
        model: its input is a batch of FastReID, a dict, or a tensor of images.
    """
    if camera_embeddings(model):
        model.register_forward_pre_hook(_before)
        model.register_forward_hook(_after, always_call=True)


def _before(model: nn.Module, inputs: tuple) -> None:
    _cameras.set(inputs[0].get("cameras") if isinstance(inputs[0], Mapping) else None)


def _after(model: nn.Module, inputs: tuple, output) -> None:
    _cameras.set(None)

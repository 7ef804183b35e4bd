"""What the plugin's models do with FastReID's batches before anything of their own."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from ..attributes import MISSING


class ImageModel(nn.Module):
    """Images of a batch, normalised; identities of a training batch.

    Args:
        pixel_mean, pixel_std: of RGB in 0..255.
    """

    def __init__(self, pixel_mean: list[float], pixel_std: list[float]) -> None:
        super().__init__()
        self.register_buffer("pixel_mean", torch.tensor(pixel_mean).view(1, -1, 1, 1), persistent=False)
        self.register_buffer("pixel_std", torch.tensor(pixel_std).view(1, -1, 1, 1), persistent=False)

    @property
    def device(self) -> torch.device:
        return self.pixel_mean.device

    def preprocess_image(self, batched_inputs) -> Tensor:
        """Normalise into a new tensor: the flip test feeds the same batch a second time."""
        images = batched_inputs["images"] if isinstance(batched_inputs, dict) else batched_inputs
        return (images.to(self.device) - self.pixel_mean) / self.pixel_std

    def training_targets(self, batched_inputs: dict) -> Tensor:
        """Identities of a training batch: int64 (B,)."""
        if "targets" not in batched_inputs:
            raise ValueError("training batch without 'targets': every image needs its identity")
        # FastReID's PreciseBN feeds -1 for identities of another dataset and throws the losses away.
        return batched_inputs["targets"].to(self.device).clamp(min=0)

    def training_sids(self, batched_inputs: dict, num_groups: int) -> Tensor:
        """Semantic IDs of the images of a training batch: int64 (B, G), -1 where missing."""
        if "sids" in batched_inputs:
            return batched_inputs["sids"].to(self.device)
        targets = batched_inputs["targets"]
        if (targets < 0).all():  # of another dataset, by FastReID's PreciseBN
            return torch.full((len(targets), num_groups), MISSING, device=self.device)
        raise ValueError("training batch without 'sids', the semantic IDs of each image: take the batches of "
                         "CerberusTrainer.build_train_loader, for a dataset with annotations such as "
                         "Market1501Attributes")

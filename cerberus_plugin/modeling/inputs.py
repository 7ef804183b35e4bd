"""Preprocessing of FastReID's batches, shared by the models of the plugin."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from ..attributes import MISSING


class ImageModel(nn.Module):
    """Base class that normalises the images of a batch, and returns the labels of a training batch.

    Args:
        pixel_mean: mean of RGB values in 0..255.
        pixel_std: standard deviation of RGB values in 0..255.
    """

    def __init__(self, pixel_mean: list[float], pixel_std: list[float]) -> None:
        super().__init__()
        self.register_buffer("pixel_mean", torch.tensor(pixel_mean).view(1, -1, 1, 1), persistent=False)
        self.register_buffer("pixel_std", torch.tensor(pixel_std).view(1, -1, 1, 1), persistent=False)

    @property
    def device(self) -> torch.device:
        """Device of the model."""
        return self.pixel_mean.device

    def preprocess_image(self, batched_inputs) -> Tensor:
        """Normalise the images of a batch, without changing the batch: the flip test uses it a second time."""
        images = batched_inputs["images"] if isinstance(batched_inputs, dict) else batched_inputs
        return (images.to(self.device) - self.pixel_mean) / self.pixel_std

    def training_targets(self, batched_inputs: dict) -> Tensor:
        """Return the identities of a training batch, int64 (B,).

        Raises:
            ValueError: if the batch has no identities.
        """
        if "targets" not in batched_inputs:
            raise ValueError("training batch without 'targets': each image needs an identity")
        # FastReID's PreciseBN passes -1 for identities of other datasets, and ignores the losses.
        return batched_inputs["targets"].to(self.device).clamp(min=0)

    def training_sids(self, batched_inputs: dict, num_groups: int) -> Tensor:
        """Return the semantic IDs of a training batch, int64 (B, G), -1 where missing.

        Raises:
            ValueError: if the batch has no semantic IDs.
        """
        if "sids" in batched_inputs:
            return batched_inputs["sids"].to(self.device)
        targets = batched_inputs["targets"]
        if (targets < 0).all():  # images of another dataset, from FastReID's PreciseBN
            return torch.full((len(targets), num_groups), MISSING, device=self.device)
        raise ValueError("training batch without 'sids', the semantic IDs of each image: use the batches of "
                         "CerberusTrainer.build_train_loader, for a dataset with annotations such as "
                         "Market1501Attributes")

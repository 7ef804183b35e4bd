"""The losses of Cerberus (Eq. 2 to 8 and additional ones), APR and CSSC.

The loss functions are pure functions of tensors and compute in float32 under autocast. The classes at the end of the
module apply weights to them. A model has a list of such losses, each `loss(outputs, targets) -> {name: scalar}`, and
the trainer minimises the sum of all terms.
Shapes: B images, D dimensions of a representation, G groups, K semantic IDs of a group, L bits of a group, C
identities, M attributes (columns).
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

COSINE_EPS = 1e-12


def _float32(function):
    """Decorate a loss to run without autocast, on float32 copies of half-precision tensors.

    In half precision the regulariser overflows (its value is about 1e8 for an initial standard deviation of 10), and
    cosines are rounded to three digits.
    """

    @functools.wraps(function)
    def wrapped(*args, **kwargs):
        device = next(arg.device.type for arg in args if isinstance(arg, Tensor))
        args = [arg.float() if isinstance(arg, Tensor) and arg.dtype in (torch.float16, torch.bfloat16) else arg
                for arg in args]
        with torch.autocast(device_type=device, enabled=False):
            return function(*args, **kwargs)

    return wrapped


@_float32
def semantic_guidance_loss(representations: Tensor, prototypes: Tensor, sids: Tensor, margins: Tensor) -> Tensor:
    """Pull representations towards the prototypes of their semantic IDs until the cosine exceeds 1 - margin (Eq. 3).

    The loss of an image is max(0, 1 - m - cos). Representations are not pushed away from other prototypes.

    Args:
        representations: float (B, D) of one group, or (G, B, D) of several groups.
        prototypes: float (K, D), one row per semantic ID, of one group or of all groups, concatenated; not normalised.
        sids: int64 (B,) or (G, B), rows of `prototypes`; negative where the label is missing, excluded from the mean.
        margins: float (K,), Eq. 4; about 0.59 to 0.79 with alpha and beta of the paper.

    Returns:
        scalar, the mean over the labelled images of the batch, then over groups; 0, with a gradient of 0, if no image
        is labelled.

    Examples:
        >>> prototypes, sids = torch.tensor([[2.0, 0.0], [0.0, 3.0]]), torch.tensor([0, 0, -1])
        >>> representations = torch.tensor([[1.0, 0.0], [0.0, 1.0], [1.0, 1.0]])  # cosines 1 and 0; third without label
        >>> semantic_guidance_loss(representations, prototypes, sids, torch.tensor([0.5, 0.5])).item()  # (0 + 0.5) / 2
        0.25
    """
    known = sids >= 0
    rows = sids.clamp(min=0)
    cosine = F.cosine_similarity(representations, prototypes[rows], dim=-1, eps=COSINE_EPS)  # (G, B)
    hinge = (1 - margins[rows] - cosine).clamp(min=0)
    return ((hinge * known).sum(dim=-1) / known.sum(dim=-1).clamp(min=1)).mean()


@_float32
def prototype_softmax_loss(representations: Tensor, prototypes: Tensor, sids: Tensor, scale: float | Tensor = 16.0,
                           competing: Tensor | None = None, log_prior: Tensor | None = None,
                           weights: Tensor | None = None) -> Tensor:
    """Cross-entropy of the semantic ID with the prototypes of the group as classes; not in the paper.

    The logits are `scale` times the cosines, plus `log_prior` (logit adjustment, Menon et al., arXiv 2007.07314).
    Unlike the hinge of Eq. 3, this loss also pushes representations away from the prototypes of other semantic IDs.

    Args:
        representations: float (B, D) of one group, or (G, B, D) of several groups.
        prototypes: see `semantic_guidance_loss`.
        sids: see `semantic_guidance_loss`.
        scale: one number, or float (G,) with one scale per group.
        competing: (G, K), nonzero for the rows that are classes of a group, which must include the semantic IDs of all
            images. None for one group with all rows as classes.
        log_prior: float (K,), natural logarithm of the frequency of each semantic ID in its group; ignored for rows
            that are not classes. None for a uniform prior.
        weights: float (G, B), positive weights of the images, such as `agreement_weights`. None for equal weights.

    Returns:
        scalar, the weighted mean over the labelled images of the batch, then the mean over groups; 0, with a gradient
        of 0, if no image is labelled.

    Examples:
        >>> representations, prototypes = torch.tensor([[[1.0, 0.0]]]), torch.tensor([[1.0, 0.0], [0.0, 1.0]])
        >>> loss = prototype_softmax_loss(representations, prototypes, torch.tensor([[0]]), scale=1.0)
        >>> round(loss.item(), 4)  # log(1 + exp(-1)), from the cosines 1 and 0
        0.3133
    """
    if isinstance(scale, Tensor):
        scale = scale.view(-1, 1, 1)
    logits = scale * F.normalize(representations, dim=-1, eps=COSINE_EPS) @ F.normalize(
        prototypes, dim=-1, eps=COSINE_EPS).T  # (G, B, K)
    if log_prior is not None:
        logits = logits + log_prior
    if competing is not None:
        logits = logits.masked_fill(competing[:, None] == 0, float("-inf"))
    each = F.cross_entropy(logits.flatten(end_dim=-2), sids.flatten().clamp(min=-1), ignore_index=-1,
                           reduction="none").view(sids.shape)
    known = (sids >= 0).to(each.dtype)
    if weights is not None:
        each, known = each * weights, known * weights
    total = known.sum(dim=-1)
    return (each.sum(dim=-1) / torch.where(total > 0, total, 1.0)).mean()


@torch.no_grad()
@_float32
def agreement_weights(representations: Tensor, identities: Tensor, sids: Tensor, temperature: float = 0.2) -> Tensor:
    """Compute weights of images from their agreement with the other images of the same person in the batch.

    An attribute that is not visible in an image, such as a backpack from the front, should have less influence on the
    representation. The weight is exp(c / temperature), divided by its mean over the images of the person, where c is
    the cosine of the representation with the sum of the normalised representations of the other images. Not in the
    paper.

    Args:
        representations: float (G, B, D).
        identities: int64 (B,).
        sids: int64 (G, B). Images with different semantic IDs, such as in other outfits, are treated as different
            persons.
        temperature: positive; smaller values give larger differences of weights.

    Returns:
        float (G, B), with the mean 1 over the images of a person; 1 for a person with one image.

    Examples:
        >>> representations = torch.tensor([[[1.0, 0.0], [1.0, 0.0], [0.0, 1.0]]])  # the third image disagrees
        >>> weights = agreement_weights(representations, torch.tensor([7, 7, 7]), torch.zeros(1, 3, dtype=torch.int64))
        >>> bool(weights[0, 0] == weights[0, 1] > weights[0, 2]), round(weights.mean().item(), 4)
        (True, 1.0)
    """
    unit = F.normalize(representations, dim=-1, eps=COSINE_EPS)
    same = (identities[:, None] == identities) & (sids[..., None] == sids[:, None])  # (G, B, B)
    others = same.to(unit.dtype) @ unit - unit
    agreement = F.cosine_similarity(unit, others, dim=-1, eps=COSINE_EPS) / temperature  # (G, B)
    total = agreement[:, None].masked_fill(~same, float("-inf")).logsumexp(dim=-1)
    return (agreement - total).exp() * same.sum(dim=-1)


def adaptive_margins(counts: Tensor, num_identities: int, alpha: float = 0.4, beta: float = 1.8) -> Tensor:
    """Compute the margin of each semantic ID from its number of training identities: ln(alpha N_g / N + beta) (Eq. 4).

    Args:
        counts: int64 (K,), training identities N_g with each semantic ID; 0 if it is not seen in training.
        num_identities: N, number of training identities.
        alpha: factor of Eq. 4.
        beta: constant of Eq. 4.

    Returns:
        float32 (K,).

    Examples:
        >>> [round(margin, 3) for margin in adaptive_margins(torch.tensor([0, 5]), 10).tolist()]  # ln 1.8, ln 2
        [0.588, 0.693]
    """
    return torch.log(alpha * counts.to(torch.float32) / max(num_identities, 1) + beta)


@_float32
def identity_loss(logits: Tensor, targets: Tensor, label_smoothing: float = 0.0) -> Tensor:
    """Cross-entropy of the identity classifier of one group (first term of Eq. 5).

    Args:
        logits: float (B, C).
        targets: int64 (B,), identities.
        label_smoothing: 0 to 1.

    Returns:
        scalar, the mean over the batch.

    Examples:
        >>> round(identity_loss(torch.zeros(1, 2), torch.tensor([1])).item(), 4)  # ln 2
        0.6931
    """
    return F.cross_entropy(logits, targets, label_smoothing=label_smoothing)


@_float32
def attribute_loss(logits: Tensor, answers: Tensor, sizes: Sequence[int], reduction: str = "mean") -> Tensor:
    """Mean or sum of the cross-entropies of the attribute classifiers of ARN and APR (arXiv 1703.07220).

    Args:
        logits: float (B, sum of sizes), of all classifiers, concatenated.
        answers: int64 (B, M), the class of each attribute; negative if there is none (no listed colour), which excludes
            the image from this attribute. An attribute without images is excluded from mean and sum.
        sizes: number of classes of each attribute.
        reduction: "mean" over the attributes (APR), or "sum" (ARN).

    Returns:
        scalar.

    Examples:
        >>> loss = attribute_loss(torch.zeros(1, 4), torch.tensor([[0, 1]]), sizes=(2, 2), reduction="sum")
        >>> round(loss.item(), 4)  # 2 ln 2
        1.3863
    """
    each = torch.stack([F.cross_entropy(part, answer, ignore_index=-1, reduction="sum")
                        for part, answer in zip(logits.split(tuple(sizes), dim=1), answers.clamp(min=-1).unbind(1))])
    known = (answers >= 0).sum(dim=0)  # (M,)
    total = (each / known.clamp(min=1)).sum()
    return total if reduction == "sum" else total / (known > 0).sum().clamp(min=1)


@_float32
def soft_triplet_loss(representations: Tensor, targets: Tensor) -> Tensor:
    """Batch-hard triplet loss with a soft margin (second term of Eq. 5): softplus(d(f, f_p) - d(f, f_n)).

    d is the Euclidean distance of the representations, which are not normalised. The hardest positive is the farthest
    image of the same identity (the anchor itself if there is no other). The hardest negative is the nearest image of
    another identity. Anchors without a negative are skipped.

    Args:
        representations: float (B, D) of one group, or (G, B, D) of several groups, averaged.
        targets: int64 (B,), identities.

    Returns:
        scalar, the mean over the anchors, then over groups.

    Examples:
        >>> representations = torch.tensor([[0.0], [1.0], [1.0]])  # gaps 1 - 1 = 0, 1 - 0 = 1 and 0 - 0 = 0
        >>> round(soft_triplet_loss(representations, torch.tensor([7, 7, 8])).item(), 4)  # (2 ln 2 + ln(1 + e)) / 3
        0.8999
    """
    return _over_hardest(representations, targets, F.softplus)


@_float32
def margin_triplet_loss(representations: Tensor, targets: Tensor, margin: float = 0.3) -> Tensor:
    """Batch-hard triplet loss of CSSC: max(0, d(f, f_p) - d(f, f_n) + margin), otherwise as `soft_triplet_loss`.

    Args:
        representations: see `soft_triplet_loss`.
        targets: see `soft_triplet_loss`.
        margin: margin, in units of the distance.

    Returns:
        scalar, the mean over the anchors, then over groups.

    Examples:
        >>> representations = torch.tensor([[0.0], [1.0], [1.0]])  # gaps 0, 1 and 0
        >>> round(margin_triplet_loss(representations, torch.tensor([7, 7, 8]), margin=0.25).item(), 4)
        0.5833
    """
    return _over_hardest(representations, targets, lambda gap: F.relu(gap + margin))


def _over_hardest(representations: Tensor, targets: Tensor, penalty: Callable[[Tensor], Tensor]) -> Tensor:
    """Mean of penalty(d(f, f_p) - d(f, f_n)) over the anchors with a negative, then over groups.

    The distances of all pairs are computed without a gradient; the two distances of each anchor are then computed again
    with a gradient. This takes O(G B^2 + G B D) memory; the backward pass of `torch.cdist` on a GPU takes O(G B^2 D).
    """
    representations = representations if representations.dim() == 3 else representations[None]  # (G, B, D)
    size, dim = representations.shape[1:]
    detached = representations.detach()
    # Without matrix multiplication, which loses precision for small distances.
    distances = torch.cdist(detached, detached, compute_mode="donot_use_mm_for_euclid_dist")  # (G, B, B)
    same = targets[:, None] == targets[None, :]
    positive = distances.masked_fill(~same, float("-inf")).argmax(dim=-1)  # (G, B)
    negative = distances.masked_fill(same, float("inf")).argmin(dim=-1)
    first = torch.arange(0, len(representations) * size, size, device=targets.device)[:, None]  # (G, 1), group offsets
    hardest = F.embedding(torch.stack([positive, negative]) + first, representations.reshape(-1, dim))  # (2, G, B, D)
    positive, negative = (representations - hardest).norm(dim=-1)  # no gradient at 0
    usable = ~same.all(dim=1)
    losses = penalty(torch.where(usable, positive - negative, 0.0))
    return ((losses * usable).sum(dim=-1) / usable.sum().clamp(min=1)).mean()


@_float32
def prototype_regularisation(prototypes: Tensor, residuals: Tensor, bits: Tensor,
                             membership: Tensor | None = None) -> Tensor:
    """Penalise differences of prototypes that do not correspond to the differences of their attributes (Eq. 6 to 8).

    The loss of a group is the sum over ordered pairs of ||p_m - p_n - r_mn||^2, r_mn = sum_l v_l (A_m(l) - A_n(l)).
    With q_m = p_m - V^T A_m this is the sum of ||q_m - q_n||^2 = 2 K sum_m ||q_m - mean(q)||^2, which costs O(K L D)
    instead of O(K^2 L D).

    Args:
        prototypes: float (K, D).
        residuals: float (L, D), v_l.
        bits: (K, L), A.
        membership: float (G, K), 1 for the rows of a group, if the rows of several groups are concatenated (`bits` is
            then block-diagonal); None for one group.

    Returns:
        scalar, the mean over groups.

    Examples:
        >>> prototypes, residuals, bits = torch.tensor([[0.0], [3.0]]), torch.tensor([[2.0]]), torch.tensor([[0], [1]])
        >>> prototype_regularisation(prototypes, residuals, bits).item()  # (0 - 3 + 2)^2 + (3 - 0 - 2)^2
        2.0
    """
    q = prototypes - bits.to(prototypes.dtype) @ residuals  # (K, D)
    if membership is None:
        membership = q.new_ones(1, len(q))
    membership = membership.to(q.dtype)
    sizes = membership.sum(dim=1)  # (G,)
    means = membership @ q / sizes[:, None]  # (G, D)
    spread = (q - membership.T @ means).square().sum(dim=1)  # (K,)
    return (2 * sizes * (membership @ spread)).mean()


class Targets(NamedTuple):
    """Labels of the representations of a batch.

    Attributes:
        identities: int64 (B,); None disables the triplet losses.
        sids: semantic IDs, int64 (B, G), -1 where missing; None for a model without prototypes.
    """

    identities: Tensor | None
    sids: Tensor | None = None


Loss = Callable[[Mapping[str, Any], Targets], dict[str, Tensor]]


def terms_of(losses: Sequence[Loss], outputs: Mapping[str, Any], targets: Targets) -> dict[str, Tensor]:
    """Compute the terms of all losses by name. The total loss (Eq. 2) is their sum.

    Args:
        losses: each `loss(outputs, targets) -> {name: scalar}`.
        outputs: "representations" float (G, B, D), which can include the batches of all processes; "logits" float
            (G, B', C) and "targets" int64 (B',), their identities, of this process only; "before", float (G, B, D), the
            representations before batch normalisation if the triplet loss uses them; "prototypes", `SIDPrototypes` or
            None.
        targets: labels of the representations.

    Examples:
        >>> outputs = {"logits": torch.zeros(1, 1, 2), "targets": torch.tensor([1])}
        >>> terms = terms_of([IdentityLoss(weight=2.0)], outputs, Targets(None))
        >>> {name: round(term.item(), 4) for name, term in terms.items()}  # 2 ln 2
        {'loss_id': 1.3863}
    """
    terms = {}
    for loss in losses:
        terms |= loss(outputs, targets)
    return terms


@dataclass(frozen=True)
class IdentityLoss:
    """`identity_loss`, averaged over the classifiers of the groups."""

    weight: float = 1.0
    label_smoothing: float = 0.0

    def __call__(self, outputs: Mapping[str, Any], targets: Targets) -> dict[str, Tensor]:
        logits = outputs["logits"]
        # All groups have the same number of rows, so the mean of their means is the mean over all rows.
        loss = identity_loss(logits.flatten(0, 1), outputs["targets"].repeat(len(logits)), self.label_smoothing)
        return {"loss_id": self.weight * loss}


@dataclass(frozen=True)
class TripletLoss:
    """`soft_triplet_loss`, or `margin_triplet_loss` if `margin` is given, averaged over groups."""

    weight: float = 1.0
    margin: float | None = None

    def __call__(self, outputs: Mapping[str, Any], targets: Targets) -> dict[str, Tensor]:
        representations = outputs.get("before", outputs["representations"])
        if targets.identities is None:  # disabled: 0, because FastReID logs single terms only if there are several
            loss = representations.new_zeros((), dtype=torch.float32)
        elif self.margin is None:
            loss = soft_triplet_loss(representations, targets.identities)
        else:
            loss = margin_triplet_loss(representations, targets.identities, self.margin)
        return {"loss_triplet": self.weight * loss}


@dataclass(frozen=True)
class GuidanceLoss:
    """`semantic_guidance_loss` with the prototypes of the model."""

    weight: float = 5.0

    def __call__(self, outputs: Mapping[str, Any], targets: Targets) -> dict[str, Tensor]:
        return {"loss_sem": self.weight * outputs["prototypes"].guidance(outputs["representations"], targets.sids)}


@dataclass(frozen=True)
class RegularisationLoss:
    """`prototype_regularisation` of the prototypes of the model; no term for composed prototypes."""

    weight: float = 0.001

    def __call__(self, outputs: Mapping[str, Any], targets: Targets) -> dict[str, Tensor]:
        loss = outputs["prototypes"].regularisation()
        # Also if the weight is 0: distributed training requires all parameters in the loss of each step.
        return {} if loss is None else {"loss_reg": self.weight * loss}


@dataclass(frozen=True)
class PrototypeSoftmaxLoss:
    """`prototype_softmax_loss` with the prototypes of the model.

    Attributes:
        weight: weight of the loss.
        scale: factor of the cosines, if the prototypes have no learned scale.
        agreement: temperature of `agreement_weights`; 0 for equal weights of all images.
    """

    weight: float = 1.0
    scale: float = 16.0
    agreement: float = 0.0

    def __call__(self, outputs: Mapping[str, Any], targets: Targets) -> dict[str, Tensor]:
        representations, weights = outputs["representations"], None
        if self.agreement:
            weights = agreement_weights(representations, targets.identities, targets.sids.T, self.agreement)
        loss = outputs["prototypes"].softmax(representations, targets.sids, self.scale, weights)
        return {"loss_softmax": self.weight * loss}

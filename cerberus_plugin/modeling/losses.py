"""The losses of Cerberus (Eq. 2 to 8) and beyond, APR and CSSC.

The functions are pure, of tensors, and compute in float32 under autocast. The classes at the end weigh them: a model
holds a list of such losses, each `loss(outputs, targets) -> {name: scalar}`, and the trainer minimises the sum.
Shapes: B images, D dimensions of a representation, G groups, K semantic IDs of a group, L bits of it, C identities.
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
    """Run a loss outside autocast on float32 copies of its floating-point tensors.

    Half precision overflows in the regulariser (about 1e8 at an initial deviation of 10) and rounds cosines
    to three digits.
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
    """Pull representations towards their semantic ID's prototype until the cosine exceeds 1 - margin (Eq. 3).

    The hinge is max(0, 1 - m - cos); there is no repulsion from the other prototypes.

    Args:
        representations: float (B, D) of one group, or (G, B, D) of several.
        prototypes: float (K, D), one row a semantic ID, of one group or of all of them one after the other; not
            normalised.
        sids: int64 (B,) or (G, B), rows of `prototypes`; negative where the label is missing, left out of the mean.
        margins: float (K,), Eq. 4; about 0.59 to 0.79 with the paper's alpha and beta.

    Returns:
        Mean over the labelled images of the batch, then over groups; 0, with a gradient of 0, where none is labelled.
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
    """Cross-entropy of the semantic ID among the prototypes of a group; not in the paper.

    The logits are `scale` times the cosines, plus `log_prior` (logit adjustment, Menon et al., arXiv 2007.07314). Where
    the hinge of Eq. 3 only pulls towards the own prototype, this also pushes away from those of other semantic IDs.

    Args:
        representations, prototypes, sids: as in `semantic_guidance_loss`.
        scale: one number, or float (G,) with a scale for each group.
        competing: (G, K), nonzero where a row is among those of a group; an image's own row must be. None where the
            prototypes are of one group, all of whose rows compete.
        log_prior: float (K,), natural logarithm of how frequent each semantic ID is in its group; ignored for rows that
            do not compete. None for a uniform prior.
        weights: float (G, B), how much each image counts, above 0, such as `agreement_weights`. None for all alike.

    Returns:
        Weighted mean over the labelled images of the batch, then mean over groups; 0, with a gradient of 0, where none
        is labelled.
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
    """How much each image should count, by how well it agrees with the other images of its person in the batch.

    An attribute that a view does not show, such as a backpack from the front, should pull its representation less than
    one that it shows. The weight is exp(c / temperature), c the cosine of an image's representation with the sum of
    the others' unit representations, over its mean within the person. Not in the paper.

    Args:
        representations: float (G, B, D).   identities: int64 (B,).
        sids: int64 (G, B). Images with another semantic ID, as in another outfit, do not count as the same person's.

    Returns:
        float (G, B), mean 1 over the images of a person; 1 for a person's only image.
    """
    unit = F.normalize(representations, dim=-1, eps=COSINE_EPS)
    same = (identities[:, None] == identities) & (sids[..., None] == sids[:, None])  # (G, B, B)
    others = same.to(unit.dtype) @ unit - unit
    agreement = F.cosine_similarity(unit, others, dim=-1, eps=COSINE_EPS) / temperature  # (G, B)
    total = agreement[:, None].masked_fill(~same, float("-inf")).logsumexp(dim=-1)
    return (agreement - total).exp() * same.sum(dim=-1)


def adaptive_margins(counts: Tensor, num_identities: int, alpha: float = 0.4, beta: float = 1.8) -> Tensor:
    """Margin of each semantic ID by how many training identities carry it: ln(alpha N_g / N + beta) (Eq. 4).

    Args:
        counts: int64 (K,), training identities with each semantic ID; 0 where unseen.
        num_identities: N, training identities.
    """
    return torch.log(alpha * counts.to(torch.float32) / max(num_identities, 1) + beta)


@_float32
def identity_loss(logits: Tensor, targets: Tensor, label_smoothing: float = 0.0) -> Tensor:
    """Cross-entropy of one group's identity classifier (Eq. 5, first term): logits (B, C), targets (B,)."""
    return F.cross_entropy(logits, targets, label_smoothing=label_smoothing)


@_float32
def attribute_loss(logits: Tensor, answers: Tensor, sizes: Sequence[int], reduction: str = "mean") -> Tensor:
    """Cross-entropies of the attribute classifiers of ARN and APR: their mean or their sum over the attributes.

    Args:
        logits: float (B, sum of sizes), the classifiers' one after the other.
        answers: int64 (B, M), the class of each attribute; negative where a person has none (no listed colour), which
            leaves the person out of that attribute. An attribute without any person counts in neither mean nor sum.
        sizes: classes of each attribute.
        reduction: "mean" over the attributes (APR), or "sum" (ARN).
    """
    each = torch.stack([F.cross_entropy(part, answer, ignore_index=-1, reduction="sum")
                        for part, answer in zip(logits.split(tuple(sizes), dim=1), answers.clamp(min=-1).unbind(1))])
    known = (answers >= 0).sum(dim=0)  # (M,)
    total = (each / known.clamp(min=1)).sum()
    return total if reduction == "sum" else total / (known > 0).sum().clamp(min=1)


@_float32
def soft_triplet_loss(representations: Tensor, targets: Tensor) -> Tensor:
    """Batch-hard triplet loss with a soft margin (Eq. 5, second term): softplus(d(f, f_p) - d(f, f_n)).

    d is the Euclidean distance of the representations as they are. The hardest positive is the farthest image
    of the same identity (the anchor itself where it is the only one), the hardest negative the nearest image
    of another; an anchor without any negative is left out.

    Args:
        representations: float (B, D) of one group, or (G, B, D) of several, whose losses are averaged.
        targets: int64 (B,), identities.
    """
    return _over_hardest(representations, targets, F.softplus)


@_float32
def margin_triplet_loss(representations: Tensor, targets: Tensor, margin: float = 0.3) -> Tensor:
    """Batch-hard triplet loss of CSSC: max(0, d(f, f_p) - d(f, f_n) + margin), otherwise as `soft_triplet_loss`."""
    return _over_hardest(representations, targets, lambda gap: F.relu(gap + margin))


def _over_hardest(representations: Tensor, targets: Tensor, penalty: Callable[[Tensor], Tensor]) -> Tensor:
    """Mean of penalty(d(f, f_p) - d(f, f_n)) over the anchors that have a negative, then over groups.

    All pairs are compared without a gradient, and the two distances of each anchor are computed once more with one:
    memory is O(G B^2 + G B D). The backward of `torch.cdist` on a GPU takes G B^2 D.
    """
    representations = representations if representations.dim() == 3 else representations[None]  # (G, B, D)
    size, dim = representations.shape[1:]
    detached = representations.detach()
    # Not by a matrix product: it cancels the digits of distances between near rows.
    distances = torch.cdist(detached, detached, compute_mode="donot_use_mm_for_euclid_dist")  # (G, B, B)
    same = targets[:, None] == targets[None, :]
    positive = distances.masked_fill(~same, float("-inf")).argmax(dim=-1)  # (G, B)
    negative = distances.masked_fill(same, float("inf")).argmin(dim=-1)
    first = torch.arange(0, len(representations) * size, size, device=targets.device)[:, None]  # (G, 1), of each group
    hardest = F.embedding(torch.stack([positive, negative]) + first, representations.reshape(-1, dim))  # (2, G, B, D)
    positive, negative = (representations - hardest).norm(dim=-1)  # no gradient at 0
    usable = ~same.all(dim=1)
    losses = penalty(torch.where(usable, positive - negative, 0.0))
    return ((losses * usable).sum(dim=-1) / usable.sum().clamp(min=1)).mean()


@_float32
def prototype_regularisation(prototypes: Tensor, residuals: Tensor, bits: Tensor,
                             membership: Tensor | None = None) -> Tensor:
    """Make differences of prototypes follow differences of attributes (Eq. 6 to 8).

    The loss of a group is the sum over ordered pairs of ||p_m - p_n - r_mn||^2, r_mn = sum_l v_l (A_m(l) - A_n(l)).
    With q_m = p_m - V^T A_m this is the sum of ||q_m - q_n||^2 = 2 K sum_m ||q_m - mean(q)||^2, which costs
    O(K L D) in place of O(K^2 L D).

    Args:
        prototypes: float (K, D).   residuals: float (L, D), v_l.   bits: (K, L), A.
        membership: float (G, K), 1 where a row is of a group, for the mean over several groups whose rows and bits
            follow one another (`bits` is block-diagonal then); None for one group.
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
    """What the representations of a batch are compared with.

    identities: int64 (B,), or None where triplets are off.   sids: int64 (B, G), semantic IDs, -1 where missing; None
    for a model without prototypes.
    """

    identities: Tensor | None
    sids: Tensor | None = None


Loss = Callable[[Mapping[str, Any], Targets], dict[str, Tensor]]


def terms_of(losses: Sequence[Loss], outputs: Mapping[str, Any], targets: Targets) -> dict[str, Tensor]:
    """Terms of all losses by name. The total loss (Eq. 2) is their sum. CONTRIBUTING.md has an example of a new loss.

    Args:
        outputs: "representations" float (G, B, D), which may be those of all processes' batches; "logits" float
            (G, B', C) and "targets" int64 (B',), their identities, of this process alone; "before" as the
            representations, where triplets are mined before batch normalisation; "prototypes", `SIDPrototypes` or None.
        targets: of the representations.
    """
    terms = {}
    for loss in losses:
        terms |= loss(outputs, targets)
    return terms


@dataclass(frozen=True)
class IdentityLoss:
    """`identity_loss`, the mean over the groups' classifiers."""

    weight: float = 1.0
    label_smoothing: float = 0.0

    def __call__(self, outputs: Mapping[str, Any], targets: Targets) -> dict[str, Tensor]:
        logits = outputs["logits"]
        # Groups of one size: the mean over their means is the mean over all rows.
        loss = identity_loss(logits.flatten(0, 1), outputs["targets"].repeat(len(logits)), self.label_smoothing)
        return {"loss_id": self.weight * loss}


@dataclass(frozen=True)
class TripletLoss:
    """`soft_triplet_loss`, or with a margin `margin_triplet_loss`, the mean over groups."""

    weight: float = 1.0
    margin: float | None = None

    def __call__(self, outputs: Mapping[str, Any], targets: Targets) -> dict[str, Tensor]:
        representations = outputs.get("before", outputs["representations"])
        if targets.identities is None:  # 0 while off: FastReID logs terms by name only where there is more than one
            loss = representations.new_zeros((), dtype=torch.float32)
        elif self.margin is None:
            loss = soft_triplet_loss(representations, targets.identities)
        else:
            loss = margin_triplet_loss(representations, targets.identities, self.margin)
        return {"loss_triplet": self.weight * loss}


@dataclass(frozen=True)
class GuidanceLoss:
    """`semantic_guidance_loss` of the model's prototypes."""

    weight: float = 5.0

    def __call__(self, outputs: Mapping[str, Any], targets: Targets) -> dict[str, Tensor]:
        return {"loss_sem": self.weight * outputs["prototypes"].guidance(outputs["representations"], targets.sids)}


@dataclass(frozen=True)
class RegularisationLoss:
    """`prototype_regularisation` of the model's prototypes; no term where it holds by construction."""

    weight: float = 0.001

    def __call__(self, outputs: Mapping[str, Any], targets: Targets) -> dict[str, Tensor]:
        loss = outputs["prototypes"].regularisation()
        # Also at a weight of 0: distributed training wants every parameter in every step's loss.
        return {} if loss is None else {"loss_reg": self.weight * loss}


@dataclass(frozen=True)
class PrototypeSoftmaxLoss:
    """`prototype_softmax_loss` of the model's prototypes.

    Attributes:
        scale: of the cosines, where the prototypes have learned none.
        agreement: temperature of `agreement_weights`; 0 counts all images alike.
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

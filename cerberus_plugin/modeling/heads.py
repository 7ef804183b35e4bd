"""The head of Cerberus: alignment and part pooling of feature maps, and one representation per group.

Shapes: B images, C channels, H x W the map (24 x 8 for images of 384x128), G groups, S strips of the local map, D
dimensions of a representation (512).
"""

from __future__ import annotations

import warnings
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from fastreid.config import configurable
from fastreid.layers import get_norm
from fastreid.modeling.heads.build import REID_HEADS_REGISTRY
from torch import Tensor, nn

from ..attributes import PERSON_GROUPS, Group, find_schema

POOLS = ("mean", "max", "gem")
GEM_EPS = 1e-6  # lower bound of the values of a map, as in FastReID's layer


@torch.no_grad()
def row_heat(local_map: Tensor, squared: bool = False, quantile: float = 0.0) -> Tensor:
    """Compute for each row of a map the maximum norm of its channel vectors, or the maximum squared norm.

    Args:
        local_map: float (B, C, H, W).
        squared: return squared norms.
        quantile: 0 for absolute norms as in the paper; otherwise norms are divided by this quantile of the norms of the
            map, for example by the median with 0.5.

    Returns:
        float32 (B, H).

    Examples:
        >>> row_heat(torch.tensor([[[[3.0, 1.0]], [[4.0, 0.0]]]])).tolist()  # norms 5 and 1
        [[5.0]]
    """
    # float16 overflows if a norm exceeds 256.
    energy = local_map.float().square().sum(dim=1)  # (B, H, W)
    heat = energy.amax(dim=2)
    if quantile:
        places = energy.flatten(1).sort(dim=1).values
        heat = heat / places[:, min(int(quantile * places.shape[1]), places.shape[1] - 1), None]
    return heat if squared else heat.sqrt()


@torch.no_grad()
def person_rows(local_map: Tensor, sigma: float, squared: bool = False,
                quantile: float = 0.0) -> tuple[Tensor, Tensor, Tensor]:
    """Find the first and last row of a map that show the person (alignment module of the paper).

    These are the first and the last row with a maximum norm greater than sigma. Rows between them are always included.
    If there is no such row, the whole map is used.

    Args:
        local_map: float (B, C, H, W).
        sigma: threshold of the norm, or with `squared` of the squared norm; relative to the map with `quantile`, see
            `row_heat`.
        squared: see `row_heat`.
        quantile: see `row_heat`.

    Returns:
        first rows, int64 (B,); last rows, int64 (B,), inclusive; and bool (B,), True if no row exceeded sigma.

    Examples:
        >>> rows = torch.tensor([1.0, 9.0, 2.0, 7.0, 0.0]).view(1, 1, 5, 1)
        >>> [found.tolist() for found in person_rows(rows, sigma=5.0)]
        [[1], [3], [False]]
    """
    heat = row_heat(local_map, squared, quantile)
    above = heat > sigma
    height = heat.shape[1]
    fallback = ~above.any(dim=1)
    above = above | fallback[:, None]
    top = above.to(torch.uint8).argmax(dim=1)
    bottom = height - 1 - above.flip(1).to(torch.uint8).argmax(dim=1)
    return top, bottom, fallback


def resize_rows_matrix(top: Tensor, bottom: Tensor, height: int) -> Tensor:
    """Return matrices that crop maps to the rows top..bottom and resize them to `height` rows.

    The result equals cropping and `F.interpolate(..., mode="bilinear", align_corners=False)`, without a loop over
    images.

    Args:
        top: int64 (B,), first row.
        bottom: int64 (B,), last row, inclusive.
        height: H.

    Returns:
        float (B, H, H): output row i is sum_r matrix[b, i, r] * input row r.

    Examples:
        >>> resize_rows_matrix(torch.tensor([1]), torch.tensor([1]), height=2).tolist()  # both rows show row 1
        [[[0.0, 1.0], [0.0, 1.0]]]
    """
    n = (bottom - top + 1)[:, None]  # (B, 1)
    rows = torch.arange(height, device=top.device, dtype=torch.float32)[None]  # (1, H)
    source = ((rows + 0.5) * n / height - 0.5).clamp(min=0)
    source = torch.minimum(source, (n - 1).to(source.dtype))  # (B, H), within the crop
    low = source.floor().long()
    high = torch.minimum(low + 1, n - 1)
    weight = source - low
    matrix = F.one_hot(top[:, None] + low, height) * (1 - weight)[..., None]
    return matrix + F.one_hot(top[:, None] + high, height) * weight[..., None]


def strip_matrix(height: int, strips: int, overlap: float = 0.0, device: torch.device | None = None) -> Tensor:
    """Return a matrix that averages the rows of a map over equal horizontal strips.

    A row that belongs to several strips is weighted by its share in each strip.

    Args:
        height: H.
        strips: S.
        overlap: extension of a strip into each of its neighbours, relative to its height (0 in the paper).
        device: device of the result.

    Returns:
        float (S, H); each row has the sum 1.

    Examples:
        >>> strip_matrix(height=3, strips=2).mul(3).tolist()
        [[2.0, 1.0, 0.0], [0.0, 1.0, 2.0]]
    """
    size = height / strips
    strip = torch.arange(strips, device=device)[:, None]
    row = torch.arange(height, device=device)[None]
    start, end = ((strip - overlap) * size).clamp(min=0), ((strip + 1 + overlap) * size).clamp(max=height)
    share = (torch.minimum(end, row + 1) - torch.maximum(start, row)).clamp(min=0)  # (strips, H)
    return share / share.sum(dim=1, keepdim=True)


def pool_strips(feature_map: Tensor, strips: Tensor, p: Tensor | None = None) -> Tensor:
    """Pool a map over strips by the maximum, or by the generalised mean with the exponent p.

    The generalised mean is (mean of x^p)^(1/p) over the strip, where rows are weighted by their shares in the strip. It
    is computed with logarithms, because x^p of a channel that is inactive everywhere underflows in float32 if p is
    greater than 6.

    Args:
        feature_map: float (B, C, H, W), after a ReLU.
        strips: float (S, H), see `strip_matrix`; the maximum uses all rows with a positive weight.
        p: float (1,), or None for the maximum.

    Returns:
        float (S, B, C), at least float32 for the generalised mean.

    Examples:
        >>> pool_strips(torch.tensor([1.0, 7.0]).view(1, 1, 2, 1), strip_matrix(2, 1), torch.tensor([2.0])).tolist()
        [[[5.0]]]
    """
    with torch.autocast(feature_map.device.type, enabled=False):
        if p is None:
            rows = feature_map.amax(dim=3)  # (B, C, H)
            return torch.stack([rows.masked_fill(strip == 0, float("-inf")).amax(dim=2) for strip in strips])
        exact = feature_map.to(torch.promote_types(feature_map.dtype, torch.float32))
        p, shares = p.to(exact.dtype), (strips / feature_map.shape[3]).to(exact.dtype)
        rows = (p * exact.clamp(min=GEM_EPS).log()).logsumexp(dim=3)  # (B, C, H)
        return torch.stack([(rows + strip.log()).logsumexp(dim=2) / p for strip in shares]).exp()


@REID_HEADS_REGISTRY.register()
class CerberusHead(nn.Module):
    """One representation per group from the maps of the two branches, and the identity classifiers.

    A group uses a strip of the aligned local map (head, upper and lower in the paper), or the mean of the global map
    (identity and carrying). Each group has a separate fully connected layer and batch normalisation. In training the
    head returns the representations and the logits of one identity classifier per group; in evaluation it returns one
    embedding (B, G * D) per image.

    Args:
        feat_dim: C.
        embedding_dim: D.
        num_classes: number of training identities.
        align: crop the local map to the rows of the person; False for the ablation.
        sigma: see `person_rows`.
        squared_norm: `squared` of `person_rows`.
        sigma_quantile: `quantile` of `person_rows`.
        strip_overlap: see `strip_matrix`.
        pool: "mean" as in the paper, "max", or "gem", the generalised mean with one learnable exponent per branch.
        split: also return the representations before batch normalisation, for the triplet loss.
        norm: FastReID's name of a normalisation layer ("BN", "syncBN").
        sampled_identities: number of classes per batch, its own identities and random others (partial softmax, for
            training sets with many identities); 0 uses all classes.
        groups: G groups; some must use a strip and some the whole image, so that both branches are trained.

    Raises:
        ValueError: if an option is invalid, or all groups use the same branch.
    """

    @configurable
    def __init__(self, *, feat_dim: int = 2048, embedding_dim: int = 512, num_classes: int, align: bool = True,
                 sigma: float = 5.0, squared_norm: bool = False, strip_overlap: float = 0.0,
                 norm: str = "BN", sampled_identities: int = 0, pool: str = "mean",
                 split: bool = False, sigma_quantile: float = 0.0, groups: Sequence[Group] = PERSON_GROUPS) -> None:
        super().__init__()
        self.strip_of_group = {group.name: group.strip for group in groups}
        strips = [strip for strip in self.strip_of_group.values() if strip is not None]
        self.num_strips = max(strips, default=-1) + 1
        if not 0 < len(strips) < len(groups):
            raise ValueError(f"CerberusHead: the groups use {list(self.strip_of_group.values())} (strips, or None for "
                             "the whole image), expected both kinds; otherwise one of the branches is never trained")
        if pool not in POOLS:
            raise ValueError(f"MODEL.CERBERUS.POOL is '{pool}', expected one of {', '.join(POOLS)}")
        self.pooling = pool
        self.split = split
        if pool == "gem":
            self.exponents = nn.ParameterDict({
                branch: nn.Parameter(torch.full((1,), 3.0)) for branch in ("global", "local")})
        self.align = align
        self.sigma = sigma
        self.squared_norm = squared_norm
        if not 0 <= sigma_quantile <= 1:
            raise ValueError(f"MODEL.CERBERUS.SIGMA_QUANTILE is {sigma_quantile}, expected a quantile between 0 and 1 "
                             "such as 0.5, or 0 for an absolute SIGMA")
        self.sigma_quantile = sigma_quantile
        self.strip_overlap = strip_overlap
        self.num_classes = num_classes
        self.sampled_identities = sampled_identities
        names = list(self.strip_of_group)
        self.fc = nn.ModuleDict({group: nn.Linear(feat_dim, embedding_dim, bias=False) for group in names})
        self.bn = nn.ModuleDict({group: get_norm(norm, embedding_dim) for group in names})
        with warnings.catch_warnings():  # a training set without identities has no classes
            warnings.filterwarnings("ignore", "Initializing zero-element tensors")
            self.classifiers = nn.ModuleDict({group: nn.Linear(embedding_dim, num_classes, bias=False)
                                              for group in names})
        for fc in self.fc.values():
            nn.init.kaiming_normal_(fc.weight, mode="fan_out")
        for classifier in self.classifiers.values():
            nn.init.normal_(classifier.weight, std=0.01)

    @classmethod
    def from_config(cls, cfg) -> dict:
        """Arguments from a configuration, see `fastreid.config.configurable`."""
        node = cfg.MODEL.CERBERUS
        return {
            "feat_dim": cfg.MODEL.BACKBONE.FEAT_DIM,
            "embedding_dim": cfg.MODEL.HEADS.EMBEDDING_DIM,
            "num_classes": cfg.MODEL.HEADS.NUM_CLASSES,
            "norm": cfg.MODEL.HEADS.NORM,
            "align": node.ALIGN,
            "sigma": node.SIGMA,
            "squared_norm": node.SQUARED_NORM,
            "sigma_quantile": node.SIGMA_QUANTILE,
            "strip_overlap": node.STRIP_OVERLAP,
            "sampled_identities": node.SAMPLED_IDENTITIES,
            "pool": node.POOL,
            "split": node.SPLIT,
            "groups": find_schema(node.SCHEMA).groups if node.SCHEMA else PERSON_GROUPS,
        }

    def _load_from_state_dict(self, state_dict: dict, prefix: str, *args) -> None:
        """Support the bias of `fc` in older checkpoints: subtract it from the running mean of `bn`."""
        for group in self.strip_of_group:
            bias = state_dict.pop(f"{prefix}fc.{group}.bias", None)
            if bias is not None:
                mean = f"{prefix}bn.{group}.running_mean"
                state_dict[mean] = state_dict[mean] - bias
        super()._load_from_state_dict(state_dict, prefix, *args)

    def forward(self, features: tuple[Tensor, Tensor], targets: Tensor | None = None):
        """Compute the embedding, or in training the outputs for the losses.

        Args:
            features: global and local map, each (B, C, H, W).
            targets: int64 (B,), classes, in training.

        Returns:
            embeddings (B, G * D). In training a dict: "representations" (G, B, D), "logits" (G, B, classes), "targets"
            int64 (B,), indices of these classes, "alignment" with the scalars "crop_ratio" and "fallback", and with
            `split` also "before" (G, B, D).
        """
        pooled, alignment = self.pool(*features)
        before = [self.fc[group](pooled[group]) for group in self.strip_of_group]
        representations = [self._normalised(group, x) for group, x in zip(self.strip_of_group, before)]
        if not self.training:
            return torch.cat([F.normalize(f.float(), dim=1) for f in representations], dim=1)  # (B, G * D)
        weights = [classifier.weight for classifier in self.classifiers.values()]  # (classes, D) each
        if 0 < self.sampled_identities < self.num_classes:
            classes, targets = self.sample(targets)
            weights = [weight[classes] for weight in weights]
        logits = [F.linear(f, weight) for f, weight in zip(representations, weights)]
        outputs = {"representations": torch.stack(representations), "logits": torch.stack(logits), "targets": targets,
                   "alignment": alignment}
        return outputs | ({"before": torch.stack(before)} if self.split else {})

    def sample(self, targets: Tensor) -> tuple[Tensor, Tensor]:
        """Sample the classes of a batch and random others.

        Returns:
            classes, int64 (sampled_identities,), and the indices of the targets among them, int64 (B,).

        Raises:
            ValueError: if there are more targets than classes to sample.
        """
        if self.sampled_identities < len(targets):
            raise ValueError(f"MODEL.CERBERUS.SAMPLED_IDENTITIES is {self.sampled_identities}, expected at least the "
                             f"{len(targets)} images of a batch, or 0 for all identities.")
        # Selected as the largest random numbers, which gives a fixed size without synchronising the device.
        lot = torch.rand(self.num_classes, device=targets.device).index_fill(0, targets, 2.0)
        classes = lot.topk(self.sampled_identities).indices.sort().values
        return classes, torch.searchsorted(classes, targets)

    def pool(self, global_map: Tensor, local_map: Tensor) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
        """Pool the global and local map, each (B, C, H, W), for each group.

        Returns:
            the input of the layer of each group, (B, C), by group name; and statistics of the alignment: "crop_ratio",
            the mean share of rows that are kept, and "fallback", the share of images without a row above sigma.
        """
        height = local_map.shape[2]
        strips = strip_matrix(height, self.num_strips, self.strip_overlap, local_map.device)  # (S, H)
        alignment, resizing = {}, None
        if self.align:
            top, bottom, fallback = person_rows(local_map, self.sigma, self.squared_norm, self.sigma_quantile)
            alignment = {"crop_ratio": (bottom - top + 1).float().mean() / height, "fallback": fallback.float().mean()}
            resizing = resize_rows_matrix(top, bottom, height)  # (B, H, H)
        pooled = self._means if self.pooling == "mean" else self._maxima
        parts, whole = pooled(global_map, local_map, strips, resizing)  # (S, B, C), (B, C)
        read = {group: whole if strip is None else parts[strip] for group, strip in self.strip_of_group.items()}
        return read, alignment

    @staticmethod
    def _means(global_map: Tensor, local_map: Tensor, strips: Tensor, resizing: Tensor | None) -> tuple[Tensor, Tensor]:
        # Alignment and pooling are combined in one S x H matrix per image, without computing the aligned map.
        batch = local_map.shape[0]  # len() would be a constant in an exported graph
        weights = strips.expand(batch, -1, -1) if resizing is None else strips @ resizing  # (B, S, H)
        rows = local_map.mean(dim=3)  # (B, C, H)
        return torch.einsum("bkh,bch->kbc", weights.to(rows.dtype), rows), global_map.mean(dim=(2, 3))

    def _maxima(self, global_map: Tensor, local_map: Tensor, strips: Tensor,
                resizing: Tensor | None) -> tuple[Tensor, Tensor]:
        """Pool by maximum or generalised mean. They do not commute with resizing, so the aligned map is computed."""
        if resizing is not None:
            local_map = torch.einsum("bir,bcrw->bciw", resizing.to(local_map.dtype), local_map)
        p = self.exponents if self.pooling == "gem" else {"local": None, "global": None}
        whole = strip_matrix(global_map.shape[2], 1, device=global_map.device)  # (1, H)
        return pool_strips(local_map, strips, p["local"]), pool_strips(global_map, whole, p["global"])[0]

    def _normalised(self, group: str, x: Tensor) -> Tensor:
        return self.bn[group](x[:, :, None, None])[:, :, 0, 0]  # FastReID's normalisation layers expect (B, D, 1, 1)

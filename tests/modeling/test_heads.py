"""Alignment and part pooling, compared with loops that crop, resize and average each image."""

from cerberus_plugin.attributes import GROUPS
from cerberus_plugin.modeling.heads import CerberusHead, person_rows, pool_strips, resize_rows_matrix, strip_matrix

import pytest
import torch
import torch.nn.functional as F
from fastreid.layers.pooling import FastGlobalAvgPool, GeneralizedMeanPoolingP, GlobalMaxPool
from torch import nn

MEAN = FastGlobalAvgPool()


def map_with_rows(rows, norm: float = 8.0, height: int = 24) -> torch.Tensor:
    """A map (1, 3, height, 8) with vectors of norm `norm` in one column of these rows, and of norm 1 elsewhere."""
    local_map = torch.zeros(1, 3, height, 8)
    local_map[:, 0] = 1
    for row in rows:
        local_map[0, 0, row, 3] = norm
    return local_map


def looped(local_map: torch.Tensor, sigma: float, pool=MEAN) -> torch.Tensor:
    """The alignment module by a loop: crop each image to its rows, resize, pool three strips."""
    pooled = []
    for image in local_map:
        heat = image.norm(dim=0).amax(dim=1)
        rows = (heat > sigma).nonzero().flatten().tolist() or [0, image.shape[1] - 1]
        crop = image[None, :, rows[0]:rows[-1] + 1]
        aligned = F.interpolate(crop, size=image.shape[1:], mode="bilinear", align_corners=False)[0]
        pooled.append(torch.stack([pool(strip[None])[0, :, 0, 0] for strip in aligned.chunk(3, dim=1)]))
    return torch.stack(pooled)  # (B, 3, C)


@pytest.mark.parametrize(("rows", "expected"), [
    ([7, 8, 9], (7, 9, False)), ([5], (5, 5, False)), ([], (0, 23, True)), ([2, 20], (2, 20, False))])
def test_rows_between_the_first_and_last_row_above_sigma_are_kept(rows, expected):
    assert tuple(x.item() for x in person_rows(map_with_rows(rows), 5.0)) == expected


def test_the_threshold_is_strict_and_can_apply_to_the_square():
    assert person_rows(map_with_rows([4], norm=5.0), 5.0)[2].item()
    assert person_rows(map_with_rows([4], norm=5.0), 5.0, squared=True)[0].item() == 4


@pytest.mark.parametrize("scale", [0.01, 1.0, 300.0])
def test_relative_to_the_median_the_scale_of_the_map_has_no_effect(scale):
    local_map = scale * map_with_rows(range(6, 18), norm=1.0)
    local_map[0, 0, 6:18, :] = 4 * scale  # 96 of 192 positions: the median is the next position after the lower half
    assert [x.item() for x in person_rows(local_map, 0.9, quantile=0.5)] == [6, 17, False]
    assert [x.item() for x in person_rows(local_map, 0.2, quantile=0.5)] == [0, 23, False]
    assert [x.item() for x in person_rows(local_map, 0.9, squared=True, quantile=0.5)] == [6, 17, False]
    assert [x.item() for x in person_rows(local_map, 3.9, quantile=0.4)] == [6, 17, False]  # in norms of the background
    assert person_rows(local_map, 1.0, quantile=1.0)[2].item(), "no norm exceeds the maximum"
    assert person_rows(0 * local_map, 0.5, quantile=0.5)[2].item()


def test_invalid_quantiles_are_rejected():
    with pytest.raises(ValueError, match="SIGMA_QUANTILE is 1.5, expected a quantile"):
        head(sigma_quantile=1.5)


def test_half_precision_maps_do_not_overflow():
    top, bottom, _ = person_rows(map_with_rows([7, 9], norm=60000.0).half(), 5.0)
    assert (top.item(), bottom.item()) == (7, 9)


def test_resizing_three_rows_matches_values_computed_by_hand():
    matrix = resize_rows_matrix(torch.tensor([7]), torch.tensor([9]), 24)[0]
    assert all(matrix[i].nonzero().item() == 7 for i in range(4))
    assert matrix[8, 7].item() == pytest.approx(0.4375) and matrix[8, 8].item() == pytest.approx(0.5625)
    assert all(matrix[i].nonzero().item() == 9 for i in range(20, 24))


def test_one_row_is_repeated_and_the_whole_map_is_not_changed():
    assert (resize_rows_matrix(torch.tensor([5]), torch.tensor([5]), 24)[0, :, 5] == 1).all()
    assert torch.allclose(resize_rows_matrix(torch.tensor([0]), torch.tensor([23]), 24)[0], torch.eye(24))


def head(**options) -> CerberusHead:
    torch.manual_seed(0)
    return CerberusHead(feat_dim=6, embedding_dim=4, num_classes=3, **options)


@pytest.mark.parametrize("height", [6, 24])
def test_alignment_and_part_pooling_equal_the_loop_over_images(height):
    generator = torch.Generator().manual_seed(2)
    local_map = torch.randn(16, 6, height, 4, generator=generator).abs() * torch.rand(16, 1, height, 1) * 5
    pooled, _ = head(sigma=5.0).pool(torch.zeros(16, 6, height, 4), local_map)
    expected = looped(local_map, 5.0)
    for k, group in enumerate(("head", "upper", "lower")):
        assert torch.allclose(pooled[group], expected[:, k], atol=1e-5)


@pytest.mark.parametrize(("name", "layer"), [("max", GlobalMaxPool()), ("gem", GeneralizedMeanPoolingP(norm=2.5))])
@pytest.mark.parametrize("height", [6, 24])
def test_max_and_gem_pooling_equal_fastreids_layers_on_aligned_strips(name, layer, height):
    generator = torch.Generator().manual_seed(2)
    maps = torch.randn(16, 6, height, 4, generator=generator).relu() * torch.rand(16, 1, height, 1,
                                                                                    generator=generator) * 5
    module = head(pool=name)
    if name == "gem":
        for exponent in module.exponents.values():
            exponent.data.fill_(2.5)
    pooled, alignment = module.pool(maps, maps)
    assert 0 < alignment["crop_ratio"] < 1
    for k, group in enumerate(("head", "upper", "lower")):
        assert torch.allclose(pooled[group], looped(maps, 5.0, layer)[:, k], atol=1e-5)
    assert torch.allclose(pooled["identity"], layer(maps)[:, :, 0, 0], atol=1e-5)
    pooled, _ = head(pool=name, align=False).pool(maps, maps)
    layer = GeneralizedMeanPoolingP() if name == "gem" else layer
    assert torch.allclose(pooled["lower"], layer(maps.chunk(3, dim=2)[2])[:, :, 0, 0], atol=1e-5)


def test_rows_shared_by_two_strips_in_maxima_and_generalised_means():
    column = torch.arange(1.0, 9.0).view(1, 1, 8, 1)
    assert pool_strips(column, strip_matrix(8, 3)).flatten().tolist() == [3, 6, 8]
    gem = pool_strips(column, strip_matrix(8, 3), torch.tensor([2.0])).flatten()
    assert gem[0].item() == pytest.approx(((3 * 1 + 3 * 4 + 2 * 9) / 8) ** 0.5)


@pytest.mark.parametrize("exponent", [1.0, 3.0, 12.0])
def test_generalised_means_of_inactive_channels_have_finite_gradients(exponent):
    maps, p = torch.zeros(1, 2, 6, 2).requires_grad_(), torch.tensor([exponent], requires_grad=True)
    with torch.no_grad():
        maps[0, 1, 0] = 3000.0
    pooled = pool_strips(maps, strip_matrix(6, 3), p)
    pooled.sum().backward()
    assert pooled.max().item() == pytest.approx(3000 * 2 ** (-1 / exponent), rel=1e-4)
    assert maps.grad.isfinite().all() and p.grad.isfinite().all()


def test_generalised_means_are_float32_under_autocast():
    maps = (torch.rand(2, 3, 6, 2) * 100).to(torch.bfloat16)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        pooled = pool_strips(maps, strip_matrix(6, 3), torch.tensor([3.0]))
    assert torch.equal(pooled, pool_strips(maps.float(), strip_matrix(6, 3), torch.tensor([3.0])))


def test_unknown_pooling_is_rejected():
    with pytest.raises(ValueError, match="MODEL.CERBERUS.POOL is 'avg', expected one of mean, max, gem"):
        head(pool="avg")


def test_split_only_adds_the_input_of_batch_normalisation():
    maps, targets = (torch.randn(4, 6, 24, 8), torch.randn(4, 6, 24, 8)), torch.tensor([0, 1, 2, 0])
    module, plain = head(split=True), head()
    outputs, expected = module.train()(maps, targets), plain.train()(maps, targets)
    before = outputs.pop("before")
    assert torch.allclose(F.batch_norm(before[1], None, None, training=True), outputs["representations"][1], atol=1e-5)
    assert outputs.keys() == expected.keys() and torch.equal(outputs["logits"], expected["logits"])
    assert torch.equal(module.eval()(maps), plain.eval()(maps))


def test_without_alignment_strips_are_thirds_of_the_whole_map():
    local_map = torch.randn(2, 6, 24, 8)
    pooled, _ = head(align=False).pool(local_map, local_map)
    assert torch.allclose(pooled["upper"], local_map[:, :, 8:16].mean(dim=(2, 3)), atol=1e-6)
    assert torch.allclose(pooled["identity"], local_map.mean(dim=(2, 3))) and "carrying" in pooled


def test_strips_share_rows_at_their_edges_and_can_overlap():
    assert torch.allclose(strip_matrix(8, 3), torch.tensor([
        [3, 3, 2, 0, 0, 0, 0, 0], [0, 0, 1, 3, 3, 1, 0, 0], [0, 0, 0, 0, 0, 2, 3, 3]]) / 8)
    assert (strip_matrix(24, 3) > 0).sum(dim=1).tolist() == [8, 8, 8]
    assert (strip_matrix(24, 3, overlap=0.25) > 0).sum(dim=1).tolist() == [10, 12, 10]


def test_only_the_kept_rows_receive_gradients():
    local_map = map_with_rows([7, 8, 9]).requires_grad_()
    pooled, _ = CerberusHead(feat_dim=3, embedding_dim=2, num_classes=2).pool(local_map.detach(), local_map)
    sum(part.sum() for part in pooled.values()).backward()
    assert local_map.grad.abs().sum(dim=(0, 1, 3)).nonzero().flatten().tolist() == [7, 8, 9]


def test_training_gives_five_representations_with_logits_and_evaluation_unit_blocks():
    module, maps = head(), (torch.randn(4, 6, 24, 8), torch.randn(4, 6, 24, 8))
    outputs = module.train()(maps, torch.tensor([0, 1, 2, 0]))
    assert [f.shape for f in outputs["representations"]] == [(4, 4)] * 5
    assert [f.shape for f in outputs["logits"]] == [(4, 3)] * 5
    embedding = module.eval()(maps)
    assert embedding.shape == (4, 20)
    assert torch.allclose(embedding.unflatten(1, (5, 4)).norm(dim=2), torch.ones(4, 5), atol=1e-5)


def test_crop_ratio_and_fallbacks_are_returned():
    module = CerberusHead(feat_dim=3, embedding_dim=2, num_classes=2)
    maps = torch.cat([map_with_rows(range(6, 18)), map_with_rows([])])
    _, alignment = module.pool(maps, maps)
    assert alignment["crop_ratio"].item() == pytest.approx(0.75)
    assert alignment["fallback"].item() == 0.5


def test_sampled_identities_include_the_batch_and_are_distinct():
    module = CerberusHead(feat_dim=3, embedding_dim=2, num_classes=50, sampled_identities=8).train()
    targets = torch.tensor([49, 0, 49, 7])
    for _ in range(20):
        classes, among = module.sample(targets)
        assert len(classes.unique()) == 8 and (classes < 50).all()
        assert torch.equal(classes[among], targets)


def test_logits_of_sampled_identities_are_rows_of_the_full_classifier():
    torch.manual_seed(0)
    module = CerberusHead(feat_dim=3, embedding_dim=2, num_classes=50, sampled_identities=8).train()
    maps, targets = (torch.randn(4, 3, 24, 8), torch.randn(4, 3, 24, 8)), torch.tensor([49, 0, 49, 7])
    outputs = module(maps, targets)
    assert outputs["logits"].shape == (5, 4, 8)
    for group, logits, f in zip(GROUPS, outputs["logits"], outputs["representations"]):
        full = module.classifiers[group](f)
        own = logits.gather(1, outputs["targets"][:, None])
        assert torch.allclose(own, full.gather(1, targets[:, None]))
    # Weighted: otherwise the gradients are 0, because representations have the sum 0 after batch normalisation.
    (outputs["logits"] * torch.rand(8)).square().sum().backward()
    touched = (module.classifiers["head"].weight.grad != 0).any(dim=1)
    assert touched.sum() == 8 and touched[[0, 7, 49]].all()


def test_the_bias_of_older_checkpoints_is_merged_into_batch_normalisation():
    torch.manual_seed(0)
    older = CerberusHead(feat_dim=3, embedding_dim=2, num_classes=5)
    for group in GROUPS:
        older.fc[group].bias = nn.Parameter(torch.randn(2))
        older.bn[group].running_mean.normal_()
    module = CerberusHead(feat_dim=3, embedding_dim=2, num_classes=5)
    assert not any(module.load_state_dict(older.state_dict()))
    maps = torch.randn(4, 3, 24, 8), torch.randn(4, 3, 24, 8)
    torch.testing.assert_close(module.eval()(maps), older.eval()(maps))


def test_fewer_sampled_identities_than_a_batch_has_images_are_rejected():
    module = CerberusHead(feat_dim=3, embedding_dim=2, num_classes=50, sampled_identities=3)
    with pytest.raises(ValueError, match="SAMPLED_IDENTITIES is 3, expected at least the 4 images of a batch"):
        module.sample(torch.arange(4))

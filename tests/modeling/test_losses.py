"""Losses, compared with values computed by hand and with loops over their definitions."""

import math

from cerberus_plugin.modeling.losses import (
    adaptive_margins,
    agreement_weights,
    identity_loss,
    margin_triplet_loss,
    prototype_regularisation,
    prototype_softmax_loss,
    semantic_guidance_loss,
    soft_triplet_loss,
)

import pytest
import torch
import torch.nn.functional as F
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves


def guidance(count: int, cosine: float) -> float:
    representations = torch.tensor([[cosine, (1 - cosine**2) ** 0.5]], dtype=torch.float64)
    margins = torch.log(torch.tensor([0.4 * count / 10 + 1.8], dtype=torch.float64))
    return semantic_guidance_loss(representations, torch.tensor([[2.0, 0.0]], dtype=torch.float64),
                                  torch.tensor([0]), margins).item()


@pytest.mark.parametrize(("count", "margin"), [(10, 0.7884573604), (5, 0.6931471806), (1, 0.6097655716)])
def test_margins_match_values_computed_by_hand(count, margin):
    assert adaptive_margins(torch.tensor([count]), 10).item() == pytest.approx(margin, abs=1e-7)


@pytest.mark.parametrize(("count", "cosine", "loss"), [
    (10, 0.1, 0.1115426396), (5, 0.1, 0.2068528194), (1, 0.1, 0.2902344284), (1, 0.45, 0.0), (5, 0.40, 0.0)])
def test_guidance_is_the_hinge_of_one_minus_margin_minus_cosine(count, cosine, loss):
    assert guidance(count, cosine) == pytest.approx(loss, abs=1e-9)


def test_guidance_excludes_missing_labels():
    f, p, m = torch.randn(6, 4), torch.randn(3, 4), torch.tensor([0.6, 0.7, 0.65])
    sids = torch.tensor([0, -1, 2, 1, -1, 0])
    known = sids >= 0
    expected = (1 - m[sids[known]] - F.cosine_similarity(f[known], p[sids[known]])).clamp(min=0).mean()
    assert semantic_guidance_loss(f, p, sids, m).item() == pytest.approx(expected.item(), rel=1e-6)


def test_guidance_without_any_label_is_zero_with_a_gradient_of_zero():
    f, p = torch.randn(2, 4, requires_grad=True), torch.randn(3, 4, requires_grad=True)
    loss = semantic_guidance_loss(f, p, torch.tensor([-1, -1]), torch.full((3,), 0.6))
    loss.backward()
    assert loss.item() == 0 and f.grad.abs().max() == 0 and p.grad.abs().max() == 0


def test_guidance_has_gradients_for_representations_and_prototypes():
    f = torch.tensor([[1.0, 2, 3, 4], [4, 3, 2, 1]], requires_grad=True)
    p = torch.full((1, 4), -1.0, requires_grad=True)
    semantic_guidance_loss(f, p, torch.tensor([0, 0]), torch.tensor([0.6])).backward()
    assert f.grad.abs().sum() > 0 and p.grad.abs().sum() > 0


def test_softmax_over_two_prototypes_matches_values_computed_by_hand():
    # Cosines 0.6 and 0.8, independent of lengths: ln(1 + exp(16 * 0.2)) for the first, else ln(1 + exp(-16 * 0.2)).
    f, p = torch.tensor([[3.0, 4], [30, 40]]), torch.tensor([[2.0, 0], [0, 5]])
    expected = (math.log(1 + math.exp(3.2)) + math.log(1 + math.exp(-3.2))) / 2
    assert prototype_softmax_loss(f, p, torch.tensor([0, 1])).item() == pytest.approx(expected)


def test_softmax_of_all_groups_equals_a_loop_over_groups():
    generator = torch.Generator().manual_seed(2)
    sizes, images, scale = (4, 1, 7), 6, 10.0
    f = torch.randn(3, images, 5, generator=generator, dtype=torch.float64, requires_grad=True)
    p = torch.randn(sum(sizes), 5, generator=generator, dtype=torch.float64, requires_grad=True)
    idle = 9  # a semantic ID of the third group that is not a class
    sids = torch.tensor([[0, 3, -1, 1, 2, 2], [-1, -1, -1, -1, -1, -1], [5, 6, 11, -1, 10, 7]])
    losses = []
    for g, start in enumerate((0, 4, 5)):
        rows = [row for row in range(start, start + sizes[g]) if row != idle]
        each = []
        for b in range(images):
            if sids[g, b] >= 0:
                cosines = torch.stack([F.cosine_similarity(f[g, b], p[row], dim=0) for row in rows])
                own = rows.index(sids[g, b].item())
                each.append((scale * cosines).exp().sum().log() - scale * cosines[own])
        losses.append(torch.stack(each).mean() if each else torch.zeros((), dtype=torch.float64))
    expected = torch.stack(losses).mean()
    competing = torch.block_diag(*(torch.ones(1, size) for size in sizes))
    competing[2, idle] = 0
    loss = prototype_softmax_loss(f, p, sids, scale, competing)
    assert loss.item() == pytest.approx(expected.item(), rel=1e-12)
    gradients = torch.autograd.grad(loss, (f, p))
    for got, want in zip(gradients, torch.autograd.grad(expected, (f, p))):
        assert torch.allclose(got, want, rtol=1e-10, atol=1e-12)
    assert gradients[1][idle].abs().max() == 0


def test_softmax_without_any_label_is_zero_with_a_gradient_of_zero():
    f, p = torch.randn(2, 4, requires_grad=True), torch.randn(3, 4, requires_grad=True)
    loss = prototype_softmax_loss(f, p, torch.tensor([-1, -1]))
    loss.backward()
    assert loss.item() == 0 and f.grad.abs().max() == 0 and p.grad.abs().max() == 0


def test_soft_triplet_matches_values_computed_by_hand():
    f = torch.tensor([[0.0, 0], [3, 4], [6, 8], [0, 1]], dtype=torch.float64)
    assert soft_triplet_loss(f, torch.tensor([0, 0, 1, 1])).item() == pytest.approx(4.4034954002, abs=1e-9)


def test_soft_triplet_equals_the_loop_over_anchors():
    generator = torch.Generator().manual_seed(0)
    f, y = torch.randn(12, 5, generator=generator), torch.randint(4, (12,), generator=generator)
    losses = []
    for a in range(12):
        d = (f[a] - f).norm(dim=1)
        losses.append(F.softplus(d[y == y[a]].max() - d[y != y[a]].min()))
    assert soft_triplet_loss(f, y).item() == pytest.approx(torch.stack(losses).mean().item(), rel=1e-5)


def test_margin_triplet_matches_values_computed_by_hand():
    # On a line at 0, 2 (one person) and 2.1, 2.2 (another). Farthest of the same: 2, 2, 0.1, 0.1; nearest of another:
    # 2.1, 0.1, 0.1, 0.2. With margin 0.3: 0.2, 2.2, 0.3, 0.2, with the mean 2.9 / 4.
    f = torch.tensor([[0.0], [2], [2.1], [2.2]], dtype=torch.float64)
    y = torch.tensor([0, 0, 1, 1])
    assert margin_triplet_loss(f, y, 0.3).item() == pytest.approx(2.9 / 4)
    assert margin_triplet_loss(f, y, 0.05).item() == pytest.approx((0 + 1.95 + 0.05 + 0) / 4)
    assert margin_triplet_loss(torch.stack([f, 2 * f]), y, 0.3).item() == pytest.approx((2.9 + 4.6) / 8)


def test_soft_triplet_has_finite_gradients_in_degenerate_batches():
    f = torch.ones(4, 3, requires_grad=True)
    soft_triplet_loss(f, torch.tensor([0, 0, 1, 1])).backward()
    assert f.grad.isfinite().all()
    assert soft_triplet_loss(f, torch.zeros(4, dtype=torch.int64)).item() == 0


def hardest_by_loop(f, y):
    """d(f, f_p) - d(f, f_n) of each anchor of one group, by a loop over pairs."""
    gaps = []
    for a in range(len(f)):
        d = [(f[a] - f[b]).square().sum().sqrt() if a != b else f[a].sum() * 0 for b in range(len(f))]
        gaps.append(max(d[b] for b in range(len(f)) if y[b] == y[a]) - min(d[b] for b in range(len(f)) if y[b] != y[a]))
    return torch.stack(gaps)


def test_triplets_of_near_rows_have_the_precision_of_float64():
    # Multiples of 2^-10 near 4 are exact in float32; matrix multiplication would lose all digits of these distances.
    generator = torch.Generator().manual_seed(2)
    steps = torch.randint(-3, 4, (2, 12, 6), generator=generator, dtype=torch.float64)
    f, y = (4 + steps / 1024).requires_grad_(), torch.arange(12) // 3
    expected = torch.stack([F.softplus(hardest_by_loop(group, y)).mean() for group in f]).mean()
    wanted, = torch.autograd.grad(expected, f)
    single = f.detach().float().requires_grad_()
    loss = soft_triplet_loss(single, y)
    loss.backward()
    assert loss.item() == pytest.approx(expected.item(), rel=1e-6)
    assert (single.grad - wanted).norm() < 1e-6 * wanted.norm()


@pytest.mark.parametrize("loss", [soft_triplet_loss, margin_triplet_loss])
def test_gradients_of_triplets_equal_finite_differences(loss):
    generator = torch.Generator().manual_seed(3)
    f = torch.randn(2, 8, 3, dtype=torch.float64, generator=generator, requires_grad=True)
    assert torch.autograd.gradcheck(lambda f: loss(f, torch.arange(8) // 2), f)


def test_triplet_memory_does_not_grow_with_pairs_times_dimensions():
    sizes, names = [], set()

    class Sizes(TorchDispatchMode):
        def __torch_dispatch__(self, func, types, args=(), kwargs=None):
            result = func(*args, **(kwargs or {}))
            names.add(func._schema.name)
            sizes.extend(leaf.numel() for leaf in tree_leaves(result) if isinstance(leaf, torch.Tensor))
            return result

    groups, batch, dim = 3, 16, 32
    f = torch.randn(groups, batch, dim, requires_grad=True)
    with Sizes():
        soft_triplet_loss(f, torch.arange(batch) // 4).backward()
    assert max(sizes) <= 2 * groups * batch * max(batch, dim)
    assert "aten::_cdist_backward" not in names  # on a GPU it allocates (G, B, B, D), which the profiler does not show


def test_agreement_weights_equal_a_loop_over_images():
    torch.manual_seed(0)
    f, identities = torch.randn(2, 7, 5), torch.tensor([4, 4, 4, 9, 9, 4, 2])
    sids = torch.tensor([[0, 0, 0, 1, 1, 0, 1], [0, 0, 3, 1, 1, 3, 1]])  # in the second group there are two outfits
    weights = agreement_weights(f, identities, sids, 0.3)
    for g in range(2):
        for i in range(7):
            own = [j for j in range(7) if identities[j] == identities[i] and sids[g, j] == sids[g, i]]
            agreement = {}
            for j in own:
                others = sum((F.normalize(f[g, k], dim=0) for k in own if k != j), torch.zeros(5))
                agreement[j] = math.exp(F.cosine_similarity(f[g, j], others, dim=0).item() / 0.3)
            assert weights[g, i].item() == pytest.approx(agreement[i] * len(own) / sum(agreement.values()), rel=1e-5)
    assert weights[:, 6].tolist() == pytest.approx([1, 1])
    assert agreement_weights(f, identities, sids, 1e-3).isfinite().all()


def test_the_softmax_applies_the_weights_of_images():
    torch.manual_seed(0)
    f, prototypes, sids = torch.randn(1, 3, 4), torch.randn(5, 4), torch.tensor([[2, -1, 0]])
    alone = [prototype_softmax_loss(f[:, [i]], prototypes, sids[:, [i]]).item() for i in (0, 2)]
    weighted = prototype_softmax_loss(f, prototypes, sids, weights=torch.tensor([[3.0, 9.0, 1.0]]))
    assert weighted.item() == pytest.approx((3 * alone[0] + alone[1]) / 4, rel=1e-5)
    unlabelled = prototype_softmax_loss(f, prototypes, torch.full((1, 3), -1), weights=torch.ones(1, 3))
    assert unlabelled.item() == 0


def test_identity_loss_is_minus_log_p_without_smoothing():
    logits, y = torch.randn(4, 7), torch.tensor([0, 3, 6, 1])
    expected = -logits.softmax(dim=1)[range(4), y].log().mean()
    assert identity_loss(logits, y).item() == pytest.approx(expected.item(), rel=1e-5)


def test_the_regulariser_matches_a_value_computed_by_hand():
    p = torch.tensor([[1.0, 0], [0, 1], [2, 2]], requires_grad=True)
    loss = prototype_regularisation(p, torch.eye(2), torch.tensor([[1, 0], [0, 1], [1, 1]]))
    loss.backward()
    assert loss.item() == pytest.approx(8) and p.grad[2].tolist() == pytest.approx([8, 8])


def double_loop(p, v, bits):
    total = 0
    for m in range(len(p)):
        for n in range(len(p)):
            residual = sum(v[l] * (float(bits[m, l]) - float(bits[n, l])) for l in range(len(v)))  # noqa: E741
            total = total + (p[m] - p[n] - residual).square().sum()
    return total


@pytest.mark.parametrize(("rows", "bits", "dim"), [(1, 2, 4), (3, 2, 5), (34, 11, 512)])
def test_regulariser_equals_the_double_loop_in_value_and_gradient(rows, bits, dim):
    generator = torch.Generator().manual_seed(1)
    p, v = (torch.randn(n, dim, generator=generator, dtype=torch.float64, requires_grad=True) for n in (rows, bits))
    a = torch.randint(2, (rows, bits), generator=generator)
    loss, expected = prototype_regularisation(p, v, a), double_loop(p, v, a)
    assert loss.item() == pytest.approx(expected.item(), rel=1e-12)
    for got, want in zip(torch.autograd.grad(loss, (p, v)), torch.autograd.grad(expected, (p, v))):
        assert torch.allclose(got, want, rtol=1e-11, atol=1e-9)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_losses_are_float32_under_autocast(dtype):
    p, v = torch.full((5, 8), 300.0), torch.ones(2, 8)
    p[0] = -300.0
    bits = torch.zeros(5, 2)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        loss = prototype_regularisation(p.to(dtype), v, bits)
        triplet = soft_triplet_loss(torch.eye(4).to(dtype), torch.tensor([0, 0, 1, 1]))
        softmax = prototype_softmax_loss(torch.eye(4).to(dtype), torch.eye(4), torch.arange(4), 100.0)
    assert loss.dtype == triplet.dtype == softmax.dtype == torch.float32
    assert loss.item() == pytest.approx(double_loop(p, v, bits).item(), rel=1e-6)

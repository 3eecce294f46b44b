"""Negatives, InfoNCE, the Gumbel quantiser and the usage of codes."""

from __future__ import annotations

import math

import pytest
import torch

from speechssl.nn.contrastive import draw_negatives, info_nce
from speechssl.nn.draws import random_gumbel
from speechssl.nn.gumbel import CodeUsage, GumbelQuantiser


def test_negatives_are_uniform_over_the_other_frames_of_the_utterance() -> None:
    counts = torch.tensor([5, 40])
    found = draw_negatives(counts, torch.tensor([3, 4]), 5000, 40, 0)
    for row, count in zip(found, counts.tolist(), strict=True):
        for frame in range(count):
            shares = torch.bincount(row[frame], minlength=count)[:count] / 5000
            assert row[frame].max() < count and shares[frame] == 0
            others = torch.cat([shares[:frame], shares[frame + 1 :]])
            assert (others - 1 / (count - 1)).abs().max() < 5 * (1 / (count - 1) / 5000) ** 0.5


def test_negatives_of_an_utterance_do_not_depend_on_its_batch() -> None:
    both = draw_negatives(torch.tensor([9, 30]), torch.tensor([3, 4]), 7, 30, 0)
    alone = draw_negatives(torch.tensor([9]), torch.tensor([3]), 7, 9, 0)
    assert torch.equal(both[0, :9], alone[0])


def test_equal_cosines_cost_the_logarithm_of_their_number() -> None:
    x = torch.ones(1, 200, 8)
    valid = torch.ones(1, 200, dtype=torch.bool)
    negatives = draw_negatives(torch.tensor([200]), torch.tensor([1]), 100, 200, 0)
    loss, hits = info_nce(x, x, valid, negatives, 0.1)
    assert loss.item() / 200 == pytest.approx(math.log(101), rel=1e-5) and hits == 0


def test_info_nce_equals_brute_force_and_leaves_out_equal_codes() -> None:
    counts, width = torch.tensor([4, 9, 1]), 9
    context, target = torch.randn(3, width, 6), torch.randn(3, width, 6)
    codes = torch.randint(2, (3, width, 2))
    valid = torch.arange(width) < counts[:, None]
    negatives = draw_negatives(counts, torch.arange(3), 5, width, 0)
    expected, hits = 0.0, 0
    for b, count in enumerate(counts.tolist()):
        for t in range(count):
            cosines = [
                torch.cosine_similarity(context[b, t].double(), target[b, j].double(), dim=0) / 0.1
                for j in [t, *negatives[b, t].tolist()]
                if count > 1 or j == t
            ]
            chosen = [t, *negatives[b, t].tolist()] if count > 1 else [t]
            kept = [
                c
                for i, (c, j) in enumerate(zip(cosines, chosen, strict=True))
                if i == 0 or not torch.equal(codes[b, t], codes[b, j])
            ]
            logits = torch.stack(kept)
            expected += (logits.logsumexp(0) - logits[0]).item()
            hits += all(logits[0] > x for x in logits[1:])
    found = info_nce(context, target, valid, negatives, 0.1, codes)
    assert found[0].item() == pytest.approx(expected, rel=1e-5)
    assert int(found[1]) == hits


def test_all_codes_equal_costs_nothing_without_a_gradient_that_is_not_finite() -> None:
    x = torch.randn(1, 6, 4, requires_grad=True)
    valid = torch.ones(1, 6, dtype=torch.bool)
    negatives = draw_negatives(torch.tensor([6]), torch.tensor([0]), 5, 6, 0)
    loss, _ = info_nce(x, x, valid, negatives, 0.1, torch.zeros(1, 6, 2, dtype=torch.int64))
    loss.backward()
    assert loss.item() == 0 and torch.isfinite(x.grad).all()


def test_the_quantiser_returns_codewords_and_passes_the_gradient_straight_through() -> None:
    quantiser = GumbelQuantiser(5, 2, 3, 8)
    x = torch.randn(7, 5)
    noise = random_gumbel(torch.arange(7), 0, 2, 3)
    for given in (None, noise):
        found = quantiser(x, 0.7, given)
        words = [quantiser.codewords[g, found.codes[:, g]] for g in range(2)]
        torch.testing.assert_close(found.vectors, torch.cat(words, 1))
    logits = quantiser.logits(x).view(7, 2, 3)
    assert torch.equal(found.codes, (logits + noise).argmax(-1))
    soft = torch.softmax((logits + noise) / 0.7, -1)
    expected = torch.einsum("ngv,gve->nge", soft, quantiser.codewords.detach()).sum()
    a = torch.autograd.grad(expected, quantiser.logits.weight)[0]
    b = torch.autograd.grad(found.vectors.sum(), quantiser.logits.weight)[0]
    torch.testing.assert_close(a, b)


def published_diversity(p_NGV: torch.Tensor) -> torch.Tensor:
    mean = p_NGV.mean(0)
    used = torch.exp(-(mean * torch.log(mean + 1e-7)).sum(-1)).sum()
    return (mean.numel() - used) / mean.numel() * len(p_NGV)


def test_diversity_about_the_own_mean_has_the_published_value_and_gradient() -> None:
    p = torch.randn(50, 2, 6).mul(2).softmax(-1).requires_grad_()
    usage = CodeUsage(2, 6)
    usage.update(p.detach().sum(0), torch.tensor(50.0))
    values = [usage(p), published_diversity(p)]
    assert values[0].item() == pytest.approx(values[1].item(), rel=1e-5)
    a, b = (torch.autograd.grad(v, p)[0] for v in values)
    # Probabilities of a group sum to 1, so a constant over a group is no gradient.
    torch.testing.assert_close(a - a.mean(-1, True), b - b.mean(-1, True), atol=1e-5, rtol=1e-3)


def test_diversity_is_a_sum_over_frames_and_moves_towards_even_usage() -> None:
    usage = CodeUsage(1, 4)
    logits = torch.zeros(40, 1, 4)
    logits[..., 0] = 3.0
    logits.requires_grad_()
    for _ in range(400):
        p = logits.softmax(-1)
        parts = usage(p[:13]) + usage(p[13:])
        assert usage(p).item() == pytest.approx(parts.item(), abs=1e-4)
        (gradient,) = torch.autograd.grad(usage(p), logits)
        usage.update(p.detach().sum(0), torch.tensor(40.0))
        logits.data -= 2.0 * gradient
    assert usage(logits.softmax(-1)).item() / 40 < 0.01


def test_diversity_of_uniform_usage_is_0_and_of_one_code_nearly_1() -> None:
    usage = CodeUsage(2, 320)
    p = torch.full((3, 2, 320), 1 / 320)
    assert usage(p).item() == pytest.approx(0, abs=1e-3)
    one = torch.zeros(3, 2, 320)
    one[..., 5] = 1
    usage.update(one.sum(0), torch.tensor(3.0))
    assert usage(one).item() / 3 == pytest.approx(638 / 640, abs=1e-4)
    usage.update(torch.zeros(2, 320), torch.tensor(0.0))
    assert torch.isfinite(usage.usage).all()

"""Draws by counter: uniform, independent of the batch, and the same on every machine."""

from __future__ import annotations

import pytest
import torch

from speechssl.nn.draws import random_bits, random_gumbel, random_normal, random_uniform


def splitmix(x: int) -> int:
    """The published finaliser in unbounded integers."""
    word = 2**64 - 1
    x = ((x ^ (x >> 30)) * 0xBF58476D1CE4E5B9) & word
    x = ((x ^ (x >> 27)) * 0x94D049BB133111EB) & word
    return x ^ (x >> 31)


def test_the_hash_is_the_published_one() -> None:
    word = 2**64 - 1
    seeds = torch.tensor([0, 5, -1, 2**62 + 3])
    found = random_bits(seeds, 3, 2, 2).flatten(1).tolist()
    for seed, row in zip(seeds.tolist(), found, strict=True):
        key = splitmix((seed + splitmix(3)) & word)
        for n, value in enumerate(row, start=1):
            assert value == splitmix((key + n * 0x9E3779B97F4A7C15) & word) & (2**62 - 1)


def test_a_row_depends_on_its_seed_alone_and_grows_at_its_end() -> None:
    seeds = torch.tensor([4, -9])
    both = random_bits(seeds, 0, 6, 3)
    assert torch.equal(both[1], random_bits(seeds[1:], 0, 6, 3)[0])
    assert torch.equal(both[:, :4], random_bits(seeds, 0, 4, 3))
    assert not torch.equal(both, random_bits(seeds, 1, 6, 3))


def test_uniform_numbers_are_uniform_and_never_0_or_1() -> None:
    x = random_uniform(torch.arange(50), 0, 4000)
    assert x.min() > 0 and x.max() < 1
    shares = torch.histc(x, 20, 0, 1) / x.numel()
    assert (shares - 0.05).abs().max() < 0.002
    assert torch.corrcoef(torch.stack([x[:, :-1].flatten(), x[:, 1:].flatten()]))[0, 1].abs() < 0.01
    neighbours = torch.corrcoef(x[:, :100].T.contiguous().view(-1, 50)[:2])
    assert neighbours[0, 1].abs() < 0.5


@pytest.mark.parametrize(
    ("draw", "mean", "deviation"),
    [(random_gumbel, 0.57722, 1.28255), (random_normal, 0.0, 1.0)],
)
def test_other_distributions_have_their_moments(draw, mean: float, deviation: float) -> None:
    x = draw(torch.arange(40), 7, 5000).double()
    assert torch.isfinite(x).all()
    assert abs(x.mean().item() - mean) < 0.01
    assert abs(x.std().item() - deviation) < 0.01

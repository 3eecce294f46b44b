"""K-means: exact assignment, recovery, ranks, resume, determinism."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
import torch.multiprocessing as mp
from torch import Tensor

from speechssl.labels.kmeans import Assigner, KMeansConfig, fit_kmeans, one_pass
from speechssl.labels.reservoir import frame_keys
from speechssl.labels.seeding import find_start


def mixture(points: int, dim: int, centres: int, spread: float, seed: int = 0) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    means = torch.randn(centres, dim, generator=generator)
    labels = torch.randint(centres, (points,), generator=generator)
    return means[labels] + spread * torch.randn(points, dim, generator=generator)


def inertia(points: Tensor, centroids: Tensor) -> float:
    distances = torch.cdist(points.double(), centroids.double())
    return float(distances.amin(1).square().mean())


@pytest.mark.parametrize("offset", [0.0, 300.0])
def test_assignment_equals_brute_force_in_float64(offset: float) -> None:
    points = mixture(3000, 40, 20, 0.8) + offset
    centroids = points[:50].clone()
    exact = torch.cdist(points.double(), centroids.double()).square()
    labels = Assigner(centroids)(points)
    chosen = exact.gather(1, labels[:, None])[:, 0]
    # A tie within float32 rounding may fall either way; nothing else may differ.
    assert bool((chosen <= exact.amin(1) + 1e-3).all())
    assert float((labels == exact.argmin(1)).double().mean()) > 0.999


def test_sums_of_a_pass_are_those_of_float64() -> None:
    points = mixture(9000, 16, 8, 1.0) + 50.0
    centroids = points[:12].double()
    found = one_pass(points, centroids, "cpu")
    exact = torch.cdist(points.double(), centroids).square()
    labels = exact.argmin(1)
    sums = torch.zeros(12, 16, dtype=torch.float64).index_add_(0, labels, points.double())
    assert torch.equal(found.counts, torch.bincount(labels, minlength=12).double())
    assert torch.allclose(found.sums, sums, rtol=1e-6)
    assert found.inertia == pytest.approx(float(exact.amin(1).mean()), rel=1e-5)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
def test_separated_clusters_are_recovered(dtype: torch.dtype) -> None:
    generator = torch.Generator().manual_seed(1)
    means = 10.0 * torch.randn(60, 24, generator=generator)
    labels = torch.randint(60, (6000,), generator=generator)
    points = means[labels] + 0.1 * torch.randn(6000, 24, generator=generator)
    fit = fit_kmeans(points.to(dtype), KMeansConfig(classes=60))
    gaps = torch.cdist(means, fit.centroids).amin(1)
    assert float(gaps.max()) < 0.2, "every true centre has a centroid of its own"
    assert int(fit.counts.min()) > 0


def test_overlapping_gaussians_are_all_found_where_plain_seeding_merges_some() -> None:
    # As the published comparison: centres of unit variance, standard deviation 1.5 about them.
    points = mixture(8000, 256, 100, 1.5)
    means = torch.randn(100, 256, generator=torch.Generator().manual_seed(0))
    missed = []
    for rounds in (0, 30):
        fit = fit_kmeans(points, KMeansConfig(classes=100, swap_rounds=rounds))
        gaps = torch.cdist(means, fit.centroids).amin(1).square()
        missed.append(int((gaps > 0.3 * 256).sum()))
    assert missed[0] >= 3, "the case is hard enough to tell the two apart"
    assert missed[1] == 0


def test_inertia_never_rises_from_pass_to_pass() -> None:
    fit = fit_kmeans(mixture(5000, 20, 40, 1.0), KMeansConfig(classes=64, tolerance=0.0))
    history = np.array(fit.history)
    assert len(history) > 4
    assert (np.diff(history) <= 1e-6 * history[0]).all(), history


def test_reported_inertia_is_that_of_the_centroids_handed_out() -> None:
    points = mixture(4000, 20, 30, 1.0)
    fit = fit_kmeans(points, KMeansConfig(classes=32))
    assert fit.inertia == pytest.approx(inertia(points, fit.centroids), rel=1e-5)
    assert int(fit.counts.sum()) == len(points)


def test_the_start_is_better_than_random_points() -> None:
    points = mixture(4000, 32, 50, 0.5)
    start, value = find_start(points, 50, seed=0, swap_rounds=10)
    assert value == pytest.approx(inertia(points, start.float()), rel=1e-4)
    assert value < 0.8 * min(inertia(points, points[k * 50 : k * 50 + 50]) for k in range(5))


def test_the_same_seed_gives_the_same_bits_and_another_seed_others() -> None:
    points = mixture(3000, 16, 30, 1.0)
    first, again, other = (fit_kmeans(points, KMeansConfig(classes=25, seed=s)) for s in (3, 3, 4))
    assert torch.equal(first.centroids, again.centroids) and first.history == again.history
    assert not torch.equal(first.centroids, other.centroids)


def test_restarts_never_end_on_a_worse_start() -> None:
    points = mixture(3000, 16, 60, 1.0)
    seen: list[float] = []
    config = KMeansConfig(classes=40, restarts=3, swap_rounds=1)

    def log(phase: str, number: int, value: float) -> None:
        if phase == "start":
            seen.append(value)

    fit = fit_kmeans(points, config, log=log)
    assert len(seen) == 3
    assert fit.history[0] <= min(seen) * 1.02


@pytest.mark.parametrize("batch_points", [0, 500])
def test_a_killed_fit_resumes_to_the_same_bits(tmp_path: Path, batch_points: int) -> None:
    points = mixture(4000, 20, 60, 1.2)
    config = KMeansConfig(classes=50, tolerance=0.0, max_iterations=12, save_every=2,
                          batch_points=batch_points)  # fmt: skip
    whole = fit_kmeans(points, config)

    def dies(phase: str, number: int, value: float) -> None:
        if phase == "lloyd" and number == 7:
            raise KeyboardInterrupt

    state = tmp_path / "state.npz"
    with pytest.raises(KeyboardInterrupt):
        fit_kmeans(points, config, state_path=state, log=dies)
    passes: list[str] = []
    resumed = fit_kmeans(
        points, config, state_path=state, log=lambda phase, n, value: passes.append(f"{phase}{n}")
    )
    assert passes[0] == "lloyd7", "goes on behind the saved sixth pass, without a new start"
    assert torch.equal(resumed.centroids, whole.centroids)
    assert resumed.history == whole.history


def test_the_state_of_another_fit_is_not_continued(tmp_path: Path) -> None:
    points, state = mixture(1000, 8, 20, 1.0), tmp_path / "state.npz"
    fit_kmeans(points, KMeansConfig(classes=10, seed=1), state_path=state)
    fresh = fit_kmeans(points, KMeansConfig(classes=10, seed=2))
    after = fit_kmeans(points, KMeansConfig(classes=10, seed=2), state_path=state)
    assert torch.equal(fresh.centroids, after.centroids)


def test_mini_batches_come_close_to_full_passes() -> None:
    points = mixture(12000, 20, 40, 0.7)
    full = fit_kmeans(points, KMeansConfig(classes=40))
    mini = fit_kmeans(points, KMeansConfig(classes=40, batch_points=2000))
    assert mini.inertia < 1.02 * full.inertia


def test_the_order_of_points_does_not_matter_when_they_carry_their_keys() -> None:
    points, keys = mixture(3000, 12, 30, 1.0), frame_keys("x", 3000)
    order = torch.randperm(3000)
    one = fit_kmeans(points, KMeansConfig(classes=20), keys=keys)
    two = fit_kmeans(points[order], KMeansConfig(classes=20), keys=keys[order.numpy()])
    assert torch.allclose(one.centroids, two.centroids, atol=1e-4)


def test_equal_points_do_not_break_it() -> None:
    points = torch.ones(200, 4)
    points[:20] = torch.arange(80.0).reshape(20, 4)
    fit = fit_kmeans(points, KMeansConfig(classes=21))
    assert bool(fit.centroids.isfinite().all())
    assert fit.inertia < 1.0


@pytest.mark.parametrize(
    ("points", "message"),
    [(torch.zeros(5, 3), "5 frames for 8 classes"), (torch.full((20, 3), torch.nan), "NaN")],
)
def test_unusable_points_are_refused(points: Tensor, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        fit_kmeans(points, KMeansConfig(classes=8))


def _rank(rank: int, world: int, folder: str, batch_points: int) -> None:
    import torch.distributed as td

    torch.set_num_threads(1)
    td.init_process_group("gloo", init_method=f"file://{folder}/join", rank=rank, world_size=world)
    points = mixture(4000, 20, 60, 1.2)
    # Unequal shares, so that an average over ranks in place of a sum would show.
    share = slice(0, 1100) if rank == 0 else slice(1100, 4000)
    fit = fit_kmeans(points[share], KMeansConfig(classes=50, batch_points=batch_points))
    np.savez(f"{folder}/rank{rank}.npz", centroids=fit.centroids.numpy(),
             history=np.array(fit.history), counts=fit.counts.numpy())  # fmt: skip
    td.destroy_process_group()


@pytest.mark.parametrize("batch_points", [0, 800])
def test_two_ranks_equal_one(tmp_path: Path, batch_points: int) -> None:
    config = KMeansConfig(classes=50, batch_points=batch_points)
    whole = fit_kmeans(mixture(4000, 20, 60, 1.2), config)
    mp.spawn(_rank, args=(2, str(tmp_path), batch_points), nprocs=2)
    for rank in (0, 1):
        with np.load(tmp_path / f"rank{rank}.npz") as found:
            assert np.allclose(found["history"], whole.history, rtol=1e-6)
            assert np.allclose(found["centroids"], whole.centroids.numpy(), atol=1e-4)
            assert np.array_equal(found["counts"], whole.counts.numpy())

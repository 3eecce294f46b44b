"""Online codebooks: closed form, untouched codewords, one commit per update."""

from __future__ import annotations

import pytest
import torch

from speechssl import dist
from speechssl.nn.codebook import OnlineCodebooks


def toy() -> OnlineCodebooks:
    books = OnlineCodebooks(1, 3, 2, 0.9)
    books.sums.copy_(torch.tensor([[[0.0, 0.0], [10.0, 0.0], [0.0, 20.0]]]))
    books.counts.copy_(torch.tensor([[1.0, 1.0, 2.0]]))
    return books


def test_the_update_is_the_closed_form_and_codewords_not_taken_stay() -> None:
    books = toy()
    x = torch.tensor([[[1.0, 1.0], [-1.0, 2.0], [9.0, 1.0]]])
    codes = books.assign(x)
    assert codes.tolist() == [[0, 0, 1]]
    books.collect(x, codes)
    assert books.assign(x).tolist() == [[0, 0, 1]], "the codebook of before serves until commit"
    assert books.commit().tolist() == [[2.0, 1.0, 0.0]]
    torch.testing.assert_close(
        books.sums, torch.tensor([[[0.0, 0.3], [9.9, 0.1], [0.0, 20.0]]]), atol=1e-6, rtol=1e-6
    )
    torch.testing.assert_close(books.counts, torch.tensor([[1.1, 1.0, 2.0]]))
    torch.testing.assert_close(books.codewords()[0, 2], torch.tensor([0.0, 10.0]))


def test_two_halves_commit_as_the_whole() -> None:
    x = torch.randn(2, 40, 6)
    states = []
    for pieces in (1, 2, 5):
        torch.manual_seed(3)
        books = OnlineCodebooks(2, 5, 6, 0.9)
        for piece in x.chunk(pieces, 1):
            books.collect(piece, books.assign(piece))
        books.commit()
        states.append(torch.cat([books.sums, books.counts[..., None]], -1))
    for other in states[1:]:
        torch.testing.assert_close(states[0], other, atol=1e-6, rtol=1e-6)


@pytest.mark.parametrize("parts", [1, 3])
@pytest.mark.parametrize("world", [1, 2])
def test_updates_equal_their_closed_form_in_float64(
    monkeypatch: pytest.MonkeyPatch, parts: int, world: int
) -> None:
    """Of uneven micro-batches and ranks, whose sums the collective adds up: codeword by codeword,
    what all frames of the update that took it say, and nothing for those that none took."""
    decay, books, codes, dim = 0.8, 2, 6, 4
    torch.manual_seed(5)
    start = OnlineCodebooks(books, codes, dim, decay).state_dict()
    ranks = [OnlineCodebooks(books, codes, dim, decay) for _ in range(world)]
    for rank in ranks:
        rank.load_state_dict(start)
    sums, counts = start["sums"].double(), start["counts"].double()
    for _ in range(4):
        frames = torch.randn(books, 7, dim)  # few: some codewords stay without any
        cut = torch.tensor([0, 1, 3, 4, 6, 7])[: parts * world] if parts * world > 1 else [0]
        pieces = frames.tensor_split([int(c) for c in cut][1:], 1)
        for i, piece in enumerate(pieces):
            ranks[i % world].collect(piece, ranks[i % world].assign(piece))
        totals = [sum(getattr(r.pending, name) for r in ranks) for name in ("sums", "counts")]
        for rank in ranks:
            following = iter(totals)
            with monkeypatch.context() as patch:
                patch.setattr(dist, "all_reduce_sum", lambda x, left=following: next(left))
                rank.commit()
        nearest = torch.cdist(frames.double(), sums / counts[..., None]).argmin(-1)
        untaken = 0
        for k in range(books):
            for v in range(codes):
                own = frames[k, nearest[k] == v].double()
                if len(own):
                    sums[k, v] = decay * sums[k, v] + (1 - decay) * own.sum(0)
                    counts[k, v] = decay * counts[k, v] + (1 - decay) * len(own)
                untaken += not len(own)
        assert untaken > 0
        for rank in ranks:
            torch.testing.assert_close(rank.sums.double(), sums, rtol=1e-5, atol=1e-6)
            torch.testing.assert_close(rank.counts.double(), counts, rtol=1e-5, atol=1e-6)


def test_assignment_is_the_nearest_codeword_by_brute_force() -> None:
    books = OnlineCodebooks(3, 17, 8, 0.9)
    x = torch.randn(3, 100, 8)
    brute = torch.cdist(x.double(), books.codewords().double()).argmin(-1)
    assert torch.equal(books.assign(x), brute)


def test_fresh_codewords_have_mean_0_and_deviation_1_in_each_channel() -> None:
    words = OnlineCodebooks(2, 64, 5, 0.9).codewords()
    torch.testing.assert_close(words.mean(1), torch.zeros(2, 5), atol=1e-5, rtol=0)
    torch.testing.assert_close(words.std(1, correction=0), torch.ones(2, 5))


def test_codewords_find_the_clusters_of_their_data() -> None:
    centres = torch.randn(4, 6) * 3
    books = OnlineCodebooks(1, 16, 6, 0.9)
    for _ in range(80):
        x = centres[torch.randint(4, (200,))][None] + 0.1 * torch.randn(1, 200, 6)
        books.collect(x, books.assign(x))
        books.commit()
    nearest = torch.cdist(centres, books.codewords()[0]).amin(1)
    assert nearest.max() < 0.1


def test_nothing_is_collected_in_evaluation() -> None:
    books = toy().eval()
    x = torch.ones(1, 4, 2)
    books.collect(x, books.assign(x))
    before = books.sums.clone()
    assert books.commit().sum() == 0
    assert torch.equal(books.sums, before)


def test_sums_and_counts_are_in_the_checkpoint_and_nothing_else() -> None:
    assert set(toy().state_dict()) == {"sums", "counts"}


def test_a_decay_of_1_is_refused() -> None:
    with pytest.raises(ValueError, match="codebook decay: found 1"):
        OnlineCodebooks(1, 2, 3, 1.0)

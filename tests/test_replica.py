"""What makes several workers one, part by part, in one process."""

import dataclasses
import math

import pytest
import torch
from torch import nn

from hsal_cli import distributed
from hsal_cli.distributed import Workers, share, stretch
from hsal_cli.errors import HsalError, UsageError, WorkerLost
from hsal_cli.runs.replica import Replica, SharedBatchNorm, synchronised
from hsal_cli.runs.seeds import Draws, seeded


@dataclasses.dataclass
class Pretended:
    """A group of which only the ranks are real."""

    workers: Workers


@pytest.fixture
def of(monkeypatch):
    """of(rank, size): pretends to be that worker."""
    return lambda rank, size: monkeypatch.setattr(distributed, "_group", Pretended(Workers(rank, size)))


@pytest.mark.parametrize("size", [1, 2, 3, 8])
@pytest.mark.parametrize("count", [0, 1, 2, 7, 33, 64])
def test_shares_and_stretches_cover_every_row_once_and_stretches_keep_batches_whole(count, size, of) -> None:
    shares, stretches = [], []
    for rank in range(size):
        of(rank, size)
        shares.append(share(count))
        stretches.append(stretch(count, 4))
    assert [place for some in shares for place in some] == [row for some in stretches for row in some] == list(range(count))
    assert max(map(len, shares)) - min(map(len, shares)) <= 1
    assert all(some.start % 4 == 0 for some in stretches if some)


def test_what_a_row_draws_does_not_depend_on_who_computes_it(of) -> None:
    def draw(size: int) -> list[torch.Tensor]:
        parts = []
        for rank in range(size):
            of(rank, size)
            draws = Draws.shared(seed=5, step=3, size=10)
            rows = torch.arange(draws.own)
            # The last rows are active no more at the second call.
            parts.append([draws.rand(2), draws.randint(9), draws.clocks(rows, 4), draws.clocks(rows[:1], 4)[:0], draws.clocks(rows, 4)])
        return [torch.cat(part) for part in zip(*parts, strict=True)]

    for one, three in zip(draw(1), draw(3), strict=True):
        assert torch.equal(one, three)


def test_steps_and_seeds_have_numbers_of_their_own() -> None:
    found = {seeded(seed, step).initial_seed() for seed in range(20) for step in range(500)}
    assert len(found) == 20 * 500


def test_shared_batch_norm_is_batch_norm() -> None:
    torch.manual_seed(0)
    plain = nn.BatchNorm2d(3)
    with torch.no_grad():
        plain.weight.normal_()
        plain.bias.normal_()
    shared = nn.BatchNorm2d(3)
    shared.load_state_dict(plain.state_dict())
    shared = synchronised(nn.Sequential(shared))[0]
    assert isinstance(shared, SharedBatchNorm) and shared.state_dict().keys() == plain.state_dict().keys()
    for _ in range(2):
        x = (4 + 2 * torch.randn(5, 3, 4, 2)).requires_grad_()
        y = x.detach().clone().requires_grad_()
        ahead = torch.randn(5, 3, 4, 2)
        out, expected = shared(y), plain(x)
        torch.testing.assert_close(out, expected)
        (out * ahead).sum().backward()
        (expected * ahead).sum().backward()
        torch.testing.assert_close(y.grad, x.grad, rtol=1e-4, atol=1e-5)
        torch.testing.assert_close(shared.weight.grad, plain.weight.grad)
        torch.testing.assert_close(shared.bias.grad, plain.bias.grad)
    for name, value in plain.state_dict().items():
        torch.testing.assert_close(shared.state_dict()[name], value)
    torch.testing.assert_close(shared.eval()(x), plain.eval()(x))


def test_batch_norm_statistics_are_those_from_before_a_step_that_fails() -> None:
    model = nn.BatchNorm2d(2)

    def loss(images: torch.Tensor, lost: bool) -> tuple[torch.Tensor, dict]:
        total = model(images).sum()
        if lost:
            raise WorkerLost("a worker was lost", "go on")
        return total, {}

    replica = Replica(model, loss)
    replica._size = 2  # as if there were another one
    replica.backward(torch.rand(3, 2, 4, 4), False)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    with pytest.raises(WorkerLost):
        replica.backward(torch.rand(3, 2, 4, 4), True)
    for name, value in model.state_dict().items():
        assert torch.equal(value, before[name]), name


def test_one_process_needs_no_others() -> None:
    values = torch.tensor([1.0, 2.0])
    assert distributed.all_reduce(values) is values and distributed.all_reduce_max(15) == 15 and distributed.all_gather("a") == ["a"]
    assert distributed.broadcast(lambda: 3) == 3 and distributed.current() == Workers()
    distributed.barrier()


@pytest.mark.parametrize(
    ("environment", "expected"),
    [
        ({}, Workers()),
        ({"WORLD_SIZE": "4"}, Workers()),  # a cluster's, without torchrun
        ({"RANK": "0", "WORLD_SIZE": "1", "LOCAL_RANK": "0", "MASTER_ADDR": "a", "MASTER_PORT": "1"}, Workers()),
        ({"RANK": "5", "WORLD_SIZE": "8", "LOCAL_RANK": "1", "MASTER_ADDR": "a", "MASTER_PORT": "1"}, Workers(5, 8, 1)),
    ],
)
def test_torchrun_tells_who_a_worker_is(environment, expected, monkeypatch) -> None:
    for name in ("RANK", "WORLD_SIZE", "LOCAL_RANK", "MASTER_ADDR", "MASTER_PORT"):
        monkeypatch.delenv(name, raising=False)
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    assert distributed.asked() == expected


@pytest.mark.parametrize("text", ["soon", "0", "-3", "nan", "inf"])
def test_a_timeout_that_is_none_is_refused(text, monkeypatch) -> None:
    monkeypatch.setenv(distributed.TIMEOUT, text)
    with pytest.raises(UsageError, match=distributed.TIMEOUT):
        distributed._timeout()
    monkeypatch.setenv(distributed.TIMEOUT, "2.5")
    assert math.isclose(distributed._timeout(), 2.5)


def test_only_errors_of_connections_are_taken_for_lost_workers(of, monkeypatch) -> None:
    of(0, 2)
    monkeypatch.setattr(distributed, "_published", lambda: None)
    with pytest.raises(WorkerLost), distributed.guarded():
        raise RuntimeError("[/gloo/transport/tcp/pair.cc:1] Connection closed by peer")
    with pytest.raises(RuntimeError, match="shapes"), distributed.guarded():
        raise RuntimeError("shapes differ")
    monkeypatch.setattr(distributed, "_published", lambda: HsalError("the disk is full", "free some space"))
    with pytest.raises(HsalError, match="disk is full"), distributed.guarded():
        raise RuntimeError("gloo: Connection closed by peer")

import pytest
import torch
from torch import nn

from caption_ray.model.dropout import Dropout


@pytest.mark.parametrize("p", [0.3, 0.5])
def test_each_value_is_dropped_or_scaled_and_the_mean_stays(p: float) -> None:
    torch.manual_seed(0)
    values = torch.full((100, 1000), 3.0)
    dropped = Dropout(p)(values)
    assert sorted(dropped.unique().tolist()) == pytest.approx([0.0, 3.0 / (1 - p)])
    # 100,000 draws: the share has a standard deviation of 0.0016 at most.
    assert float((dropped == 0).float().mean()) == pytest.approx(p, abs=0.008)


def test_gradients_go_where_values_went() -> None:
    torch.manual_seed(0)
    values = torch.ones(1000, requires_grad=True)
    dropped = Dropout(0.5)(values)
    dropped.sum().backward()
    assert torch.equal(values.grad, dropped.detach())


def test_a_seed_repeats_it_and_steps_differ() -> None:
    dropout, values = Dropout(0.5), torch.ones(1000)
    torch.manual_seed(1)
    first, second = dropout(values), dropout(values)
    torch.manual_seed(1)
    assert torch.equal(dropout(values), first)
    assert not torch.equal(first, second)


def test_nothing_is_dropped_in_evaluation_or_with_p_zero() -> None:
    values = torch.randn(10)
    assert torch.equal(Dropout(0.5).eval()(values), values)
    assert torch.equal(Dropout(0.0)(values), values)
    assert torch.equal(Dropout(1.0)(values), torch.zeros(10))
    assert int((Dropout(1 - 1e-6)(torch.ones(1000)) != 0).sum()) <= 3
    assert isinstance(Dropout(0.5), nn.Dropout)

import pytest
import torch

from caption_ray.model.attention import AdditiveAttention

P, K, R, F, H, A = 2, 3, 5, 7, 11, 13


def build() -> AdditiveAttention:
    torch.manual_seed(0)
    return AdditiveAttention(feature_size=F, hidden_size=H, attention_size=A).double()


def test_shapes_and_rows_that_sum_to_1() -> None:
    attention = build()
    keys = attention.project(torch.randn(P, R, F).double())
    weights = attention(torch.randn(P, K, H).double() * 9, keys)
    assert keys.shape == (P, R, A)
    assert weights.shape == (P, K, R)
    assert torch.allclose(weights.sum(-1), torch.ones(P, K).double(), atol=1e-6)
    assert bool((weights > 0).all())


def test_zero_scores_attend_uniformly() -> None:
    attention = build()
    torch.nn.init.zeros_(attention.score.weight)
    features = torch.randn(P, R, F).double()
    weights = attention(torch.randn(P, K, H).double(), attention.project(features))
    assert torch.allclose(weights, torch.full((P, K, R), 1 / 5).double())
    for row in range(K):
        attended = (weights[:, row, :, None] * features).sum(1)
        assert torch.allclose(attended, features.mean(1), atol=1e-6)


def test_two_regions_by_hand() -> None:
    # Keys 0 and ln 3 / 2, no query: tanh(0) = 0 and tanh(ln 3 / 2) = 1 / 2; scaled by 2 ln 3 the scores are
    # 0 and ln 3, so the second region gets three times the first one's share.
    attention = AdditiveAttention(feature_size=1, hidden_size=1, attention_size=1)
    ln3 = torch.tensor(3.0).log()
    with torch.no_grad():
        attention.key.weight.fill_(1.0)
        attention.key.bias.fill_(0.0)
        attention.query.weight.fill_(0.0)
        attention.score.weight.fill_(2 * ln3)
    keys = attention.project(torch.tensor([[[0.0], [ln3 / 2]]]))
    assert attention(torch.ones(1, 1, 1), keys).flatten().tolist() == pytest.approx([0.25, 0.75])


def test_query_shifts_the_scores() -> None:
    # A query of -ln 3 / 2 turns keys 0 and ln 3 / 2 into -ln 3 / 2 and 0: scores -ln 3 and 0, the same
    # shares. Part of it comes from the keys' bias.
    attention = AdditiveAttention(feature_size=1, hidden_size=1, attention_size=1)
    ln3 = torch.tensor(3.0).log()
    with torch.no_grad():
        attention.key.weight.fill_(1.0)
        attention.key.bias.fill_(-0.7)
        attention.query.weight.fill_(0.7 - ln3 / 2)
        attention.score.weight.fill_(2 * ln3)
    keys = attention.project(torch.tensor([[[0.0], [ln3 / 2]]]))
    assert attention(torch.ones(1, 1, 1), keys).flatten().tolist() == pytest.approx([0.25, 0.75])


def test_regions_may_come_in_any_order() -> None:
    attention = build()
    features, hidden = torch.randn(1, R, F).double(), torch.randn(1, 1, H).double()
    order = [3, 0, 4, 2, 1]
    weights = attention(hidden, attention.project(features))
    shuffled = attention(hidden, attention.project(features[:, order]))
    assert torch.allclose(shuffled, weights[..., order], atol=1e-6)


@torch.no_grad()
def test_single_precision_agrees_with_double(monkeypatch: pytest.MonkeyPatch) -> None:
    """Single precision takes sigmoids for tanh, and here three blocks of pictures, the last of them smaller."""
    monkeypatch.setattr("caption_ray.model.attention._BLOCK_NUMBERS", 2 * K * R * A)
    exact = build()
    features, hidden = torch.randn(5, R, F).double(), torch.randn(5, K, H).double() * 3
    expected = exact(hidden, exact.project(features))
    single = build().float()
    weights = single(hidden.float(), single.project(features.float()))
    assert float(expected.max() - expected.min()) > 0.1
    assert torch.allclose(weights.double(), expected, atol=2e-6)

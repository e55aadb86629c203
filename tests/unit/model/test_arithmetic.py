import pytest
import torch
from torch.nn import functional as F

from caption_ray.model.arithmetic import Product, by_onednn, linear, mean_of_regions, split_inputs, tanh


@pytest.fixture(params=["contiguous", "gaps between rows", "expanded"])
def inputs(request: pytest.FixtureRequest) -> torch.Tensor:
    torch.manual_seed(0)
    if request.param == "contiguous":
        return torch.randn(2, 3, 40)
    if request.param == "gaps between rows":
        return torch.randn(6, 100)[:, 7:47]
    return torch.randn(1, 3, 40).expand(4, -1, -1)


@pytest.mark.parametrize("biased", [False, True])
@torch.no_grad()
def test_products_are_those_of_torch(inputs: torch.Tensor, biased: bool) -> None:
    weight, bias = torch.randn(50, 90)[:, 30:70], torch.randn(50) if biased else None
    expected = F.linear(inputs.double(), weight.double(), None if bias is None else bias.double())
    assert by_onednn(weight) == torch.backends.mkldnn.is_available()
    for product in (Product(weight, bias)(inputs), linear(inputs, weight, bias)):
        assert product.dtype == torch.float32
        assert torch.allclose(product.double(), expected, atol=1e-4)


@torch.no_grad()
def test_product_by_hand() -> None:
    weight, bias = torch.tensor([[1.0, 2.0], [3.0, 4.0], [0.0, -1.0]]), torch.tensor([0.5, 0.0, 1.0])
    assert Product(weight, bias)(torch.tensor([[10.0, 1.0]])).tolist() == [[12.5, 34.0, 0.0]]
    assert linear(torch.tensor([[10.0, 1.0]]), weight).tolist() == [[12.0, 34.0, -1.0]]
    assert Product(weight, bias)(torch.empty(0, 2)).shape == (0, 3)


def test_gradients_pass_through() -> None:
    weight, values = torch.ones(1, 2, requires_grad=True), torch.tensor([[0.0, 3.0]])
    for product in (Product(weight), lambda inputs: linear(inputs, weight)):
        (gradient,) = torch.autograd.grad(product(values).sum(), weight)
        assert gradient.tolist() == [[0.0, 3.0]]


@torch.no_grad()
def test_autocast_decides_the_format() -> None:
    weight, values = torch.randn(3, 4), torch.randn(2, 4)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        expected = F.linear(values, weight)
        assert expected.dtype == torch.bfloat16
        assert torch.equal(Product(weight)(values), expected)
        assert torch.equal(linear(values, weight), expected)
    assert torch.equal(Product(weight.double())(values.double()), F.linear(values.double(), weight.double()))


@torch.no_grad()
def test_tanh_within_its_bound() -> None:
    values = torch.cat((torch.linspace(-12, 12, 100_001), torch.tensor([-1e30, -100.0, 0.0, 100.0, 1e30])))
    assert float((tanh(values).double() - torch.tanh(values.double())).abs().max()) < 2e-7
    assert torch.equal(tanh(values.double()), torch.tanh(values.double()))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_split_weights_are_slices_of_one_gradient(dtype: torch.dtype) -> None:
    """The loss is 2 times the sum of the first two inputs' weights and 3 times that of the last one's."""
    weight = torch.tensor([[1.0, 2.0, 3.0], [4.0, 5.0, 6.0]], requires_grad=True)
    with torch.autocast("cpu", dtype=torch.bfloat16, enabled=dtype == torch.bfloat16):
        first, rest = split_inputs(weight, 2)
    assert first.dtype == rest.dtype == dtype
    assert first.tolist() == [[1, 2], [4, 5]]
    assert rest.tolist() == [[3], [6]]
    (2 * first.sum() + 3 * rest.sum()).backward()
    assert weight.grad.dtype == torch.float32
    assert weight.grad.tolist() == [[2, 2, 3], [2, 2, 3]]


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16])
def test_mean_of_regions_by_hand(dtype: torch.dtype) -> None:
    values = torch.tensor([[[1.0, 8.0], [3.0, 0.0]], [[5.0, 2.0], [5.0, -4.0]]], dtype=dtype, requires_grad=True)
    mean = mean_of_regions(values)
    assert mean.tolist() == [[2.0, 4.0], [5.0, -1.0]]
    mean[:, 0].sum().backward()
    assert values.grad.tolist() == [[[0.5, 0.0], [0.5, 0.0]]] * 2


def test_mean_in_half_precision_is_summed_in_single() -> None:
    values = torch.full((1, 4096, 1), 1 + 2**-7, dtype=torch.bfloat16)  # sums in bf16 would stop growing at 512
    assert mean_of_regions(values).item() == 1 + 2**-7

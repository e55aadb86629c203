import httpx
import pytest
from odd_pictures import png


@pytest.mark.parametrize(
    ("query", "told", "limit"),
    [("beam_width=1234567", "at most 10.", 10), ("attention=TRUE", "should be true or false.", None)],
)
def test_wrong_query_is_told_by_its_rule(client: httpx.Client, query: str, told: str, limit: int | None) -> None:
    error = client.post(f"/v1/captions?{query}", content=png()).json()["error"]
    assert error["message"].endswith(told)
    assert error.get("limit") == limit

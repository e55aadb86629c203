"""What is sent is whatever somebody sends: odd pictures get a caption, bad ones a sentence, and nothing gets a 5xx."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import httpx
import PIL
import pytest
from odd_pictures import bad_pictures, good_pictures, png_with_overlapping_tags

GOOD, BAD = good_pictures(), bad_pictures()
STATUS = {"not_a_picture": 415, "undecodable_picture": 422, "too_many_pixels": 422}


def test_there_are_enough_of_them() -> None:
    assert len(GOOD) >= 40
    assert len(BAD) >= 40


@pytest.mark.parametrize("name", GOOD)
def test_good_picture_gets_a_caption(client: httpx.Client, name: str) -> None:
    data, size = GOOD[name]
    answer = client.post("/v1/captions", content=data, headers={"Content-Type": "text/html"})
    assert answer.status_code == 200, answer.text
    assert len(answer.json()["captions"][0]["words"]) >= 1
    assert (answer.json()["picture"]["width"], answer.json()["picture"]["height"]) == size


@pytest.mark.parametrize("name", BAD)
def test_bad_picture_gets_a_sentence(client: httpx.Client, name: str) -> None:
    data, code = BAD[name]
    answer = client.post("/v1/captions", content=data, headers={"Content-Type": "image/jpeg"})
    error = answer.json()["error"]
    assert (answer.status_code, error["code"]) == (STATUS[code], code), error
    assert error["message"].endswith(".")
    assert "\n" not in error["message"]
    assert ("limit" in error) == (code == "too_many_pixels")


@contextmanager
def growing_less_than(kib: int) -> Iterator[None]:
    """See that the process, in which the service runs too, takes less than that at any time."""
    Path("/proc/self/clear_refs").write_text("5")  # its high-water mark begins anew
    before = high_water_kib()
    yield
    assert high_water_kib() - before < kib


def high_water_kib() -> int:
    (line,) = (line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith("VmHWM:"))
    return int(line.split()[1])


def test_bombs_are_refused_before_they_are_decoded(client: httpx.Client) -> None:
    with growing_less_than(200 << 10):  # decoded, the first alone would be 900 MB
        for name in ("png, 30000x30000 zeros", "tiff of one large tile", "png, text bomb"):
            assert client.post("/v1/captions", content=BAD[name][0]).status_code == 422


@pytest.mark.skipif(int(PIL.__version__.partition(".")[0]) < 13, reason="Pillow reads such tags from 13.0 on only once")
def test_tags_that_overlap_take_no_memory(client: httpx.Client) -> None:
    data = png_with_overlapping_tags(500, 1_000_000)
    with growing_less_than(100 << 10):  # all read, they would be 500 MB
        assert client.post("/v1/captions", content=data).status_code == 200


def test_all_of_them_in_batches_in_order(client: httpx.Client) -> None:
    mixed = [file for pair in zip(GOOD.items(), BAD.items(), strict=False) for file in pair]
    for start in range(0, len(mixed), 16):
        part = mixed[start : start + 16]
        files = [("pictures", (f"{index}.jpg", file[0])) for index, (_, file) in enumerate(part)]
        answer = client.post("/v1/captions/batch", files=files)
        assert answer.status_code == 200, answer.text
        results = answer.json()["results"]
        assert [result["name"] for result in results] == [f"{index}.jpg" for index in range(len(part))]
        for (_, (_, expected)), result in zip(part, results, strict=True):
            if isinstance(expected, str):
                assert result["error"]["code"] == expected
            else:
                assert result["result"]["picture"]["width"] == expected[0]

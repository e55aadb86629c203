import pytest
import torch

from caption_ray.model.recording import records_on, room_for


@pytest.mark.parametrize(
    ("number", "room"),
    [(1, 1), (2, 2), (3, 4), (5, 8), (8, 8), (9, 16), (16, 16), (17, 24), (24, 24), (33, 40), (63, 64), (64, 64)],
)
def test_room_by_hand(number: int, room: int) -> None:
    assert room_for(number) == room


@pytest.mark.parametrize(
    ("switch", "device", "expected"),
    [("", "cuda", True), ("off", "cuda", False), ("OFF", "cuda", False), ("0", "cuda", False), ("", "cpu", False)],
)
def test_gpus_record_unless_told_not_to(
    monkeypatch: pytest.MonkeyPatch, switch: str, device: str, expected: bool
) -> None:
    monkeypatch.setenv("CAPTION_RAY_GRAPHS", switch)
    assert records_on(torch.device(device)) is expected

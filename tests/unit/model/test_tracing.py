"""Networks are traced while other threads compute."""

import threading

import torch
from torch import nn

from caption_ray.model.tracing import trace


def small_network() -> nn.Sequential:
    return nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.ReLU()).eval()


def test_other_threads_compute_meanwhile() -> None:
    """Their networks are no parts of the one that is traced, and their results are what they ever are."""
    other, pictures = small_network(), torch.rand(1, 3, 8, 8)
    expected = other(pictures)
    failures: list[BaseException] = []
    ended = threading.Event()

    def compute() -> None:
        try:
            while not ended.is_set():
                torch.testing.assert_close(other(pictures), expected)
        except BaseException as error:
            failures.append(error)

    threads = [threading.Thread(target=compute) for _ in range(2)]
    for thread in threads:
        thread.start()
    deep = nn.Sequential(*(nn.ReLU() for _ in range(300)))  # so that tracing takes a while
    traced = [trace(deep) for _ in range(10)]
    ended.set()
    for thread in threads:
        thread.join()
    assert not failures
    assert {len(graph.graph.nodes) for graph in traced} == {302}  # input, modules, output

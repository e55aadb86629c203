"""How many pictures a model may have to do: what would wait too long is refused at once."""

from collections.abc import Iterator
from contextlib import contextmanager

from caption_ray.serve.backend import OverloadedError


class Places:
    """Places for the pictures that are in a model or wait for it, streams included.

    max_pictures: may be changed at any time, by assignment.  num_further: pictures that have one now, but for the first
    of each that has taken some.
    """

    def __init__(self, max_pictures: int, retry_after_s: int = 1) -> None:
        self.max_pictures = max_pictures
        self._retry_after_s = retry_after_s
        self._num_taken = 0
        self.num_further = 0

    @contextmanager
    def taken_by(self, num_pictures: int) -> Iterator[None]:
        """Take places for a while. Raises OverloadedError where there are too few."""
        if self._num_taken + num_pictures > self.max_pictures:
            raise OverloadedError(self._retry_after_s)
        num_further = max(num_pictures - 1, 0)
        self._num_taken, self.num_further = self._num_taken + num_pictures, self.num_further + num_further
        try:
            yield
        finally:
            self._num_taken, self.num_further = self._num_taken - num_pictures, self.num_further - num_further

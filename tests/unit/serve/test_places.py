import pickle

import pytest

from caption_ray.serve.backend import OverloadedError
from caption_ray.serve.places import Places


def test_places_are_taken_by_pictures_and_given_back() -> None:
    places = Places(16, retry_after_s=7)
    with places.taken_by(12), places.taken_by(4):
        with pytest.raises(OverloadedError) as caught, places.taken_by(1):
            pass
        assert caught.value.retry_after_s == 7
    with pytest.raises(ZeroDivisionError), places.taken_by(16):
        raise ZeroDivisionError
    with places.taken_by(16):
        places.max_pictures = 17
        with places.taken_by(1), pytest.raises(OverloadedError), places.taken_by(1):
            pass


def test_refusal_is_the_same_in_another_process() -> None:
    error = pickle.loads(pickle.dumps(OverloadedError(3)))
    assert (str(error), error.retry_after_s) == ("overloaded; try again in 3 s", 3)


def test_places_tell_the_pictures_that_requests_do_not() -> None:
    places = Places(32)
    with places.taken_by(16), places.taken_by(1), places.taken_by(3):
        assert places.num_further == 15 + 0 + 2
    assert places.num_further == 0

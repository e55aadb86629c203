import pytest

from caption_ray.serve.captioner import _told

pytestmark = pytest.mark.filterwarnings(r"ignore::DeprecationWarning:ray\..*")


def test_refusal_names_the_bundle_whoever_refused() -> None:
    """`gcp/gke.sh roll-out` looks for its digest in there."""
    bundle = "gs://bucket/bundles/x-0123456789ab"
    assert _told(bundle, PermissionError(13, "does not have storage.objects.get access")) == (
        f"{bundle}: [Errno 13] does not have storage.objects.get access"
    )
    assert _told(bundle, ValueError(f"{bundle}: damaged")) == f"{bundle}: damaged"
    assert _told(bundle, TimeoutError()) == f"{bundle}: TimeoutError"

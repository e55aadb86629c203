import sys
from pathlib import Path
from typing import Any

import pytest

sys.path.insert(0, str(Path(__file__).parents[3] / "gcp"))  # scripts, not part of the package


@pytest.fixture(scope="session")
def documents() -> list[dict[str, Any]]:
    """All manifests as a deployment would apply them; not to be changed."""
    from manifests import render

    return render("example.pkg.dev/p/caption-ray/caption-ray:1", "gs://bucket/bundles/one", "captions.example.com")


@pytest.fixture(scope="session")
def ray_service(documents: list[dict[str, Any]]) -> dict[str, Any]:
    (document,) = (document for document in documents if document["kind"] == "RayService")
    return document

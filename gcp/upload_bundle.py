"""Copies a bundle to where the service reads it, under its name and digest: gs://BUCKET/bundles/NAME-DIGEST.

So what a URI names never changes, and a roll-back finds the bundle that it goes back to. It is verified before it is
copied, and again from where it was copied to.
"""

from pydantic import Field

from caption_ray import storage
from caption_ray.bundle import MANIFEST_NAME, is_whole, kept_location, load_bundle
from caption_ray.config import Settings
from caption_ray.entry import run_job


class Arguments(Settings):
    """Copy a bundle to a bucket, under its digest, and verify it there."""

    bundle: str = Field(description="Folder or URI of the bundle.")
    destination: str = Field(description="Where bundles are kept, such as gs://my-bucket/bundles.")


def main(arguments: Arguments) -> dict[str, object]:
    """Copy the bundle if it is not there yet, or not whole, the manifest last.

    Raises BundleError where it is damaged, here or there.
    """
    source = storage.absolute(arguments.bundle)
    manifest = load_bundle(source).manifest
    target = kept_location(arguments.destination, manifest)
    is_there = is_whole(target, manifest.digest)
    if not is_there:
        for file in (*manifest.files, MANIFEST_NAME):
            storage.write_bytes(storage.join(target, file), storage.read_bytes(storage.join(source, file)))
        load_bundle(target)
    return {"bundle": target, "digest": manifest.digest, "copied": not is_there}


if __name__ == "__main__":
    run_job(main, Arguments)

"""Make a bundle the one that the service answers with."""

from typing import Literal

from pydantic import Field

from caption_ray.config import Settings
from caption_ray.entry import run_job


class Arguments(Settings):
    """Compare a bundle with the one that serves, keep it where it stays, and name it in the Serve config.

    Refuses one whose score on dev is lower. With --dashboard a running service takes it over without losing a request.
    """

    candidate: str = Field(description="Bundle that is to serve, such as a sweep's STORAGE/NAME/best.")
    data: str = Field(description="Prepared data set, whose dev pictures both are compared on.")
    serve_config: str = Field("serve_config.yaml", description="Serve config to name it in; its comments stay.")
    models: str = Field("models", description="Folder or URI to copy the bundle to, as NAME-DIGEST.")
    serving: str | None = Field(
        None, description="Bundle to compare with; by default the one that the config names, or the service would find."
    )
    metric: Literal["cider", "bleu_4"] = Field("cider", description="Score to compare by.")
    split: Literal["dev", "test"] = Field("dev", description="Pictures to compare on.")
    num_draws: int = Field(2000, ge=100, description="Draws of the bootstrap.")
    seed: int = Field(0, ge=0, description="Seed of the bootstrap.")
    application: str | None = Field(
        None, description="Application of the Serve config, where several have a captioner's deployment."
    )
    force: bool = Field(
        False, description="Promote even one whose score is lower, or where the serving one is damaged."
    )
    dashboard: str | None = Field(
        None, description="Dashboard of the cluster that serves, http://127.0.0.1:8265, to have it take the bundle now."
    )


def main(arguments: Arguments) -> dict[str, object]:
    """Promote, and sum up the comparison."""
    # Loaded here, so that --help and a wrong command line are answered at once.
    from caption_ray.promotion import PromoteRequest, promote

    promoted = promote(PromoteRequest(**{name: getattr(arguments, name) for name in Arguments.model_fields}))
    comparison = {} if promoted.comparison is None else promoted.comparison.model_dump()
    return {
        "promoted": True,
        "bundle": promoted.bundle,
        "model_id": promoted.model_id,
        "replaced": promoted.replaced,
        "compared_with": promoted.compared_with,
        "was_serving": promoted.was_serving,
        **comparison,
    }


if __name__ == "__main__":
    run_job(main, Arguments)

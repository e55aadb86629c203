"""What the HTTP API says and takes: every body as a model, from which the OpenAPI document is made."""

from datetime import datetime

from pydantic import BaseModel, ConfigDict, Field

from caption_ray.config import BeamWidth, Settings


class Limits(Settings):
    """What one request may ask of the service."""

    max_bytes: int = Field(10 << 20, ge=1, description="Size of one picture's file, bytes.")
    max_pixels: int = Field(50_000_000, ge=1, description="Width times height, by the file's header.")
    max_pictures: int = Field(16, ge=1, description="Pictures of one batch request.")
    max_beam_width: BeamWidth = Field(10, description="Widest beam that a request may ask for.")
    body_timeout_s: float = Field(10.0, gt=0, description="Time in which a request's body must arrive, seconds.")
    deadline_s: float = Field(
        30.0, gt=0, description="Time in which a request is answered, from its head on, its body included, seconds."
    )
    retry_after_s: int = Field(1, ge=1, description="What an overloaded service says in Retry-After, seconds.")


class CaptionRequest(Settings):
    """The query of a caption request."""

    beam_width: BeamWidth | None = Field(None, description="Hypotheses kept; by default the model's own. 1 is greedy.")
    num_captions: int = Field(1, ge=1, le=20, description="Captions to return, best first; at most the beam's width.")
    attention: bool = Field(False, description="Return where the model looked for each word.")


class Answer(BaseModel):
    """Base of all answers: clients may meet fields that they do not know, this version sends none unknown."""

    model_config = ConfigDict(frozen=True, extra="forbid")


class Word(Answer):
    """One word of a caption."""

    text: str
    attention: list[list[float]] | None = Field(
        None, description="Share of attention on each cell of the grid, row by row from the top; all sum to 1."
    )


class CaptionAnswer(Answer):
    """One caption."""

    text: str = Field(description="The words as a sentence.")
    log_probability: float = Field(
        description="Natural logarithm, of the words and the end; of the words alone where it was cut off."
    )
    words: list[Word]


class PictureSize(Answer):
    """Size of a picture in pixels, upright by its EXIF orientation."""

    width: int
    height: int


class Timing(Answer):
    """Where a request's time went, milliseconds."""

    decode_ms: float = Field(description="Picture file to the model's input.")
    model_ms: float = Field(description="In the model, waiting for a batch included.")
    total_ms: float = Field(description="From the end of the request's body to the answer.")


class PictureAnswer(Answer):
    """The captions of one picture."""

    captions: list[CaptionAnswer] = Field(description="Best first.")
    picture: PictureSize
    model_id: str = Field(description="Digest of the bundle that answered.")
    timing: Timing


class ErrorDetail(Answer):
    """What went wrong."""

    code: str = Field(description="Stable, for programs: see the list of codes.")
    message: str = Field(description="A sentence, for people.")
    limit: int | float | None = Field(None, description="The limit that was hit, where one was.")
    request_id: str | None = Field(None, description="As in the header X-Request-ID.")


class ErrorAnswer(Answer):
    """The body of every answer that is not a success, and the data of an event `error`."""

    error: ErrorDetail


class BatchItem(Answer):
    """One picture's place in a batch answer: either a result or an error."""

    name: str | None = Field(None, description="The part's file name, if it had one.")
    result: PictureAnswer | None = None
    error: ErrorDetail | None = None


class BatchAnswer(Answer):
    """The pictures of a batch, in the order in which they were sent."""

    results: list[BatchItem]


class StreamWord(Answer):
    """Data of an event `word`: the next word of the greedy caption."""

    index: int = Field(description="Counted from 0.")
    text: str
    log_probability: float
    attention: list[list[float]] | None = None


class ModelAnswer(Answer):
    """The model that answers now."""

    id: str = Field(description="Digest of the bundle.")
    name: str = Field(description="Name of the run that trained it.")
    location: str
    loaded_at: datetime
    backbone: str
    image_size: int = Field(description="Side of the encoder's square input, pixels.")
    grid_side: int = Field(description="Attention has grid_side x grid_side cells.")
    vocabulary_size: int
    num_parameters: int
    device: str
    precision: str = Field(description="Of the encoder.")
    beam_width: int = Field(description="Of a request that does not say.")
    max_words: int
    metrics: dict[str, object] = Field(description="Scores on the dev split when it was trained.")
    refused: str | None = Field(None, description="Why the last bundle that was to replace this one was refused.")


class HealthAnswer(Answer):
    """Whether the service is alive, or ready."""

    status: str

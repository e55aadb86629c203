"""Every setting, as frozen models that refuse unknown keys; no logic of other layers.

A command line, a preset, a checkpoint and a bundle all hold these same models, so a setting is described once.
"""

from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field, model_validator
from typing_extensions import Self


class Settings(BaseModel):
    """Base of all settings: frozen, keyword-only, checked on construction, unknown keys refused.

    NaN and infinity come back from JSON as they were: it has neither, and pydantic would write null, which is no number
    any more.
    """

    model_config = ConfigDict(frozen=True, extra="forbid", validate_default=True, ser_json_inf_nan="strings")


PLAIN_NAME = r"^[^/\\.-][^/\\]*$"
"""Of a run, or of a file in a folder: it names a place right in it."""
RunName = Annotated[str, Field(pattern=PLAIN_NAME)]
_MomentDecay = Annotated[float, Field(ge=0, lt=1)]

# Bounds that command lines share with the settings that they override.
BeamWidth = Annotated[int, Field(ge=1, le=20)]
CaptionLength = Annotated[int, Field(ge=1, le=100)]
LengthPenalty = Annotated[float, Field(ge=0, le=2)]
Precision = Literal["fp32", "bf16", "fp16"]
AskedPrecision = Literal["auto", Precision]
EncoderPrecision = Literal[Precision, "mixed"]
"""Of a frozen encoder's pass. 'mixed': on CPUs that compute in bf16 the first stages do, the others in fp32."""


class CaptionRules(Settings):
    """What counts as a usable caption."""

    min_words: int = Field(2, ge=1, description="Captions with fewer words are reported as bad input.")
    allow_duplicates: bool = Field(
        False, description="Keep a caption that the same picture already has, word for word."
    )


class VocabularyConfig(Settings):
    """How the vocabulary is counted; always over the training split alone."""

    min_count: int = Field(5, ge=1, description="Words seen less often in training captions become <unk>.")


class EncoderConfig(Settings):
    """The convolutional network that turns a picture into a grid of region features."""

    backbone: str = Field(
        "resnet50", description="Any torchvision ResNet, ResNeXt or Wide ResNet, or mobilenet_v2, by name."
    )
    weights: str = Field(
        "imagenet",
        description="'imagenet' (torchvision's default weights, downloaded), 'none' (random, from `seed`), "
        "or the path of a torchvision state dict.",
    )
    image_size: int = Field(
        224,
        ge=32,
        multiple_of=32,
        description="Side of the square input, pixels; the grid has side/32 cells.",
    )
    finetune_stages: int = Field(
        0,
        ge=0,
        le=4,
        description="Last stages that train along with the decoder; 0 keeps the encoder frozen.",
    )
    seed: int = Field(0, ge=0, lt=1 << 63, description="Seed of the random weights when `weights` is 'none'.")


class ModelConfig(Settings):
    """Sizes of the attention and the LSTM decoder."""

    embedding_size: int = Field(256, ge=1, description="Size of a word embedding.")
    hidden_size: int = Field(256, ge=1, description="Size of the LSTM's state.")
    attention_size: int = Field(256, ge=1, description="Hidden size of the additive attention.")
    standardise_features: bool = Field(
        False,
        description="Shift and scale each encoder feature to mean 0 and deviation 1, by statistics of training "
        "pictures taken once before the first step.",
    )
    feature_size: int | None = Field(
        None,
        ge=1,
        description="Region features are first projected (linear, layer norm, ReLU) to this size; "
        "None attends over the encoder's own features.",
    )
    dropout: float = Field(0.5, ge=0, lt=1, description="Dropout before the output layer.")
    embedding_dropout: float = Field(0.0, ge=0, lt=1, description="Dropout on word embeddings.")
    feature_dropout: float = Field(
        0.0, ge=0, lt=1, description="Dropout on projected region features; needs `feature_size`."
    )
    word_dropout: float = Field(0.0, ge=0, lt=1, description="Share of input words replaced by <unk> while training.")
    deep_output: bool = Field(
        False, description="Feed the attended context to the output layer too (Xu et al. 2015, eq. 7)."
    )
    tie_embeddings: bool = Field(False, description="Share the embedding matrix with the output layer.")

    @model_validator(mode="after")
    def _check(self) -> Self:
        if self.feature_dropout and self.feature_size is None:
            raise ValueError("feature_dropout needs feature_size: without a projection nothing is dropped")
        if self.tie_embeddings and not self.deep_output and self.hidden_size != self.embedding_size:
            raise ValueError(
                f"tie_embeddings needs hidden_size ({self.hidden_size}) to equal embedding_size "
                f"({self.embedding_size}), or deep_output, which brings the one to the other"
            )
        return self


class DecodeOptions(Settings):
    """How captions are searched for."""

    beam_width: BeamWidth = Field(3, description="Hypotheses kept per picture; 1 is greedy search.")
    max_words: CaptionLength = Field(24, description="Longest caption, in words.")
    length_penalty: LengthPenalty = Field(
        0.0, description="Hypotheses are ranked by log-probability / length^penalty; 0 ranks by log-probability."
    )

    def changed(self, **asked: object) -> Self:
        """Return the options with those of `asked` that are not None."""
        given = {name: value for name, value in asked.items() if value is not None}
        return self.model_validate({**self.model_dump(), **given})


class OptimizerConfig(Settings):
    """AdamW and its learning rate."""

    learning_rate: float = Field(1e-3, gt=0, allow_inf_nan=False, description="Peak learning rate of the decoder.")
    encoder_learning_rate: float = Field(
        1e-5, gt=0, allow_inf_nan=False, description="Peak learning rate of fine-tuned stages."
    )
    schedule: Literal["constant", "cosine", "onecycle"] = Field(
        "cosine",
        description="'cosine' falls from the peak to 1 % of it after a linear warm-up; 'onecycle' is Smith's "
        "(30 % up, 70 % down).",
    )
    warmup_share: float = Field(0.05, ge=0, lt=1, description="Share of all steps spent warming up (cosine).")
    weight_decay: float = Field(
        0.0, ge=0, allow_inf_nan=False, description="Decoupled weight decay on matrices (not on biases)."
    )
    betas: tuple[_MomentDecay, _MomentDecay] = Field((0.9, 0.999), description="Adam's moment decay rates.")
    max_grad_norm: float = Field(5.0, gt=0, description="Gradients are scaled down to this norm; inf turns it off.")


class TrainingConfig(Settings):
    """One training run."""

    epochs: int = Field(20, ge=1, description="Passes over the training captions.")
    batch_size: int = Field(
        80,
        ge=1,
        description="Captions per optimiser step, over all workers together, where pictures have as many as "
        "`captions_per_picture`: a step takes `batch_size / captions_per_picture` of them.",
    )
    captions_per_picture: int = Field(
        5,
        ge=1,
        description="Captions of one picture that go through a step together and share its region projections.",
    )
    label_smoothing: float = Field(0.0, ge=0, lt=1, description="Probability mass spread over all words.")
    attention_penalty: float = Field(
        0.0,
        ge=0,
        allow_inf_nan=False,
        description="Weight of the doubly stochastic attention term (Xu et al. 2015, eq. 14).",
    )
    average_decay: float = Field(
        0.0,
        ge=0,
        lt=1,
        description="Decay per step of an exponential moving average of the weights, which then is what is "
        "evaluated and bundled; smaller in the first steps; 0 turns it off.",
    )
    precision: AskedPrecision = Field(
        "auto", description="'auto': bf16 where the hardware computes in it, fp16 on other GPUs, fp32 else."
    )
    augment: bool = Field(
        False,
        description="Random crops and mirroring (never of a picture whose captions speak of left or right); "
        "with cached features it takes the cache's extra views.",
    )
    shuffle_buffer: int = Field(2048, ge=1, description="Picture groups from which each batch is drawn.")
    select_by: Literal["bleu_4", "cider"] = Field("cider", description="Dev score that picks the best epoch.")
    dev_beam_width: BeamWidth = Field(
        1, description="Beam of the dev decoding after each epoch; 1 (greedy) is the fastest."
    )
    patience: int = Field(5, ge=0, description="Epochs without a better dev score before stopping; 0: never.")
    seed: int = Field(0, ge=0, lt=1 << 63, description="Seed of initial weights, order, dropout and augmentation.")

    @model_validator(mode="after")
    def _check(self) -> Self:
        if self.batch_size % self.captions_per_picture:
            raise ValueError(
                f"batch_size ({self.batch_size}) must be a multiple of captions_per_picture "
                f"({self.captions_per_picture}): a step takes whole pictures"
            )
        return self


class Experiment(Settings):
    """A whole training run: encoder, decoder, optimisation and decoding."""

    encoder: EncoderConfig = Field(default_factory=EncoderConfig)
    model: ModelConfig = Field(default_factory=ModelConfig)
    optimizer: OptimizerConfig = Field(default_factory=OptimizerConfig)
    training: TrainingConfig = Field(default_factory=TrainingConfig)
    decode: DecodeOptions = Field(default_factory=DecodeOptions)

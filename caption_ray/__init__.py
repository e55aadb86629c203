"""Image captioning on Ray, from a folder of pictures to a trained and evaluated model."""

__version__ = "0.1.0"

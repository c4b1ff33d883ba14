"""What a data set asks of the model that learns from it."""

from dataclasses import dataclass


@dataclass(frozen=True)
class Specification:
    """The shapes that data and model must agree on."""

    shape: tuple[int, ...]
    """Shape of one example: `(context,)` tokens, `(height, width, channels)` of an image, or
    `(features,)` of a table's row."""

    classes: int
    """Width of the logits: the vocabulary's size, or the number of labels."""

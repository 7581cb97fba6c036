"""Checks of a model's input shape and number of outputs."""

from collections.abc import Sequence


def check_shapes(input_shape: Sequence[int], num_outputs: int) -> None:
    """ValueError for an empty axis or no output."""
    if not input_shape or any(side < 1 for side in input_shape):
        raise ValueError(f"input shape {tuple(input_shape)}: each axis must be at least 1; check the data")
    if num_outputs < 1:
        raise ValueError(f"num_outputs={num_outputs}: must be at least 1; check the data's targets")


def check_images(model: str, input_shape: Sequence[int], *, least: int) -> tuple[int, int, int]:
    """(channels, height, width) of images of at least `least` pixels a side, or ValueError."""
    if len(input_shape) != 3:
        raise ValueError(
            f"model={model} takes images (channels, height, width), and the input is {tuple(input_shape)}; "
            "add a channel axis to the data, or use model=mlp"
        )
    channels, height, width = input_shape
    if min(height, width) < least:
        raise ValueError(
            f"model={model} needs images of at least {least}x{least} pixels, and the input is "
            f"{height}x{width}; use model=mlp"
        )
    return channels, height, width

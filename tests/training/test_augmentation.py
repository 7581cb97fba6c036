"""Views of an image: what they may be, and that they follow the numbers that are drawn."""

import numpy as np
import pytest
import torch

from fedq.core.choices import AUGMENTATIONS
from fedq.training import Views

IMAGE = torch.arange(2 * 5 * 6, dtype=torch.float32).view(1, 2, 5, 6)


def drawn(*views):
    """A source that gives these (mirrored, down, right) to the views of each image, one after the other."""
    return lambda shape: np.asarray(views, float).reshape(shape)


def second_of(view, kinds=AUGMENTATIONS):
    return Views(2, kinds).of(IMAGE, drawn((0.9, 0.9, 0.9), view))[1]


def test_the_first_view_is_the_image_itself():
    images = torch.randn(3, 1, 4, 4)
    views = Views(4).of(images, lambda shape: np.full(shape, 0.99))
    assert torch.equal(views[::4], images)


def test_views_of_one_image_stand_together():
    images = torch.stack([torch.full((1, 4, 4), float(i)) for i in range(3)])
    views = Views(2).of(images, lambda shape: np.random.default_rng(0).random(shape))
    assert views[:, 0, 0, 0].tolist() == [0, 0, 1, 1, 2, 2]


def test_beyond_one_half_it_is_mirrored():
    assert torch.equal(second_of((0.6, 0.5, 0.5)), IMAGE[0].flip(-1))
    assert torch.equal(second_of((0.4, 0.5, 0.5)), IMAGE[0])


@pytest.mark.parametrize(("number", "pixels"), [(0.0, -2), (0.3, -1), (0.5, 0), (0.7, 1), (0.999, 2)])
def test_it_is_shifted_by_up_to_2_pixels_and_the_border_is_repeated(number, pixels):
    rows = torch.arange(5).sub(pixels).clamp(0, 4)
    columns = torch.arange(6).sub(pixels).clamp(0, 5)
    assert torch.equal(second_of((0.1, number, 0.5)), IMAGE[0][:, rows])
    assert torch.equal(second_of((0.1, 0.5, number)), IMAGE[0][:, :, columns])


def test_only_what_was_asked_for_is_done():
    assert torch.equal(second_of((0.9, 0.0, 0.0), ("flip",)), IMAGE[0].flip(-1))
    assert torch.equal(second_of((0.9, 0.5, 0.5), ("shift",)), IMAGE[0])


def test_no_image_has_no_views():
    assert Views(3).of(torch.empty(0, 1, 4, 4), lambda shape: np.empty(shape)).shape == (0, 1, 4, 4)

"""Images as clients see them: turned, blurred and darkened by amounts of their own."""

import numpy as np
import pytest
from scipy import ndimage

from research.data.clients import Clients
from research.data.shift import ImageShift, apply, shifted
from research.errors import UserError

IMAGES = np.random.RandomState(0).randint(0, 256, (5, 9, 9, 3)).astype(np.float32)


@pytest.mark.parametrize(("degrees", "turns"), [(90, 1), (180, 2), (-90, 3)])
def test_a_quarter_turn_is_counterclockwise(degrees, turns):
    turned = apply(ImageShift(degrees, 0, 0), IMAGES)
    # Pixels are met but for the rounding of cosines, 1e-16, times 255.
    np.testing.assert_allclose(turned, np.rot90(IMAGES, turns, axes=(1, 2)), atol=1e-3)


def test_as_scipy_turns_and_blurs():
    smooth = ndimage.gaussian_filter(IMAGES, (0, 1.5, 1.5, 0))
    for degrees in (20.0, -33.0):
        expected = ndimage.rotate(smooth, degrees, (2, 1), reshape=False, order=1, mode="nearest")
        np.testing.assert_allclose(apply(ImageShift(degrees, 0, 0), smooth), expected, atol=1e-3)
    # Inside, where the edges do not reach: 3 deviations, beyond which a Gaussian has 0.3 %.
    large = np.random.RandomState(1).uniform(0, 255, (2, 30, 26, 1)).astype(np.float32)
    blurred = apply(ImageShift(0, 1.3, 0), large)
    expected = ndimage.gaussian_filter(large, (0, 1.3, 1.3, 0), truncate=8)
    np.testing.assert_allclose(blurred[:, 9:-9, 9:-9], expected[:, 9:-9, 9:-9], rtol=1e-4)
    # A gray wall is as gray when blurred, to its edges.
    np.testing.assert_allclose(apply(ImageShift(0, 2.0, 0), np.full((1, 9, 7, 1), 50.0)), 50)


def test_darkness_is_the_light_that_is_lost():
    np.testing.assert_allclose(apply(ImageShift(0, 0, 0.25), IMAGES), 0.75 * IMAGES)
    np.testing.assert_array_equal(apply(ImageShift(0, 0, 0), IMAGES), IMAGES)


def test_amounts_depend_on_seed_and_client_alone():
    strongest = ImageShift(rotation=30, blur=2, darkness=0.5)
    many = strongest.draw(1000, seed=3)
    assert strongest.draw(7, seed=3) == many[:7]
    assert strongest.draw(7, seed=4) != many[:7]
    amounts = np.array([(each.rotation, each.blur, each.darkness) for each in many])
    assert (amounts.min(axis=0) >= (-30, 0, 0)).all() and (
        amounts.max(axis=0) <= (30, 2, 0.5)
    ).all()
    # The mean of 1,000 uniform amounts is within a twentieth of their range: five deviations.
    far = np.abs(amounts.mean(axis=0) - (0, 1, 0.25)) / (60, 2, 0.5)
    assert far.max() < 0.05


def test_every_image_is_seen_by_its_client():
    images = IMAGES.astype(np.uint8)
    owners = np.array([1, 0, 2, 1, 0])
    clients = Clients.of(owners, np.zeros(5, int), 1, ("a", "b", "c"))
    shifts = [ImageShift(0, 0, 0), ImageShift(180, 0, 0), ImageShift(0, 0, 0.5)]
    seen = shifted(images, clients, shifts)
    assert seen.dtype == np.uint8
    for image, expected in (
        (0, images[0, ::-1, ::-1]),
        (1, images[1]),
        (2, np.rint(images[2] * 0.5)),
    ):
        np.testing.assert_array_equal(seen[image], expected)


@pytest.mark.parametrize("shift", [ImageShift(-1), ImageShift(blur=-1.0), ImageShift(darkness=1.0)])
def test_amounts_that_cannot_be(shift):
    with pytest.raises(UserError, match="set 0 to 180 degrees, 0 pixels or more, and 0 to below 1"):
        shift.check()

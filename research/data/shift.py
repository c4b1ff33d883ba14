"""Feature skew of images: every client sees the world through a camera of its own.

A camera is mounted at an angle, is out of focus, and lacks light, each by its client's amount. The
amounts depend on (seed, client) alone, so a client's test images are seen as its training images
are.
"""

from dataclasses import dataclass

import numpy as np

from research.data.clients import Clients
from research.errors import UserError


@dataclass(frozen=True)
class ImageShift:
    """What is done to the images of a client, at most: each amount is drawn uniformly up to it."""

    rotation: float = 45.0
    """Degrees, to either side."""
    blur: float = 1.0
    """Standard deviation of a Gaussian, pixels."""
    darkness: float = 0.7
    """Share of the light that is lost."""

    def check(self) -> None:
        """Raises UserError for amounts that cannot be."""
        if not (0 <= self.rotation <= 180 and 0 <= self.blur < np.inf and 0 <= self.darkness < 1):
            raise UserError(
                f"rotation {self.rotation}, blur {self.blur} and darkness {self.darkness} cannot "
                "be: set 0 to 180 degrees, 0 pixels or more, and 0 to below 1"
            )

    def draw(self, clients: int, seed: int) -> list["ImageShift"]:
        """What is done to the images of each client; rotations of both signs, counterclockwise."""
        # [clients, 3], row by row: the same for client c, however many there are
        uniform = np.random.RandomState([seed, 1]).uniform(size=(clients, 3))
        amounts = uniform * (2 * self.rotation, self.blur, self.darkness) - (self.rotation, 0, 0)
        return [ImageShift(*map(float, row)) for row in amounts]


def shifted(images: np.ndarray, clients: Clients, shifts: list[ImageShift]) -> np.ndarray:
    """`images` `[examples, height, width, channels]`, each as its client sees it; 0 is black.

    Integers are rounded, as by a camera.
    """
    result = images.copy()
    for client, shift in enumerate(shifts):
        mine = clients[client]
        if len(mine):
            seen = apply(shift, images[mine].astype(np.float32))
            whole = np.issubdtype(images.dtype, np.integer)
            result[mine] = np.rint(seen) if whole else seen
    return result


def apply(shift: ImageShift, images: np.ndarray) -> np.ndarray:
    """Float32 `images` `[examples, height, width, channels]`, turned, then blurred, then darkened.

    What turns into the picture from outside is the nearest pixel of its edge.
    """
    count, height, width, channels = images.shape
    # Pixels first: what happens to one happens to a row of all images.
    pixels = images.transpose(1, 2, 0, 3).reshape(height * width, count * channels)
    if shift.rotation:
        pixels = _turned(pixels, height, width, np.deg2rad(shift.rotation))
    if shift.blur:
        down, across = _blur(shift.blur, height), _blur(shift.blur, width)
        pixels = np.matmul(across, pixels.reshape(height, width, -1))  # [height, width, images]
        pixels = down @ pixels.reshape(height, -1)
    pixels = pixels * np.float32(1 - shift.darkness)
    return pixels.reshape(height, width, count, channels).transpose(2, 0, 1, 3)


def _turned(pixels: np.ndarray, height: int, width: int, angle: float) -> np.ndarray:
    """`pixels` `[height * width, ...]` counterclockwise around the middle, bilinear between."""
    y, x = np.mgrid[:height, :width] - np.array([height - 1, width - 1])[:, None, None] / 2
    # Where each pixel of the result comes from: turned back; y points down.
    from_y = np.clip(np.cos(angle) * y + np.sin(angle) * x + (height - 1) / 2, 0, height - 1)
    from_x = np.clip(np.cos(angle) * x - np.sin(angle) * y + (width - 1) / 2, 0, width - 1)
    top, left = (np.floor(place).astype(int) for place in (from_y, from_x))
    down, right = from_y - top, from_x - left
    turned = np.zeros_like(pixels)
    for rows, in_rows in ((top, 1 - down), (np.minimum(top + 1, height - 1), down)):
        for columns, in_columns in ((left, 1 - right), (np.minimum(left + 1, width - 1), right)):
            weight = (in_rows * in_columns).astype(np.float32).reshape(-1, 1)
            turned += weight * pixels[(rows * width + columns).ravel()]
    return turned


def _blur(deviation: float, size: int) -> np.ndarray:
    """float32 `[size, size]`: each row a Gaussian around its place, of sum 1 also at the edges."""
    distance = np.arange(size)[:, None] - np.arange(size)
    weights = np.exp(-0.5 * (distance / deviation) ** 2)
    return (weights / weights.sum(axis=1, keepdims=True)).astype(np.float32)

"""Public digits: pen strokes along hand-drawn skeletons, and glyphs of openly licensed fonts.

No private example, and no person's handwriting, goes into a rendering, so whatever is learnt from it costs
no privacy budget. The images are normalised as MNIST's are (LeCun et al. 1998, section III.A): ink
scaled into a 20 x 20 box with its aspect kept, centred by its centre of mass in 28 x 28.
"""

from __future__ import annotations

import concurrent.futures
import functools
import importlib.metadata
import os
from pathlib import Path

import matplotlib
import numpy as np
from PIL import Image, ImageDraw, ImageFont
from scipy import ndimage

from tfprivacy_lab.checks import check_finite_number, check_positive_int
from tfprivacy_lab.data.glyphs import skeletons

SIZE = 28
_CHUNK = 1000
_GRID = 64
_BODY = 44.0
_FACES = 96
# They have glyphs at the digits' code points that are no digits.
_NOT_DIGITS = ("LastResort", "cmex", "cmsy")


def render_digits(
    count: int, seed: int, *, font_share: float = 0.2, threads: int | None = None
) -> tuple[np.ndarray, np.ndarray]:
    """Draw ``count`` public digits.

    Args:
        count: Number of images, >= 1. The labels are balanced to within one.
        seed: Whole number >= 0; the same seed, count and fonts give the same bytes on any number of threads.
        font_share: Expected share drawn from fonts; the rest are pen strokes. In [0, 1].
        threads: The processor count by default. It does not change the result.

    Returns:
        Images, uint8 (count, 28, 28), 0 is paper and 255 ink; and labels, uint8 (count,).

    Raises:
        InputError: naming the argument that is out of range.

    Guarantee: reads no data set; the only inputs are the skeletons in this package and installed fonts.
    """
    count = check_positive_int("count", count)
    seed = check_positive_int("seed", seed, at_least=0)
    font_share = check_finite_number("font_share", font_share, at_least=0.0, at_most=1.0)
    threads = check_positive_int("threads", os.cpu_count() if threads is None else threads)
    labels = np.random.default_rng([seed, 0]).permutation(np.arange(count, dtype=np.int64) % 10).astype(np.uint8)
    images = np.empty((count, SIZE, SIZE), np.uint8)
    if font_share > 0.0:
        _faces()

    def draw(start):
        part = labels[start : start + _CHUNK]
        images[start : start + len(part)] = _draw(part, font_share, np.random.default_rng([seed, 1, start]))

    # Threads, not processes: NumPy releases the lock, and a process that holds TensorFlow must not fork.
    with concurrent.futures.ThreadPoolExecutor(threads) as pool:
        list(pool.map(draw, range(0, count, _CHUNK)))
    return images, labels


@functools.cache
def font_paths() -> tuple[Path, ...]:
    """Installed fonts with ten digits: matplotlib's and those of the ``fontpkg-*`` packages, by file name."""
    found = list(Path(matplotlib.get_data_path(), "fonts", "ttf").glob("*.ttf"))
    for distribution in importlib.metadata.distributions():
        if (distribution.name or "").lower().startswith("fontpkg-"):
            files = distribution.files or []
            found += [Path(distribution.locate_file(file)) for file in files if file.suffix == ".ttf"]
    by_name = {path.name: path for path in found if path.is_file() and not path.name.startswith(_NOT_DIGITS)}
    return tuple(by_name[name] for name in sorted(by_name) if _has_digits(by_name[name]))


def _has_digits(path):
    """Whether a font draws ten different things, none of them empty."""
    font = ImageFont.truetype(str(path), 24)
    masks = [font.getmask(digit) for digit in "0123456789"]
    return all(mask.getbbox() for mask in masks) and len({(mask.size, bytes(mask)) for mask in masks}) == 10


@functools.cache
def _faces():
    """Signed distances (fonts, 10, grid, grid), ink points (fonts, 10, k, 2) and half widths, in grid pixels."""
    glyphs = [[_glyph(path, digit) for digit in "0123456789"] for path in font_paths()]
    return tuple(np.array([[glyph[part] for glyph in row] for row in glyphs], np.float32) for part in range(3))


def _glyph(path, digit, fine=2):
    """One glyph: its signed distance field (inside positive), points of its ink, half its stem's width."""
    font = ImageFont.truetype(str(path), 200)
    left, top, right, bottom = font.getbbox(digit)
    drawn = Image.new("L", (right - left, bottom - top))
    ImageDraw.Draw(drawn).text((-left, -top), digit, font=font, fill=255)
    shrink = fine * _BODY / max(drawn.size)
    drawn = drawn.resize([max(1, round(side * shrink)) for side in drawn.size])
    canvas = Image.new("L", (_GRID * fine, _GRID * fine))
    canvas.paste(drawn, tuple((_GRID * fine - side) // 2 for side in drawn.size))
    ink = np.asarray(canvas) > 127
    signed = ndimage.distance_transform_edt(ink) - ndimage.distance_transform_edt(~ink)
    field = signed.reshape(_GRID, fine, _GRID, fine).mean((1, 3)) / fine
    pixels = np.argwhere(ink)[:, ::-1]
    angles = np.linspace(0, 2 * np.pi, 32, endpoint=False)
    extremes = pixels[np.argmax(pixels @ np.stack([np.cos(angles), np.sin(angles)]), axis=0)]
    spread = pixels[np.linspace(0, len(pixels) - 1, _FACES - 32).astype(int)]
    points = (np.concatenate([extremes, spread]) + 0.5) / fine - _GRID / 2
    return field, points, np.percentile(signed[ink], 95) / fine


def _draw(labels, font_share, rng):
    """One chunk of images, uint8."""
    from_font = rng.random(len(labels)) < font_share
    ink = np.empty((len(labels), SIZE, SIZE), np.float32)
    ink[from_font] = _draw_fonts(labels[from_font], rng)
    ink[~from_font] = _draw_strokes(labels[~from_font], rng)
    n = len(labels)
    peak = np.where(rng.random(n) < 0.85, 1.0, rng.uniform(0.75, 1.0, n))
    grain = 1.0 + rng.normal(0.0, 0.04, ink.shape) * rng.random((n, 1, 1))
    return np.clip(np.rint(255.0 * ink * peak[:, None, None] * grain), 0, 255).astype(np.uint8)


def _pen(n, rng):
    """Half widths of the pen and widths of the grey edge, in pixels."""
    return np.clip(np.exp(rng.normal(0.27, 0.3, n)), 0.65, 2.4), rng.uniform(0.6, 1.4, n)


def _slants(n, rng, upright):
    """(n, 2, 2) random maps: aspect, then shear, then rotation; ``upright`` scales how far they go."""
    aspect = np.exp(rng.normal(0.12, 0.22, n))
    shear = rng.normal(-0.12, 0.24, n) * upright
    turn = rng.normal(0.0, 0.12, n) * upright
    cos, sin = np.cos(turn), np.sin(turn)
    bent = np.stack([aspect, shear, np.zeros(n), np.ones(n)], -1).reshape(n, 2, 2)
    return (np.stack([cos, -sin, sin, cos], -1).reshape(n, 2, 2) @ bent).astype(np.float32)


def _waves(n, rng, waves=3):
    """A smooth random displacement: a function of (n, k, 2) points that lie in about [-1/2, 1/2]."""
    strength = np.exp(rng.normal(-3.3, 0.5, (n, 1, 1)))
    directions = rng.normal(0.0, 3.0, (waves, n, 2, 1)).astype(np.float32)
    phases = rng.uniform(0.0, 2 * np.pi, (waves, n, 1, 1)).astype(np.float32)
    pushes = (rng.normal(0.0, 1.0, (waves, n, 1, 2)) * strength).astype(np.float32)

    def displacement(points):
        terms = zip(directions, phases, pushes, strict=True)
        return sum(np.sin(points @ direction + phase) * push for direction, phase, push in terms)

    return displacement


def _fit(points, margin, rng):
    """Scale (n,) and centre (n, 2) that put each digit into MNIST's frame, with a little sloth."""
    low, high = points.min(1), points.max(1)
    extent = np.maximum((high - low).max(1), 1e-3)
    scale = (20.0 - 2 * margin) / extent * np.exp(rng.normal(0.0, 0.03, len(points)))
    centre = points.mean(1) + rng.normal(0.0, 0.02, (len(points), 2)) * extent[:, None]
    return scale.astype(np.float32), centre.astype(np.float32)


def _draw_strokes(labels, rng):
    """Ink in [0, 1] of pen strokes, (n, 28, 28)."""
    n = len(labels)
    width, edge = _pen(n, rng)
    points = _paths(labels, rng)
    points += _waves(n, rng)(points)
    points = points @ _slants(n, rng, np.where(labels == 1, 1.5, 1.0)).transpose(0, 2, 1)
    scale, centre = _fit(points, width, rng)
    points = (points - centre[:, None]) * scale[:, None, None] + (SIZE - 1) / 2
    pressure = np.sin(np.linspace(0, 1, points.shape[1]) * rng.uniform(2, 12, (n, 1)) + rng.uniform(0, 6.3, (n, 1)))
    local = (width[:, None] * (1.0 + rng.uniform(0, 0.25, (n, 1)) * pressure)).astype(np.float32)
    pixel = np.arange(SIZE, dtype=np.float32)
    across = ((pixel - points[:, :, :1]) / local[:, :, None]) ** 2
    down = ((pixel - points[:, :, 1:]) / local[:, :, None]) ** 2
    nearest = np.empty((n, SIZE, SIZE), np.float32)
    for part in range(0, n, 64):
        near, batch = nearest[part : part + 64], slice(part, part + 64)
        near.fill(np.inf)
        for k in range(points.shape[1]):
            np.minimum(near, down[batch, k, :, None] + across[batch, k, None, :], out=near)
    reach = (1.0 - np.sqrt(nearest)) * width[:, None, None]
    return np.clip(reach / edge[:, None, None] + 0.5, 0.0, 1.0)


def _paths(labels, rng):
    """(n, k, 2) points along the pen's path, centred, height about 1, before slant and scale."""
    points = np.empty((len(labels), skeletons(0)[0].basis.shape[0], 2), np.float32)
    for digit in np.unique(labels):
        variants = skeletons(int(digit))
        where = np.flatnonzero(labels == digit)
        chosen = rng.integers(len(variants), size=len(where))
        for index, variant in enumerate(variants):
            rows = where[chosen == index]
            partners = [other.control for other in variants if other.layout == variant.layout]
            partner = np.array(partners)[rng.integers(len(partners), size=len(rows))]
            mix = rng.uniform(0.0, 0.5, (len(rows), 1, 1))
            sloth = np.exp(rng.normal(-3.4, 0.45, (len(rows), 1, 1)))
            control = variant.control + mix * (partner - variant.control)
            shake = rng.normal(0.0, 1.0, control.shape)
            # Neighbours move partly together, as a hand does.
            shake[:, 1:] = 0.75 * shake[:, 1:] + 0.65 * shake[:, :-1]
            control = control + shake * sloth
            points[rows] = variant.basis @ control.astype(np.float32) - np.float32([0.3, 0.5])
    return points


def _draw_fonts(labels, rng):
    """Ink in [0, 1] of warped font glyphs, (n, 28, 28)."""
    fields, inks, stems = _faces()
    n = len(labels)
    face = rng.integers(len(fields), size=n)
    width, edge = _pen(n, rng)
    matrix = _slants(n, rng, np.where(labels == 1, 1.5, 1.0))
    waves, ink = _waves(n, rng), inks[face, labels] / _BODY
    # The warp maps the image back to the glyph; two fixed-point steps tell where its ink lands.
    points = _BODY * (ink - waves(ink - waves(ink))) @ matrix.transpose(0, 2, 1)
    scale, centre = _fit(points, np.zeros(n), rng)
    pixel = np.arange(SIZE, dtype=np.float32) - (SIZE - 1) / 2
    frame = np.stack(np.meshgrid(pixel, pixel), -1).reshape(1, -1, 2)
    # Every output pixel looks up where it came from in the glyph's distance field.
    source = (frame / scale[:, None, None] + centre[:, None]) @ np.linalg.inv(matrix).transpose(0, 2, 1)
    source += _BODY * waves(source / _BODY)
    distance = _lookup(fields, face * 10 + labels, source) * scale[:, None]
    stem = stems[face, labels] * scale
    thicker = np.clip(width - stem, 0.6 - stem, 1.0)
    ink = np.clip((distance + thicker[:, None]) / edge[:, None] + 0.5, 0.0, 1.0)
    return ink.reshape(n, SIZE, SIZE)


def _lookup(fields, rows, source):
    """Bilinear samples of the chosen distance fields at (n, k, 2) places."""
    flat = fields.reshape(-1)
    place = np.clip(source + _GRID / 2 - 0.5, 0.0, _GRID - 1.001)
    corner = place.astype(np.int32)
    right, down = np.moveaxis(place - corner, -1, 0)
    start = rows.astype(np.int64)[:, None] * _GRID**2 + corner[..., 1] * _GRID + corner[..., 0]
    upper = flat[start] * (1 - right) + flat[start + 1] * right
    lower = flat[start + _GRID] * (1 - right) + flat[start + _GRID + 1] * right
    return upper * (1 - down) + lower * down

"""Rendering: reproducible, balanced, digits and not boxes, and honest about bad arguments."""

import numpy as np
import pytest

from tfprivacy_lab.checks import InputError
from tfprivacy_lab.data import glyphs, rendered_digits
from tfprivacy_lab.data.rendered_digits import font_paths, render_digits


@pytest.fixture(scope="module")
def rendered():
    return render_digits(2500, seed=3, font_share=0.4)


def test_the_same_seed_gives_the_same_bytes_on_any_number_of_threads(rendered):
    images, labels = render_digits(2500, seed=3, font_share=0.4, threads=1)
    again, labels_again = render_digits(2500, seed=3, font_share=0.4, threads=3)
    assert images.tobytes() == again.tobytes() == rendered[0].tobytes()
    assert labels.tobytes() == labels_again.tobytes() == rendered[1].tobytes()


def test_another_seed_gives_other_images_and_order(rendered):
    images, labels = render_digits(2500, seed=4, font_share=0.4)
    assert (labels != rendered[1]).mean() > 0.5
    assert not (images == rendered[0]).all(axis=(1, 2)).any()


@pytest.mark.parametrize("count", [1, 7, 1003])
def test_labels_are_balanced_to_within_one(count):
    images, labels = render_digits(count, seed=0)
    assert images.shape == (count, 28, 28)
    assert images.dtype == np.uint8
    assert labels.shape == (count,)
    assert labels.dtype == np.uint8
    counts = np.bincount(labels, minlength=10)
    assert counts.max() - counts.min() <= 1


def test_images_hold_ink_and_paper_in_mnists_frame(rendered):
    images, _ = rendered
    ink = (images > 127).mean(axis=(1, 2))
    assert images.max() == 255
    assert images.min() == 0
    assert ink.min() > 0.01
    assert ink.max() < 0.5
    mass = images.astype(float)
    total = mass.sum(axis=(1, 2))
    centre = np.arange(28)
    rows, columns = (mass.sum(2) @ centre) / total, (mass.sum(1) @ centre) / total
    assert np.abs(rows - 13.5).max() < 6
    assert np.abs(columns - 13.5).max() < 6
    # Normalisation puts the ink into 20 x 20; a strong warp of a font may leave it.
    border = (images[:, [0, -1]] > 127).any(axis=(1, 2)) | (images[:, :, [0, -1]] > 127).any(axis=(1, 2))
    assert border.mean() < 0.03


@pytest.mark.parametrize("font_share", [0.0, 1.0])
def test_each_source_alone_draws_digits_that_a_nearest_mean_tells_apart(font_share):
    images, labels = render_digits(3000, seed=1, font_share=font_share)
    flat = images.reshape(len(images), -1) / 255.0
    means = np.stack([flat[:2000][labels[:2000] == digit].mean(0) for digit in range(10)])
    distance = ((flat[2000:, None] - means) ** 2).sum(-1)
    # Chance is 10 %; boxes or blanks would be at it.
    assert (distance.argmin(1) == labels[2000:]).mean() > 0.5


def test_fonts_are_found_and_those_without_digits_are_not():
    names = {path.name for path in font_paths()}
    assert "DejaVuSans.ttf" in names
    assert not {name for name in names if name.startswith(("LastResort", "STIXSiz", "STIXNonUni", "cmex", "cmsy"))}
    assert "DejaVuSansDisplay.ttf" not in names


def test_a_distance_field_is_positive_inside_the_ink_only():
    field, points, stem = rendered_digits._glyph(font_paths()[0], "1")
    assert field.max() > 1.0
    assert field[0].max() < 0.0
    assert stem > 0.5
    assert np.abs(points).max() <= rendered_digits._BODY / 2 + 1


@pytest.mark.parametrize("digit", range(10))
def test_a_skeleton_passes_through_its_control_points_in_even_steps(digit):
    for skeleton in glyphs.skeletons(digit):
        path = skeleton.basis @ skeleton.control
        np.testing.assert_allclose(skeleton.basis.sum(1), 1.0, atol=1e-5)
        nearest = np.linalg.norm(path[:, None] - skeleton.control, axis=-1).min(0)
        assert nearest.max() < 0.03
        steps = np.linalg.norm(np.diff(path, axis=0), axis=1)
        pen_lifts = sum(step > 3 * np.median(steps) for step in steps)
        assert pen_lifts <= 1


@pytest.mark.parametrize(
    ("arguments", "name"),
    [
        ({"count": 0, "seed": 0}, "count"),
        ({"count": -5, "seed": 0}, "count"),
        ({"count": 2.5, "seed": 0}, "count"),
        ({"count": 1, "seed": -1}, "seed"),
        ({"count": 1, "seed": 0, "font_share": 1.5}, "font_share"),
        ({"count": 1, "seed": 0, "threads": 0}, "threads"),
    ],
)
def test_arguments_out_of_range_are_named(arguments, name):
    with pytest.raises(InputError, match=name):
        render_digits(**arguments)

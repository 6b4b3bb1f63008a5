"""How good features are, judged on public data: a linear probe on scikit-learn's digits.

The set has 1,797 digits written by 43 people, 8 x 8, bundled with scikit-learn (Alpaydin and Kaynak
1998). It is real handwriting and public, so backbones can be compared on it at no privacy cost.
"""

from __future__ import annotations

import keras
import numpy as np
from scipy import ndimage

from tfprivacy_lab.models import architectures

DATA = "scikit-learn digits (1,797 handwritten digits of 8 x 8, public), ten labels a class"
_DRAWS = 20


def public_digits() -> tuple[np.ndarray, np.ndarray]:
    """Scikit-learn's digits in MNIST's frame: float32 (1797, 28, 28, 1) in [0, 1], and labels (1797,)."""
    from sklearn.datasets import load_digits

    digits = load_digits()
    enlarged = ndimage.zoom(digits.images / 16, (1, 2.5, 2.5), order=1)
    framed = np.zeros((len(enlarged), 28, 28), np.float32)
    for image, digit in zip(framed, np.clip(enlarged, 0, 1), strict=True):
        # As MNIST was framed: 20 x 20, centre of mass in the middle.
        row, column = (round(13.5 - centre) for centre in ndimage.center_of_mass(digit))
        row, column = np.clip([row, column], 0, 8)
        image[row : row + 20, column : column + 20] = digit
    return framed[..., np.newaxis], digits.target.astype(np.int64)


def linear_probe(backbone: keras.Model) -> float:
    """Accuracy of logistic regression on frozen features of public digits, ten labels a class.

    Few labels, because a private head is in the same position: its noisy gradients say as little as few
    clean ones. The mean over ``_DRAWS`` random draws of the labelled digits; the rest are for testing.
    """
    from sklearn.linear_model import LogisticRegression
    from sklearn.model_selection import StratifiedShuffleSplit
    from threadpoolctl import threadpool_limits

    images, labels = public_digits()
    features = architectures.embed(backbone, images)
    features = features * np.sqrt(features.shape[1])
    accuracies = []
    for few, rest in StratifiedShuffleSplit(_DRAWS, train_size=10 * architectures.CLASSES, random_state=0).split(
        images, labels
    ):
        # On a hundred rows, threads of the linear algebra only wait for each other.
        with threadpool_limits(1):
            classifier = LogisticRegression(max_iter=1000).fit(features[few], labels[few])
        accuracies.append(classifier.score(features[rest], labels[rest]))
    return float(np.mean(accuracies))

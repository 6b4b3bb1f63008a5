"""How good features are, judged on public data: a linear probe on scikit-learn's digits.

The set has 1,797 digits written by 43 people, 8 x 8, bundled with scikit-learn (Alpaydin and Kaynak
1998). It is real handwriting and public, so backbones can be compared on it at no privacy cost.
"""

from __future__ import annotations

import numpy as np
import tensorflow as tf
from scipy import ndimage

from tfprivacy_lab import models

DATA = "scikit-learn digits (1,797 handwritten digits of 8 x 8, public)"
_FOLDS = 5


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


def linear_probe(backbone: tf.keras.Model) -> float:
    """Accuracy of logistic regression on frozen features, mean of five folds on public digits."""
    from sklearn.linear_model import LogisticRegression
    from sklearn.model_selection import StratifiedKFold, cross_val_score

    images, labels = public_digits()
    features = models.embed(backbone, images)
    folds = StratifiedKFold(_FOLDS, shuffle=True, random_state=0)
    classifier = LogisticRegression(C=10.0, max_iter=2000)
    return float(np.mean(cross_val_score(classifier, features * np.sqrt(features.shape[1]), labels, cv=folds)))

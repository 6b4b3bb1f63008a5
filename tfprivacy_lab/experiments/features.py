"""Frozen features of a recipe, made once: public extractors, and what they say of private images.

Everything lies in a cache folder, ``TFPRIVACY_LAB_CACHE`` or ``~/.cache/tfprivacy_lab``, under the SHA-256 of
what it was made from. Features of private images are as private as the images: their files have mode 0600.
Every file starts with the digest of the rest; one that is damaged is made again.
"""

from __future__ import annotations

import dataclasses
import hashlib
import io
import json
import os
import tempfile
from pathlib import Path

import keras
import numpy as np
import tensorflow as tf

from tfprivacy_lab import files
from tfprivacy_lab.checks import InputError
from tfprivacy_lab.data import rendered_digits
from tfprivacy_lab.experiments.recipes import Pretraining, Recipe
from tfprivacy_lab.models import architectures
from tfprivacy_lab.pretraining import scattering, tasks

_DIGEST = 32
# Raise it when what is cached changes without its settings changing.
_VERSION = 1


def cache_directory() -> Path:
    """Where backbones and features are kept."""
    return Path(os.environ.get("TFPRIVACY_LAB_CACHE") or "~/.cache/tfprivacy_lab").expanduser()


def public_extractor(recipe: Recipe, *, progress: bool = False) -> keras.Model:
    """The frozen extractor of a recipe with ``features``, images (n, 28, 28, 1) to (n, d); sees no private data.

    Returns:
        A Keras model without trainable weights, read from the cache if it is there.
    """

    def build():
        found = []
        for part in recipe.features:
            if isinstance(part, Pretraining):
                found.append(
                    _cached_model(
                        {"backbone": dataclasses.asdict(part)}, lambda p=part: pretrain_public(p, progress).backbone
                    )
                )
            elif part.dimension is None:
                found.append(scattering.scattering_extractor())
            else:
                images, _ = rendered_digits.render_digits(part.images, part.seed)
                found.append(scattering.projected_scattering(images, part.dimension))
        return found[0] if len(found) == 1 else scattering.side_by_side(found)

    return architectures.freeze(_cached_model(_described(recipe), build))


def embedded(recipe: Recipe, extractor: keras.Model, images: np.ndarray) -> np.ndarray:
    """Features (n, d) of private ``images``, from the cache if these very images are there.

    Not covered: the file is private data; delete the cache folder when the data must go.
    """
    pixels = hashlib.sha256(np.ascontiguousarray(images)).hexdigest()
    path = _path({**_described(recipe), "images": pixels, "shape": list(np.shape(images))}, ".features")
    try:
        found = np.load(io.BytesIO(_unseal(path)), allow_pickle=False)
        if found.shape == (len(images), extractor.output_shape[-1]) and found.dtype == np.float32:
            return found
    except (InputError, ValueError, EOFError):
        pass
    made, stream = architectures.embed(extractor, images), io.BytesIO()
    np.save(stream, made, allow_pickle=False)
    _seal(path, stream.getbuffer())
    return made


def pretrain_public(settings: Pretraining, progress: bool = False) -> tasks.Pretrained:
    """Render public digits and learn a backbone from them; sees no private example."""
    images, labels = rendered_digits.render_digits(settings.images, settings.seed)
    learnt = tasks.pretrain(
        settings.task,
        images,
        labels,
        seed=settings.seed,
        epochs=settings.epochs,
        network=settings.network,
        progress=progress,
    )
    architectures.freeze(learnt.backbone)
    return learnt


def _described(recipe: Recipe) -> dict:
    return {"features": [[type(part).__name__, dataclasses.asdict(part)] for part in recipe.features]}


def _path(description: dict, suffix: str) -> Path:
    """A file named by what it was made from; fonts decide the rendered digits, TensorFlow the weights' bits."""
    fonts = [path.name for path in rendered_digits.font_paths()]
    whole = {**description, "version": _VERSION, "tensorflow": tf.__version__, "fonts": fonts}
    name = hashlib.sha256(json.dumps(whole, sort_keys=True).encode()).hexdigest()
    return cache_directory() / f"{name[:40]}{suffix}"


def _cached_model(description: dict, build) -> keras.Model:
    """A public model from the cache, or built and put there."""
    path = _path(description, ".extractor")
    with tempfile.TemporaryDirectory() as folder:
        plain = Path(folder) / "model.keras"
        try:
            plain.write_bytes(_unseal(path))
            return keras.models.load_model(plain, compile=False, safe_mode=True)
        except (InputError, ValueError, OSError):
            model = build()
        model.save(plain)
        _seal(path, plain.read_bytes())
    return model


def _seal(path: Path, content) -> None:
    with files.replaced_atomically(path, mode=0o600) as partial, open(partial, "wb") as stream:
        stream.write(hashlib.sha256(content).digest())
        stream.write(content)


def _unseal(path: Path) -> bytes:
    """What :func:`_seal` wrote.

    Raises:
        InputError: if the file is missing or damaged.
    """
    sealed = memoryview(files.read_bytes(path, "cached features"))
    digest, content = sealed[:_DIGEST], sealed[_DIGEST:]
    if hashlib.sha256(content).digest() != digest:
        raise InputError(f"{path} is damaged.")
    return bytes(content)

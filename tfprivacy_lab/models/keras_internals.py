"""What is taken of Keras 3 beyond its public interface, a function each.

``tests/models/test_keras_internals.py`` names the versions of Keras that this is for, and fails where one moves.
"""

from __future__ import annotations

import contextlib

import keras
from keras.src.backend import random
from keras.src.backend.common import global_state
from keras.src.models.functional import Functional
from keras.src.random.seed_generator import global_seed_generator

_GLOBAL_SEED_GENERATOR = "global_seed_generator"


def layers_of(model: keras.layers.Layer) -> list[keras.layers.Layer]:
    """The model (or layer) and every layer in it, however deep."""
    return list(model._flatten_layers(include_self=True, recursive=True))


def own_weights(layer: keras.layers.Layer) -> list[keras.Variable]:
    """The weights that a layer itself holds to be trained, not its sublayers', whether they are frozen now or not."""
    set_free = [variable for variable in layer._non_trainable_variables if variable.trainable]
    return [*layer._trainable_variables, *set_free]


def raw(variables) -> list:
    """TensorFlow's variables in Keras' ones: of these a tape gives zeros where nothing depends on them.

    A tape watches by itself those alone that were made to be trained, so it is told to watch them.
    """
    return [variable.value for variable in variables]


def is_overwritten(variable: keras.Variable) -> bool:
    """Whether an optimizer puts the gradient in the variable's place, as it does with scales of 8-bit numbers."""
    return bool(getattr(variable, "overwrite_with_gradient", False))


# What compile makes beside the optimizer. Without it these are None, and the optimizer is no attribute.
_OF_COMPILE = ("_loss_tracker", "_compile_metrics", "_compile_loss")


@contextlib.contextmanager
def as_before_compile(model: keras.Model):
    """Meanwhile the model, and every model in it, is as if it had not been compiled."""
    kept = []
    for held in map(vars, layers_of(model)):
        if held.get("compiled"):
            names = [name for name in ("compiled", "optimizer", *_OF_COMPILE) if name in held]
            kept.append((held, {name: held[name] for name in names}))
            held.update(compiled=False, **{name: None for name in _OF_COMPILE if name in held})
            held.pop("optimizer", None)
    try:
        yield
    finally:
        for held, before in kept:
            held.update(before)


def mask_of(tensor):
    """The mask that layers attach to what they give."""
    return getattr(tensor, "_keras_mask", None)


def inputs_of(model: keras.Model):
    """What a built model takes, as symbolic tensors in its structure, examples first; None where it does not say."""
    if isinstance(model, Functional):
        return model.input
    if isinstance(model, keras.Sequential) and model._functional is not None:
        return model.inputs[0]
    shapes = list((model._build_shapes_dict or {}).values())
    return keras.tree.map_shape_structure(keras.KerasTensor, shapes[0]) if len(shapes) == 1 else None


def output_of(model: keras.Model):
    """What a built model gives, as symbolic tensors in its structure."""
    return model.output if isinstance(model, Functional) else model.outputs[0]


def maker_of(tensor: keras.KerasTensor) -> tuple[keras.layers.Layer, list | None, dict]:
    """The layer whose call made a symbolic tensor, what tensors it took (None of a model's input), and its options."""
    layer, place, _ = tensor._keras_history
    node = layer._inbound_nodes[place]
    return layer, None if node.is_input else list(node.input_tensors), dict(node.arguments.kwargs)


def seed_states(model: keras.Model) -> list[keras.Variable]:
    """The states of the seed generators that a model's layers hold: a seed, and a count that goes up at every draw."""
    return [generator.state for layer in layers_of(model) for generator in layer._seed_generators]


def drawing():
    """The module by whose functions Keras' layers draw."""
    return random


@contextlib.contextmanager
def global_seed_state():
    """The state of the generator that ``keras.random`` draws by where it is given no seed.

    Keras makes it at the first draw, by a draw of Python's; where there was none, there is none afterwards.
    """
    before = global_state.get_global_attribute(_GLOBAL_SEED_GENERATOR)
    try:
        yield global_seed_generator().state
    finally:
        global_state.set_global_attribute(_GLOBAL_SEED_GENERATOR, before)


def loss_tracker(model: keras.Model) -> keras.metrics.Metric | None:
    """The mean that Keras' own steps keep of their losses."""
    return getattr(model, "_loss_tracker", None)


def build_metrics(model: keras.Model, labels, outputs) -> None:
    """Make the metrics that ``compile`` was given: which they are, and their variables, hangs on shapes."""
    compiled = model._compile_metrics
    if compiled is not None and not compiled.built:
        with model.distribute_strategy.scope():
            compiled.build(labels, outputs)


def profiles(callback: keras.callbacks.TensorBoard) -> bool:
    """Whether a TensorBoard callback profiles batches."""
    return bool(callback._should_trace)


class BuiltBeforehand:
    """A model that is built, with its metrics and optimizer, before Keras looks at a batch.

    Under a strategy Keras would take a batch to pieces in the belief that it is (x, y, weights).
    """

    def _maybe_symbolic_build(self, *arguments, **options):
        """Nothing."""

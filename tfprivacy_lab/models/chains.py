"""A Keras model as a chain of layers, read from its graph: ``model.layers`` is a list without edges.

Where a layer is used twice, where a layer takes several tensors, or where the model has several inputs or outputs, the
list looks like a chain and is none. The graph says which tensor each layer takes.
"""

from __future__ import annotations

from typing import NamedTuple

from tfprivacy_lab.checks import InputError


class Link(NamedTuple):
    """One layer of a chain.

    Attributes:
        layer: The Keras layer.
        shape: Of what it takes, without the batch.
    """

    layer: object
    shape: tuple[int, ...]


def chain_of(model) -> list[Link]:
    """The layers of a built sequential or functional Keras model, input to output, those of nested models in place.

    Args:
        model: A Keras model.

    Raises:
        InputError: naming what makes it no chain of layers used once, and what to do.
    """
    links = _walk(model)
    seen: dict[int, str] = {}
    for link in links:
        if id(link.layer) in seen:
            raise InputError(
                f"Layer {link.layer.name!r} is used more than once; give each place a layer of its own, with the same "
                "weights if they are shared."
            )
        seen[id(link.layer)] = link.layer.name
    return links


def _walk(model) -> list[Link]:
    """From the output back to the input."""
    from tfprivacy_lab.models.keras_internals import maker_of

    _check_graph(model)
    tensor, links = model.outputs[0], []
    while tensor is not model.inputs[0]:
        layer, taken, options = maker_of(tensor)
        if options.get("training"):
            raise InputError(
                f"Layer {layer.name!r} is called with training=True, and so at random or by its batch; call it without."
            )
        if taken is None or len(taken) != 1:
            raise InputError(
                f"Expected a chain of layers, each of which takes the one before, got layer {layer.name!r} that takes "
                f"{len(taken or ())} tensors; leave out branches, sums and joins."
            )
        (tensor,) = taken
        if hasattr(layer, "layers") and hasattr(layer, "inputs"):
            links = _walk(layer) + links
        elif type(layer).__name__ != "InputLayer":
            links.insert(0, Link(layer, _shape(tensor, layer)))
    return links


def _check_graph(model) -> None:
    """That there is a graph of one input and one output, and that calling the model runs it."""
    from tfprivacy_lab.models.keras_internals import output_of

    check_is_of_keras_3(model)
    name = getattr(model, "name", type(model).__name__)
    owner = next((kind for kind in type(model).__mro__ if "call" in vars(kind)), None)
    if owner is None or not is_from(owner, "keras"):
        raise InputError(f"Expected a Sequential or functional Keras model, got {name!r} with a call of its own.")
    if not getattr(model, "inputs", None):
        raise InputError(f"Expected a built model, got {name!r} without shapes; begin it with Input(shape).")
    if len(model.inputs) != 1 or len(model.outputs) != 1:
        raise InputError(
            f"Expected a model of one input and one output, got {name!r} with {len(model.inputs)} and "
            f"{len(model.outputs)}; make a model of the output that is wanted alone."
        )
    if isinstance(output := output_of(model), dict):
        found = f"{name!r} with a dict of {', '.join(map(str, output))}"
        raise InputError(f"Expected a model whose output is a tensor, got {found}; make a model of the tensor.")


def check_is_of_keras_3(model) -> None:
    """Refuse a model of tf_keras.

    Raises:
        InputError: naming it.
    """
    if any(is_from(kind, "tf_keras") for kind in type(model).__mro__):
        raise InputError(
            f"Expected model to be of Keras 3, got {model.name!r} of tf_keras, which is Keras 2; build it with "
            "`import keras`, and leave TF_USE_LEGACY_KERAS unset."
        )


def is_of_keras(layer) -> bool:
    """Whether a layer's class is one of Keras' own, not one of the same name or derived from it."""
    return is_from(type(layer), "keras")


def is_from(thing, *packages: str) -> bool:
    """Whether a class or function is of one of these packages, not of a module whose name only begins as theirs."""
    return thing.__module__.partition(".")[0] in packages


def _shape(tensor, layer) -> tuple[int, ...]:
    """A tensor's shape without the batch, all of it known."""
    shape = tuple(tensor.shape[1:])
    if None in shape:
        raise InputError(f"Expected inputs of known shape, got {shape} for layer {layer.name!r}; build with all sizes.")
    return tuple(int(size) for size in shape)

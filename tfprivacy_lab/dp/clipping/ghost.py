r"""The sum of clipped per-example gradients, by book-keeping instead of per-example back-propagation.

One forward pass keeps every layer's input; one backward pass stops at the layers' outputs, and never forms a weight's
gradient; norms follow from the two (:mod:`.linear`); weighted matrix products then give
:math:`\sum_b c_b \nabla \ell_b` with :math:`c_b = \min(1, C / \|\nabla \ell_b\|)` (Bu et al. 2023, ICML).
"""

from __future__ import annotations

import contextlib

import keras
import tensorflow as tf

from tfprivacy_lab.checks import InputError, check_choice
from tfprivacy_lab.dp.clipping.one_row_per_example import check_first_axes
from tfprivacy_lab.dp.clipping.rows import after, assert_one_row_per_example
from tfprivacy_lab.dp.clipping.rule import Rule
from tfprivacy_lab.dp.clipping.rules import KNOWN, OURS
from tfprivacy_lab.models.keras_internals import layers_of, own_weights, raw

METHODS = ("flat", "automatic")
# Stability constant of automatic clipping (Bu et al. 2022, section 3.3).
_AUTOMATIC_GAMMA = 0.01
# Norms are rounded to less than this; clipping to so much less keeps the bound, whichever way they round.
_ROUNDING = 1.0 - 1e-6


def clip_factors(norms: tf.Tensor, l2_norm_clip, method: str = "flat") -> tf.Tensor:
    r"""What each example's gradient is multiplied by.

    ``flat``: :math:`\min(1, C / \|g\|)` (Abadi et al. 2016). ``automatic``:
    :math:`C / (\|g\| + \gamma)`, which normalises small gradients too (Bu et al. 2022).

    Args:
        norms: Gradient norms, (batch,), float32.
        l2_norm_clip: C > 0, a number or a scalar tensor.
        method: One of :data:`METHODS`.

    Returns:
        Factors, (batch,); 0 where the norm is not finite.

    Guarantee: every scaled gradient has norm at most C, so one example more or less moves the sum by at most C.
    """
    check_choice("clipping", method, METHODS)
    clip = _ROUNDING * tf.cast(l2_norm_clip, norms.dtype)
    factors = clip / (tf.maximum(norms, clip) if method == "flat" else norms + _AUTOMATIC_GAMMA)
    return tf.where(tf.math.is_finite(norms), factors, 0.0)


class UnknownLayerError(InputError):
    """A trainable layer that book-keeping has no rule for."""


class BookKeeping:
    """Per-example clipping for one model, whose layers are all known.

    Args:
        model: A built Keras model, Sequential, Functional or subclassed from known layers.

    Raises:
        InputError: naming the first trainable layer that is not known, or one that mixes examples.
    """

    def __init__(self, model: keras.Model):
        check_layers_keep_examples_apart(model)
        self.model = model
        trained = {id(variable) for variable in model.trainable_variables}
        # A layer's own ``trainable`` says nothing of the models around it: one of them may be frozen.
        self._owners = [layer for layer in layers_of(model) if trained & set(map(id, own_weights(layer)))]
        unknown = [layer for layer in self._owners if type(layer) not in KNOWN]
        if unknown:
            names = ", ".join(sorted(cls.__name__ for cls in KNOWN))
            raise UnknownLayerError(
                f"Layer {unknown[0].name!r} ({type(unknown[0]).__name__}) is trainable and the fast engine has no rule "
                f"for it (it knows {names}); freeze it, give it a rule by dp.register_rule, or pass "
                "unknown_layers='slow' to differentiate example by example."
            )
        for layer in self._owners:
            _check_rule_holds(layer, trained)
        _check_dtypes(model)

    @property
    def has_rules_of_others(self) -> bool:
        """Whether a layer is clipped by a rule that was registered."""
        return any(type(layer) not in OURS for layer in self._owners)

    def gradients(self, compute_losses, weights: tf.Tensor | None = None, *, asserted: bool = True) -> ExampleGradients:
        """Run the model once and keep what per-example gradients are made of.

        Args:
            compute_losses: Called with no argument; calls the model and returns (losses (batch,), anything).
            weights: What each example's loss is multiplied by, (batch,); 0 takes an example out exactly.
            asserted: Whether every layer's rows are held against the examples as this runs; a trial counts them itself.

        Returns:
            The gradients of all examples, unformed.
        """
        with tf.GradientTape(watch_accessed_variables=False) as tape:
            with self._recording(tape) as (uses, out_of_reach):
                losses, extra = compute_losses()
            total = losses if weights is None else losses * weights
        if out_of_reach:
            raise InputError(
                f"Layer {out_of_reach[0].name!r} is called inside a loop, a condition or a tf.function within the "
                "model: the fast engine cannot keep what it is given there; loop in Python (range, not tf.range), or "
                "pass unknown_layers='slow' to differentiate example by example."
            )
        check_first_axes(uses, losses)
        outputs = [output for use in uses for output in use.outputs]
        found = tape.gradient(total, outputs, unconnected_gradients="zero")
        named: dict = {"the losses": losses}
        for use in uses:
            named[f"the input of layer {use.layer.name!r}"] = use.inputs
        rows = losses if weights is None else weights
        # The outputs are not counted: norms and sums are made of inputs and gradients alone. TensorFlow can fuse an
        # activation, relu say, into the layer's product only if nothing else reads the output.
        named["the outputs' gradients"] = found
        found = iter(after(assert_one_row_per_example(rows, named), found) if asserted else found)
        for use in uses:
            # Some operations leave the shape of their gradient open.
            use.gradients = [tf.ensure_shape(next(found), output.shape) for output in use.outputs]
        return ExampleGradients(self.model, uses, losses, extra)

    @contextlib.contextmanager
    def _recording(self, tape):
        """Every owner's ``call`` notes its input and watches its output before the activation.

        Yields the uses, complete when the scope is left, and the layers that were called where no note can be taken.
        """
        found: dict[int, Rule] = {}
        out_of_reach: list[keras.layers.Layer] = []
        try:
            for layer in self._owners:
                layer.call = _recorded(layer, layer.call, tape, found, out_of_reach)
            uses: list[Rule] = []
            yield uses, out_of_reach
            uses.extend(found.values())
        finally:
            for layer in self._owners:
                layer.__dict__.pop("call", None)


def _recorded(layer, call, tape, found, out_of_reach):
    """The layer's ``call``, keeping a note of each use."""
    graph = _graph()

    @tf.autograph.experimental.do_not_convert
    def recorded(inputs, *args, **kwargs):
        if _graph() is not graph:  # A tensor of a loop's body does not outlive it.
            out_of_reach.append(layer)
            return call(inputs, *args, **kwargs)
        uses = found.setdefault(id(layer), KNOWN[type(layer)](layer))
        outputs = uses.forward(call, inputs, *args, **kwargs)
        if type(layer) not in OURS and not (tf.is_tensor(inputs) and tf.is_tensor(outputs)):
            raise InputError(
                f"Layer {layer.name!r} ({type(layer).__name__}) was given a rule by register_rule, and takes or gives "
                "several tensors: a rule is for one input and one output; pass unknown_layers='slow' without a rule."
            )
        tape.watch(outputs)
        uses.inputs.append(inputs)
        uses.outputs.append(outputs)
        return uses.activate(outputs)

    return recorded


def _graph():
    """The graph that is being built, or None where TensorFlow computes at once."""
    return None if tf.executing_eagerly() else tf.no_op().graph


class ExampleGradients:
    """The gradients of a batch's examples, as layers' inputs and output gradients.

    Attributes:
        losses: Losses before weighting, (batch,).
        extra: What the forward pass returned beside them.
    """

    def __init__(self, model, uses, losses, extra):
        self._variables, self._uses, self.losses, self.extra = model.trainable_variables, uses, losses, extra

    def norms(self) -> tf.Tensor:
        """Norm of each example's gradient over all trainable weights, (batch,)."""
        return tf.sqrt(tf.add_n([use.squared_norms() for use in self._uses]))

    @property
    def uses(self) -> list[Rule]:
        """The layers' uses."""
        return self._uses

    def clipped_sum(self, l2_norm_clip, method: str = "flat") -> tuple[list[tf.Tensor], tf.Tensor]:
        """The clipped gradients' sum, and the norms before clipping.

        Examples whose gradient is not finite take no part: their inputs and output gradients are zeroed, as
        a factor of zero would leave NaN.
        """
        norms = self.norms()
        factors, finite = clip_factors(norms, l2_norm_clip, method), tf.math.is_finite(norms)

        def without_the_others():
            return self._weighted_sum([use.keeping(finite) for use in self._uses], factors)

        total = tf.cond(tf.reduce_all(finite), lambda: self._weighted_sum(self._uses, factors), without_the_others)
        return total, norms

    def _weighted_sum(self, uses, factors):
        found = {}
        for use in uses:
            weights = zip(own_weights(use.layer), use.weighted_sum(factors), strict=True)
            found.update({id(weight): value for weight, value in weights})
        return [
            found[id(variable)] if id(variable) in found else tf.zeros(variable.shape) for variable in self._variables
        ]

    def floats_per_example(self) -> int:
        """Numbers an example needs in working memory, for choosing the physical batch."""
        return sum(use.floats_per_example() for use in self._uses)


def clipped_sum_example_by_example(
    model: keras.Model, compute_losses, batch, weights, l2_norm_clip, method: str = "flat"
) -> tuple[list[tf.Tensor], tf.Tensor, tf.Tensor]:
    """The same sum by back-propagating every example alone: right for any layer that keeps examples apart.

    Args:
        model: The model.
        compute_losses: Called with a batch of one, as ``batch``; returns losses (1,).
        batch: Structure of tensors, (batch, ...).
        weights: (batch,).
        l2_norm_clip: C.
        method: One of :data:`METHODS`.

    Returns:
        Gradients of the trainable variables, norms (batch,), losses (batch,).
    """
    variables = raw(model.trainable_variables)
    weights = after(assert_one_row_per_example(weights, {"x and y": batch}), weights)
    count = tf.shape(weights)[0]
    norms, losses = (tf.TensorArray(tf.float32, count, element_shape=()) for _ in range(2))
    total, i = [tf.zeros_like(variable) for variable in variables], tf.constant(0)

    def body(i, total, norms, losses):
        one = tf.nest.map_structure(lambda a: a[i : i + 1], batch)
        with tf.GradientTape() as tape:
            tape.watch(variables)
            found = compute_losses(one)
            loss = after(assert_one_row_per_example(1, {"the losses": found}), found)[0]
            weighted = loss * weights[i]
        found = [tf.convert_to_tensor(g) for g in tape.gradient(weighted, variables, unconnected_gradients="zero")]
        norm = tf.linalg.global_norm(found)
        factor = clip_factors(norm[tf.newaxis], l2_norm_clip, method)[0]
        kept = [t + tf.math.multiply_no_nan(g, factor) for t, g in zip(total, found, strict=True)]
        return i + 1, kept, norms.write(i, norm), losses.write(i, loss)

    _, total, norms, losses = tf.while_loop(lambda i, *_: i < count, body, (i, total, norms, losses))
    return total, norms.stack(), losses.stack()


def check_layers_keep_examples_apart(model: keras.Model) -> None:
    """Refuse batch normalisation in training and losses that belong to no example.

    Raises:
        InputError: naming the layer.
    """
    check_no_batch_normalization(model)
    for layer in layers_of(model):
        if getattr(layer, "activity_regularizer", None) is not None:
            raise InputError(
                f"Layer {layer.name!r} has an activity_regularizer: its loss is a mean over the batch and belongs to "
                "no example; remove it."
            )


def check_no_batch_normalization(model: keras.Model) -> None:
    """Refuse batch normalisation in training, of every make.

    Raises:
        InputError: naming the layer.
    """
    for layer in layers_of(model):
        if isinstance(layer, keras.layers.BatchNormalization) and (layer.trainable or layer.trainable_weights):
            raise InputError(
                f"Layer {layer.name!r} is a BatchNormalization in training: it mixes the examples of a batch, so "
                "clipping bounds nothing; use GroupNormalization or freeze the layer."
            )


def regularisation(model: keras.Model) -> list[tf.Tensor]:
    """The weights' regularisation losses: functions of the weights alone, so they cost no privacy."""
    return [weight.regularizer(weight) for weight in model.trainable_weights if weight.regularizer is not None]


def _check_rule_holds(layer, trained):
    """Refuse what a known layer computes beyond its rule."""
    if getattr(layer, "lora_enabled", False):
        raise UnknownLayerError(
            f"Layer {layer.name!r} ({type(layer).__name__}) is trained by LoRA and the fast engine has no rule for "
            "that; pass unknown_layers='slow' to differentiate example by example."
        )
    if getattr(layer, "rms_scaling", False):
        raise UnknownLayerError(
            f"Layer {layer.name!r} ({type(layer).__name__}) has rms_scaling=True and the fast engine has no rule for "
            "that; pass unknown_layers='slow' to differentiate example by example."
        )
    if frozen := [weight for weight in own_weights(layer) if id(weight) not in trained]:
        raise UnknownLayerError(
            f"Weight {frozen[0].path!r} is frozen and others of layer {layer.name!r} are not, and the fast engine has "
            "no rule for a part of a layer; freeze the layer, or pass unknown_layers='slow' to differentiate example "
            "by example."
        )


def _check_dtypes(model):
    for variable in model.trainable_variables:
        if variable.dtype != "float32":
            raise InputError(
                f"Weight {variable.name!r} has dtype {variable.dtype}; the fast engine computes in float32."
            )

"""What Keras' loop calls in a private fit: the step, its loss and metrics, and how many steps run at a time."""

from __future__ import annotations

import keras
import tensorflow as tf

from tfprivacy_lab.checks import InputError
from tfprivacy_lab.dp.clipping import ghost
from tfprivacy_lab.dp.clipping.rows import after, assert_one_row_per_example
from tfprivacy_lab.dp.trials.draws import generators_of
from tfprivacy_lab.models.keras_internals import loss_tracker, raw, seed_states

# More than a step draws; a count that comes again repeats masks of dropout, no more.
_DRAWS_OF_A_STEP = 4096
# The same of TensorFlow's own generators, which count numbers.
_NUMBERS_OF_A_STEP = 2**40


class PrivateSteps:
    """The part of a :class:`~tfprivacy_lab.dp.training.private_model.PrivateModel` that runs batch by batch."""

    def train_on_batch(self, *arguments, **options):
        """Refused: a batch of one's own choice is no sample that ε could be stated for."""
        raise InputError("train_on_batch takes a batch that no accountant knows the sampling of; call fit.")

    def make_train_function(self, force=False):
        """A function of an iterator: ``steps_per_execution`` steps, or as many fewer as an epoch and a budget leave."""
        if self.train_function is None or force:
            run = _several(self, self.train_step)
            self.train_function = lambda iterator: run(iterator, self._steps_to_run())
        return self.train_function

    def make_test_function(self, force=False):
        """A function of an iterator: one batch of an evaluation, or ``steps_per_execution`` of them."""
        if self.test_function is None or force:
            run = _several(self, self.test_step)
            self.test_function = lambda iterator: self._evaluated(run, iterator)
        return self.test_function

    def _evaluated(self, run, iterator):
        """``steps_per_execution`` batches, or as many fewer as there are."""
        found = run(iterator, 1)
        for _ in range(self.steps_per_execution - 1):
            following = iterator.get_next_as_optional()  # A step that fails for want of a batch has counted it already.
            if not following.has_value():
                break
            found = run(iter([following.get_value()]), 1)
        return found

    def _steps_to_run(self):
        if self.steps_per_execution == 1:
            return 1
        left = self._steps_of_epoch - (self._record.steps() - self._first_step) % self._steps_of_epoch
        return max(1, min(self.steps_per_execution, left, self.steps_allowed()))

    @property
    def metrics(self):
        """The loss, then what ``compile`` was given."""
        of_keras = loss_tracker(self)
        return [self._mean_loss, *(metric for metric in super().metrics if metric is not of_keras)]

    def compute_loss(self, x=None, y=None, y_pred=None, sample_weight=None, training=True):
        """Mean of the examples' losses, for ``evaluate``; with the weights' regularisation."""
        losses = self._example_losses(y, y_pred)
        self._mean_loss.update_state((losses if sample_weight is None else losses * sample_weight) + self._penalty())
        return self._mean_loss.result()

    def _penalty(self):
        return sum(ghost.regularisation(self.model), 0.0)

    def train_step(self, data):
        """One logical batch: clip, sum, add noise once, divide by the expected size, let the optimizer step."""
        x, y, weights, count = data
        x, y = after(assert_one_row_per_example(weights, {"x": x, "y": y}), (x, y))
        steps = self._record.count_step()
        if self.engine == "reference":
            self._reference.step(lambda x, y: self._losses_and_outputs((x, y), True)[0], x, y, weights)
            held = tf.nest.map_structure(lambda a: a[:count], (x, y))
            losses, outputs = self._losses_and_outputs(held, False)
            self._show(losses, weights[:count], y[:count], outputs)
            self._forget_how_often_was_drawn(steps)
            return
        gradients = self._noisy_steps.mean_gradient(
            self._losses_and_outputs, self._show, data, steps, self._record.kind
        )
        with tf.GradientTape() as tape:
            tape.watch(raw(self.trainable_variables))
            penalty = self._penalty()
        variables = self.trainable_variables
        if tf.is_tensor(penalty):
            more = tape.gradient(penalty, raw(variables), unconnected_gradients="zero")
            gradients = [g + tf.convert_to_tensor(m) for g, m in zip(gradients, more, strict=True)]
        self._replicas.apply(self.optimizer, gradients, variables)
        self._forget_how_often_was_drawn(steps)

    def _forget_how_often_was_drawn(self, step):
        """Let the counts of random generators follow from the step alone.

        They are saved with a model, and count a draw for every so many rows of a secret number.
        """
        for state in seed_states(self.model):
            count = tf.cast((step + 1) * _DRAWS_OF_A_STEP, state.dtype)
            state.assign(tf.stack([state.value[0], count]))
        for generator in generators_of(self.model):
            state = generator.state
            count = tf.cast(step + 1, state.dtype) * _NUMBERS_OF_A_STEP
            state.assign(tf.concat([count[tf.newaxis], state[1:]], 0))

    def _losses_and_outputs(self, batch, training):
        outputs = self.model(batch[0], training=training)
        return self._example_losses(batch[1], outputs), outputs

    def _show(self, losses, weights, labels, outputs):
        """Loss and metrics of examples; ``weighted_metrics`` take their weights."""
        self._mean_loss.update_state(losses * weights + self._penalty())
        self.compute_metrics(None, labels, outputs, weights)


def _tensor(value):
    as_it_is = value is None or isinstance(value, tf.distribute.DistributedValues)
    return value if as_it_is else tf.convert_to_tensor(value)


def _several(model, step):
    """``step`` on so many batches of an iterator; gives the metrics, read over all replicas.

    Keras' own loop reduces what each step returns, which several workers cannot do for single numbers.
    """

    def one(iterator):
        model.distribute_strategy.run(step, args=(next(iterator),))

    def several(iterator, count):
        def body(i):
            one(iterator)
            return [i + 1]

        tf.while_loop(lambda i: i < count, body, [tf.constant(0)], parallel_iterations=1)
        return model.get_metrics_result()

    def single(iterator):
        one(iterator)
        return model.get_metrics_result()

    def on(batch):
        model.distribute_strategy.run(step, args=(batch,))
        return model.get_metrics_result()

    if model.run_eagerly:
        return lambda iterator, count: [single(iterator) for _ in range(count)][-1]
    several, single, on = (
        tf.function(tf.autograph.experimental.do_not_convert(function), reduce_retracing=True)
        for function in (several, single, on)
    )

    def run(iterator, count):
        if not isinstance(iterator, tf.data.Iterator | tf.distribute.DistributedIterator):  # of one batch, at hand
            return on(keras.tree.map_structure(_tensor, next(iterator)))
        return single(iterator) if count == 1 else several(iterator, tf.constant(count))

    return run

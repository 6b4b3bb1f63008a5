"""What Keras' loop calls in a private fit: the step, its loss and metrics, and how many steps run at a time."""

from __future__ import annotations

import tensorflow as tf

from tfprivacy_lab.checks import InputError
from tfprivacy_lab.dp import clipping
from tfprivacy_lab.dp.rows import after, assert_one_row_per_example


class PrivateSteps:
    """The part of a :class:`~tfprivacy_lab.dp.private_model.PrivateModel` that runs batch by batch."""

    def train_on_batch(self, *arguments, **options):
        """Refused: a batch of one's own choice is no sample that ε could be stated for."""
        raise InputError("train_on_batch takes a batch that no accountant knows the sampling of; call fit.")

    def make_train_function(self, force=False):
        """Keras', which runs no more steps at a time than are allowed, whatever ``steps_per_execution`` is."""
        run, at_a_time = super().make_train_function(force), self._steps_per_execution

        def run_allowed(iterator):
            wanted, allowed = int(at_a_time.numpy()), max(1, self.steps_allowed())
            if wanted <= allowed:
                return run(iterator)
            at_a_time.assign(allowed)
            try:
                return run(iterator)
            finally:
                at_a_time.assign(wanted)

        self.train_function = run if self.run_eagerly else run_allowed
        return self.train_function

    @property
    def metrics(self):
        """The loss, then what ``compile`` was given."""
        return [self._mean_loss, *super().metrics]

    def compute_loss(self, x=None, y=None, y_pred=None, sample_weight=None):
        """Mean of the examples' losses, for ``evaluate``; with the weights' regularisation."""
        losses = self._example_losses(y, y_pred)
        self._mean_loss.update_state((losses if sample_weight is None else losses * sample_weight) + self._penalty())
        return self._mean_loss.result()

    def _penalty(self):
        return sum(clipping.regularisation(self.model), 0.0)

    def train_step(self, data):
        """One logical batch: clip, sum, add noise once, divide by the expected size, let the optimizer step."""
        x, y, weights, count = data
        x, y = after(assert_one_row_per_example(tf.shape(weights)[0], {"x": x, "y": y}), (x, y))
        steps = self._record.count_step()
        if self.engine == "reference":
            self._reference.step(lambda x, y: self._losses_and_outputs((x, y), True)[0], x, y, weights)
            held = tf.nest.map_structure(lambda a: a[:count], (x, y))
            losses, outputs = self._losses_and_outputs(held, False)
            self._show(losses * weights[:count], y[:count], outputs)
            return self.get_metrics_result()
        gradients = self._noisy_steps.mean_gradient(
            self._losses_and_outputs, self._show, data, steps, self._record.kind
        )
        with tf.GradientTape() as tape:
            penalty = self._penalty()
        variables = self.trainable_variables
        if tf.is_tensor(penalty):
            more = tape.gradient(penalty, variables, unconnected_gradients="zero")
            gradients = [g + tf.convert_to_tensor(m) for g, m in zip(gradients, more, strict=True)]
        self._replicas.apply(self.optimizer, gradients, variables)
        return self.get_metrics_result()

    def _losses_and_outputs(self, batch, training):
        outputs = self.model(batch[0], training=training)
        return self._example_losses(batch[1], outputs), outputs

    def _show(self, losses, labels, outputs):
        """Loss and metrics of examples."""
        self._mean_loss.update_state(losses + self._penalty())
        self.compiled_metrics.update_state(labels, outputs)

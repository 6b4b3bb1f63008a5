r"""A Keras model that is fitted under DP-SGD: ``compile``, ``fit``, ``evaluate``, callbacks and ``save``.

``PrivateModel`` wraps a model. Its ``fit`` draws the batches that the accountant assumes, clips each
example's gradient, adds noise once a logical batch, and hands the mean to any Keras optimizer.
"""

from __future__ import annotations

import math

import keras
import tensorflow as tf

from tfprivacy_lab.checks import InputError, check_choice, check_finite_number, check_positive_int
from tfprivacy_lab.dp.accounting.gaussian import warn_of_large_delta
from tfprivacy_lab.dp.clipping.adaptive import QuantileClip
from tfprivacy_lab.dp.clipping.rows import refusal_of
from tfprivacy_lab.dp.examples import arrays, batches
from tfprivacy_lab.dp.examples.losses import ExampleLosses
from tfprivacy_lab.dp.examples.value_ranges import check_values_are_within_ranges
from tfprivacy_lab.dp.sampling import fresh_seed
from tfprivacy_lab.dp.training import lineage
from tfprivacy_lab.dp.training.callbacks import EpsilonLogger
from tfprivacy_lab.dp.training.checkpoint import Resumable
from tfprivacy_lab.dp.training.noise import GaussianNoise
from tfprivacy_lab.dp.training.privacy_account import PrivacyAccount, warn_of_shuffling
from tfprivacy_lab.dp.training.private_steps import PrivateSteps
from tfprivacy_lab.dp.training.record import PreparedFit, StepKind
from tfprivacy_lab.dp.training.reference_checks import check_reference, check_sgd, noise_generator
from tfprivacy_lab.dp.training.replicas import Replicas
from tfprivacy_lab.dp.training.saving import SavedAsWrapped, ShownFigures
from tfprivacy_lab.dp.training.steps import NoisySteps
from tfprivacy_lab.dp.trials.isolation import check_gradients_are_per_example, outputs_of
from tfprivacy_lab.dp.trials.rows import rows_to_try
from tfprivacy_lab.dp.validation import compile_arguments, fit_arguments, models, monitors
from tfprivacy_lab.models.keras_internals import BuiltBeforehand, build_metrics

ENGINES = ("fast", "reference")
# Floats of working memory for what book-keeping keeps beyond back-propagation: 256 MiB.
_WORKING_FLOATS = 2**26


class PrivateModel(PrivateSteps, SavedAsWrapped, Resumable, PrivacyAccount, BuiltBeforehand, keras.Model):
    r"""A Keras model whose ``fit`` is DP-SGD.

    Args:
        model: A built float32 model with one output. Its layers must keep examples apart. Under a ``tf.distribute``
            strategy, model and wrapper are both made in its scope.
        l2_norm_clip: Bound C on one example's gradient norm, > 0; or a :class:`.QuantileClip`
            that adapts it, at a cost that is within ``noise_multiplier``.
        noise_multiplier: Noise standard deviation over C, >= 0; 0 is no privacy, for tests.
        engine: "fast": book-keeping, any Keras optimizer. "reference": TF Privacy's DPKerasSGDOptimizer, for an
            SGD optimizer with momentum alone; its learning rate is read at every step. Losses that layers or
            regularisers add are refused.
        clipping_method: "flat" or "automatic", see :func:`tfprivacy_lab.dp.clipping.ghost.clip_factors`.
        unknown_layers: "refuse" trainable layers that book-keeping has no rule for, and weights used outside their
            layer; or compute the whole model example by example: "slow", and just as right.
        noise: "philox", or "secure" for draws of the operating system's generator.
        seed: Seed of sampling and noise, for tests and teaching: whoever knows it can subtract the
            noise. None takes a fresh secret one.
        delta: δ of the ε that ``fit`` reports each epoch.

    Raises:
        InputError: naming the argument, or the layer that cannot be trained so.

    Guarantee: add-or-remove-one adjacency under Poisson sampling; under shuffled batches, zero-out adjacency
    (one example's gradient becomes zero while its place in the order stays). A step releases
    :math:`\sum_b c_b \nabla\ell_b + N(0, \sigma^2 C^2 I)`, divided by the expected batch size, a constant;
    one example moves the sum by at most C (Abadi et al. 2016, Alg. 1). Weights' regularisers are added
    after the noise: they are no function of the data. A model that was fitted so before brings its past along:
    :meth:`epsilon` counts it. Not covered: the loss and metrics that ``fit`` shows
    for training examples, which leave in no file (:mod:`.saving`), and validation figures. Not covered:
    the number n of examples, which is treated as public: the sampling probability is B / n, and an epoch has
    floor(n / B) steps.
    """

    def __init__(
        self,
        model: keras.Model,
        *,
        l2_norm_clip: float | QuantileClip,
        noise_multiplier: float,
        engine: str = "fast",
        clipping_method: str = "flat",
        unknown_layers: str = "refuse",
        noise: str = "philox",
        seed: int | None = None,
        delta: float = 1e-5,
    ):
        models.check_model(model)
        super().__init__(name=f"private_{model.name}", dtype="float32")
        self.model = model
        self._noise_multiplier = check_finite_number("noise_multiplier", noise_multiplier, at_least=0)
        self._engine = check_choice("engine", engine, ENGINES)
        self.delta = check_finite_number("delta", delta, above=0, below=1)
        self._seed = fresh_seed() if seed is None else check_positive_int("seed", seed, at_least=0)
        self._replicas = Replicas()
        if engine == "reference":
            check_reference(model, l2_norm_clip, clipping_method, noise, self._replicas.count)
        self._noisy_steps = NoisySteps(
            model,
            l2_norm_clip=l2_norm_clip,
            noise_multiplier=noise_multiplier,
            clipping_method=clipping_method,
            unknown_layers="slow" if engine == "reference" else unknown_layers,
            noise=GaussianNoise(self._seed, noise),
            replicas=self._replicas,
        )
        self._record = lineage.begin(model, self._seed)
        self._shown = ShownFigures()
        self._noise_generator = noise_generator(self._seed) if engine == "reference" else None
        self._example_losses = self._floats = self._reference = self._left_at = None
        self._first_step, self._steps_of_epoch = 0, 1
        self._warned, self.built = False, True

    @property
    def noise_multiplier(self) -> float:
        """Noise standard deviation over the clipping norm, of a whole step; fixed, as the noise is."""
        return self._noise_multiplier

    @property
    def engine(self) -> str:
        """ "fast" or "reference"."""
        return self._engine

    @property
    def l2_norm_clip(self) -> float:
        """The clipping norm C as it is now."""
        return self._noisy_steps.l2_norm_clip

    def call(self, inputs, training=None):
        """The wrapped model's output."""
        return self.model(inputs, training=training)

    def compile(self, optimizer="sgd", loss=None, metrics=None, **options):
        """As Keras' ``compile``; ``loss`` must be one that has a value an example.

        Raises:
            InputError: naming the option under which no budget would be kept, or the layer that cannot be trained.
        """
        options = compile_arguments.check(options, metrics)
        optimizer = compile_arguments.checked_optimizer(optimizer)
        models.check_scope(self, "compile")
        models.check_layers(self.model)
        models.check_something_is_trained(self.model)
        self._noisy_steps.keep_books()
        self._example_losses = ExampleLosses(loss)
        super().compile(optimizer=optimizer, loss=loss, metrics=metrics, **options)
        if self.engine == "reference":
            check_sgd(self.optimizer)
        self._reference = self._floats = None
        self._tried = set()
        self._left_at = models.training_state(self)
        self._record.retrace()

    @monitors.leaving_nothing_behind
    def fit(
        self,
        x=None,
        y=None,
        batch_size: int | None = None,
        epochs: int = 1,
        verbose="auto",
        callbacks=None,
        validation_data=None,
        *,
        sample_weight=None,
        class_weight: dict | None = None,
        sampling: str = "poisson",
        physical_batch_size: int | None = None,
        steps_per_epoch: int | None = None,
        **options,
    ):
        """Train with DP-SGD; as Keras' ``fit``, but for what the batches are.

        Args:
            x: Private inputs, (n, ...), or a list, tuple or dict of such as the model takes; or a
                ``tf.data.Dataset`` of single examples or a ``keras.utils.Sequence``, read once. With several
                workers: this worker's own examples.
            y: Labels, (n, ...); the loss is tried on each before the first step, as token ids in x are.
            batch_size: Expected size B of a logical batch over all workers; the divisor of the noisy sum.
            epochs: Number of epochs.
            verbose: As Keras'.
            callbacks: Keras callbacks; ``on_train_batch_end`` comes once a logical batch. They see no training figures,
                and what goes by such a figure is refused, see :mod:`tfprivacy_lab.dp.validation.monitors`.
            validation_data: As Keras'; not covered by the guarantee.
            sample_weight: What each example's loss is multiplied by before clipping, (n,), >= 0.
            class_weight: The same by class, {0: ..., k - 1: ...}; taken as public.
            sampling: "poisson", or "shuffled": batches of fixed size from a new order each pass, for which ε is
                stated without amplification and for zero-out adjacency; a warning says so once.
            physical_batch_size: Batches are padded to multiples of so many rows and computed so many at a
                time; None pads little and takes what memory allows. Noise is drawn once whatever it is.
            steps_per_epoch: Default floor(n / B): E epochs never take more steps than
                :func:`tfprivacy_lab.dp.accounting.gaussian.steps_for` counts, which noise is calibrated for.
            **options: ``initial_epoch``, ``validation_batch_size``, ``validation_freq``, ``validation_steps``.

        Returns:
            Keras' History; its ``epsilon`` is the ε spent by the end of each epoch, at the model's δ.

        Raises:
            InputError: naming the argument, before any noise is drawn.
        """
        prepared = self._prepare(
            (x, y, sample_weight, class_weight),
            options,
            batch_size=batch_size,
            sampling=sampling,
            physical_batch_size=physical_batch_size,
            steps_per_epoch=steps_per_epoch,
            epochs=epochs,
            callbacks=callbacks,
            validation_data=validation_data,
        )
        return self._run(prepared, epochs=epochs, verbose=verbose, validation_data=validation_data, **options)

    def _prepare(
        self, given, options, *, batch_size, sampling, physical_batch_size, steps_per_epoch, epochs, callbacks,
        validation_data,
    ) -> PreparedFit:  # fmt: skip
        """Refuse what would void the guarantee, try the model, and plan the steps; spends nothing."""
        if self._example_losses is None:
            raise InputError("The model is not compiled; call compile(optimizer, loss) before fit.")
        models.check_scope(self, "fit")
        fit_arguments.check(options, batch_size, sampling, physical_batch_size, self.engine, epochs, steps_per_epoch)
        self._noisy_steps.check_batches(batch_size, sampling)
        examples = arrays.checked(*given, self.model)
        total = self._replicas.total(len(examples[2]))
        if batch_size > total:
            raise InputError(f"Expected batch_size <= {total} examples, got batch_size={batch_size}.")
        warn_of_large_delta(self.delta, total)
        models.check_nothing_was_restored(self, self._left_at)
        callbacks = monitors.admitted(callbacks, self, validation_data)
        rows = self._check(examples, batch_size, physical_batch_size)
        steps = total // batch_size if steps_per_epoch is None else steps_per_epoch
        if sampling == "shuffled" and not self._warned:
            self._warned = True
            warn_of_shuffling()
        padded = physical_batch_size is not None
        kind = StepKind(total, batch_size, self.noise_multiplier, sampling, physical_batch_size or rows, padded)
        planned = max(0, steps * (epochs - options.get("initial_epoch", 0)))
        return PreparedFit(examples, callbacks, kind, steps, planned)

    def _run(self, prepared: PreparedFit, **options):
        """Open the account, and hand Keras' loop the batches that it assumes."""
        examples, callbacks, kind, steps, planned = prepared
        self._build_optimizer()
        self._begin(kind, planned)
        first, self._steps_of_epoch = self._record.steps(), steps
        self._first_step = first
        last, own = first + planned, len(examples[2])
        sampler = self._replicas.sampler(kind.sampling, own, kind.examples, kind.batch_size, self._seed, first)
        given = kind.rows if kind.padded else None
        rows = self._begin_reference(last, given) if self.engine == "reference" else given
        rows = rows or batches.rounding(kind.batch_size)
        try:
            return super().fit(
                self._replicas.distribute(
                    lambda parts: batches.pipeline(sampler, examples, first, last, rows=rows, parts=parts)
                ),
                callbacks=[EpsilonLogger(), *callbacks],
                steps_per_epoch=steps,
                shuffle=False,
                **options,
            )
        except tf.errors.InvalidArgumentError as error:
            if (refusal := refusal_of(error)) is None:
                raise
            raise InputError(refusal) from error
        finally:
            self._left_at = models.training_state(self)
            self._record.close()

    def summary(self, *arguments, **options):
        """The wrapped model's summary."""
        return self.model.summary(*arguments, **options)

    def _begin_reference(self, last, physical_batch_size) -> int:
        """Fix the shapes of DPKerasSGDOptimizer's batches; returns the rows of a logical one."""
        from tfprivacy_lab.dp.training.reference import begin_reference

        self._reference = begin_reference(
            self.optimizer,
            self._record.kind,
            self.l2_norm_clip,
            last,
            physical_batch_size or 128,
            self._seed,
            self.trainable_variables,
            self._noise_generator,
            self._reference,
        )
        self.train_function = None
        return self._reference.physical_batch_size

    def _check(self, examples, batch_size, physical_batch_size) -> int | None:
        """Try the model on a few examples, and the loss on all labels; returns how many rows fit at a time, or None."""
        check_values_are_within_ranges(self.model, examples[0])
        one = tf.nest.map_structure(lambda a: a[:1], examples[0])
        outputs = outputs_of(self.model, one)
        self._example_losses.check_labels(examples[1], outputs)
        build_metrics(self, examples[1][:1], outputs)
        # The reference engine always computes a fixed number of rows.
        height = physical_batch_size or (128 if self.engine == "reference" else None)
        if height not in self._tried:
            losses_of = lambda batch, training: self._losses_and_outputs(batch, training)[0]  # noqa: E731
            few, how = rows_to_try(examples[:2]), {"height": height, "eagerly": self.run_eagerly}
            check_gradients_are_per_example(self.model, losses_of, few, **how)
            self._floats = self._noisy_steps.check_books(losses_of, few, **how)
            self._tried.add(height)
        rows = max(1, _WORKING_FLOATS // max(1, self._floats))
        return rows if batch_size + 6 * math.sqrt(batch_size) > rows else None

    def _begin(self, kind, planned):
        """Open a phase, and trace anew if the step changes."""
        if kind != self._record.traced:
            self.train_function = None
        self._record.open(kind, planned)
        lineage.mark(self.model, self._record)

"""Recurrent models."""

from __future__ import annotations

import keras
import tensorflow as tf

from .case import CLASSES, EXAMPLES, Case, ids, labels, numbers, sentences, sequential

_L = keras.layers
_STEPS, _WIDTH, _WORDS = 4, 3, 7


def _last(*layers):
    return lambda: sequential((_STEPS, _WIDTH), *(layer() for layer in layers), _L.Dense(CLASSES))


def _masked(*layers):
    return sequential((_STEPS,), _L.Embedding(_WORDS, 3, mask_zero=True), *layers, _L.Dense(CLASSES))


def _stateful():
    inputs = keras.Input(batch_shape=(EXAMPLES, _STEPS, _WIDTH))
    return keras.Model(inputs, _L.Dense(CLASSES)(_L.LSTM(3, stateful=True)(inputs)))


def _encoder_decoder():
    """Keras' sequence to sequence: the decoder begins in the encoder's state."""
    source, target = keras.Input((_STEPS, _WIDTH)), keras.Input((_STEPS, 2))
    _, *state = _L.LSTM(3, return_state=True)(source)
    above, _, _ = _L.LSTM(3, return_sequences=True, return_state=True)(target, initial_state=state)
    return keras.Model([source, target], _L.Dense(CLASSES, "softmax")(above))


def _frames():
    return sequential(
        (3, 4, 4, 1),
        _L.TimeDistributed(_L.Conv2D(2, 3)),
        _L.TimeDistributed(_L.Flatten()),
        _L.GRU(3),
        _L.Dense(CLASSES),
    )


def _masking():
    return sequential((_STEPS, _WIDTH), _L.Masking(0.0), _L.LSTM(3), _L.Dense(CLASSES))


def _ended():
    """Sequences whose ends are zero."""
    return numbers(_STEPS, _WIDTH) * (sentences(_WORDS, _STEPS) > 0)[:, :, None]


class Cell(_L.Layer):
    """A cell of one's own."""

    def __init__(self, units):
        super().__init__()
        self.state_size = self.output_size = units
        self._inner = _L.Dense(units, "tanh")

    def build(self, shape):
        self._inner.build((None, shape[-1] + self.state_size))
        super().build(shape)

    def call(self, inputs, states):
        above = self._inner(tf.concat([inputs, states[0]], 1))
        return above, [above]


def _case(model, build, x=None, y=None, inputs="float32 sequences", **more):
    x, y = numbers(_STEPS, _WIDTH) if x is None else x, labels() if y is None else y
    return Case("recurrent", model, inputs, build, x, y, **more)


_SENTENCES = {"x": sentences(_WORDS, _STEPS), "inputs": "int64 ids, padded"}

CASES = (
    _case("SimpleRNN", _last(lambda: _L.SimpleRNN(4))),
    _case("LSTM", _last(lambda: _L.LSTM(4)), slow=True),
    _case("GRU", _last(lambda: _L.GRU(4))),
    _case("GRU, frozen, with a trained head", _last(lambda: _L.GRU(4, trainable=False)), slow=True),
    _case("LSTM under Masking", _masking, x=_ended(), inputs="float32 sequences, ended by zeros", slow=True),
    _case(
        "Embedding with mask_zero, Bidirectional(LSTM)",
        lambda: _masked(_L.Bidirectional(_L.LSTM(3))),
        **_SENTENCES,
        slow=True,
    ),
    _case(
        "Embedding with mask_zero, GRU, a class for each word",
        lambda: _masked(_L.GRU(3, return_sequences=True)),
        y=ids(CLASSES, _STEPS),
        **_SENTENCES,
        slow=True,
    ),
    _case(
        "LSTM with dropout and recurrent_dropout",
        _last(lambda: _L.LSTM(4, dropout=0.3, recurrent_dropout=0.3)),
        slow=True,
    ),
    _case("LSTM, unroll and go_backwards", _last(lambda: _L.LSTM(3, unroll=True, go_backwards=True)), slow=True),
    _case("LSTM, stateful", _stateful, not_compared="it is built for one size of batch"),
    _case("RNN(GRUCell)", _last(lambda: _L.RNN(_L.GRUCell(4))), slow=True),
    _case("RNN of two LSTM cells", _last(lambda: _L.RNN([_L.LSTMCell(3), _L.LSTMCell(2)])), slow=True),
    _case("RNN of a cell of one's own", _last(lambda: _L.RNN(Cell(4)))),
    _case(
        "LSTM, TimeDistributed(Dense)",
        lambda: sequential((_STEPS, _WIDTH), _L.LSTM(3, return_sequences=True), _L.TimeDistributed(_L.Dense(2))),
        y=numbers(_STEPS, 2),
        loss="mse",
        slow=True,
    ),
    _case(
        "TimeDistributed(Dense)",
        lambda: sequential((_STEPS, _WIDTH), _L.TimeDistributed(_L.Dense(2)), _L.Flatten(), _L.Dense(CLASSES)),
    ),
    _case("TimeDistributed(Conv2D), GRU", _frames, x=numbers(3, 4, 4, 1), inputs="float32 videos", slow=True),
    _case(
        "ConvLSTM2D",
        lambda: sequential((3, 4, 4, 1), _L.ConvLSTM2D(2, 3), _L.Flatten(), _L.Dense(CLASSES)),
        x=numbers(3, 4, 4, 1),
        inputs="float32 videos",
        slow=True,
    ),
    _case(
        "Keras' sequence to sequence",
        _encoder_decoder,
        x=[numbers(_STEPS, _WIDTH), numbers(_STEPS, 2)],
        y=ids(CLASSES, _STEPS),
        inputs="list of float32 sequences",
        loss="sparse_categorical_crossentropy",
        slow=True,
    ),
)

"""Models of attention, those of Keras' tutorials among them."""

from __future__ import annotations

import keras
import tensorflow as tf

from .case import CLASSES, Case, ids, labels, numbers, sentences, sequential

_L = keras.layers
_LENGTH, _WIDTH, _WORDS = 5, 4, 7


class TransformerBlock(_L.Layer):
    """Of Keras' text classification with a transformer."""

    def __init__(self, embed_dim, num_heads, ff_dim, rate=0.1):
        super().__init__()
        self.att = _L.MultiHeadAttention(num_heads=num_heads, key_dim=embed_dim)
        self.ffn = keras.Sequential([_L.Dense(ff_dim, activation="relu"), _L.Dense(embed_dim)])
        self.layernorm1, self.layernorm2 = _L.LayerNormalization(epsilon=1e-6), _L.LayerNormalization(epsilon=1e-6)
        self.dropout1, self.dropout2 = _L.Dropout(rate), _L.Dropout(rate)

    def call(self, inputs, training=False):
        attn_output = self.dropout1(self.att(inputs, inputs), training=training)
        out1 = self.layernorm1(inputs + attn_output)
        ffn_output = self.dropout2(self.ffn(out1), training=training)
        return self.layernorm2(out1 + ffn_output)


class TokenAndPositionEmbedding(_L.Layer):
    """Of the same tutorial: tokens' vectors, and those of their places."""

    def __init__(self, maxlen, vocab_size, embed_dim):
        super().__init__()
        self.token_emb = _L.Embedding(input_dim=vocab_size, output_dim=embed_dim)
        self.pos_emb = _L.Embedding(input_dim=maxlen, output_dim=embed_dim)

    def call(self, x):
        maxlen = tf.shape(x)[-1]
        positions = tf.range(start=0, limit=maxlen, delta=1)
        return self.token_emb(x) + self.pos_emb(positions)


def _transformer(rate=0.1):
    return sequential(
        (_LENGTH,),
        TokenAndPositionEmbedding(_LENGTH, _WORDS, _WIDTH),
        TransformerBlock(_WIDTH, 2, 6, rate),
        _L.GlobalAveragePooling1D(),
        _L.Dropout(rate),
        _L.Dense(5, activation="relu"),
        _L.Dropout(rate),
        _L.Dense(CLASSES, activation="softmax"),
    )


def _time_series():
    """Keras' time series classification with a transformer."""
    inputs = keras.Input((_LENGTH, 2))
    above = _L.LayerNormalization(epsilon=1e-6)(inputs)
    above = _L.MultiHeadAttention(key_dim=3, num_heads=2)(above, above)
    middle = _L.Add()([above, inputs])
    above = _L.Conv1D(filters=3, kernel_size=1, activation="relu")(_L.LayerNormalization(epsilon=1e-6)(middle))
    above = _L.Add()([_L.Conv1D(filters=2, kernel_size=1)(above), middle])
    above = _L.GlobalAveragePooling1D(data_format="channels_first")(above)
    return keras.Model(inputs, _L.Dense(CLASSES, activation="softmax")(above))


def _self_attention():
    inputs = keras.Input((_LENGTH, _WIDTH))
    above = _L.MultiHeadAttention(2, 3)(inputs, inputs)
    return keras.Model(inputs, _L.Dense(CLASSES)(_L.Flatten()(above)))


def _causal():
    """A small GPT: the next word at each place, by what stands before."""
    inputs = keras.Input((_LENGTH,), dtype="int32")
    above = _L.Embedding(_WORDS, _WIDTH, mask_zero=True)(inputs)
    above = _L.Add()([above, _L.MultiHeadAttention(2, 3)(above, above, use_causal_mask=True)])
    return keras.Model(inputs, _L.Dense(_WORDS)(_L.LayerNormalization()(above)))


def _two(attend):
    """Queries from one sequence, values from another."""

    def build():
        query, value = keras.Input((3, _WIDTH)), keras.Input((_LENGTH, _WIDTH))
        above = attend(_L.Dense(_WIDTH)(query), value)
        return keras.Model([query, value], _L.Dense(CLASSES)(_L.GlobalAveragePooling1D()(above)))

    return build


class Patches(_L.Layer):
    """Of Keras' vision transformer."""

    def call(self, images):
        patches = tf.image.extract_patches(images, [1, 2, 2, 1], [1, 2, 2, 1], [1, 1, 1, 1], "VALID")
        return tf.reshape(patches, [tf.shape(images)[0], -1, patches.shape[-1]])


class PatchEncoder(_L.Layer):
    """Of the same: patches' vectors, and those of their places."""

    def __init__(self, count, width):
        super().__init__()
        self.count, self.projection, self.places = count, _L.Dense(width), _L.Embedding(count, width)

    def call(self, patches):
        return self.projection(patches) + self.places(tf.range(self.count))


def _vision():
    inputs = keras.Input((4, 4, 2))
    above = PatchEncoder(4, _WIDTH)(Patches()(inputs))
    normal = _L.LayerNormalization(epsilon=1e-6)(above)
    above = _L.Add()([_L.MultiHeadAttention(num_heads=2, key_dim=3)(normal, normal), above])
    return keras.Model(inputs, _L.Dense(CLASSES)(_L.Flatten()(above)))


def _case(model, build, x=None, y=None, inputs="float32 sequences", **more):
    x, y = numbers(_LENGTH, _WIDTH) if x is None else x, labels() if y is None else y
    return Case("attention", model, inputs, build, x, y, **more)


_PAIR = {"x": [numbers(3, _WIDTH), numbers(_LENGTH, _WIDTH)], "inputs": "list of float32 sequences"}
_SOFTMAX = {"loss": "sparse_categorical_crossentropy"}

CASES = (
    _case("MultiHeadAttention, self", _self_attention),
    _case("MultiHeadAttention, cross", _two(lambda q, v: _L.MultiHeadAttention(2, 3)(q, v)), **_PAIR),
    _case("Attention", _two(lambda q, v: _L.Attention()([q, v])), **_PAIR, slow=True),
    _case("Attention, use_scale", _two(lambda q, v: _L.Attention(use_scale=True)([q, v])), **_PAIR, slow=True),
    _case("AdditiveAttention", _two(lambda q, v: _L.AdditiveAttention()([q, v])), **_PAIR, slow=True),
    _case(
        "Keras' text classification with a transformer",
        _transformer,
        x=ids(_WORDS, _LENGTH),
        inputs="int64 ids",
        slow=True,
        **_SOFTMAX,
    ),
    _case(
        "Keras' time series classification with a transformer",
        _time_series,
        x=numbers(_LENGTH, 2),
        **_SOFTMAX,
        slow=True,
    ),
    _case("Keras' vision transformer", _vision, x=numbers(4, 4, 2), inputs="float32 images", slow=True),
    _case(
        "causal, the next word (small GPT)",
        _causal,
        x=sentences(_WORDS, _LENGTH).astype("int32"),
        y=ids(_WORDS, _LENGTH),
        inputs="int32 ids, padded",
        slow=True,
    ),
)

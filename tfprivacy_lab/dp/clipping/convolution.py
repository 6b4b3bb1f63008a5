"""Convolutions as linear layers: a position is an output pixel, and its input the patch under it."""

from __future__ import annotations

import math

import numpy as np
import tensorflow as tf

from tfprivacy_lab.dp.clipping.linear import LinearRule
from tfprivacy_lab.dp.clipping.products import CompiledProducts, worth_compiling

# tf.gather copies runs of this many channels faster than a convolution with the identity moves them.
_CHANNELS_WORTH_A_GATHER = 8


class ConvolutionRule(LinearRule):
    """Conv2D: positions are output pixels, and x the patch under each, (kh · kw · channels / groups)."""

    def _groups(self, inputs):
        return self.layer.groups

    def _make_products(self):
        inputs, gradients = self._channels_last(self.inputs[0], self.gradients[0])
        if len(self.inputs) > 1 or self._groups(inputs) > 1:
            return super()._make_products()
        size, (*output_size, filters) = inputs.shape[1:3], gradients.shape[1:]
        positions, depth = math.prod(output_size), math.prod(self.layer.kernel_size) * inputs.shape[3]
        if not worth_compiling(positions, depth, filters):
            return super()._make_products()
        return CompiledProducts(
            inputs,
            gradients,
            bias=self._has_simple_bias(),
            kernel_size=self.layer.kernel_size,
            strides=self.layer.strides,
            dilations=self.layer.dilation_rate,
            padding=[before for before, _ in self._padding(size, output_size)],
        )

    def _channels_last(self, *arrays):
        if self.layer.data_format == "channels_first":
            return [tf.transpose(a, (0, 2, 3, 1)) for a in arrays]
        return arrays

    def as_matrices(self, inputs, gradients):
        inputs, gradients = self._channels_last(inputs, gradients)
        batch, groups = tf.shape(inputs)[0], self._groups(inputs)
        patches = self._patches(inputs, gradients.shape[1:3])
        rows, area, channels = gradients.shape[1] * gradients.shape[2], patches.shape[2], patches.shape[3]
        if groups == 1:
            g = tf.reshape(gradients, (batch, 1, rows, gradients.shape[3]))
            return tf.reshape(patches, (batch, 1, rows, area * channels)), g
        g = tf.reshape(gradients, (batch, rows, groups, gradients.shape[3] // groups))
        x = tf.reshape(patches, (batch, rows, area, groups, channels // groups))
        x = tf.reshape(tf.transpose(x, (0, 3, 1, 2, 4)), (batch, groups, rows, area * (channels // groups)))
        return x, tf.transpose(g, (0, 2, 1, 3))

    def _patches(self, inputs, output_size):
        """(batch, output pixels, kernel area, channels): the input under each output pixel."""
        layer, channels = self.layer, inputs.shape[3]
        padding = self._padding(inputs.shape[1:3], output_size)
        if channels < _CHANNELS_WORTH_A_GATHER:
            area = math.prod(layer.kernel_size)
            identity = np.eye(area * channels, dtype=np.float32).reshape(*layer.kernel_size, channels, area * channels)
            strides, dilations = [1, *layer.strides, 1], [1, *layer.dilation_rate, 1]
            found = tf.nn.conv2d(inputs, identity, strides, [(0, 0), *padding, (0, 0)], dilations=dilations)
            return tf.reshape(found, (tf.shape(inputs)[0], math.prod(output_size), area, channels))
        padded = tf.pad(inputs, [(0, 0), *padding, (0, 0)]) if any(map(any, padding)) else inputs
        height, width = padded.shape[1:3]
        rows, columns = (
            np.add.outer(np.arange(size) * stride, np.arange(kernel) * dilation)
            for size, stride, kernel, dilation in zip(
                output_size, layer.strides, layer.kernel_size, layer.dilation_rate, strict=True
            )
        )
        places = rows[:, None, :, None] * width + columns[None, :, None, :]
        flat = tf.reshape(padded, (tf.shape(inputs)[0], height * width, channels))
        found = tf.gather(flat, places.reshape(-1).astype(np.int32), axis=1)
        return tf.reshape(found, (tf.shape(inputs)[0], math.prod(output_size), math.prod(layer.kernel_size), channels))

    def _padding(self, size, output_size):
        """Zeros before and after, for height and width."""
        layer = self.layer
        if layer.padding == "valid":
            return [(0, 0), (0, 0)]
        pads = []
        for length, out, stride, kernel, dilation in zip(
            size, output_size, layer.strides, layer.kernel_size, layer.dilation_rate, strict=True
        ):
            total = max(0, (out - 1) * stride + (kernel - 1) * dilation + 1 - length)
            pads.append((total // 2, total - total // 2))
        return pads

    def kernel_shaped(self, summed):
        groups, _, p = summed.shape
        unfolded = tf.reshape(summed, (groups, *self.layer.kernel_size, -1, p))
        return tf.reshape(tf.transpose(unfolded, (1, 2, 3, 0, 4)), self.layer.kernel.shape)


class DepthwiseConvolutionRule(ConvolutionRule):
    """DepthwiseConv2D: a group a channel."""

    def _groups(self, inputs):
        return inputs.shape[3]

    def kernel_shaped(self, summed):
        groups, _, p = summed.shape
        unfolded = tf.reshape(summed, (groups, *self.layer.kernel_size, p))
        return tf.transpose(unfolded, (1, 2, 0, 3))

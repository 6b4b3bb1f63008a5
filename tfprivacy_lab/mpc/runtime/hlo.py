"""A TensorFlow function as code of the engine, by way of XLA's representation of it.

TensorFlow numbers instructions with 64 bits, computation and instruction in one, and the engine's own XLA takes 32: so
instructions are numbered anew, from 1, along with all that refers to them.
"""

from __future__ import annotations

import tensorflow as tf
from tensorflow.compiler.xla.service import hlo_pb2

from tfprivacy_lab.mpc.runtime.library import api, libspu


def compiled(function, examples: list, visibilities: list, options: libspu.CompilerOptions) -> bytes:
    """The engine's code for a function of tensors.

    Args:
        function: Takes as many tensors as there are examples; captures none.
        examples: Tensors of the arguments' shapes and dtypes.
        visibilities: ``libspu.Visibility`` of each argument.
        options: The compiler's.

    Raises:
        ValueError: if the function captures a tensor: every value is an argument, or nobody would say whose it is.
    """
    traced = tf.function(function, jit_compile=True)
    if captured := traced.get_concrete_function(*examples).captured_inputs:
        raise ValueError(f"Expected a function of its arguments alone, got {len(captured)} captured tensors.")
    module = traced.experimental_get_compiler_ir(*examples)(stage="hlo_serialized")
    source = libspu.CompilationSource(libspu.SourceIRType.XLA, numbered_anew(module), visibilities)
    code = api.compile(source, options)
    return code if isinstance(code, bytes) else code.encode()


def numbered_anew(serialized: bytes) -> bytes:
    """The same HLO module, its instructions numbered 1, 2, … in the order they stand in."""
    module = hlo_pb2.HloModuleProto()
    module.ParseFromString(serialized)
    instructions = [one for computation in module.computations for one in computation.instructions]
    numbers = {one.id: number for number, one in enumerate(instructions, start=1)}
    for computation in module.computations:
        computation.root_id = numbers[computation.root_id]
    for one in instructions:
        one.id = numbers[one.id]
        for references in (one.operand_ids, one.control_predecessor_ids):
            references[:] = [numbers[number] for number in references]
    return module.SerializeToString(deterministic=True)

"""The structures of `native/forward.cpp` and `native/elementwise.h`."""

from __future__ import annotations

import ctypes

_L, _D, _P = ctypes.c_int64, ctypes.c_double, ctypes.c_void_p

OPS = (
    "copy", "neg", "add", "sub", "mul", "div", "maximum", "minimum", "rsqrt", "sqrt", "exp", "silu", "gelu",
    "gelu_tanh", "tanh", "sigmoid", "relu", "cos", "sin", "abs", "pow", "mean", "sum", "load", "store",
    "token_id", "position", "embed", "erf",
)  # fmt: skip
"""In the order of `Op`."""

TOKENS, LINEAR, ATTEND = range(3)
"""Kinds of steps."""


class Operand(ctypes.Structure):
    _fields_ = (("base", _L), ("strides", _L * 3), ("is_constant", _L))


class Instruction(ctypes.Structure):
    _fields_ = (
        ("op", _L), ("is_rounded", _L), ("sizes", _L * 3), ("out", Operand), ("a", Operand), ("b", Operand),
        ("offset", _L), ("stride", _L), ("dtype", _L), ("is_output", _L), ("number", _D),
    )  # fmt: skip


class Place(ctypes.Structure):
    _fields_ = (("offset", _L), ("stride", _L), ("first", _L), ("is_output", _L))


class Step(ctypes.Structure):
    _fields_ = (
        ("kind", _L), ("instructions", ctypes.POINTER(Instruction)), ("count", _L), ("room", _L),
        ("x", Place), ("out", Place), ("in_", _L), ("width", _L), ("weight", _P), ("bias", _P),
        ("key", Place), ("value", Place), ("layer", _L), ("layer_type", _L), ("heads", _L), ("kv_heads", _L),
        ("key_dim", _L), ("value_dim", _L), ("scaling", _D), ("softcap", _D),
    )  # fmt: skip


class Request(ctypes.Structure):
    _fields_ = (
        ("ids", _P), ("starts", _P), ("parents", _P), ("windows", _P), ("rows", _L), ("width", _L),
        ("num_steps", _L), ("cache", _P), ("cache_rows", _L), ("first_row", _L), ("kv_heads", _L),
        ("capacity", _L), ("slot", _L), ("output", _P), ("output_width", _L),
    )  # fmt: skip

"""The C functions of this folder as Python sees them: structures, argument types, and what a call reports.

small_model.c runs a small float32 model, online_softmax.c adds slices to softmax statistics, norms.c has the RMS norm
and the gated GELU. The callers check tensors first (checks.py): C receives bare pointers.
"""

from __future__ import annotations

import ctypes
from ctypes import POINTER, c_float, c_int64, c_void_p
from functools import cache

from dgemma_core.backends.cpu.compiling import library
from dgemma_core.head import not_finite

_DONE, _NOT_FINITE = -1, -2
"""What `forward` and `predict` return, beside the place of a wrong input."""


class Layer(ctypes.Structure):
    """small_model.c: Layer."""

    _fields_ = [
        *((name, c_void_p) for name in (
            "projections", "out", "dense_gate", "dense_up", "dense_down", "router", "expert_gate", "expert_up",
            "expert_down", "query_norm", "key_norm", "attention_norm", "dense_norm", "expert_norm", "mlp_norm",
            "expert_scale", "cos", "sin",
        )),
        *((name, c_int64) for name in ("kv_heads", "head_dim", "window", "keys_are_values")),
        ("scalars", c_float * 2),
    ]  # fmt: skip


class Model(ctypes.Structure):
    """small_model.c: Model."""

    _fields_ = [
        *((name, c_void_p) for name in (
            "embedding", "conditioning_norm", "conditioning_gate", "conditioning_up", "conditioning_down", "final_norm",
        )),
        ("layers", POINTER(Layer) * 2),
        *((name, c_int64) for name in (
            "vocab_size", "hidden_size", "heads", "dense_width", "experts", "top_k", "expert_width", "layer_count",
            "query_stride",
        )),
        ("eps", c_float),
        ("embedding_scale", c_float),
    ]  # fmt: skip


class Segment(ctypes.Structure):
    """small_model.c: Segment. `caches` points to an array of (keys, values, capacity, base), int64, one a layer."""

    _fields_ = [
        *((name, c_int64) for name in ("first", "count", "position", "causal")),
        ("caches", c_void_p),
    ]


class Watch(ctypes.Structure):
    """small_model.c: Watch."""

    _fields_ = [(name, c_void_p) for name in ("queries", "probabilities", "weights", "chosen")]


class Outputs(ctypes.Structure):
    """small_model.c: Outputs."""

    _fields_ = [
        (name, c_void_p)
        for name in (
            "argmax", "sample", "argmax_probability", "sample_probability", "entropy", "logsumexp", "soft", "sigmoids",
        )
    ]  # fmt: skip


class RowStats(ctypes.Structure):
    """online_softmax.c: RowStats."""

    _fields_ = [(name, c_void_p) for name in ("peak", "mass", "weighted", "argmax", "scale")]


@cache
def small_model() -> ctypes.CDLL | None:
    """small_model.c, or None, after one warning, where it cannot be compiled."""
    found = library(
        "small_model",
        ("scratch_size", "forward", "predict_scratch_size", "predict", "panel_width", "checksum"),
    )
    return None if found is None else with_small_model_types(found)


def with_small_model_types(found: ctypes.CDLL) -> ctypes.CDLL:
    """Declares the arguments and results of small_model.c's functions."""
    found.scratch_size.argtypes = [POINTER(Model), c_int64]
    found.scratch_size.restype = c_int64
    found.forward.argtypes = [
        POINTER(Model), c_int64, c_void_p, c_void_p, POINTER(Segment), c_void_p, c_void_p, POINTER(Watch),
        c_int64, c_void_p, c_int64,
    ]  # fmt: skip
    found.forward.restype = c_int64
    found.predict_scratch_size.argtypes = [c_int64]
    found.predict_scratch_size.restype = c_int64
    found.predict.argtypes = [
        c_int64, c_int64, c_int64, c_void_p, c_void_p, c_void_p, c_float, c_void_p, c_void_p, c_float,
        POINTER(Outputs), c_int64, c_void_p,
    ]  # fmt: skip
    found.predict.restype = c_int64
    found.panel_width.argtypes = []
    found.panel_width.restype = c_int64
    found.checksum.argtypes = [c_int64, c_void_p, c_void_p, c_int64]
    found.checksum.restype = c_int64
    return found


@cache
def online_softmax() -> ctypes.CDLL | None:
    """online_softmax.c, or None, after one warning, where it cannot be compiled."""
    found = library("online_softmax", ("add_slice", "blend", "sample_in_group"))
    return None if found is None else with_online_softmax_types(found)


def with_online_softmax_types(found: ctypes.CDLL) -> ctypes.CDLL:
    """Declares the arguments and results of online_softmax.c's functions."""
    found.add_slice.argtypes = [
        c_int64, c_int64, c_int64, c_void_p, c_int64, c_int64, c_float, POINTER(RowStats), c_void_p, c_void_p,
        c_void_p, c_void_p, c_void_p, c_void_p, c_int64, c_void_p,
    ]  # fmt: skip
    found.add_slice.restype = c_int64
    found.blend.argtypes = [
        c_int64, c_int64, c_void_p, c_void_p, c_int64, c_void_p, c_void_p, c_int64,
    ]  # fmt: skip
    found.blend.restype = None
    found.sample_in_group.argtypes = [
        c_int64, c_int64, c_int64, c_void_p, c_void_p, c_int64, c_float, c_void_p, c_void_p, c_void_p, c_void_p,
        c_void_p, c_void_p, c_int64,
    ]  # fmt: skip
    found.sample_in_group.restype = None
    return found


@cache
def norms() -> ctypes.CDLL | None:
    """norms.c, or None, after one warning, where it cannot be compiled."""
    found = library("norms", ("rms_norm", "gated_gelu"))
    return None if found is None else with_norms_types(found)


def with_norms_types(found: ctypes.CDLL) -> ctypes.CDLL:
    """Declares the arguments and results of norms.c's functions."""
    found.rms_norm.argtypes = [
        c_int64, c_int64, c_void_p, c_int64, c_void_p, c_int64, c_float, c_void_p, c_int64,
    ]  # fmt: skip
    found.rms_norm.restype = None
    found.gated_gelu.argtypes = [
        c_int64, c_int64, c_void_p, c_int64, c_void_p, c_int64, c_int64, c_void_p, c_int64,
    ]  # fmt: skip
    found.gated_gelu.restype = None
    return found


class Packed(ctypes.Structure):
    """gradients.c: Packed."""

    _fields_ = [
        *((name, c_int64) for name in (
            "batch", "span", "clean", "parts", "heads", "groups", "width", "shared_values", "bf16",
        )),
        *((name, c_void_p) for name in (
            "first", "count", "both", "query_weight", "key_weight", "cos", "sin", "factors",
        )),
        ("eps", c_float),
    ]  # fmt: skip


_N, _P, _F = c_int64, c_void_p, c_float
_GRADIENTS: dict[str, tuple[object, ...]] = {
    "norm": (_N, _N, _P, _N, _P, _F, _P, _N, _P),
    "norm_gradient": (_N, _N, _P, _N, _P, _P, _P, _N, _P, _P),
    "added_norm": (_N, _N, _P, _N, _P, _N, _P, _F, _P, _P, _P),
    "added_norm_gradient": (_N, _N, _P, _N, _P, _N, _P, _P, _P, _P, _P, _P, _P, _P),
    "gated": (_N, _N, _P, _N, _P),
    "gated_gradient": (_N, _N, _P, _P, _N, _P),
    "attention_inputs": (POINTER(Packed), _P, _P, _P),
    "attention_inputs_gradient": (POINTER(Packed), _P, _P, _P, _P, _P, _P),
    "visible_softmax": (_N, _N, _N, _N, _P, _P, _N, _P),
    "softmax_gradient": (_N, _N, _P, _P, _N),
    "expert_slots": (_N, _P, _P, _P),
    "to_experts": (_N, _N, _N, _P, _N, _P, _P),
    "from_experts": (_N, _N, _N, _P, _N, _P, _P, _P),
    "from_experts_gradient": (_N, _N, _N, _P, _N, _P, _P, _P, _P, _P),
    "capped_loss": (_N, _N, _P, _N, _P, _F, _P, _P),
    "capped_softmax": (_N, _N, _P, _N, _F, _P),
}  # fmt: skip
"""gradients.c: the arguments of its functions, which return nothing."""


@cache
def gradients() -> ctypes.CDLL | None:
    """gradients.c, or None, after one warning, where it cannot be compiled."""
    found = library("gradients", tuple(_GRADIENTS))
    return None if found is None else with_gradients_types(found)


def with_gradients_types(found: ctypes.CDLL) -> ctypes.CDLL:
    """Declares the arguments and results of gradients.c's functions."""
    for name, arguments in _GRADIENTS.items():
        function = getattr(found, name)
        function.argtypes = arguments
        function.restype = None
    return found


def wrong_place(status: int) -> int | None:
    """What `forward` or `predict` returned → the place of a wrong input, or None. Raises RequestError for numbers that
    are not finite."""
    if status == _NOT_FINITE:
        raise not_finite()
    return None if status == _DONE else status

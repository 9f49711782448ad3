"""The structs of cpu/ops.h, as Python fills them; their sizes are compared with the library's when it is loaded."""

import ctypes

_POINTER, _SIZE, _FLOAT = ctypes.c_void_p, ctypes.c_int64, ctypes.c_float


class MatrixAddress(ctypes.Structure):
    """A weight: BF16 where `bits` is 16, else quantized, in panels `stride` bytes apart."""

    _fields_ = [("data", _POINTER), *((name, _SIZE) for name in ("stride", "rows", "columns", "bits"))]


class MlpAddress(ctypes.Structure):
    """The matrices of an MLP."""

    _fields_ = [(name, MatrixAddress) for name in ("gate", "up", "down")]


class Layer(ctypes.Structure):
    """A decoder layer."""

    _fields_ = [
        *((name, _SIZE) for name in ("hidden", "heads", "nope", "rope", "value", "latent", "query_rank")),
        *((name, _FLOAT) for name in ("eps", "latent_eps", "scale")),
        *((name, _POINTER) for name in ("input_norm", "q_a_norm", "kv_a_norm", "kv_b", "post_norm")),
        *((name, MatrixAddress) for name in ("q_a", "q", "kv_a", "o")),
        ("gate", _POINTER),
        *((name, _SIZE) for name in ("n_experts", "top_k")),
        ("scaling", _FLOAT),
        *((name, _POINTER) for name in ("experts", "shared", "expert_counts")),
    ]


class Step(ctypes.Structure):
    """The tokens of one call through some layers."""

    _fields_ = [
        *((name, _POINTER) for name in ("x", "factors", "entries", "lengths")),
        ("tokens", _SIZE),
        *((name, _POINTER) for name in ("out", "normed", "ids", "weights")),
    ]


class AttentionJob(ctypes.Structure):
    """Attention of many queries."""

    _fields_ = [
        *((name, _POINTER) for name in ("queries", "kv_b", "keys", "values", "rotary", "out")),
        *((name, _SIZE) for name in ("n_queries", "sharing", "length", "heads", "nope", "rope", "value", "latent")),
        *((name, _SIZE) for name in ("stride", "rotary_stride")),
        ("scale", _FLOAT),
    ]


# In the order of StructKind.
STRUCTS: tuple[type[ctypes.Structure], ...] = (MatrixAddress, MlpAddress, Layer, Step, AttentionJob)


def same_sizes(library: ctypes.CDLL) -> bool:
    """Whether the library was compiled with structs of these sizes."""
    library.dslite_sizeof.argtypes, library.dslite_sizeof.restype = [ctypes.c_int], _SIZE
    return all(library.dslite_sizeof(kind) == ctypes.sizeof(struct) for kind, struct in enumerate(STRUCTS))

"""The compiled library of the CPU's products (cpu/): where it lies, and what this processor can do of it."""

import ctypes
from functools import cache
from pathlib import Path

LEVELS = ("portable", "avx2", "avx512", "avx512-bf16")  # in the library's order
_ABI = 6


class _OpenMp(ctypes.Structure):
    """team.h"""

    _fields_ = [(name, ctypes.c_void_p) for name in ("parallel", "thread_num", "num_threads")]


def _openmp() -> _OpenMp | None:
    """The OpenMP runtime that torch has loaded. LLVM's and Intel's know GCC's names too."""
    try:
        maps = Path("/proc/self/maps").read_text()
    except OSError:
        return None
    for file in sorted({line.split(maxsplit=5)[-1] for line in maps.splitlines() if "omp" in line.rpartition("/")[2]}):
        try:
            library = ctypes.CDLL(file)
            functions = [library.GOMP_parallel, library.omp_get_thread_num, library.omp_get_num_threads]
        except (OSError, AttributeError):
            continue  # another library with omp in its name
        return _OpenMp(*(ctypes.cast(function, ctypes.c_void_p).value for function in functions))
    return None


@cache
def find_library() -> ctypes.CDLL | None:
    """The compiled library beside this file, or None where it was not built or cannot run here."""
    openmp = _openmp()
    if openmp is None:
        return None
    for file in sorted(Path(__file__).parent.glob("_native*.so")):
        try:
            library = ctypes.CDLL(str(file))
            if library.dslite_abi() != _ABI:
                continue
        except (OSError, AttributeError):
            continue  # built for another system, or before this interface: as good as none
        library.dslite_use_openmp.argtypes = [_OpenMp]
        library.dslite_use_openmp.restype = None
        library.dslite_use_openmp(openmp)
        return library
    return None


@cache
def levels() -> tuple[str, ...]:
    """What this processor can do, plainest first; empty without the library."""
    library = find_library()
    return () if library is None else LEVELS[: library.dslite_best_level() + 1]

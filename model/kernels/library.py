"""Finds and loads the compiled library of the CPU's products (cpu/), and says what this processor can run of it.

The library computes on the threads of torch's OpenMP runtime: a second runtime would bring a second set of threads that
compete for the same cores. That runtime is one that is loaded already, in torch's own folder in its wheels, elsewhere
in distributions that share it.
"""

import ctypes
import os
from collections.abc import Iterable, Iterator
from functools import cache
from importlib.machinery import EXTENSION_SUFFIXES
from pathlib import Path

from dslite.model.kernels.structs import same_sizes

LEVELS = ("portable", "avx2", "avx512", "avx512-bf16")  # in the library's order
_ABI = 10
# GNU's, LLVM's and Intel's runtime on Linux and macOS, and on Windows.
_OPENMP_FILES = ("libgomp*", "libomp*", "libiomp5*")
# dlopen's flag that finds only what is loaded already. Windows has none, and loads a library only once by its path.
_LOADED_ONLY = getattr(os, "RTLD_NOLOAD", 0)


class _OpenMp(ctypes.Structure):
    """team.h"""

    _fields_ = [(name, ctypes.c_void_p) for name in ("parallel", "thread_num", "num_threads")]


def torch_libraries() -> Path:
    """The folder of the libraries that torch brings with it."""
    import torch

    return Path(torch.__file__).parent / "lib"


def openmp_candidates(folder: Path) -> Iterator[ctypes.CDLL]:
    """OpenMP runtimes that are loaded: those of a folder, then any that exports its names to the whole process."""
    for pattern in _OPENMP_FILES:
        for file in sorted(folder.glob(pattern)):
            try:
                yield ctypes.CDLL(str(file), mode=ctypes.DEFAULT_MODE | _LOADED_ONLY)
            except OSError:
                continue  # not the one that torch uses
    try:
        yield ctypes.CDLL(None)
    except TypeError:
        return  # Windows has no names of the whole process


def _openmp(candidates: Iterable[ctypes.CDLL]) -> _OpenMp | None:
    """GCC's interface of an OpenMP runtime, which LLVM's and Intel's have too, except on Windows."""
    for library in candidates:
        try:
            functions = [library.GOMP_parallel, library.omp_get_thread_num, library.omp_get_num_threads]
        except AttributeError:
            continue
        return _OpenMp(*(ctypes.cast(function, ctypes.c_void_p).value for function in functions))
    return None


@cache
def find_library() -> ctypes.CDLL | None:
    """The compiled library beside this file, or None where it was not built or cannot run here."""
    openmp = _openmp(openmp_candidates(torch_libraries()))
    if openmp is None:
        return None
    for suffix in EXTENSION_SUFFIXES:
        file = Path(__file__).parent / f"_native{suffix}"
        try:
            library = ctypes.CDLL(str(file))
            if library.dslite_abi() != _ABI or not same_sizes(library):
                continue
        except (OSError, AttributeError):
            continue  # not there, built for another system, or of an earlier interface
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

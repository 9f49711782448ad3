"""The compiled parts: the CPU's products, and the guard of mapped files. Optional: without a compiler the package
installs, torch multiplies, and a model's file that is cut while it is being read ends the process.
"""

from pathlib import Path

from setuptools import Extension, setup

SOURCES = Path("model/kernels/cpu")

setup(
    ext_modules=[
        Extension(
            "dslite.model.kernels._native",
            sources=sorted(str(file) for file in SOURCES.glob("*.cpp")),
            depends=sorted(str(file) for file in SOURCES.glob("*.h")),
            extra_compile_args=[
                "-O3",
                "-g0",
                "-std=c++17",
                "-fvisibility=hidden",
                "-Wno-uninitialized",
                "-Wno-maybe-uninitialized",
            ],
            extra_link_args=["-pthread"],
            optional=True,
        ),
        Extension(
            "dslite.runtime.weights._mapped_pages",
            sources=["runtime/weights/mapped_pages.c"],
            extra_compile_args=["-O2", "-g0", "-std=gnu11", "-fvisibility=hidden"],
            optional=True,
        ),
    ]
)

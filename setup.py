"""The compiled products of the CPU. Optional: without a compiler the package installs, and torch multiplies."""

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
        )
    ]
)

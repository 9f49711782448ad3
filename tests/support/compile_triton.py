"""Compile the GPU's kernels at the sizes of Lite for architectures given as 80, 90, …; print what ptxas says as JSON.

Run with TRITON_INTERPRET unset. No driver is needed: Triton brings its own assembler.
"""

import json
import re
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource

from dslite.model.kernels import triton_attention, triton_experts

_SIZES = {"hidden": 2048, "width": 1408, "routed": 64, "chosen": 6, "entries": 8, "step": triton_experts.STEP}
KERNELS: dict[str, tuple[Any, dict[str, str], dict[str, Any], dict[str, int]]] = {
    "attend_splits": (
        triton_attention.attend_splits,
        {
            "queries": "*bf16",
            "rows": "*bf16",
            "lengths": "*i32",
            "sums": "*fp32",
            "logs": "*fp32",
            "scale": "fp32",
            "row_stride": "i32",
        },
        {
            "heads": 16,
            "latent": 512,
            "rope": 64,
            "splits": 16,
            "latent_tile": 512,
            "rope_tile": 64,
            "head_tile": triton_attention.HEAD_TILE,
            "block_keys": triton_attention.BLOCK_KEYS,
        },
        {"num_warps": 4, "num_stages": 1},
    ),
    "merge_splits": (
        triton_attention.merge_splits,
        {"sums": "*fp32", "logs": "*fp32", "out": "*bf16"},
        {"latent": 512, "splits": 16, "latent_tile": 512, "split_tile": 16},
        {"num_warps": 4},
    ),
    "gate_up": (
        triton_experts.gate_up,
        {"x": "*bf16", "table": "*i64", "ids": "*i64", "products": "*fp32"},
        _SIZES | {"rows_tile": triton_experts.ROWS_IN, "aligned": True},
        {"num_warps": 4},
    ),
    "down_combine": (
        triton_experts.down_combine,
        {"products": "*fp32", "table": "*i64", "ids": "*i64", "weights": "*fp32", "out": "*bf16"},
        _SIZES | {"rows_tile": triton_experts.ROWS_OUT, "aligned": True},
        {"num_warps": 4},
    ),
}


def main() -> None:
    results = {
        f"{name} sm_{architecture}": compile_one(name, int(architecture))
        for name in KERNELS
        for architecture in sys.argv[1:]
    }
    print(json.dumps(results))


def compile_one(name: str, architecture: int) -> dict[str, int]:
    kernel, signature, constants, options = KERNELS[name]
    types = signature | dict.fromkeys(constants, "constexpr")
    names = kernel.arg_names
    # Torch's allocations begin at multiples of 16 bytes, which Triton sees at a launch.
    aligned = {(place,): [["tt.divisibility", 16]] for place, arg in enumerate(names) if types[arg].startswith("*")}
    source = ASTSource(
        kernel,
        {arg: types[arg] for arg in names},
        constexprs={(names.index(arg),): value for arg, value in constants.items()},
        attrs=aligned,
    )
    made = triton.compile(source, target=GPUTarget("cuda", architecture, 32), options=options)
    usage = resources(made.asm["cubin"])
    return {
        "shared": made.metadata.shared,
        "wide_loads": len(re.findall(r"ld\.global\S*\.v4\.b32", made.asm["ptx"])),
        **usage,
    }


def resources(cubin: bytes) -> dict[str, int]:
    """Stack and local memory of a kernel: what it spilled."""
    program = Path(triton.__file__).parent / "backends" / "nvidia" / "bin" / "cuobjdump"
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(cubin)
        file.flush()
        text = subprocess.run([program, "-res-usage", file.name], check=True, capture_output=True, text=True).stdout
    return {
        key.lower(): max(int(value) for value in re.findall(rf"\b{key}:(\d+)", text))
        for key in ("STACK", "LOCAL", "REG")
    }


if __name__ == "__main__":
    main()

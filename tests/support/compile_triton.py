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

from dslite.model.kernels import triton_attention, triton_experts, triton_products

HIDDEN, HEADS, NOPE, ROPE, LATENT, VALUE, WIDTH, DENSE, VOCABULARY = 2048, 16, 128, 64, 512, 128, 1408, 10944, 102_400
SPLITS = triton_attention.SPLITS
Kernel = tuple[Any, dict[str, str], dict[str, Any], dict[str, int]]


def _products(rows: int, more: int, out: str) -> Kernel:
    rows_tile, step = triton_products.tile(rows, HIDDEN)
    return (
        triton_products.norm_product,
        {"x": "*T", "norm": "*T", "first": "*T", "second": "*T", "out": out, "eps": "fp32"},
        {"width": HIDDEN, "first_rows": rows, "second_rows": more, "rows_tile": rows_tile, "step": step},
        {"num_warps": triton_products.WARPS},
    )


def _gate_up(width: int, routed: int, chosen: int) -> Kernel:
    types = {"x": "*T", "norm": "*T", "scores": "*fp32", "table": "*i64", "products": "*fp32", "ids": "*i64"}
    sizes = {"hidden": HIDDEN, "width": width, "routed": routed, "chosen": chosen, "expert_tile": max(routed, 2)}
    return (
        triton_experts.gate_up,
        types | {"weights": "*fp32", "eps": "fp32", "scaling": "fp32"},
        sizes | {"rows_tile": triton_experts.ROWS_IN, "step": triton_experts.STEP_IN, "aligned": True},
        {"num_warps": 4},
    )


def _down_combine(width: int, entries: int, step: int) -> Kernel:
    types = {"products": "*fp32", "table": "*i64", "ids": "*i64", "weights": "*fp32", "residual": "*T", "out": "*T"}
    sizes = {"hidden": HIDDEN, "width": width, "entries": entries, "entry_tile": entries}
    return (
        triton_experts.down_combine,
        types,
        sizes | {"rows_tile": triton_experts.ROWS_OUT, "step": step, "aligned": True},
        {"num_warps": 4},
    )


# Every launch of a token: the kernel, its arguments ("*T" is the network's dtype), sizes of Lite, and options.
KERNELS: dict[str, Kernel] = {
    "norm_product q, kv_a": _products(HEADS * (NOPE + ROPE), LATENT + ROPE, "*T"),
    "norm_product router": _products(64, 0, "*fp32"),
    "norm_product lm_head": _products(VOCABULARY, 0, "*fp32"),
    "absorb": (
        triton_attention.absorb,
        {"state": "*i64", "layer": "i32"}
        | dict.fromkeys(("q", "kv", "kv_norm", "kv_b"), "*T")
        | {"factors": "*fp32", "queries": "*T", "eps": "fp32"},
        {
            "heads": HEADS,
            "nope": NOPE,
            "rope": ROPE,
            "latent": LATENT,
            "value": VALUE,
            "nope_tile": NOPE,
            "rope_tile": ROPE // 2,
            "latent_tile": LATENT,
            "block": triton_attention.LATENT_TILE,
            "aligned": True,
        },
        {"num_warps": 4},
    ),
    "attend_splits": (
        triton_attention.attend_splits,
        {"state": "*i64", "layer": "i32", "queries": "*T", "sums": "*fp32", "logs": "*fp32", "scale": "fp32"},
        {
            "heads": HEADS,
            "latent": LATENT,
            "rope": ROPE,
            "splits": SPLITS,
            "latent_tile": LATENT,
            "rope_tile": ROPE,
            "head_tile": triton_attention.HEAD_TILE,
            "block_keys": triton_attention.BLOCK_KEYS,
            "aligned": True,
        },
        {"num_warps": 4, "num_stages": 1},
    ),
    "merge_values": (
        triton_attention.merge_values,
        {"sums": "*fp32", "logs": "*fp32", "kv_b": "*T", "out": "*T"},
        {
            "nope": NOPE,
            "value": VALUE,
            "latent": LATENT,
            "splits": SPLITS,
            "split_tile": SPLITS,
            "value_tile": triton_attention.VALUE_TILE,
            "step": triton_attention.LATENT_TILE,
        },
        {"num_warps": 4},
    ),
    "add_product": (
        triton_products.add_product,
        dict.fromkeys(("x", "weight", "residual", "out"), "*T"),
        {
            "width": HEADS * VALUE,
            "rows": HIDDEN,
            "rows_tile": triton_products.tile(HIDDEN, HEADS * VALUE)[0],
            "step": triton_products.tile(HIDDEN, HEADS * VALUE)[1],
        },
        {"num_warps": triton_products.WARPS},
    ),
    "gate_up": _gate_up(WIDTH, 64, 6),
    "gate_up dense": _gate_up(DENSE, 0, 0),
    "down_combine": _down_combine(WIDTH, 8, triton_experts.STEP_OUT),
    "down_combine dense": _down_combine(DENSE, 1, 8 * triton_experts.STEP_OUT),
}


def main() -> None:
    results = {
        f"{name} {dtype} sm_{architecture}": compile_one(name, int(architecture), dtype)
        for name in KERNELS
        for architecture in sys.argv[1:]
        for dtype in (("bf16", "fp32") if architecture == "89" else ("bf16",))
    }
    print(json.dumps(results))


def compile_one(name: str, architecture: int, dtype: str) -> dict[str, int]:
    kernel, signature, constants, options = KERNELS[name]
    types = {arg: kind.replace("T", dtype) for arg, kind in signature.items()} | dict.fromkeys(constants, "constexpr")
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

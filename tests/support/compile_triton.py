"""Compile the GPU's kernels at the sizes of Lite for architectures given as 80, 90, …; print what ptxas says as JSON.

Run with TRITON_INTERPRET unset. No driver is needed: Triton brings its own assembler.
"""

import json
import re
import subprocess
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource

from dslite.model.kernels import (
    gpu_limits,
    triton_attention,
    triton_embedding,
    triton_experts,
    triton_grouped,
    triton_products,
    triton_sampling,
    triton_slots,
)

HIDDEN, HEADS, NOPE, ROPE, LATENT, VALUE, WIDTH, DENSE, VOCABULARY = 2048, 16, 128, 64, 512, 128, 1408, 10944, 102_400
EXPERTS, CHOSEN, ENTRIES, LAYERS = 64, 6, 8, 27
SHARED = gpu_limits.LEAST_SHARED_MEMORY
# A kernel by dtype: the function, its arguments ("*T" is the network's dtype), sizes of Lite, and options.
Kernel = tuple[Any, dict[str, str], dict[str, Any], dict[str, int]]
MakeKernel = Callable[[str], Kernel]


def _item(dtype: str) -> int:
    return 4 if dtype == "fp32" else 2


def _products(rows: int, more: int, out: str, tokens: int) -> MakeKernel:
    def make(dtype: str) -> Kernel:
        several = tokens > 1
        tile = triton_products.token_tile(rows, HIDDEN, _item(dtype)) if several else triton_products.tile(rows, HIDDEN)
        sizes = {"x_stride": HIDDEN, "width": HIDDEN, "first_rows": rows, "second_rows": more}
        return (
            triton_products.norm_product_tokens if several else triton_products.norm_product,
            {"x": "*T", "norm": "*T", "first": "*T", "second": "*T", "out": out, "eps": "fp32"} | _tokens(several),
            sizes | {"rows_tile": tile[0], "step": tile[1]} | _tile(several),
            _product_options(several),
        )

    return make


def _tokens(several: bool) -> dict[str, str]:
    return {"tokens": "i32"} if several else {}


def _tile(several: bool) -> dict[str, Any]:
    return {"token_tile": triton_products.TOKEN_TILE} if several else {}


def _product_options(several: bool) -> dict[str, int]:
    several_options = {"num_warps": triton_products.TOKEN_WARPS, "num_stages": triton_products.STAGES}
    return several_options if several else {"num_warps": triton_products.WARPS}


def _add_product(tokens: int) -> MakeKernel:
    def make(dtype: str) -> Kernel:
        several, width = tokens > 1, HEADS * VALUE
        tile = (
            triton_products.token_tile(HIDDEN, width, _item(dtype)) if several else triton_products.tile(HIDDEN, width)
        )
        return (
            triton_products.add_product_tokens if several else triton_products.add_product,
            dict.fromkeys(("x", "weight", "residual", "out"), "*T") | _tokens(several),
            {"width": width, "rows": HIDDEN, "rows_tile": tile[0], "step": tile[1]} | _tile(several),
            _product_options(several),
        )

    return make


def _gate_up(width: int, routed: int, chosen: int, tokens: int) -> MakeKernel:
    def make(dtype: str) -> Kernel:
        several = tokens > 1
        rows, most, warps = triton_experts.TOKEN_TILE_IN if several else triton_experts.TILE_IN
        step = most // _item(dtype) if several else most
        types = {"x": "*T", "norm": "*T", "scores": "*fp32", "table": "*i64", "products": "*fp32", "ids": "*i64"}
        sizes = {"hidden": HIDDEN, "width": width, "routed": routed, "chosen": chosen, "expert_tile": max(routed, 2)}
        more = {"entries": ENTRIES if routed else 1} if several else {}
        return (
            triton_experts.gate_up_tokens if several else triton_experts.gate_up,
            types | {"weights": "*fp32", "eps": "fp32", "scaling": "fp32"} | _tokens(several),
            sizes | {"rows_tile": rows, "step": step, "aligned": True} | _tile(several) | more,
            {"num_warps": warps} | ({"num_stages": triton_experts.TOKEN_STAGES_IN} if several else {}),
        )

    return make


def _down_combine(width: int, entries: int, tokens: int) -> MakeKernel:
    rows, most, warps = triton_experts.TOKEN_TILE_OUT if tokens > 1 else triton_experts.TILE_OUT
    types = {"products": "*fp32", "table": "*i64", "ids": "*i64", "weights": "*fp32", "residual": "*T", "out": "*T"}
    sizes = {"hidden": HIDDEN, "width": width, "entries": entries, "entry_tile": entries}
    step = most if entries > 2 else 8 * most
    return lambda dtype: (
        triton_experts.down_combine,
        types,
        sizes | {"rows_tile": rows, "step": step, "aligned": True},
        {"num_warps": warps},
    )


def _down_tokens(dtype: str) -> Kernel:
    rows, most, warps = triton_experts.TOKEN_TILE_DOWN
    types = {"products": "*fp32", "table": "*i64", "ids": "*i64", "parts": "*fp32", "tokens": "i32"}
    sizes = {"hidden": HIDDEN, "width": WIDTH, "entries": ENTRIES, "entry_tile": ENTRIES, "rows_tile": rows}
    element = triton.language.float32 if dtype == "fp32" else triton.language.bfloat16
    return (
        triton_experts.down_tokens,
        types,
        sizes | {"step": most // _item(dtype), "element": element, "aligned": True} | _tile(True),
        {"num_warps": warps, "num_stages": triton_experts.TOKEN_STAGES_DOWN},
    )


def _combine_entries(dtype: str) -> Kernel:
    sizes = {"hidden": HIDDEN, "entries": ENTRIES, "entry_tile": ENTRIES, "step": triton_experts.COMBINE_STEP}
    types = {"parts": "*fp32", "weights": "*fp32", "residual": "*T", "out": "*T"}
    return triton_experts.combine_entries, types, sizes, {"num_warps": 4}


def _route_tokens(dtype: str) -> Kernel:
    types = {"x": "*T", "norm": "*T", "scores": "*fp32", "ids": "*i64", "weights": "*fp32", "normed": "*T"}
    sizes = {"hidden": HIDDEN, "routed": EXPERTS, "chosen": CHOSEN, "entries": ENTRIES, "expert_tile": EXPERTS}
    return (
        triton_slots.route_tokens,
        types | {"eps": "fp32", "scaling": "fp32"},
        sizes | {"step": triton_slots.ROUTE_STEP},
        {"num_warps": 4},
    )


def _gate_up_slots(dtype: str) -> Kernel:
    rows, step, warps = triton_slots.TILE_IN
    types = {"x": "*T", "norm": "*T", "table": "*i64", "ids": "*i64", "products": "*fp32", "eps": "fp32"}
    sizes = {"hidden": HIDDEN, "width": WIDTH, "entries": ENTRIES, "rows_tile": rows, "step": step, "aligned": True}
    return triton_slots.gate_up_slots, types, sizes, {"num_warps": warps}


def _down_slots(first: bool, tokens: int) -> MakeKernel:
    rows, step, warps = triton_slots.TILE_OUT
    types = {"products": "*fp32", "table": "*i64", "ids": "*i64", "parts": "*fp32", "missing": "*i64"}
    sizes = {"hidden": HIDDEN, "width": WIDTH, "place_tile": tokens * ENTRIES, "first": first, "rows_tile": rows}
    return lambda dtype: (
        triton_slots.down_slots,
        types,
        sizes
        | {"like": triton.language.float32 if dtype == "fp32" else triton.language.bfloat16}
        | {"step": step, "aligned": True},
        {"num_warps": warps},
    )


def _combine_slots(dtype: str) -> Kernel:
    types = {"parts": "*fp32", "arrived": "*fp32", "missing": "*i64", "weights": "*fp32", "residual": "*T", "out": "*T"}
    sizes = {"hidden": HIDDEN, "entries": ENTRIES, "entry_tile": ENTRIES, "step": triton_slots.COMBINE_STEP}
    return triton_slots.combine_slots, types, sizes, {"num_warps": 4}


def _absorb(dtype: str) -> Kernel:
    return (
        triton_attention.absorb,
        {"state": "*i64", "layer": "i32"}
        | dict.fromkeys(("q", "kv", "kv_norm", "kv_b"), "*T")
        | {"factors": "*fp32", "queries": "*T", "eps": "fp32"},
        {
            "state_width": 2 + LAYERS,
            "q_width": HEADS * (NOPE + ROPE) + LATENT + ROPE,
            "kv_width": HEADS * (NOPE + ROPE) + LATENT + ROPE,
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
    )


def _attend_splits(dtype: str) -> Kernel:
    return (
        triton_attention.attend_splits,
        {"state": "*i64", "layer": "i32", "queries": "*T", "sums": "*fp32", "logs": "*fp32", "scale": "fp32"},
        {
            "state_width": 2 + LAYERS,
            "heads": HEADS,
            "latent": LATENT,
            "rope": ROPE,
            "splits": triton_attention.MOST_SPLITS,
            "latent_tile": LATENT,
            "rope_tile": ROPE,
            "head_tile": triton_attention.HEAD_TILE,
            "block_keys": triton_attention.BLOCK_KEYS[_item(dtype)],
            "least_share": triton_attention.LEAST_SHARE,
            "aligned": True,
        },
        {"num_warps": 4, "num_stages": triton_attention.stages(LATENT, ROPE, _item(dtype), SHARED)},
    )


def _merge_values(dtype: str) -> Kernel:
    return (
        triton_attention.merge_values,
        {"sums": "*fp32", "logs": "*fp32", "kv_b": "*T", "out": "*T"},
        {
            "heads": HEADS,
            "nope": NOPE,
            "value": VALUE,
            "latent": LATENT,
            "splits": triton_attention.MOST_SPLITS,
            "split_tile": triton_attention.MOST_SPLITS,
            "value_tile": triton_attention.VALUE_TILE,
            "step": triton_attention.MERGE_STEP,
        },
        {"num_warps": triton_attention.MERGE_WARPS},
    )


def _embed(dtype: str) -> Kernel:
    return (
        triton_embedding.embed,
        {
            "state": "*i64",
            "table": "*T",
            "frequencies": "*fp32",
            "hidden": "*T",
            "factors": "*fp32",
            "amplitude": "fp32",
        },
        {
            "state_width": 2 + LAYERS,
            "by_token": True,
            "width": HIDDEN,
            "pairs": ROPE // 2,
            "pair_tile": ROPE // 2,
            "block": triton_embedding.BLOCK,
        },
        {"num_warps": 4},
    )


def _for_tokens(tokens: int, suffix: str) -> dict[str, MakeKernel]:
    name = "_tokens" if tokens > 1 else ""
    return {
        f"norm_product{name} q, kv_a": _products(HEADS * (NOPE + ROPE), LATENT + ROPE, "*T", tokens),
        f"norm_product{name} lm_head": _products(VOCABULARY, 0, "*fp32", tokens),
        f"add_product{name}": _add_product(tokens),
        f"gate_up{name}": _gate_up(WIDTH, EXPERTS, CHOSEN, tokens),
        f"gate_up{name} dense": _gate_up(DENSE, 0, 0, tokens),
        f"down_combine{suffix}": _down_combine(WIDTH, ENTRIES, tokens),
        f"down_combine dense{suffix}": _down_combine(DENSE, 1, tokens),
    }


def _grouped(name: str, rows: int) -> MakeKernel:
    """A product of a prompt's routed experts, in tiles of so many rows."""

    def make(dtype: str) -> Kernel:
        down = name == "down_rows"
        tiles = triton_grouped.TILES_OUT if down else triton_grouped.TILES_IN
        columns, step, stages, warps = tiles[rows, _item(dtype)]
        types = {"products" if down else "x": "*T", "order": "*i32", "starts": "*i32", "table": "*i64"}
        sizes = {"hidden": HIDDEN, "width": WIDTH, "experts": EXPERTS, "expert_tile": EXPERTS, "rows": rows}
        return (
            getattr(triton_grouped, name),
            types | {"parts" if down else "products": "*T"},
            sizes | {"aligned": True, "columns": columns, "step": step} | ({} if down else {"per_token": CHOSEN}),
            {"num_warps": warps, "num_stages": stages},
        )

    return make


def _sort_choices(dtype: str) -> Kernel:
    types = {"ids": "*i64", "order": "*i32", "starts": "*i32", "count": "i32"}
    return triton_grouped.sort_choices, types, {"experts": EXPERTS, "step": triton_grouped.SORT_STEP}, {"num_warps": 4}


def _combine_parts(dtype: str) -> Kernel:
    types = {"parts": "*T", "weights": "*fp32", "out": "*fp32"}
    sizes = {"hidden": HIDDEN, "per_token": CHOSEN, "step": triton_grouped.COMBINE_STEP}
    return triton_grouped.combine_parts, types, sizes, {"num_warps": 4}


def _race(dtype: str) -> Kernel:
    types = {"logits": "*fp32", "numbers": "*i64", "least": "*fp32", "best": "*fp64", "where": "*i64"}
    blocks = -(-VOCABULARY // triton_sampling.BLOCK)
    sizes = {"blocks": blocks, "tile": triton_sampling.BLOCK}
    return triton_sampling.race, types | {"stride": "i32", "tokens": "i32"}, sizes, {"num_warps": 4}


def _finish(dtype: str) -> Kernel:
    blocks = -(-VOCABULARY // triton_sampling.BLOCK)
    types = {"best": "*fp64", "where": "*i64", "drawn": "*i64"}
    return triton_sampling.finish, types, {"blocks": blocks, "tile": triton.next_power_of_2(blocks)}, {"num_warps": 1}


# Every launch of a step for one sequence and for several, and of a prompt's experts.
KERNELS: dict[str, MakeKernel] = {
    "embed": _embed,
    "norm_product router": _products(EXPERTS, 0, "*fp32", 1),
    "absorb": _absorb,
    "attend_splits": _attend_splits,
    "merge_values": _merge_values,
    **_for_tokens(1, ""),
    **_for_tokens(2, ", several tokens"),
    "down_tokens": _down_tokens,
    "combine_entries": _combine_entries,
    "route_tokens": _route_tokens,
    "gate_up_slots": _gate_up_slots,
    "down_slots": _down_slots(True, 1),
    "down_slots, sixteen tokens": _down_slots(True, 16),
    "down_slots, fetched": _down_slots(False, 1),
    "combine_slots": _combine_slots,
    "race": _race,
    "finish": _finish,
    "sort_choices": _sort_choices,
    "combine_parts": _combine_parts,
    **{
        f"{name} {rows}": _grouped(name, rows)
        for name in ("gate_up_rows", "down_rows")
        for rows in (triton_grouped.FEW_ROWS, triton_grouped.MIDDLE_ROWS, triton_grouped.MANY_ROWS)
    },
}


def main() -> None:
    results = {
        f"{name} {dtype} sm_{architecture}": compile_one(name, int(architecture), dtype)
        for name in KERNELS
        for architecture in sys.argv[1:]
        if not name.endswith(" 128") or architecture in ("90", "100")  # tiles for much shared memory
        for dtype in (("bf16", "fp32") if architecture == "89" else ("bf16",))
    }
    print(json.dumps(results))


def compile_one(name: str, architecture: int, dtype: str) -> dict[str, int]:
    kernel, signature, constants, options = KERNELS[name](dtype)
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
        # Into registers, or past them into shared memory.
        "wide_loads": len(re.findall(r"ld\.global\S*\.v4\.b32|cp\.async\.cg\S* .*, (?:0x10|16)\b", made.asm["ptx"])),
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

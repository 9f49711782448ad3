"""Tiny random DeepSeek-V2 checkpoints in Hub layout: real names, real file format, a tokenizer of their own.

    folder = write_checkpoint(tmp_path, tiny_config(q_lora_rank=24))
    engine = load_engine(folder)

The matrices are drawn with std 0.14: with the usual 0.02 a tiny model's log-probabilities are so flat that mistakes
hide below any tolerance. Norms lie near one, so that one left out shows.
"""

import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor

from dslite.model.config import ModelConfig
from dslite.model.parameters import parameter_shapes
from dslite.model.transformer import Transformer
from dslite.runtime.cache.disk_cache import LatentDiskCache
from dslite.runtime.downloads.layout import INDEX
from dslite.runtime.engine.engine import Engine
from dslite.runtime.engine.runner import PREFILL_CHUNK
from dslite.runtime.text.tokenizer import Tokenizer
from dslite.runtime.weights.checkpoint import Checkpoint
from dslite.runtime.weights.loader import load
from support.tokenizers import BOS_ID, EOS_ID, VOCAB_SIZE, write_tokenizer

STD = 0.14

YARN: dict[str, Any] = {
    "type": "yarn",
    "factor": 40,
    "beta_fast": 32,
    "beta_slow": 1,
    "mscale": 0.707,
    "mscale_all_dim": 0.707,
    "original_max_position_embeddings": 4096,
}

_LITE_LIKE: dict[str, Any] = {
    "architectures": ["DeepseekV2ForCausalLM"],
    "attention_bias": False,
    "bos_token_id": BOS_ID,
    "eos_token_id": EOS_ID,
    "first_k_dense_replace": 1,
    "hidden_act": "silu",
    "hidden_size": 96,
    "intermediate_size": 160,
    "kv_lora_rank": 32,
    "max_position_embeddings": 163840,
    "model_type": "deepseek_v2",
    "moe_intermediate_size": 32,
    "moe_layer_freq": 1,
    "n_group": 1,
    "n_routed_experts": 8,
    "n_shared_experts": 2,
    "norm_topk_prob": False,
    "num_attention_heads": 4,
    "num_experts_per_tok": 3,
    "num_hidden_layers": 3,
    "num_key_value_heads": 4,
    "q_lora_rank": None,
    "qk_nope_head_dim": 16,
    "qk_rope_head_dim": 8,
    "rms_norm_eps": 1e-06,
    "rope_scaling": YARN,
    "rope_theta": 10000,
    "routed_scaling_factor": 1.0,
    "scoring_func": "softmax",
    "tie_word_embeddings": False,
    "topk_group": 1,
    "topk_method": "greedy",
    "torch_dtype": "float32",
    "v_head_dim": 16,
    "vocab_size": VOCAB_SIZE,
}


def tiny_config(**overrides: Any) -> dict[str, Any]:
    """config.json of a Lite-like model of 300,000 parameters, with some keys changed; `...` leaves a key out."""
    raw = _LITE_LIKE | overrides
    if "num_attention_heads" in overrides and "num_key_value_heads" not in overrides:
        raw["num_key_value_heads"] = overrides["num_attention_heads"]
    return {key: value for key, value in raw.items() if value is not ...}


def random_tensors(
    config: Mapping[str, Any], *, seed: int = 0, std: float = STD, dtype: torch.dtype = torch.float32
) -> dict[str, Tensor]:
    """Every tensor that a config asks for."""
    rng = torch.Generator().manual_seed(seed)

    def draw(name: str, shape: tuple[int, ...]) -> Tensor:
        values = torch.randn(shape, generator=rng)
        if len(shape) == 1:
            return (1 + 0.1 * values).to(dtype)
        return (values if "embed_tokens" in name else values * std).to(dtype)

    return {name: draw(name, shape) for name, shape in parameter_shapes(ModelConfig.from_dict(config)).items()}


def write_checkpoint(
    folder: Path,
    config: Mapping[str, Any] | None = None,
    *,
    seed: int = 0,
    std: float = STD,
    dtype: torch.dtype = torch.float32,
    shards: int = 1,
    tensors: Mapping[str, Tensor] | None = None,
    tokenizer: bool = True,
) -> Path:
    """Write a model folder and return it. `tensors` replace the random ones; several shards come with an index."""
    config = tiny_config() if config is None else config
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "config.json").write_text(json.dumps(config), encoding="utf-8")
    if tokenizer:
        write_tokenizer(folder)
    if tensors is None:
        tensors = random_tensors(config, seed=seed, std=std, dtype=dtype)
    write_weights(folder, tensors, shards=shards)
    return folder


def write_weights(folder: Path, tensors: Mapping[str, Tensor], *, shards: int = 1) -> None:
    """Save tensors as the Hub does: one file, or shards of neighbouring tensors and their index."""
    if shards == 1:
        save_file(dict(tensors), folder / "model.safetensors", metadata={"format": "pt"})
        return
    names = list(tensors)
    weight_map: dict[str, str] = {}
    for shard in range(shards):
        file = f"model-{shard + 1:05d}-of-{shards:05d}.safetensors"
        mine = names[shard * len(names) // shards : (shard + 1) * len(names) // shards]
        save_file({name: tensors[name] for name in mine}, folder / file, metadata={"format": "pt"})
        weight_map |= dict.fromkeys(mine, file)
    index = {"metadata": {"total_size": sum(tensor.nbytes for tensor in tensors.values())}, "weight_map": weight_map}
    (folder / INDEX).write_text(json.dumps(index), encoding="utf-8")


def load_model(folder: Path, dtype: torch.dtype = torch.float32) -> Transformer:
    """The network of a folder, on the CPU."""
    return load(Checkpoint.open(folder), device=torch.device("cpu"), dtype=dtype)


def load_engine(
    folder: Path,
    *,
    context: int = 256,
    eos_token_ids: Sequence[int] | None = None,
    dtype: torch.dtype = torch.float32,
    open_disk_cache: Callable[[], LatentDiskCache] | None = None,
    prefill_chunk: int = PREFILL_CHUNK,
) -> Engine:
    """An engine for a folder, on the CPU."""
    return Engine(
        load_model(folder, dtype),
        Tokenizer.from_folder(folder),
        context=context,
        eos_token_ids=eos_token_ids,
        open_disk_cache=open_disk_cache,
        prefill_chunk=prefill_chunk,
    )

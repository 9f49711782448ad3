"""The checkpoint in Hub layout: config.json in its classic form, one tensor per expert under its Hub name."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file

MOE_EXPERTS = "mlp.experts."


def config(tokens: int) -> dict[str, Any]:
    """config.json with the keys of DeepSeek-V2-Lite; `tokens` counts the special ones, which are the last two."""
    return {
        "architectures": ["DeepseekV2ForCausalLM"],
        "attention_bias": False,
        "attention_dropout": 0.0,
        "aux_loss_alpha": 0.001,
        "bos_token_id": tokens - 2,
        "eos_token_id": tokens - 1,
        "first_k_dense_replace": 1,
        "hidden_act": "silu",
        "hidden_size": 192,
        "initializer_range": 0.02,
        "intermediate_size": 512,
        "kv_lora_rank": 64,
        "max_position_embeddings": 4096,
        "model_type": "deepseek_v2",
        "moe_intermediate_size": 96,
        "moe_layer_freq": 1,
        "n_group": 1,
        "n_routed_experts": 16,
        "n_shared_experts": 2,
        "norm_topk_prob": False,
        "num_attention_heads": 6,
        "num_experts_per_tok": 2,
        "num_hidden_layers": 4,
        "num_key_value_heads": 6,
        "pretraining_tp": 1,
        "q_lora_rank": None,
        "qk_nope_head_dim": 32,
        "qk_rope_head_dim": 16,
        "rms_norm_eps": 1e-06,
        "rope_scaling": {
            "beta_fast": 32,
            "beta_slow": 1,
            "factor": 16,
            "mscale": 0.707,
            "mscale_all_dim": 0.707,
            "original_max_position_embeddings": 256,
            "type": "yarn",
        },
        "rope_theta": 10000,
        "routed_scaling_factor": 1.0,
        "scoring_func": "softmax",
        "seq_aux": True,
        "tie_word_embeddings": False,
        "topk_group": 1,
        "topk_method": "greedy",
        "torch_dtype": "bfloat16",
        "transformers_version": "4.33.1",
        "use_cache": True,
        "v_head_dim": 32,
        "vocab_size": -(-tokens // 64) * 64,
    }


def generation_config(settings: dict[str, Any]) -> dict[str, Any]:
    return {
        "_from_model_config": True,
        "bos_token_id": settings["bos_token_id"],
        "eos_token_id": settings["eos_token_id"],
        "do_sample": True,
        "temperature": 0.3,
        "top_p": 0.95,
        "transformers_version": "4.33.1",
    }


def hub_tensors(state: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """Split the fused experts of transformers 5 into the Hub's tensors, and round everything to BF16."""
    tensors: dict[str, torch.Tensor] = {}
    for name, tensor in state.items():
        value = tensor.detach().to(torch.bfloat16)
        if MOE_EXPERTS not in name:
            tensors[name] = value.contiguous()
            continue
        layer, projection = name.split(MOE_EXPERTS)
        for expert, weight in enumerate(value):
            path = f"{layer}{MOE_EXPERTS}{expert}"
            if projection == "gate_up_proj":
                gate, up = weight.chunk(2, dim=0)
                tensors[f"{path}.gate_proj.weight"] = gate.contiguous()
                tensors[f"{path}.up_proj.weight"] = up.contiguous()
            else:
                tensors[f"{path}.down_proj.weight"] = weight.contiguous()
    return tensors


def save_json(path: Path, data: dict[str, Any]) -> None:
    path.write_text(json.dumps(data, indent=2) + "\n", encoding="utf-8")


def save(folder: Path, settings: dict[str, Any], state: dict[str, torch.Tensor]) -> None:
    """Write beside and rename, so that a reader never meets half a file."""
    save_json(folder / "config.json", settings)
    save_json(folder / "generation_config.json", generation_config(settings))
    unfinished = folder / "model.safetensors.part"
    save_file(hub_tensors(state), unfinished, metadata={"format": "pt"})
    unfinished.chmod(0o644)
    unfinished.rename(folder / "model.safetensors")

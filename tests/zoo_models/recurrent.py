"""State-space models and other recurrent language models of transformers, and mixtures of experts."""

from __future__ import annotations

from zoo_models.decoders import COMMON, TOKENS, decoder

SPACE = TOKENS | {"hidden_size": 32, "num_hidden_layers": 2, "state_size": 8}
ROPE = {"kv_lora_rank": 16, "q_lora_rank": 16, "qk_rope_head_dim": 8, "v_head_dim": 8, "qk_nope_head_dim": 8}

ENTRIES = (
    decoder("mamba", "MambaForCausalLM", "MambaConfig", "state space", **SPACE),
    decoder(
        "mamba2", "Mamba2ForCausalLM", "Mamba2Config", "state space", **SPACE, expand=2, num_heads=8, head_dim=8,
        n_groups=2, chunk_size=8,
    ),
    decoder("falcon_mamba", "FalconMambaForCausalLM", "FalconMambaConfig", "state space", **SPACE),
    decoder(
        "rwkv", "RwkvForCausalLM", "RwkvConfig", "state space", **TOKENS, hidden_size=32, num_hidden_layers=2,
        attention_hidden_size=32, intermediate_size=64, context_length=64,
    ),
    decoder(
        "recurrent_gemma", "RecurrentGemmaForCausalLM", "RecurrentGemmaConfig", "state space", **COMMON, lru_width=32,
        attention_window_size=8, head_dim=8,
    ),
    decoder("mixtral", "MixtralForCausalLM", "MixtralConfig", "experts", **COMMON, num_local_experts=4),
    decoder(
        "qwen2_moe", "Qwen2MoeForCausalLM", "Qwen2MoeConfig", "experts", **COMMON, moe_intermediate_size=32,
        shared_expert_intermediate_size=32, num_experts=4, num_experts_per_tok=2,
    ),
    decoder(
        "qwen3_moe", "Qwen3MoeForCausalLM", "Qwen3MoeConfig", "experts", **COMMON, moe_intermediate_size=32,
        num_experts=4, num_experts_per_tok=2, head_dim=8,
    ),
    decoder("olmoe", "OlmoeForCausalLM", "OlmoeConfig", "experts", **COMMON, num_experts=4, num_experts_per_tok=2),
    decoder(
        "deepseek_v3", "DeepseekV3ForCausalLM", "DeepseekV3Config", "experts",
        **(COMMON | {"num_key_value_heads": 4}), **ROPE, moe_intermediate_size=32, n_routed_experts=4,
        n_shared_experts=1, num_experts_per_tok=2, n_group=2, topk_group=1, first_k_dense_replace=1,
    ),
    decoder(
        "gpt_oss", "GptOssForCausalLM", "GptOssConfig", "experts", **COMMON, num_local_experts=4,
        num_experts_per_tok=2, head_dim=8, sliding_window=8,
    ),
)  # fmt: skip

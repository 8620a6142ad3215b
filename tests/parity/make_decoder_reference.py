"""Writes tests/models/reference/tiny_decoders.safetensors: what transformers computes.

    python tests/parity/make_decoder_reference.py        (needs torch and transformers)

For every family the weights of a causal language model of two blocks, 16 wide, drawn by torch with
a fixed seed so that no parameter is zero or one; two rows of tokens of different length, padded on
the right; the hidden states after each block and the logits. config.json of each is in the file's
metadata.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import torch
import transformers
from safetensors.numpy import save_file

HERE = Path(__file__).parent.parent / "models" / "reference"
SHARED = {
    "vocab_size": 40,
    "hidden_size": 16,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "intermediate_size": 24,
    "max_position_embeddings": 32,
    "bos_token_id": 1,
    "eos_token_id": 2,
}
LLAMA3 = {
    "rope_type": "llama3",
    "rope_theta": 100.0,
    "factor": 4.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 16,
}
GPT2 = {"vocab_size": 40, "n_positions": 32, "n_embd": 16, "n_layer": 2, "n_head": 4, "n_inner": 24}
CONFIGS: dict[str, Any] = {
    "gpt2": transformers.GPT2Config(**GPT2, bos_token_id=1, eos_token_id=2),
    "llama": transformers.LlamaConfig(**SHARED, tie_word_embeddings=False),
    "llama3": transformers.LlamaConfig(**SHARED, rope_parameters=LLAMA3, tie_word_embeddings=True),
    "mistral": transformers.MistralConfig(**SHARED, sliding_window=3, head_dim=6),
    "qwen2": transformers.Qwen2Config(**SHARED, tie_word_embeddings=True),
    "qwen3": transformers.Qwen3Config(**SHARED, head_dim=8),
}


def random_model(config: Any, kind: Any = transformers.AutoModelForCausalLM) -> torch.nn.Module:
    """A model whose every parameter matters: none zero, none one."""
    model = kind.from_config(config, attn_implementation="eager").eval()
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            norm = ("ln_" in name or "norm" in name) and name.endswith("weight")
            noise = torch.randn(parameter.shape, generator=generator)
            parameter.copy_(float(norm) + 0.3 * noise)
    return model


def rows() -> dict[str, torch.Tensor]:
    """Two rows of 9 and 5 tokens."""
    generator = torch.Generator().manual_seed(7)
    mask = (torch.arange(9) < torch.tensor([[9], [5]])).long()
    ids = torch.randint(3, SHARED["vocab_size"], (2, 9), generator=generator)
    return {"input_ids": ids * mask, "attention_mask": mask}


def tensors_of(name: str) -> dict[str, np.ndarray]:
    """Weights and outputs of one family."""
    model = random_model(CONFIGS[name])
    with torch.no_grad():
        output = model(**rows(), output_hidden_states=True)
    tied = {"lm_head.weight"} if model.config.tie_word_embeddings else set()
    found = {f"weights/{k}": v for k, v in model.state_dict().items() if k not in tied}
    found |= {"output/logits": output.logits, "output/hidden": torch.stack(output.hidden_states)}
    return {f"{name}/{key}": value.contiguous().numpy() for key, value in found.items()}


if __name__ == "__main__":
    tensors = {f"input/{key}": value.numpy() for key, value in rows().items()}
    for name in CONFIGS:
        tensors |= tensors_of(name)
    metadata = {name: json.dumps(config.to_dict()) for name, config in CONFIGS.items()}
    metadata |= {"torch": torch.__version__, "transformers": transformers.__version__}
    file = HERE / "tiny_decoders.safetensors"
    save_file(tensors, file, metadata=metadata)
    file.chmod(0o644)

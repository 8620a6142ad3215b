"""Writes tests/models/reference/tiny_xlnet.safetensors: what transformers computes.

    python tests/parity/make_xlnet_reference.py        (needs torch and transformers)

The weights of an XLNetForSequenceClassification and of the head of an XLNetLMHeadModel, two blocks
16 wide, drawn with a fixed seed and spread out so that no bias is zero. `text`: two texts, padded
on the left, with the hidden states and logits of the classifier. `block0`, `block1`: two rows of
two blocks of text, with a random perm_mask and target_mapping; for each the hidden states of both
streams and the scores of words, the second block with the mems of the first.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
import transformers
from safetensors.numpy import save_file

FILE = Path(__file__).parent.parent / "models" / "reference" / "tiny_xlnet.safetensors"
SHAPE = {
    "vocab_size": 40,
    "d_model": 16,
    "n_layer": 2,
    "n_head": 4,
    "d_inner": 24,
    "mem_len": None,
    "num_labels": 3,
}
LENGTHS, TOKENS, TARGETS = (9, 5), 8, 3


def spread(model: torch.nn.Module, seed: int) -> torch.nn.Module:
    """Weights that make every parameter matter: none zero, none one."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            noise = torch.randn(parameter.shape, generator=generator)
            parameter.copy_(float(name.endswith("layer_norm.weight")) + 0.3 * noise)
    return model.eval()


def texts(classifier: torch.nn.Module, generator: torch.Generator) -> dict[str, torch.Tensor]:
    """Two texts of types 0, 1 and at last 2, padded on the left."""
    size = max(LENGTHS)
    lengths = torch.tensor(LENGTHS)[:, None]
    place = torch.arange(size) - (size - lengths)
    batch = {
        "input_ids": torch.randint(1, SHAPE["vocab_size"], (2, size), generator=generator),
        "token_type_ids": (place >= lengths // 2).long() + (place == lengths - 1).long(),
        "attention_mask": (place >= 0).long(),
    }
    output = classifier(**batch, output_hidden_states=True, use_mems=False)
    hidden = torch.stack(output.hidden_states)
    return batch | {"hidden": hidden, "logits": output.logits}


def blocks(model: torch.nn.Module, generator: torch.Generator) -> dict[str, torch.Tensor]:
    """Two blocks of two rows; in a row some tokens are predicted in a random order."""
    found, mems = {}, None
    for number in range(2):
        order = torch.stack([torch.randperm(TOKENS, generator=generator) for _ in range(2)])
        rank = torch.argsort(order, dim=1)
        # What comes before the last `TARGETS` of the order is seen by all.
        rank = torch.clamp(rank - (TOKENS - TARGETS - 1), min=0)
        targets = order[:, -TARGETS:]
        batch = {
            "input_ids": torch.randint(1, SHAPE["vocab_size"], (2, TOKENS), generator=generator),
            "token_type_ids": torch.randint(0, 2, (2, TOKENS), generator=generator),
            "perm_mask": ((rank[:, None, :] >= rank[:, :, None]) & (rank[:, None, :] > 0)).float(),
            "target_mapping": torch.nn.functional.one_hot(targets, TOKENS).float(),
        }
        output = model(**batch, mems=mems, use_mems=True, output_hidden_states=True)
        mems = output.mems
        content, query = (torch.stack(output.hidden_states[i::2]) for i in (0, 1))
        more = {"content": content, "query": query, "words": output.logits, "targets": targets}
        found |= {f"block{number}/{name}": value for name, value in (batch | more).items()}
    return found


def tiny() -> dict[str, np.ndarray]:
    """Weights, inputs and outputs of the two tiny models, which share a trunk."""
    config = transformers.XLNetConfig(**SHAPE)
    classifier = spread(transformers.XLNetForSequenceClassification(config), seed=0)
    model = spread(transformers.XLNetLMHeadModel(config), seed=1)
    model.transformer.load_state_dict(classifier.transformer.state_dict())
    model.tie_weights()
    generator = torch.Generator().manual_seed(7)
    with torch.no_grad():
        tensors = {f"text/{k}": v for k, v in texts(classifier, generator).items()}
        tensors |= blocks(model, generator)
    weights = classifier.state_dict() | {"lm_loss.bias": model.lm_loss.bias.detach()}
    tensors |= {f"weights/{k}": v for k, v in weights.items()}
    return {name: tensor.contiguous().numpy() for name, tensor in tensors.items()}


if __name__ == "__main__":
    versions = {"torch": torch.__version__, "transformers": transformers.__version__}
    save_file(tiny(), FILE, metadata=versions)
    FILE.chmod(0o644)

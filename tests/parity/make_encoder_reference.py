"""Writes tests/models/reference/encoder_*.safetensors: what transformers computes of each family.

    python tests/parity/make_encoder_reference.py        (needs torch and transformers)

Of each family a trunk 16 wide with random weights under two heads, drawn by torch with a fixed
seed: its config.json among the file's metadata, the weights, four rows of tokens of different
length, the hidden states under and above each block, the logits of three labels and those of all
words.
"""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import torch
import transformers
from safetensors.numpy import save_file
from test_encoders import KINDS, inputs_of, random_model

HERE = Path(__file__).parent.parent / "models" / "reference"
WIDE = {"hidden_size": 16, "intermediate_size": 24}
SMALL = {
    "roberta": WIDE | {"num_hidden_layers": 2},
    "distilbert": {"dim": 16, "hidden_dim": 24, "n_layers": 2},
    "electra": WIDE | {"num_hidden_layers": 2, "embedding_size": 8},
    "albert": WIDE | {"num_hidden_layers": 3, "embedding_size": 8},
    "modernbert": WIDE | {"num_hidden_layers": 4},
}


def reference(family: str) -> tuple[dict[str, np.ndarray], str]:
    """Weights, inputs and outputs of two models that share a trunk, and their config.json."""
    classifier = random_model(family, "ForSequenceClassification", **SMALL[family])
    masked = random_model(family, "ForMaskedLM", **SMALL[family])
    shared = {k: v for k, v in classifier.state_dict().items() if k in masked.state_dict()}
    masked.load_state_dict(shared, strict=False)
    masked.tie_weights()
    inputs = inputs_of(family)
    with torch.no_grad():
        output = classifier(**inputs, output_hidden_states=True)
        words = masked(**inputs).logits
    tied = set(masked.all_tied_weights_keys)
    weights = {k: v for k, v in masked.state_dict().items() if k not in tied}
    tensors = {f"weights/{k}": v for k, v in (weights | classifier.state_dict()).items()}
    tensors |= {f"input/{k}": v for k, v in inputs.items()}
    tensors |= {"output/logits": output.logits, "output/words": words}
    tensors["output/hidden"] = torch.stack(output.hidden_states)
    config = json.dumps(classifier.config.to_dict() | {"architectures": None})
    return {name: tensor.contiguous().numpy() for name, tensor in tensors.items()}, config


if __name__ == "__main__":
    versions = {"torch": torch.__version__, "transformers": transformers.__version__}
    assert SMALL.keys() <= KINDS.keys()
    for family in SMALL:
        arrays, config = reference(family)
        file = HERE / f"encoder_{family}.safetensors"
        save_file(arrays, file, metadata=versions | {"config": config})
        file.chmod(0o644)

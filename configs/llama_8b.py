"""Llama 3's 8 billion parameters, trained on packed blocks of 4,096 (Llama Team, 2024).

    launch.py train configs/llama_8b.py --init-from DIR --data.tokenizer DIR --data.train 'corpus/*'
    launch.py plan configs/llama_8b.py --topology v5p-64              what it takes; no data needed

Device: a slice of accelerators. Parameters and optimizer state are 129 GB, spread over the axis
`fsdp`; blocks are computed anew in the backward pass. Without --init-from it starts from scratch,
which nothing less than a trillion tokens rewards; read dev/perplexity.
"""

from research.config import Config
from research.data.corpus import Corpus
from research.evaluate import HeldOut
from research.models.transformer import Spec, Transformer
from research.optim import Optim
from research.sharding import MeshSpec
from research.tasks.causal import CausalLM


def config() -> Config:
    return Config(
        name="llama_8b",
        task=CausalLM(
            backbone=Transformer(
                Spec(
                    vocab_size=128256,
                    width=4096,
                    depth=32,
                    heads=32,
                    kv_heads=8,
                    hidden=14336,
                    causal=True,
                    positions="rotary",
                    max_positions=8192,
                    rope_theta=500_000.0,
                    norm="rms",
                    norm_epsilon=1e-5,
                    norm_first=True,
                    embed_norm=False,
                    activation="silu",
                    gated=True,
                    bias=False,
                    tied=False,
                    dropout=0.0,
                    attention_dropout=0.0,
                    scan=True,
                    remat=True,
                )
            )
        ),
        data=Corpus(
            train="corpus/*",
            dev="held-out.jsonl",
            tokenizer="meta-llama/Meta-Llama-3-8B",
            max_length=4096,
            end="<|end_of_text|>",
        ),
        optim=Optim(learning_rate=1e-5, warmup=0.03, schedule="cosine", weight_decay=0.1),
        steps=2000,
        batch_size=64,
        evals=(HeldOut(split="dev"),),
        eval_every=500,
        mesh=MeshSpec(data=1, fsdp=-1),
    )

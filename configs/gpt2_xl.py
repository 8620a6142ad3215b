"""GPT-2 XL, 1.5 billion parameters, from scratch on packed blocks of 1,024 (Radford et al., 2019).

    launch.py train configs/gpt2_xl.py --data.train 'corpus/*.jsonl.gz' --data.dev held-out.jsonl
    launch.py plan configs/gpt2_xl.py --topology v5e-16               what it takes; no data needed

Device: a slice of accelerators. Parameters and optimizer state are 25 GB, spread over the axis
`fsdp`; more chips go to `data` (--mesh.data -1 --mesh.fsdp 16). The published model was trained on
40 GB of text; read dev/perplexity and dev/bits_per_byte.
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
        name="gpt2_xl",
        task=CausalLM(
            backbone=Transformer(
                Spec(
                    vocab_size=50257,
                    width=1600,
                    depth=48,
                    heads=25,
                    hidden=6400,
                    causal=True,
                    max_positions=1024,
                    norm_epsilon=1e-5,
                    norm_first=True,
                    embed_norm=False,
                    activation="gelu_tanh",
                    scan=True,
                    remat=True,
                )
            )
        ),
        data=Corpus(
            train="corpus/*.jsonl.gz",
            dev="held-out.jsonl",
            tokenizer="gpt2-xl",
            max_length=1024,
            end="<|endoftext|>",
        ),
        optim=Optim(learning_rate=2e-4, warmup=0.02, schedule="cosine", weight_decay=0.1),
        steps=100_000,
        batch_size=64,
        evals=(HeldOut(split="dev"),),
        eval_every=5000,
        mesh=MeshSpec(data=1, fsdp=-1),
    )

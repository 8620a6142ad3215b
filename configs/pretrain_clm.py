"""Causal-language-model pre-training of a small decoder on any text (Radford et al., 2018).

    launch.py train configs/pretrain_clm.py                           the standard library's English
    ... --data.train 'corpus/*.txt.gz' --data.dev held-out.txt        your own, one passage a line
    ... --data.tokenizer DIR --task.backbone.spec.vocab-size 50257    with a tokenizer of your own

Device: two CPU cores, a few minutes. One GPU: the same with --batch-size 512 --steps 20000
--data.max-length 512 --task.z-loss 1e-4. A pod: besides, --mesh.data -1 --mesh.fsdp 8. dev is the
docstrings of modules that training does not see; read dev/perplexity and dev/bits_per_byte.
"""

from research.config import Config
from research.data.texts import Texts
from research.evaluate import HeldOut
from research.models.transformer import Spec, Transformer
from research.optim import Optim
from research.tasks.causal import CausalLM


def config() -> Config:
    return Config(
        name="pretrain_clm",
        task=CausalLM(
            backbone=Transformer(
                Spec(
                    vocab_size=6000,
                    width=128,
                    depth=4,
                    heads=4,
                    hidden=384,
                    causal=True,
                    positions="rotary",
                    norm="rms",
                    norm_epsilon=1e-6,
                    norm_first=True,
                    embed_norm=False,
                    activation="silu",
                    gated=True,
                    bias=False,
                    dropout=0.0,
                    attention_dropout=0.0,
                )
            ),
        ),
        data=Texts(
            train="stdlib:passages",
            dev="stdlib:areas-dev",
            label=None,
            tokenizer="stdlib:6000",
            max_length=64,
            long="split",
            bytes=True,
        ),
        optim=Optim(learning_rate=2e-3, warmup=0.1, schedule="cosine", weight_decay=0.1),
        steps=400,
        batch_size=32,
        evals=(HeldOut(split="dev"),),
        eval_every=200,
        log_every=20,
    )

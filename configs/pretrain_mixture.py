"""One causal trunk, two objectives: the next token, and spans restored from both sides.

    launch.py train configs/pretrain_mixture.py                       the standard library's English
    ... --data.train 'corpus/*.txt.gz' --data.dev held-out.txt        your own, one passage a line

For masked spans the trunk sees the whole example, as in UL2 and GLM (Tay et al., 2023; Du et al.,
2022). Each objective runs the trunk once: a step costs twice one of either. Device: two CPU cores,
a few minutes. One GPU: the same with --batch-size 512 --steps 20000 --data.max-length 512. A pod:
besides, --mesh.data -1 --mesh.fsdp 8. Weights and terms are changed in this file.
"""

from research.config import Config
from research.data.texts import Texts
from research.evaluate import HeldOut
from research.models.transformer import Spec, Transformer
from research.optim import Optim
from research.tasks.causal import CausalLM
from research.tasks.lm import MaskedLM
from research.tasks.mixture import Mixture, Term


def config() -> Config:
    return Config(
        name="pretrain_mixture",
        task=Mixture(
            backbone=Transformer(
                Spec(
                    vocab_size=6000,
                    width=128,
                    depth=3,
                    heads=4,
                    hidden=512,
                    causal=True,
                    positions="rotary",
                    norm_first=True,
                    dropout=0.0,
                    attention_dropout=0.0,
                )
            ),
            terms=(
                Term(name="causal", task=CausalLM()),
                Term(name="spans", task=MaskedLM(unit="span"), weight=0.5),
            ),
        ),
        data=Texts(
            train="stdlib:passages",
            dev="stdlib:areas-dev",
            label=None,
            tokenizer="stdlib:6000",
            max_length=64,
            long="split",
            words=True,
            bytes=True,
        ),
        optim=Optim(learning_rate=2e-3, warmup=0.1, weight_decay=0.1),
        steps=300,
        batch_size=32,
        evals=(HeldOut(split="dev"),),
        eval_every=150,
        log_every=20,
    )

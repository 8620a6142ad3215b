"""Masked-language-model pre-training of a small encoder on any text (Devlin et al., 2019).

    launch.py train configs/pretrain_mlm.py                           the standard library's English
    ... --data.train 'corpus/*.txt.gz' --data.dev held-out.txt        your own, one passage a line
    ... --data.tokenizer DIR --task.backbone.spec.vocab-size 30522    with a tokenizer of your own

Device: two CPU cores, a few minutes. One GPU: the same with --batch-size 1024 --steps 20000.
Expect the training loss to fall below 5.5 within 500 steps; dev is the docstrings of modules that
training does not see, where dev/pseudo_perplexity is that of the tokens masked together.
"""

from research.config import Config
from research.data.texts import Texts
from research.evaluate import HeldOut
from research.models.transformer import Spec, Transformer
from research.optim import Optim
from research.tasks.lm import MaskedLM


def config() -> Config:
    return Config(
        name="pretrain_mlm",
        task=MaskedLM(
            backbone=Transformer(
                Spec(vocab_size=6000, width=128, depth=4, heads=4, hidden=512, max_positions=128)
            ),
            unit="word",
        ),
        data=Texts(
            train="stdlib:passages",
            dev="stdlib:areas-dev",
            label=None,
            tokenizer="stdlib:6000",
            max_length=64,
            long="split",
            words=True,
        ),
        optim=Optim(learning_rate=1e-3, warmup=0.1, weight_decay=0.01),
        steps=500,
        batch_size=64,
        evals=(HeldOut(split="dev"),),
        eval_every=250,
        log_every=20,
    )

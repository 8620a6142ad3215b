"""Graft and the peft library, live: the same low-rank terms give the same logits, both ways."""

from __future__ import annotations

import jax
import numpy as np
import pytest
from flax.traverse_util import flatten_dict, unflatten_dict

pytestmark = pytest.mark.parity
torch = pytest.importorskip("torch", reason="torch is not installed")
transformers = pytest.importorskip("transformers")
library = pytest.importorskip("peft", reason="peft is not installed")

from test_bert import (  # noqa: E402
    LABELS,
    assert_close,
    batch_of,
    exact,
    load,
    random_inputs,
    random_model,
    run,
)

from research.models.pretrained import peft  # noqa: E402
from research.tasks.classify import Classify  # noqa: E402


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("scan", [False, True])
@pytest.mark.parametrize("dora", [False, True], ids=["lora", "dora"])
def test_low_rank_terms_there_and_back(tmp_path, dora, scan):
    random_model(transformers.BertForSequenceClassification, num_labels=3).save_pretrained(
        tmp_path / "base"
    )

    def base():
        kind = transformers.BertForSequenceClassification
        return kind.from_pretrained(tmp_path / "base").eval()

    settings = library.LoraConfig(
        task_type="SEQ_CLS",
        r=3,
        lora_alpha=5,
        use_rslora=True,
        use_dora=dora,
        target_modules=["query", "intermediate.dense"],
    )
    theirs = library.get_peft_model(base(), settings).eval()
    torch.manual_seed(1)
    with torch.no_grad():
        for parameter in theirs.parameters():
            if parameter.requires_grad:
                parameter.add_(0.2 * torch.randn(parameter.shape))
    theirs.save_pretrained(tmp_path / "theirs")
    inputs = random_inputs(97)
    task = Classify(backbone=exact(tmp_path / "base", scan=scan), labels=LABELS)
    batch = batch_of(inputs)
    bare, _ = load(tmp_path / "base", task, batch)
    strategy, params = peft.load(tmp_path / "theirs", task, bare)
    assert (strategy.rank, strategy.stabilized, strategy.magnitude) == (3, True, dora)
    assert_close(run(task, params, batch, "logits")[:, 0], theirs(**inputs).logits)

    flat = flatten_dict(params, sep="/")
    added = jax.eval_shape(strategy.growth, flatten_dict(bare, sep="/"), jax.random.key(0))
    assert flat.keys() == flatten_dict(bare, sep="/").keys() | added.keys()
    rules = strategy.rules(flat)
    rng = np.random.default_rng(0)
    moved = {p: x + rng.normal(0, 0.1, x.shape) if rules[p].learns else x for p, x in flat.items()}
    tree = unflatten_dict({p: np.asarray(x, np.float32) for p, x in moved.items()}, sep="/")
    peft.save(tmp_path / "ours", task, tree, rules, str(tmp_path / "base"))
    back = library.PeftModel.from_pretrained(base(), tmp_path / "ours").eval()
    assert_close(run(task, tree, batch, "logits")[:, 0], back(**inputs).logits)

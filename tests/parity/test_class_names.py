"""Every class that an export names is one that transformers has."""

from __future__ import annotations

import pytest

from research.models.pretrained.export import FAMILIES

pytestmark = pytest.mark.parity
transformers = pytest.importorskip("transformers", reason="transformers is not installed")


@pytest.mark.parametrize("family", FAMILIES, ids=lambda family: family.name)
def test_classes_are_those_of_transformers(family) -> None:
    names = [family.trunk.name, *(one.name for one in family.tasks.values())]
    assert not [name for name in names if not hasattr(transformers, name)]

"""Rules that a machine can check: nothing unsafe, nothing forgotten, nothing too long."""

from __future__ import annotations

import ast
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
SOURCES = [
    path
    for folder in ("research", "configs", "experiments")
    for path in sorted((ROOT / folder).rglob("*.py"))
] + [ROOT / "launch.py"]
RIVALS = ROOT / "research" / "bench" / "rivals"


def calls_and_imports(path: Path) -> set[str]:
    found = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            found |= {alias.name.split(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            found.add(node.module.split(".")[0])
        elif isinstance(node, ast.Call):
            found.add(ast.unparse(node.func))
            found |= {str(keyword.arg) for keyword in node.keywords}
    return found


@pytest.mark.parametrize("path", SOURCES, ids=lambda path: str(path.relative_to(ROOT)))
def test_nothing_unsafe_is_called_or_imported(path: Path) -> None:
    unsafe = {"pickle", "cloudpickle", "dill", "joblib", "marshal", "shelve", "eval", "exec"}
    unsafe |= {"trust_remote_code", "numpy.load", "os.system"}
    if RIVALS not in path.parents:
        unsafe |= {"torch", "tensorflow"}
    assert not calls_and_imports(path) & unsafe
    loads = re.findall(r"np\.load\(.*", path.read_text())
    assert all("allow_pickle=False" in load for load in loads)


def test_the_trainer_knows_no_task_model_or_data_set() -> None:
    for name in ("train.py", "step.py"):
        imports = re.findall(
            r"^from (research\S*) import", (ROOT / "research" / name).read_text(), re.M
        )
        assert not [i for i in imports if i.startswith(("research.tasks", "research.models"))]


def test_only_the_command_line_touches_jax_settings() -> None:
    for path in SOURCES:
        if path.name != "launch.py":
            assert "jax.config.update" not in calls_and_imports(path), path


def test_files_stay_short() -> None:
    long = {
        str(p.relative_to(ROOT)): n for p in SOURCES if (n := len(p.read_text().splitlines())) > 300
    }
    assert not long


def test_the_readme_maps_every_file() -> None:
    readme = (ROOT / "README.md").read_text()
    names = [str(path.relative_to(ROOT)) for path in SOURCES if path.name != "__init__.py"]
    assert not [name for name in names if name not in readme]
    mapped = re.findall(r"^\| ((?:research|configs|experiments)/\S+\.py) \|", readme, re.M)
    assert not [name for name in mapped if not (ROOT / name).is_file()]


def test_the_readme_names_no_test_that_is_not_there() -> None:
    readme = (ROOT / "README.md").read_text()
    named = set(re.findall(r"tests/[\w/*]+(?:\.py)?", readme))
    assert not [name for name in named if not list(ROOT.glob(name))]

"""What all tests share: strict JAX, eight simulated devices, compiled programs kept."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

# Compiling is most of the time of these tests: halved without LLVM's optimisation, and nearly so
# once more by XLA's older emitters of loops. Set before JAX is imported, and handed down to the
# processes that tests start.
os.environ["XLA_FLAGS"] = " ".join(
    (
        os.environ.get("XLA_FLAGS", ""),
        "--xla_backend_optimization_level=0",
        "--xla_cpu_use_fusion_emitters=false",
    )
)
# Laws hold to float32's tolerances on any processor; tests of other precisions ask for them.
os.environ["JAX_DEFAULT_MATMUL_PRECISION"] = "highest"

import jax
import pytest

ROOT = Path(__file__).parents[1]

jax.config.update("jax_num_cpu_devices", 8)
jax.config.update("jax_numpy_rank_promotion", "raise")
jax.config.update("jax_compilation_cache_dir", str(Path.home() / ".cache" / "graft" / "tests"))
jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.1)
jax.config.update("jax_persistent_cache_min_entry_size_bytes", -1)


@pytest.fixture(autouse=True, scope="session")
def token_cache(tmp_path_factory: pytest.TempPathFactory) -> None:
    """Tokens are cached for this session only."""
    os.environ["GRAFT_CACHE"] = str(tmp_path_factory.mktemp("cache"))


@pytest.fixture(autouse=True, scope="module")
def executables_of_a_module() -> Iterator[None]:
    """Compiled programs stay in memory no longer than the tests that share them."""
    yield
    jax.clear_caches()

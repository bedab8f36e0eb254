# SPDX-License-Identifier: Apache-2.0
"""The strict room in which all tests run: eight CPU devices, no silent broadcasting, signatures checked at run time.

Everything up to the import of jax must happen first: jax reads its environment once. Programs started by a test
inherit the environment, so they see the same devices and the same compilation cache.
"""

import gc
import importlib.metadata
import os
from pathlib import Path

ROOT = Path(__file__).parent.parent

# On an accelerator only its own kernels' cases are meant to run: tools/device_check.sh.
PLATFORMS = os.environ["JAX_PLATFORMS"] = os.environ.get("JAXPOST_TEST_PLATFORMS", "cpu")
FLAGS = [
    "--xla_force_host_platform_device_count=8",
    # Eight devices on two busy cores wait for each other longer than the 40 s after which XLA would abort.
    "--xla_cpu_collective_call_terminate_timeout_seconds=600",
]
if PLATFORMS == "cpu":  # most of the time goes into compiling: with these it takes half as long, and is as right
    FLAGS.append("--xla_backend_optimization_level=0")
    FLAGS.append("--xla_cpu_parallel_codegen_split_count=1")  # small programs in pieces cost more than they save
    os.environ.setdefault("JAX_TRACEBACK_IN_LOCATIONS_LIMIT", "0")  # nobody reads where an operation came from
if importlib.metadata.version("jax").startswith("0.10."):  # XLA aborts at a flag that it does not know
    FLAGS.append("--xla_cpu_use_fusion_emitters=false")
os.environ["XLA_FLAGS"] = " ".join(FLAGS)
# Programs compiled by an earlier run are read back; JAX_ENABLE_COMPILATION_CACHE=false turns that off. A size limit
# makes jax lock the folder, without which processes could read each other's half-written entries.
os.environ.setdefault("JAX_COMPILATION_CACHE_DIR", str(ROOT / ".cache" / "jax"))
os.environ.setdefault("JAX_COMPILATION_CACHE_MAX_SIZE", str(2**30))
os.environ.setdefault("JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS", "0.2")

# Tokens that runs of the tests keep go where the tests' other things go, not to the user's own.
os.environ["JAXPOST_CACHE"] = str(ROOT / ".cache" / "jaxpost")

import hypothesis  # noqa: E402
import jax  # noqa: E402
import jaxtyping  # noqa: E402
import pytest  # noqa: E402
from jax.experimental.compilation_cache import compilation_cache  # noqa: E402

from tests.signatures import check  # noqa: E402

jax.config.update("jax_numpy_rank_promotion", "raise")
if PLATFORMS != "cpu":  # what kernels are held against is computed in float32, not in what a matrix unit makes of it
    jax.config.update("jax_default_matmul_precision", "highest")
jaxtyping.install_import_hook("jaxpost", f"{check.__module__}.{check.__name__}")

# A first example compiles, and two busy cores are slow: time is no reason for a law to fail.
hypothesis.settings.register_profile(
    "jaxpost", max_examples=60, deadline=None, suppress_health_check=[hypothesis.HealthCheck.too_slow], print_blob=True
)
hypothesis.settings.load_profile("jaxpost")


# Traced programs are millions of small objects, most of which stay: looking for cycles among them took a tenth of the
# time.
gc.set_threshold(200_000, 50, 100)


def pytest_collection_finish() -> None:
    gc.collect()
    gc.freeze()


@pytest.fixture(scope="session")
def shared_data() -> Path:
    """The folder of real data next to the checkout; what it holds stands in its own README."""
    path = ROOT.parent / "shared" / "data"
    if not path.is_dir():
        pytest.skip("../shared/data not found: real-data tests need that folder next to the checkout")
    return path


@pytest.fixture(scope="module", autouse=True)
def few_programs():
    """Forget compiled programs once there are many: each maps memory, a process may have 65,530 such maps by Linux's
    default, and XLA crashes when it gets no more. They are read back from the disk where they are needed again."""
    yield
    maps = Path("/proc/self/maps")
    if maps.exists() and maps.read_bytes().count(b"\n") > 20_000:
        jax.clear_caches()


@pytest.fixture
def uncached():
    """Compile afresh within this test: for tests that measure or count compilations."""
    before = jax.config.jax_enable_compilation_cache
    jax.config.update("jax_enable_compilation_cache", False)
    compilation_cache.reset_cache()  # jax decides once whether it has a cache
    yield
    jax.config.update("jax_enable_compilation_cache", before)
    compilation_cache.reset_cache()

"""The whole session runs on eight simulated CPU devices, and finds shared data where it is given.

The settings are made here, before any test imports jax: afterwards they would be ignored.
"""

import contextlib
import ctypes
import gc
import os
import sys
import types
from importlib.metadata import version
from pathlib import Path

import pytest

DEVICES = 8
BEGAN = pytest.StashKey[float]()
ROOT = Path(__file__).resolve().parent.parent

os.environ["JAX_PLATFORMS"] = "cpu"
os.environ["JAX_NUM_CPU_DEVICES"] = str(DEVICES)
# XLA's pool has one thread per simulated device on a small machine. If all but one wait in an
# all-reduce, the last finds no thread for its own parallel work and the process aborts after 40 s
# (seen with jax 0.10.2 on 2 cores, arrays of 1.6 million numbers). NPROC sizes that pool.
os.environ.setdefault("NPROC", str(3 * DEVICES))
# Tests compile more than they compute: unoptimised code halves the time of a step's compilation and
# cuts that of the initial parameters to a third (2 cores, jax 0.10.2). The other two take a quarter
# off tests/train/test_step.py with jax 0.12 and a tenth with 0.10.2.
FAST_COMPILATION = [
  "--xla_backend_optimization_level=0",
  "--xla_llvm_disable_expensive_passes=true",
  "--xla_cpu_parallel_codegen_split_count=1",
]
if version("jaxlib") < "0.11":  # halves the rest; later ones abort at the flag
  FAST_COMPILATION.append("--xla_cpu_use_fusion_emitters=false")
os.environ["XLA_FLAGS"] = " ".join([os.environ.get("XLA_FLAGS", ""), *FAST_COMPILATION])
# Compiled programs are kept for the other workers and for later sessions, small ones too: most of
# the suite's time is compilation, and reading a small program takes half the time of compiling it.
os.environ.setdefault("JAX_COMPILATION_CACHE_DIR", str(ROOT / ".pytest_cache" / "xla"))
os.environ.setdefault("JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS", "0")


def pytest_sessionstart(session):
  import jax

  if jax.device_count() != DEVICES:
    pytest.exit(f"the tests need {DEVICES} simulated devices, jax has {jax.devices()}", 2)


@pytest.hookimpl(tryfirst=True)  # before pytest leaves out the slow ones
def pytest_collection_modifyitems(items):
  """Comparisons with transformers (the fixture `peers`) are slow; golden files hold their numbers.
  Files of much work first, so that no worker is left alone with one at the end: a slow test counts
  as much as 40 others."""
  work = {}
  for item in items:
    if "peers" in item.fixturenames:
      item.add_marker("slow")
  for item in items:
    work.setdefault(item.path, 0)
    work[item.path] += 40 if item.get_closest_marker("slow") else 1
  items.sort(key=lambda item: (-work[item.path], str(item.path)))


def pytest_collection_finish():
  """Makes Python search for garbage less often: its search through all that jax has traced took a
  twelfth of the time of five files of tests/models and tests/train."""
  gc.collect()
  gc.freeze()
  gc.set_threshold(20_000, 10, 10)


def processor_seconds() -> float:
  """Of this process and of those that it started and waited for."""
  return sum(os.times()[:4])


@pytest.hookimpl(wrapper=True)
def pytest_runtest_protocol(item):
  item.stash[BEGAN] = processor_seconds()
  return (yield)


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item, call):
  """Writes the processor seconds of a test into the junit file, for `.ci/budget`."""
  if call.when == "teardown":
    seconds = processor_seconds() - item.stash[BEGAN]
    item.user_properties.append(("processor_seconds", f"{seconds:.3f}"))
  return (yield)


def memory_is_full() -> bool:
  """Whether this worker holds its share of half the memory, or 3 GiB; always where Linux's counts
  are not there."""
  try:
    held = int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")
  except OSError:
    return True
  whole = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
  workers = int(os.environ.get("PYTEST_XDIST_WORKER_COUNT", "1"))
  return held > min(3 << 30, whole / 2 / workers)


@pytest.fixture(scope="module", autouse=True)
def programs_in_memory():
  """Compiled programs are kept from file to file, and dropped after a file that fills memory."""
  yield
  if memory_is_full():
    import jax

    jax.clear_caches()
    gc.collect()
    with contextlib.suppress(AttributeError):  # of glibc, which else keeps what was freed
      ctypes.CDLL(None).malloc_trim(0)


@pytest.fixture(scope="session")
def shared_data():
  """`shared_data("tok", "vocab.txt") -> Path`, from PLM_JAX_SHARED_DATA or ../shared/data.

  Skips the test, with the reason, where that file or folder is not there.
  """
  root = Path(os.environ.get("PLM_JAX_SHARED_DATA") or ROOT.parent / "shared" / "data")

  def find(*parts: str) -> Path:
    path = root.joinpath(*parts)
    if not path.exists():
      pytest.skip(f"{path} is not there (set PLM_JAX_SHARED_DATA to the folder of shared data)")
    return path

  return find


@pytest.fixture
def cell(monkeypatch):
  """The code runs in a cell of a notebook; a list of all that was drawn in its place."""
  shown = []
  place = types.SimpleNamespace(update=shown.append)
  display = types.ModuleType("IPython.display")
  display.HTML, display.display = str, lambda html, display_id: place
  ipython = types.ModuleType("IPython")
  ipython.get_ipython = type("ZMQInteractiveShell", (), {})
  monkeypatch.setitem(sys.modules, "IPython", ipython)
  monkeypatch.setitem(sys.modules, "IPython.display", display)
  return shown

"""No compiled step of an accelerator costs more than it did (tests/planning/ceilings.py)."""

import datetime
import json
import os
import subprocess
import sys
from pathlib import Path

import jax
import pytest

from plm_jax.planning.program_text import parsed
from tests.planning import ceilings

ROOT = Path(__file__).resolve().parents[2]
RECORD = json.loads(ceilings.RECORD.read_text())
KNOWN = RECORD["cases"]
SLACK = {"temporaries": 1.05, "traffic": 1.05, "seconds": 1.05, "squares": 1.0, "float32": 1.0}
SLACK |= {"operations": 1.02, "collectives": 1.0}


def of_today(chip: str) -> str:
  """One case a day for each kind of chip; all by `python -m tests.planning.ceilings`."""
  names = [name for name in KNOWN if chip in name]
  return names[datetime.date.today().toordinal() % len(names)]


@pytest.mark.slow
@pytest.mark.parametrize(("chip", "plugin"), [("v5e", "libtpu"), ("h100", "jax_plugins")])
def test_a_step_of_today_stays_below_its_ceilings(chip, plugin):
  chips = Path(os.environ.get("PLM_JAX_CHIPS", "chips"))
  if not (chips / plugin).is_dir():
    pytest.skip(f"{chips / plugin} is not there (PLM_JAX_CHIPS names a folder of compilers)")
  if jax.__version__ != RECORD["jax"]:
    pytest.skip(f"the ceilings were recorded with jax {RECORD['jax']}; record them again")
  name = of_today(chip)
  path = os.pathsep.join([str(ROOT), str(chips)])
  # The flags of tests/conftest.py are not known to libtpu.
  environment = {k: v for k, v in os.environ.items() if k != "XLA_FLAGS"} | {"PYTHONPATH": path}
  done = subprocess.run(
    [sys.executable, "-m", "tests.planning.ceilings", name],
    capture_output=True, text=True, check=False, env=environment, cwd=ROOT,
  )  # fmt: skip
  assert done.returncode == 0, done.stderr
  found = json.loads(done.stdout.splitlines()[-1])
  ceiling = KNOWN[name]
  over = {k: v for k, v in found.items() if k != "name" and v > SLACK[k] * ceiling[k]}
  assert not over, f"{name} costs {over}, and {ceiling} when it was recorded"


def test_no_case_multiplies_float32_or_has_all_pairs_of_positions():
  assert KNOWN.keys() == ceilings.CASES.keys()
  assert not any(found["float32"] for found in KNOWN.values())
  assert not any(found["squares"] for found in KNOWN.values())


PROGRAM = """
HloModule products

%fused (p: f32[64,8], q: f32[8,64]) -> f32[2,64,64] {
  %p = f32[64,8]{1,0} parameter(0)
  %q = f32[8,64]{1,0} parameter(1)
  %d = f32[64,64]{1,0} dot(%p, %q), lhs_contracting_dims={1}, rhs_contracting_dims={0}
  ROOT %r = f32[2,64,64]{2,1,0} broadcast(%d), dimensions={1,2}
}

ENTRY %main (a: f32[64,8], b: f32[8,64]) -> f32[2,64,64] {
  %a = f32[64,8]{1,0} parameter(0)
  %b = f32[8,64]{1,0} parameter(1)
  ROOT %f = f32[2,64,64]{2,1,0} fusion(%a, %b), kind=kLoop, calls=%fused
}
"""


def test_products_of_float32_and_squares_are_found_within_a_fusion():
  program = parsed(PROGRAM)
  assert ceilings.float32_products(program) == 2 * 64 * 64 * 8
  assert ceilings.squares(program, 64) == 4 * 2 * 64 * 64 and ceilings.squares(program, 8) == 0

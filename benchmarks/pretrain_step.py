"""One pretraining step of plm_jax against PyTorch: BERT, GPT and T5.

The same work on every side: dropout 0.1 (attention probabilities included), gradients clipped to
norm 1, AdamW, linear schedule, the same number of parameters and the same batches. Every contender
lives in a process of its own, warmed up and called in turn, so that whatever else the machine does
hits all of them; the ratios are medians over rounds, by the clock and by the processor time of the
process (what is left when others take turns on the machine; give it one core with taskset).

  plm_jax         this project as it is by default; +scan, +unroll, +threefry, +remat change its
                  Compute (plm_jax+unroll+threefry), @FOLDER takes another checkout (plm_jax@../old)
  stock           transformers as it stands, with SDPA where it has that: BertForPreTraining (masked
                  tokens and next sentence, the head at every position), T5ForConditionalGeneration
  expert          BERT with the head at the masked positions only
  nanogpt         a GPT-2 in the manner of nanoGPT (nano_gpt.py)
  stock+compile, expert+compile, nanogpt+compile   the same under torch.compile
  +keep           of any of them: the process keeps the memory it frees (mallopt), for CPUs

  python benchmarks/pretrain_step.py                                  BERT, CPU, three minutes
  python benchmarks/pretrain_step.py --preset=cpu_gpt,cpu_t5
  python benchmarks/pretrain_step.py --preset=gpu_base_128,gpu_large_512,gpu_gpt2_1024,gpu_t5_base
"""

from __future__ import annotations

import dataclasses
import importlib.util
import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
from absl import flags

ROOT = Path(__file__).resolve().parents[1]
if str(ROOT) not in sys.path:
  sys.path.insert(0, str(ROOT))  # so that it runs where plm_jax is not installed

from benchmarks.pretrain_cases import PEAK, PRESETS, Case, flops_per_token  # noqa: E402
from plm_jax import cli  # noqa: E402
from plm_jax.errors import UserError  # noqa: E402

_PRESET = flags.DEFINE_list("preset", ["cpu_small"], f"which sizes, of {', '.join(PRESETS)}")
for _name in ("layers", "width", "heads", "vocab", "batch", "length", "rounds", "steps"):
  flags.DEFINE_integer(_name, None, f"{_name} instead of the preset's", lower_bound=1)
flags.DEFINE_integer("targets", None, "the decoder's tokens per row, of T5", lower_bound=1)
flags.DEFINE_float("dropout", None, "rate, on every side", lower_bound=0.0, upper_bound=0.9)
flags.DEFINE_enum("dtype", None, ["float32", "bfloat16"], "of activations (autocast in PyTorch)")
flags.DEFINE_bool("padded", None, "a tenth of the rows is shorter: attention needs a mask")
flags.DEFINE_list("contenders", None, "who runs; ratios are against the first")
_JSON = flags.DEFINE_string("json", None, "also write all times to this file")


# --- a process for each contender ----------------------------------------------------------------


class Contender:
  """The parent's end of one worker."""

  def __init__(self, name: str, case: Case):
    self.name = name
    checkout = Path(name.partition("@")[2] or ROOT).resolve()
    environment = os.environ | {
      "PYTHONPATH": os.pathsep.join([str(checkout), os.environ.get("PYTHONPATH", "")]),
      "XLA_PYTHON_CLIENT_PREALLOCATE": "false",  # the contenders share one GPU
    }
    program = str(Path(__file__).with_name("pretrain_contenders.py"))
    words = [sys.executable, program, name, json.dumps(vars(case))]
    self.process = subprocess.Popen(
      words, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=environment
    )

  def answer(self) -> dict:
    line = self.process.stdout.readline()
    if not line:
      raise UserError(f"the contender {self.name} ended; what it said stands above")
    return json.loads(line)

  def time(self, steps: int) -> dict:
    print(steps, file=self.process.stdin, flush=True)
    return self.answer()

  def end(self) -> None:
    self.process.stdin.close()
    self.process.wait()


# --- the comparison ------------------------------------------------------------------------------


def chosen_cases() -> dict[str, Case]:
  """The presets that the flags name, with what the flags change."""
  own = {f.name: flags.FLAGS[f.name].value for f in dataclasses.fields(Case) if f.name != "family"}
  changes = {name: value for name, value in own.items() if value is not None}
  if "contenders" in changes:
    changes["contenders"] = tuple(changes["contenders"])
  for preset in _PRESET.value:
    if preset not in PRESETS:
      raise UserError(f"there is no preset {preset!r}; there are {', '.join(PRESETS)}")
  cases = {name: dataclasses.replace(PRESETS[name], **changes) for name in _PRESET.value}
  for preset, case in cases.items():
    if case.targets and case.family != "t5":
      raise UserError(f"--targets is read by T5 only, and {preset} is a {case.family}")
    if case.padded and case.family == "gpt":
      raise UserError(f"--padded: the rows of {preset} are filled, as GPT's are")
    for name in case.contenders:
      _check(name, case.family)
  return cases


_TORCH = {"bert": ("stock", "expert"), "gpt": ("nanogpt",), "t5": ("stock",)}


def _check(name: str, family: str) -> None:
  kind, *options = name.partition("@")[0].split("+")
  jax_options, torch_options = {"scan", "unroll", "hash", "threefry", "remat"}, {"compile"}
  known = {"plm_jax": jax_options} | dict.fromkeys(_TORCH[family], torch_options)
  if kind not in known or set(options) - known[kind] - {"keep"}:
    raise UserError(
      f"{family} has no contender {name!r}; it has plm_jax (with {', '.join(sorted(jax_options))} "
      f"after a +) and {', '.join(_TORCH[family])} (with +compile); all of them with +keep"
    )
  missing = [m for m in ("torch", "transformers") if not importlib.util.find_spec(m)]
  if kind != "plm_jax" and missing:
    raise UserError(
      f"the contender {name} needs {' and '.join(missing)}: pip install -e '.[bench]' (or leave it "
      "out: --contenders=plm_jax)"
    )


def measure(case: Case) -> list[dict]:
  """One record per contender: its times in every round and what it says of itself."""
  contenders = [Contender(name, case) for name in case.contenders]
  try:
    records = [
      {"name": c.name, **c.answer(), "round_ms": [], "round_cpu_ms": []} for c in contenders
    ]
    for _ in range(case.rounds):
      for contender, record in zip(contenders, records, strict=True):
        answer = contender.time(case.steps)
        record["round_ms"].append(answer.pop("ms"))
        record["round_cpu_ms"].append(answer.pop("cpu_ms"))
        record |= answer
  finally:
    for contender in contenders:
      contender.end()
  return records


def show(preset: str, case: Case, records: list[dict]) -> None:
  """The table: ms and tokens per second of each, and how many times as fast the first one is."""
  sizes = ", ".join(f"{r['parameters']:,}" for r in records)
  targets = f" + {case.targets}" if case.targets else ""
  print(
    f"\n{preset}: {case.layers} layers, width {case.width}, vocabulary {case.vocab}, "
    f"{case.batch} x {case.length}{targets} tokens, dropout {case.dropout}, {case.dtype}; "
    f"{case.rounds} rounds of {case.steps} steps; {len(os.sched_getaffinity(0))} cores, load "
    f"{os.getloadavg()[0]:.1f}\n"
    f"{', '.join(sorted({r['device'] for r in records}))}; parameters {sizes}\n"
  )
  first = records[0]
  print(f"{'':61}  {first['name']} is so many times as fast")
  print(
    f"{'':20}{'ms/step':>9}{'CPU ms':>9}{'tokens/s':>10}{'MFU':>5}{'loss':>7}{'GiB':>6}"
    f"{'start':>8}  "
    f"{'by the clock':23}by processor time"
  )
  for record in records:
    ms, cpu = np.median(record["round_ms"]), np.median(record["round_cpu_ms"])
    gib = f"{record['peak_gib']:.1f}" if record["peak_gib"] else "-"
    tokens = case.batch * (case.length + case.targets) / ms * 1e3
    print(
      f"{record['name'][:19]:20}{ms:9.1f}{cpu:9.1f}{tokens:10,.0f}"
      f"{_mfu(case, tokens, record['device']):>5}{record['mean_loss']:7.3f}"
      f"{gib:>6}{record['first_step_s']:6.1f} s  {_ratio(record, first, 'round_ms'):23}"
      f"{_ratio(record, first, 'round_cpu_ms')}"
    )


def _mfu(case: Case, tokens: float, device: str) -> str:
  """Share of the device's `PEAK`."""
  flops = flops_per_token(case)
  peak = next((peak for name, peak in PEAK.items() if name in device), None)
  return f"{tokens * flops / peak:.0%}" if flops and peak else "-"


def _ratio(record: dict, first: dict, times: str) -> str:
  low, ratio, high = np.percentile(np.divide(record[times], first[times]), (25, 50, 75))
  return f"{ratio:.3f} [{low:.3f}, {high:.3f}]"


def main() -> int:
  results = {}
  for preset, case in chosen_cases().items():
    records = measure(case)
    results[preset] = {"case": vars(case), "records": records}
    show(preset, case, records)
    if _JSON.value:
      Path(_JSON.value).write_text(json.dumps(results, indent=1))
  return 0


if __name__ == "__main__":
  cli.run(main)

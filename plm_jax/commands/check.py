"""Compares the outputs of a published model here with those of transformers, if it is installed.

  python -m plm_jax.check DIR

Inputs are random tokens, in rows without padding, and with padding right, left and on both sides.
"""

from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from absl import flags

from plm_jax import cli
from plm_jax.errors import UserError
from plm_jax.export import hf, sentence
from plm_jax.export.seq2seq import SOURCE

FLAGS = flags.FLAGS


class ParityResult(NamedTuple):
  """One output for one kind of rows. agreement: share of positions with the same best entry."""

  output: str
  rows: str
  difference: float
  agreement: float | None


def define_flags() -> None:
  # The default is for float32, and for dozens of layers.
  flags.DEFINE_float("tolerance", 1e-4, "The largest difference that is allowed.")


def main(directory: str) -> int:
  """Prints a table; the exit code is 1 where an output differs by more than the tolerance."""
  compared, tolerance = compare(directory), FLAGS.tolerance
  print(f"{'output':28}{'rows':18}{'largest difference':>20}{'top-1 agreement':>18}")
  for line in compared:
    agreement = "" if line.agreement is None else f"{line.agreement:.1%}"
    print(f"{line.output:28}{line.rows:18}{line.difference:>20.1e}{agreement:>18}")
  worst = max(line.difference for line in compared)
  verdict = "agrees" if worst <= tolerance else "DIFFERS"
  print(f"{directory} {verdict}: largest difference {worst:.1e}, tolerance {tolerance:.0e}")
  return int(worst > tolerance)


def compare(directory: str) -> list[ParityResult]:
  """Every output on every kind of rows. Errors: `UserError` without transformers."""
  model = hf.load(directory)
  reference = _reference(directory, model)
  if reference.config.pad_token_id is None:  # a decoder needs it to classify several rows
    reference.config.pad_token_id = _pad(model)
  compared = []
  for rows, inputs in _inputs(model).items():
    ours, theirs = hf.run(model, **inputs), _outputs(reference, inputs)
    for name in ours.keys() & theirs.keys():
      mask = inputs["decoder_attention_mask" if "decoder_input_ids" in inputs else "attention_mask"]
      mask = inputs["attention_mask"] if name.startswith("encoder") else mask
      compared.append(_compared(name, rows, ours[name], theirs[name], mask))
  return sorted(compared)


def _compared(name: str, rows: str, ours: np.ndarray, theirs: np.ndarray, mask) -> ParityResult:
  if ours.shape[:2] == mask.shape:
    ours, theirs = ours[mask == 1], theirs[mask == 1]
  agreement = None
  if name.endswith("logits") and ours.ndim == 2:
    agreement = float((ours.argmax(-1) == theirs.argmax(-1)).mean())
  return ParityResult(name, rows, float(np.abs(ours - theirs).max()), agreement)


def _inputs(model: hf.Pretrained) -> dict[str, dict[str, np.ndarray]]:
  """Kind of rows -> inputs by transformers' names. If classes are read at the end token of a
  source, every row has one, and the decoder gets no inputs."""
  rng, limits = np.random.default_rng(0), model.family.limits(model.config)
  names = model.family.inputs_of(model.config)
  end = None
  if "decoder_input_ids" in names and "classes" in model.heads:
    names, end = SOURCE, model.family.special("eos_token_id", model.document)
  length = min(model.family.longest(model.config) or 24, 24)
  cut = length // 3
  kinds = {"not padded": (0, 0), "padded right": (0, cut), "padded left": (cut, 0)}
  kinds["padded on both"] = (cut // 2, cut // 2)
  pad, inputs_by_kind = _pad(model), {}
  for kind, (left, right) in kinds.items():
    inputs: dict[str, Any] = {}
    for name in ("input_ids", "decoder_input_ids"):
      if name in names:
        mask = np.ones((4, length), int)
        mask[:, :left] = mask[:, length - right :] = 0
        ids = rng.integers(0, limits[name], mask.shape)
        ids = np.where(ids == pad, (pad + 1) % limits[name], ids)
        inputs[name] = np.where(mask == 1, ids, pad)
        if end is not None:
          inputs[name][inputs[name] == end] = min({0, 1, 2} - {pad, end})
          inputs[name][:, length - right - 1] = end
        inputs[name.replace("input_ids", "attention_mask")] = mask
    if limits.get("token_type_ids"):
      inputs["token_type_ids"] = rng.integers(0, limits["token_type_ids"], (4, length))
    inputs_by_kind[kind] = inputs
  return inputs_by_kind


def _pad(model: hf.Pretrained) -> int:
  """The padding id of config.json, else of the family, else 0."""
  pad = model.document.get("pad_token_id")
  return model.family.ids.get("pad_token_id", 0) if pad is None else pad


def _reference(directory: str, model: hf.Pretrained):
  try:
    import torch
    import transformers
  except ImportError:
    raise UserError("this needs torch and transformers: pip install -e '.[bench]'.") from None
  transformers.logging.set_verbosity_error()
  transformers.logging.disable_progress_bar()
  kind = getattr(transformers, model.architecture)
  place = sentence.body_of(Path(directory))
  return kind.from_pretrained(place, dtype=torch.float32).eval()


def _outputs(reference, inputs: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
  import torch

  with torch.no_grad():
    outputs = reference(**{name: torch.tensor(array) for name, array in inputs.items()})
  return {name: x.numpy() for name, x in outputs.items() if isinstance(x, torch.Tensor)}


if __name__ == "__main__":
  cli.run(main, words=("DIR",))

"""LoRA and (IA)3 in the files of Hugging Face PEFT (0.21.2, tuners/lora and ia3, layer.py)."""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Mapping

import numpy as np

from plm_jax.errors import UserError
from plm_jax.export.options import Options
from plm_jax.export.peft_modules import (
  Place,
  as_arrays,
  entries_of,
  part_of,
  placed,
  places_of,
  refuse_shape,
  taken,
)
from plm_jax.export.pretrained import Pretrained
from plm_jax.peft import adapted
from plm_jax.peft.adapted import Sizes
from plm_jax.peft.ia3 import Ia3
from plm_jax.peft.lora import Lora, lengths


def read_lora(options: Options, tensors: dict, base: Pretrained):
  rank, alpha = options.take("r", 8), options.take("lora_alpha", 8.0)
  lora = Lora(
    rank=rank,
    alpha=alpha,
    rslora=options.take("use_rslora", False),
    dropout=options.take("lora_dropout", 0.0),
    dora=options.take("use_dora", False),
  )
  patterns: dict[str, float] = options.take("alpha_pattern", {})
  names = ("lora_A.weight", "lora_B.weight", "lora_magnitude_vector")
  modules = taken(tensors, names)
  if not modules:
    raise UserError(f"{options.where} describes a LoRA, and its file has no lora_A.")
  needed = names if lora.dora else names[:2]
  for module, arrays in modules.items():
    if missing := set(needed) ^ set(arrays):
      raise UserError(f"{module}.{min(missing)} is missing, or has no meaning in {options.where}.")
  lora = dataclasses.replace(lora, rank=max(len(each[names[0]]) for each in modules.values()))
  linears, added = adapted.linears(base.params), {}
  for module, place, sizes, arrays in placed(modules, base):
    a, b = arrays[names[0]], arrays[names[1]]
    refuse_shape(f"{module}.{names[0]}", a, None, sizes.inputs)
    refuse_shape(f"{module}.{names[1]}", b, place.parts * sizes.outputs, len(a))
    own = dataclasses.replace(lora, alpha=_of_pattern(patterns, module, alpha)).scale(len(a))
    b = part_of(b, place) * (own / lora.scale(lora.rank))
    into = added.setdefault(place.path, _empty_lora(lora, sizes, linears[place.path][0]))
    into["lora_a"][place.layer][:, : len(a)] = a.T
    into["lora_b"][place.layer][: len(a)] = b.T
    if lora.dora:
      into["lora_magnitude"][place.layer] = part_of(arrays[names[2]], place)
  lora = dataclasses.replace(lora, targets=tuple(added))
  return lora, as_arrays(added), tensors


def _empty_lora(lora: Lora, sizes: Sizes, linear) -> dict[str, np.ndarray]:
  """No update: that of the layers which a file leaves out."""
  empty = {
    "lora_a": np.zeros((*sizes.layers, sizes.inputs, lora.rank), np.float32),
    "lora_b": np.zeros((*sizes.layers, lora.rank, sizes.outputs), np.float32),
  }
  if lora.dora:
    empty["lora_magnitude"] = np.array(lengths(adapted.matrix(linear, sizes)))
  return empty


def _of_pattern(patterns: Mapping[str, float], module: str, default: float) -> float:
  """As peft's `get_pattern_key`: the first pattern that fits the end of the module's name."""
  fitting = (value for key, value in patterns.items() if re.match(rf"(.*\.)?({key})$", module))
  return next(fitting, default)


def write_lora(lora: Lora, added: Mapping, base: Pretrained) -> tuple[dict, dict]:
  tensors: dict[str, np.ndarray] = {}
  ranks: dict[str, int] = {}
  for module, places in places_of(base).items():
    present = [place for place in places if place.path in added]
    if not present:
      continue
    a, b = _joined_lora(places, added, lora)
    tensors[f"{module}.lora_A.weight"], tensors[f"{module}.lora_B.weight"] = a, b
    if len(a) != lora.rank:
      ranks[module] = len(a)
    if lora.dora:
      if len(present) < len(places):
        raise UserError(
          f"{module} is one linear map in transformers, and DoRA changes only a part of it; target "
          "query, key and value to write it for peft"
        )
      lengths = [added[p.path]["lora_magnitude"][p.layer] for p in places]
      tensors[f"{module}.lora_magnitude_vector"] = np.concatenate(lengths)
  document = {
    "peft_type": "LORA",
    "r": lora.rank,
    "lora_alpha": lora.alpha,
    "lora_dropout": lora.dropout,
    "use_rslora": lora.rslora,
    "use_dora": lora.dora,
    "bias": "none",
    "fan_in_fan_out": any(entry.convolution for entry in entries_of(base)),
    "rank_pattern": {re.escape(module): rank for module, rank in ranks.items()},
    "target_modules": sorted({name.rpartition(".lora_")[0] for name in tensors}),
  }
  return document, tensors


def _joined_lora(places: list[Place], added: Mapping, lora: Lora) -> tuple[np.ndarray, np.ndarray]:
  """A `[r, in]` and B `[out, r]` of a module. Maps that transformers joins share A if theirs is the
  same; otherwise each has a block of B, and the rank is the sum of theirs."""
  parts = [
    None if p.path not in added else [np.asarray(added[p.path][n][p.layer]).T for n in _AB]
    for p in places
  ]
  present = [part for part in parts if part is not None]
  width = len(present[0][1])
  if all(np.array_equal(part[0], present[0][0]) for part in present):
    zeros = np.zeros_like(present[0][1])
    return present[0][0], np.concatenate([zeros if part is None else part[1] for part in parts])
  ranks = [0 if part is None else len(part[0]) for part in parts]
  total = sum(ranks)
  b, column = np.zeros((len(parts) * width, total), np.float32), 0
  for number, part in enumerate(parts):
    if part is not None:
      share = lora.scale(ranks[number]) / lora.scale(total)
      b[number * width : (number + 1) * width, column : column + ranks[number]] = share * part[1]
      column += ranks[number]
  return np.concatenate([part[0] for part in present]), b


_AB = ("lora_a", "lora_b")


def read_ia3(options: Options, tensors: dict, base: Pretrained):
  modules = taken(tensors, ("ia3_l",))
  added: dict[str, dict[str, np.ndarray]] = {}
  for module, place, sizes, arrays in placed(modules, base):
    gain = arrays["ia3_l"]
    is_input = gain.shape[:1] == (1,)
    if is_input:
      refuse_shape(f"{module}.ia3_l", gain, 1, sizes.inputs)
    else:
      refuse_shape(f"{module}.ia3_l", gain, place.parts * sizes.outputs, 1)
    name = "input_gain" if is_input else "output_gain"
    size = sizes.inputs if is_input else sizes.outputs
    into = added.setdefault(place.path, {name: np.ones((*sizes.layers, size), np.float32)})
    if name not in into:
      raise UserError(f"{module}.ia3_l has another form than in other layers.")
    into[name][place.layer] = gain[0] if is_input else part_of(gain[:, 0], place)
  outputs, inputs = (
    tuple(path for path, arrays in added.items() if name in arrays)
    for name in ("output_gain", "input_gain")
  )
  return Ia3(outputs=outputs, inputs=inputs), as_arrays(added), tensors


def write_ia3(ia3: Ia3, added: Mapping, base: Pretrained) -> tuple[dict, dict]:
  tensors, inputs = {}, []
  for module, places in places_of(base).items():
    gains = [added.get(place.path, {}) for place in places]
    if not any(gains):
      continue
    if any("input_gain" in gain for gain in gains):
      if len(places) > 1:
        raise UserError(f"{module} is one linear map in transformers, with one gain of its inputs")
      inputs.append(module)
      tensors[f"{module}.ia3_l"] = np.asarray(gains[0]["input_gain"][places[0].layer])[None]
      continue
    size = next(gain["output_gain"].shape[-1] for gain in gains if gain)
    columns = [
      np.asarray(gain["output_gain"][place.layer]) if gain else np.ones(size, np.float32)
      for gain, place in zip(gains, places, strict=True)
    ]
    tensors[f"{module}.ia3_l"] = np.concatenate(columns)[:, None]
  document = {
    "peft_type": "IA3",
    "target_modules": sorted(name.removesuffix(".ia3_l") for name in tensors),
    "feedforward_modules": sorted(inputs),
    "fan_in_fan_out": any(entry.convolution for entry in entries_of(base)),
  }
  return document, tensors

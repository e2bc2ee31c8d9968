"""Adapters of Hugging Face PEFT, read and written: adapter_config.json, adapter_model.safetensors.

    model = peft.load("lora_dir", hf.load("bert-base-uncased"))    # a `Pretrained` with both
    peft.save(adapter, base, "copy")                               # peft loads it

Source: huggingface/peft 0.21.2 (tuners/*/config.py, layer.py, utils/save_and_load.py). The names of
modules are those of the base's weights (`names.py`). An option is read, known to change no output,
or refused by name.
"""

from __future__ import annotations

import dataclasses
import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from plm_jax.data.published_folder import read_object
from plm_jax.errors import UserError
from plm_jax.export import hf
from plm_jax.export.names import names_of, to_theirs
from plm_jax.export.options import Options
from plm_jax.export.peft_linear import read_ia3, read_lora, write_ia3, write_lora
from plm_jax.export.peft_modules import entries_of, refuse_shape
from plm_jax.export.peft_prompts import (
  PROMPT,
  read_prefix,
  read_prompt,
  write_prefix,
  write_prompt,
)
from plm_jax.export.pretrained import Pretrained
from plm_jax.export.tensors import read_safetensors, write_safetensors
from plm_jax.models.parameters import named
from plm_jax.peft.adapted import Peft
from plm_jax.peft.ia3 import Ia3
from plm_jax.peft.lora import Lora
from plm_jax.peft.prefix import Prefix
from plm_jax.peft.prompt import Prompt

CONFIG, WEIGHTS = "adapter_config.json", "adapter_model.safetensors"
BEFORE = "base_model.model."  # the prefix of all names
# The task of a file -> the head that it needs; other tasks need none that the base lacks.
TASKS = {"SEQ_CLS": "classes", "TOKEN_CLS": "token_classes", "QUESTION_ANS": "span"}
LANGUAGE = {"decoder": "CAUSAL_LM", "encoder_decoder": "SEQ_2_SEQ_LM"}
# They say how an adapter was made or is loaded, and change no output of a given file.
SILENT = (
  *("auto_mapping", "peft_version", "base_model_name_or_path", "revision", "inference_mode"),
  *("target_modules", "exclude_modules", "feedforward_modules", "modules_to_save", "bias"),
  *("init_lora_weights", "init_ia3_weights", "layers_to_transform", "layers_pattern"),
  *("rank_pattern", "megatron_core", "loftq_config", "eva_config", "corda_config"),
  *("lora_ga_config", "qalora_group_size", "fan_in_fan_out", "ensure_weight_tying"),
)
# They change the computation if they are set.
UNSET = {
  "lora_bias": False,
  "use_qalora": False,
  "megatron_config": None,
  "trainable_token_indices": None,
  "alora_invocation_tokens": None,
  "layer_replication": None,
  "target_parameters": None,
  "arrow_config": None,
  "use_bdlora": None,
  "kasa_config": None,
  "velora_config": None,
  "monteclora_config": None,
}


class Adapter(NamedTuple):
  """A method with its parameters. trained: paths of the base's parameters and their new values."""

  peft: Peft
  added: dict[str, dict[str, jax.Array]]
  trained: dict[str, jax.Array]


def is_adapter(directory: Path) -> bool:
  return (directory / CONFIG).is_file()


def load(directory: str | Path, base: Pretrained) -> Pretrained:
  """The base with an adapter. Errors: `UserError` for an unknown option, or another base."""
  adapter, base = read(directory, base)
  whole, peft = with_trained(base, adapter), adapter.peft
  params = (peft.merged if peft.merges else peft.apply)(whole.params, adapter.added)
  return dataclasses.replace(whole, params=params)


def with_trained(base: Pretrained, adapter: Adapter) -> Pretrained:
  """The base with the parameters that the adapter replaces."""
  leaves = [adapter.trained.get(path, leaf) for path, leaf in named(base.params)]
  params = jax.tree.unflatten(jax.tree.structure(base.params), leaves)
  return dataclasses.replace(base, params=params)


def read(directory: str | Path, base: Pretrained) -> tuple[Adapter, Pretrained]:
  """The adapter, and the base with the head that the adapter brings.

  Errors: `UserError` for an unknown option, for a tensor of no module of the base, and for one of
  another shape.
  """
  directory = Path(directory)
  file = directory / CONFIG
  options = Options(read_object(file), str(file))
  tensors = {
    _plain(name): np.asarray(array, np.float32)
    for name, array in read_safetensors(directory / WEIGHTS).items()
  }
  base = _with_head(base, options.document.get("task_type"), tensors, file)
  options.fixed("task_type", options.document.get("task_type"))
  kind = options.document.get("peft_type")
  if kind not in READERS:
    raise UserError(
      f"{file} sets peft_type={kind!r}, which this project does not read; it reads "
      f"{', '.join(READERS)}."
    )
  options.fixed("peft_type", kind)
  peft, added, rest = READERS[kind](options, tensors, base)
  for name, value in UNSET.items():
    if name in options.document:
      options.fixed(name, value)
  options.finish(SILENT)
  return Adapter(peft, added, _trained(rest, base, directory)), base


def save(adapter: Adapter, base: Pretrained, directory: Path) -> None:
  """Writes the two files. base: with the adapter's trained values.

  Errors: `UserError` for a method that PEFT does not have.
  """
  kind = type(adapter.peft)
  if kind not in WRITERS:
    raise UserError(
      f"PEFT has no {kind.__name__}; python -m plm_jax.convert SRC DST without --to writes a whole "
      "model"
    )
  document, tensors = WRITERS[kind](adapter.peft, adapter.added, base)
  targets = set(document.get("target_modules", ()))
  whole, names = to_theirs(entries_of(base), base.params), _names_of(adapter.trained, base)
  saved = {name.rpartition(".")[0] for name in names if not _is_inner_bias(name, base)}
  tensors |= {name: x for name, x in whole.items() if name.rpartition(".")[0] in saved}
  for name in (name for name in names if name.rpartition(".")[0] not in saved):
    module = name.removesuffix(".bias")
    tensors[f"{module}.base_layer.bias" if module in targets else name] = whole[name]
    document["bias"] = "lora_only" if module in targets and document["bias"] != "all" else "all"
  if PROMPT in tensors:  # peft names the whole head here
    saved = {name.split(".")[0] for name in saved}
  document |= {
    "task_type": _task_of(base),
    "base_model_name_or_path": base.document.get("_name_or_path"),
    "inference_mode": True,
    "modules_to_save": sorted(saved) or None,
  }
  directory.mkdir(parents=True, exist_ok=True)
  before = BEFORE if PROMPT not in tensors else "base_model."
  named_in_file = {n if n == PROMPT else before + n: x for n, x in tensors.items()}
  write_safetensors(directory / WEIGHTS, named_in_file)
  (directory / CONFIG).write_text(json.dumps(document, indent=2, sort_keys=True) + "\n")


def _task_of(base: Pretrained) -> str | None:
  for task, head in TASKS.items():
    if head in base.heads:
      return task
  if "lm" not in base.heads:
    return None
  return LANGUAGE["encoder_decoder" if hasattr(base.config, "source_ids") else "decoder"]


def _plain(name: str) -> str:
  """The name of a tensor as in the base's file."""
  name = name.removeprefix(BEFORE).removeprefix("base_model.")
  return name.replace(".base_layer.", ".")


def _names_of(paths: Mapping[str, Any], base: Pretrained) -> set[str]:
  """The names of the tensors that these parameters are."""
  ours = {entry.ours: entry for entry in entries_of(base)}
  shapes = {path: leaf.shape for path, leaf in named(base.params)}
  return {
    name.partition("#")[0] for path in paths for name in names_of(ours[path], shapes[path]).flat
  }


def _is_inner_bias(name: str, base: Pretrained) -> bool:
  """Whether it is a bias of the body, which LoRA may train without the rest of its module."""
  return name.endswith(".bias") and name.startswith(base.family.base_of(base.heads) or name)


# --- heads and other trained parameters -----------------------------------------------------------


def _with_head(base: Pretrained, task: Any, tensors: Mapping, file: Path) -> Pretrained:
  """The base with the head of the task; its values must be among the tensors."""
  head = TASKS.get(task)
  if head is None or head in base.heads:
    return base
  sizes = {head: 0, **({"pooler": 0} if "pooler" in base.heads else {})}
  biases = [name for name in tensors if name.endswith((".bias", ".weight")) and ".lora" not in name]
  outputs = [len(tensors[name]) for name in biases if re.match(r"(classif|score|qa_out)", name)]
  if not outputs:
    raise UserError(f"{file} is for {task}, and neither the base nor the adapter has its head.")
  if head != "span":
    sizes[head] = min(outputs)
  made = jax.eval_shape(lambda key: base.config.init(key, sizes), jax.random.key(0))
  known = dict(named(base.params))
  leaves = [known.get(path, jnp.zeros(leaf.shape)) for path, leaf in named(made)]
  params = jax.tree.unflatten(jax.tree.structure(made), leaves)
  document = {name: value for name, value in base.document.items() if name != "id2label"}
  result = Pretrained(base.config, params, None, document)
  ours = {entry.ours: entry for entry in entries_of(result)}
  for path, leaf in named(made):
    names = names_of(ours[path], leaf.shape).flat if path not in known else ()
    for name in names:
      if name not in tensors:
        raise UserError(f"{file} needs {name}, which neither the base nor the adapter has.")
  return result


def _trained(
  tensors: dict[str, np.ndarray], base: Pretrained, directory: Path
) -> dict[str, jax.Array]:
  """Path -> new value of the base's parameters that the adapter replaces."""
  whole = to_theirs(entries_of(base), base.params)
  for name, array in tensors.items():
    if name not in whole:
      raise UserError(f"{directory / WEIGHTS} has {name}, which the base does not have.")
    refuse_shape(name, array, *whole[name].shape)
  if not tensors:
    return {}
  from_file = hf.to_ours(entries_of(base), base.params, whole | tensors, str(directory))
  before = dict(named(base.params))
  return {
    path: jnp.asarray(leaf)
    for path, leaf in named(from_file)
    if not np.array_equal(leaf, before[path])
  }


READERS = {
  "LORA": read_lora,
  "IA3": read_ia3,
  "PROMPT_TUNING": read_prompt,
  "PREFIX_TUNING": read_prefix,
}
WRITERS = {Lora: write_lora, Ia3: write_ia3, Prompt: write_prompt, Prefix: write_prefix}

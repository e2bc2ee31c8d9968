"""Published checkpoints: directories of transformers and Sentence-BERT, read and written.

    model = hf.load("bert-base-uncased")            # config.json and weights; no torch needed
    hf.run(model, input_ids=[[101, 7592, 102]])     # {"prediction_logits": ..., ...}
    hf.save(model, "copy")                          # transformers loads it without a warning

`python -m plm_jax.check DIR` compares with transformers, if it is installed.

`families/` has each family's options, tensors and outputs. Unknown ones are errors that name them.
"""

import dataclasses
import functools
import json
import sys
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any

import jax
import numpy as np

from plm_jax.data.published_folder import file_in, read_object
from plm_jax.errors import UserError
from plm_jax.export import sentence
from plm_jax.export.family import Family, family_of_type
from plm_jax.export.heads import SIZED, labelled
from plm_jax.export.inputs import checked_inputs
from plm_jax.export.names import Entry, linear, to_ours, to_theirs, under
from plm_jax.export.options import Options
from plm_jax.export.pretrained import Pretrained, has_dense, tops
from plm_jax.export.tensors import SINGLE, check_finite, read_tensors, write_safetensors
from plm_jax.models.compute import Compute
from plm_jax.models.encoder import Encoder
from plm_jax.models.model import Model


def load(directory: str | Path) -> Pretrained:
  """The model in a directory: config.json with model.safetensors, its shards or pytorch_model.bin.

  Errors: `UserError` if it is not such a directory, is damaged, has an unknown option or tensor, or
  lacks a tensor. Nothing in the directory is executed.
  """
  directory = Path(directory)
  body = sentence.body_of(directory)
  file = body / "config.json"
  if not directory.is_dir() or file_in(body, file.name) is None:
    raise UserError(f"{directory} is not a published model's directory: it has no config.json.")
  document = read_object(file)
  if "experiment" in document:
    raise UserError(
      f"{directory} is a run of this project, not a published model; convert it first: "
      "python -m plm_jax.convert."
    )
  family = family_of_type(document.get("model_type"), str(file))
  tensors = {
    # Old files have TensorFlow's names of a norm's parameters.
    name.replace("Norm.gamma", "Norm.weight").replace("Norm.beta", "Norm.bias"): array
    for name, array in read_tensors(body).items()
  }
  architecture = _architecture_in(document, family, file)
  base = family.base_of(family.architectures[architecture])
  based = any(name.startswith(base) for name in tensors)
  names = tensors if based else {base + name for name in tensors}
  architecture, heads = family.detect(architecture, names)
  dense, options = sentence.read_dense(directory), Options(document, str(file))
  if dense:
    if tops(heads) or not issubclass(family.config, Encoder):
      raise UserError(
        f"{directory} has a Dense after a {architecture}; this project reads one only after an "
        "encoder without a head."
      )
    tensors, heads = tensors | dense, heads | {"classes"}
    options = Options(document | {"num_labels": len(dense["linear.weight"])}, str(file))
  config, sizes = family.model_of(options, heads)
  if dense:
    config = dataclasses.replace(config, classifier="mean")
  model = jax.eval_shape(lambda key: config.init(key, sizes), jax.random.key(0))
  entries = entries_of(family, config, heads, based)
  copies = family.copies(config, heads)
  if not based:
    copies = {c.removeprefix(base): original.removeprefix(base) for c, original in copies.items()}
  _drop_non_parameters(family, config, heads, tensors, entries, copies, body)
  check_finite(tensors, body)
  params = to_ours(entries, model, tensors, str(body))
  pooling = None
  if sentence.is_sentence_encoder(directory):
    pooling = sentence.read_pooling(directory, config.width, config.positions)
  return Pretrained(config, params, architecture, document, pooling)


def save(model: Pretrained, directory: str | Path) -> None:
  """Writes config.json and model.safetensors, and for a Sentence-BERT its files too.

  Errors: `UserError` if transformers lacks a class or an option, or the directory is not empty.
  """
  directory = Path(directory)
  family, heads, text = model.family, model.heads, config_text(model)
  if directory.exists() and (not directory.is_dir() or any(directory.iterdir())):
    raise UserError(f"{directory} already exists; choose a new or empty directory.")
  is_dense = has_dense(model.config, heads)
  based = bool(tops(heads)) and not is_dense
  tensors = to_theirs(entries_of(family, model.config, heads, based), model.params)
  dense = {name: tensors.pop(name) for name in sentence.DENSE if is_dense}
  tensors |= {c: tensors[o] for c, o in family.spare(model.config, heads).items()}
  directory.mkdir(parents=True, exist_ok=True)
  write_safetensors(directory / SINGLE, tensors)
  if model.pooling is not None:
    sentence.write_pooling(directory, model.pooling, model.config.width, dense)
  (directory / "config.json").write_text(text, encoding="utf-8")


def config_text(model: Pretrained) -> str:
  """The content of config.json. Errors: `UserError` if transformers lacks a class or an option."""
  family, heads, config = model.family, model.heads, model.config
  if has_dense(config, heads):  # the rest of the model, as transformers has it
    config = dataclasses.replace(config, classifier=family.always["classifier"])
  document = family.document_of(config, heads)
  kept = {name: value for name, value in model.document.items() if name not in _OF_THE_FILE}
  document = kept | _labels(heads, kept) | document
  document |= {"architectures": [model.architecture], "model_type": family.model_type}
  return json.dumps(document | {"dtype": "float32"}, indent=2, sort_keys=True) + "\n"


def run(
  model: Pretrained,
  *,
  output_hidden_states: bool = False,
  output_attentions: bool = False,
  **inputs: Any,
) -> dict[str, Any]:
  """Outputs by transformers' names, float32, for inputs by theirs (`input_ids`, `attention_mask`,
  `token_type_ids`, ...), arrays or lists `[B, T]`. Compiled once for each shape.

  output_hidden_states: also the states of all layers and the embeddings, a tuple of `[B, T, D]`.
  output_attentions: also the attention weights of all layers, a tuple of `[B, N, T, S]`. Outputs at
  padding, on either side, are meaningless, as in transformers.
  """
  family, config = model.family, model.config
  names, limits = family.inputs_of(config), family.limits(config)
  checked = checked_inputs(inputs, names, limits, family.longest(config))
  batch = family.batch(model, checked)
  with jax.default_matmul_precision("float32"):
    wanted = (output_hidden_states, output_attentions)
    outputs = _forward(family, model.architecture, model.pooling, wanted)(model.params, batch)
  return jax.tree.map(np.asarray, outputs)


@functools.lru_cache(maxsize=64)
def _forward(
  family: Family, architecture: str, pooling: sentence.Pooling | None, wanted: tuple[bool, bool]
):
  """wanted: the states, and the attention weights, of every layer."""
  # A scan compiles one layer for all.
  compute = Compute(dtype="float32", layers="unroll" if any(wanted) else "scan")

  def forward(params, batch):
    outputs = family.run(params, batch, compute, architecture)
    if pooling is not None and "logits" not in outputs:
      states = outputs["last_hidden_state"]
      outputs["sentence_embedding"] = pooling(states, batch["attention_mask"])
    layers = family.layers(params, batch, compute) if any(wanted) else {}
    for ending, is_wanted in zip(("hidden_states", "attentions"), wanted):
      outputs |= {n: tuple(each) for n, each in layers.items() if is_wanted and n.endswith(ending)}
    return outputs

  return jax.jit(forward)


# Entries of config.json that are written anew, or do not hold for a copy.
_OF_THE_FILE = ("torch_dtype", "dtype", "transformers_version", "_name_or_path", "num_labels")


def entries_of(family: Family, config: Model, heads: Collection[str], based: bool) -> list[Entry]:
  """The names of a file; those of bare models have no prefix."""
  base = family.base_of(heads)
  dense = linear("classes", "linear") if has_dense(config, heads) else []
  own = set(heads) - {"classes"} if dense else heads
  entries = [*under(base, family.body(config)), *family.head(config, own), *dense]
  if based:
    return entries
  return [entry._replace(theirs=entry.theirs.removeprefix(base)) for entry in entries]


def _architecture_in(document: dict[str, Any], family: Family, file: Path) -> str:
  """The class that config.json names; without one, the bare model."""
  named = document.get("architectures") or [next(reversed(family.architectures))]
  name = named[0] if isinstance(named, list) and len(named) == 1 else named
  if not isinstance(name, str) or name not in family.architectures:
    raise UserError(
      f"{file} names the architecture {name!r}, which this project does not have for "
      f"{family.model_type}; it has {', '.join(family.architectures)}."
    )
  return name


def _drop_non_parameters(
  family, config, heads, tensors, entries, copies: Mapping[str, str], where: Path
) -> None:
  """Removes from `tensors`: copies of tied tensors, buffers of older releases, a pooler that the
  architecture does not have. Errors: `UserError` for a copy that differs."""
  names = {entry.theirs for entry in entries}
  for copy, original in copies.items():
    if copy not in tensors:
      continue
    array = tensors.pop(copy)
    if not np.array_equal(tensors.setdefault(original, array), array):
      raise UserError(
        f"{copy} and {original} in {where} differ, although config.json ties them; set "
        "tie_word_embeddings to false there if they should differ."
      )
  for name, instead in family.spare(config, heads).items():
    array = tensors.pop(name, None)
    if array is not None:
      tensors.setdefault(instead, array)
  for name in [n for n in tensors if family.buffers and n.endswith(family.buffers)]:
    if name.endswith("logits_bias") and tensors[name].any():
      raise UserError(f"{name} in {where} is not zero, which this project does not support.")
    del tensors[name]
  base = family.base_of(heads)
  pooler = [n for n in tensors if n.removeprefix(base).startswith("pooler.")]
  spare = [name for name in pooler if name not in names]
  for name in spare:
    del tensors[name]
  if spare:
    print(
      f"note: {spare[0].rpartition('.')[0]} in {where} is left out: no head reads it",
      file=sys.stderr,
    )


def _labels(heads: Mapping[str, int], kept: Mapping[str, Any]) -> dict[str, Any]:
  """Names for the labels, unless the document has as many; transformers would assume 2 or 3."""
  count = next((heads[head] for head in SIZED if head in heads), 2 if "span" in heads else None)
  if count in (None, len(kept.get("id2label") or {})):
    return {}
  return labelled([f"LABEL_{i}" for i in range(count)])


if __name__ == "__main__":
  print("error: plm_jax.export.hf is no command; try: python -m plm_jax.check DIR", file=sys.stderr)
  sys.exit(2)

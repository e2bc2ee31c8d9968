"""A model that is ready for use: the result of `plm_jax.load` and of `plm_jax.pretrain`."""

from __future__ import annotations

import dataclasses
import difflib
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np

from plm_jax import notebook
from plm_jax.arguments import checked
from plm_jax.commands.encode import all_vectors
from plm_jax.commands.export import Kind, export
from plm_jax.commands.fill_mask import Filler, fill_mask
from plm_jax.commands.generate import generate
from plm_jax.commands.inspect import Attention, attention, neighbours
from plm_jax.commands.tokenize import tokenize
from plm_jax.decode.neighbours import Neighbour
from plm_jax.decode.rules import Rules
from plm_jax.errors import UserError
from plm_jax.evaluation.perplexity import perplexity
from plm_jax.export.from_run import from_run, write_directory
from plm_jax.export.model_card import checked_licence, write_card
from plm_jax.export.outputs import outputs
from plm_jax.export.peft_run import with_adapter_of
from plm_jax.runs import Run, check_predicts_tokens
from plm_jax.tasks import predicting
from plm_jax.tasks.predicting import ExampleText
from plm_jax.tasks.task import Task, Trained
from plm_jax.tasks.vectors import TextEncoder
from plm_jax.train.workdir import read_records


@dataclasses.dataclass(frozen=True, eq=False, repr=False)
class LoadedModel:
  """A model with its parameters and its tokenizer, ready for use. path: where it came from.

  `encode` and `predict` keep a copy of the layers, one by one, from their first call on: the next
  one need not take them out of their stack. It is made anew when parameters are changed.
  """

  run: Run
  path: Path

  @checked
  def fill_mask(self, text: str, best: int = 5) -> list[list[Filler]]:
    """For every [MASK] of a text, the `best` (token, probability), highest first."""
    return fill_mask(self.run, [text], best)[0]

  @checked
  def generate(
    self, prompt: str | Sequence[str] = "", *, samples: int = 1, seed: int = 0, **rules: Any
  ) -> list[str]:
    """`samples` texts for every prompt, in order. rules: max_length, temperature, top_k, top_p,
    beams, ...: the fields of `plm_jax.decode.rules.Rules`."""
    known = [field.name for field in dataclasses.fields(Rules)]
    for name in rules:
      if name not in known:
        near = difflib.get_close_matches(name, known, n=1)
        meant = f"; did you mean {near[0]}?" if near else f"; the rules are {', '.join(known)}"
        raise UserError(f"there is no rule {name}{meant}")
    prompts = [prompt] if isinstance(prompt, str) else list(prompt)
    texts = generate(self.run, prompts, samples=samples, seed=seed, **rules)
    return [text for each in texts for text in each]

  @checked
  def score(self, text: str) -> dict[str, float]:
    """{"perplexity" (of a masked model "pseudo_perplexity"), "bits_per_byte", "nats_per_token",
    "tokens"} of a text."""
    check_predicts_tokens(self.run)
    scores = perplexity(self.run, text)
    return {re.sub("[ -]", "_", name): float(value) for name, value in scores.items()}

  @checked
  def predict(self, texts: ExampleText | Sequence[ExampleText]) -> list[dict[str, Any]]:
    """A fine-tuned model's predictions, one dict for each example: a text, a pair of texts, or a
    dict with the columns of the training file."""
    task, trained = self._fine_tuned()
    examples = [texts] if isinstance(texts, str | Mapping) else list(texts)
    lines = [predicting.line_of(example) for example in examples]
    items = [task.parse(line, f"text {number}") for number, line in enumerate(lines, 1)]
    return task.predict(trained, task.encode(items, trained.tokenizer)) if items else []

  @checked
  def encode(
    self, texts: str | Sequence[str], pooling: str | None = None, layer: int = -1
  ) -> np.ndarray:
    """A vector for each text, float32 [texts, width]. pooling: mean, cls, max or last."""
    encoder = TextEncoder.of_run(self.run, pooling, layer, self._trained)
    return all_vectors(encoder, [texts] if isinstance(texts, str) else texts)

  @checked
  def tokenize(self, text: str | Sequence[str], special: bool = False) -> Any:
    """The pieces of a text, their ids, and the characters that they cover: a dict, or one for each
    text of a list."""
    texts = [text] if isinstance(text, str) else list(text)
    made = tokenize(self.run.tokenizer, texts, special)
    return made[0] if isinstance(text, str) else made

  @checked
  def neighbours(self, words: str | Sequence[str], best: int = 8) -> dict[str, list[Neighbour]]:
    """For every word, the `best` nearest (token, cosine) in the token table."""
    return neighbours(self.run, [words] if isinstance(words, str) else words, best)

  @checked
  def attention(self, text: str) -> Attention:
    """The attention weights of every layer and head for a sentence; a notebook draws them."""
    return attention(self.run, text)

  @checked
  def save(self, directory: str | Path, license: str | None = None) -> None:
    """Writes the model as a directory that transformers loads, or sentence-transformers if its
    classes are read from the mean of the states; then a printed line says how. README.md is its
    model card. license: an identifier of the Hub, such as mit; None is unknown."""
    checked_licence(license)
    model, target = from_run(self.run, "discriminator"), Path(directory)
    write_directory(model, self.run.tokenizer, target, "public" not in self.run.document)
    write_card(self.run, model, target, license)

  @checked
  def export(
    self,
    target: str | Path,
    format: Kind = "onnx",
    *,
    int8: bool = False,
    calibrate: Sequence[str] = (),
    cache: bool = False,
    license: str | None = None,
  ) -> None:
    """Writes the model for ONNX Runtime or, as StableHLO, for JAX alone: a directory, or one file
    if the name ends in .onnx or .stablehlo. int8: also a file with int8 weights. calibrate: texts
    on which the scales of another int8 file are measured. cache: also the graphs for generation."""
    options = {"int8": int8, "calibrate": calibrate, "cache": cache}
    export(self.run, target, format, **options, license=license)

  @checked
  def with_adapter(self, directory: str | Path) -> LoadedModel:
    """This model, which stays as it is, with an adapter: a run with --peft on this very base, or a
    directory of Hugging Face PEFT. Several share the arrays that they do not change."""
    path = Path(directory)
    return LoadedModel(with_adapter_of(self.run, path), path)

  def __call__(
    self, *, output_hidden_states: bool = False, output_attentions: bool = False, **inputs: Any
  ) -> dict[str, Any]:
    """One forward pass: outputs by transformers' names, float32, for inputs by theirs, arrays or
    lists `[B, T]` (`input_ids`, `attention_mask`, ...). `tokenize` gives the ids of a text.

    output_hidden_states: also the embeddings and the states of all layers, `[B, T, D]` each.
    output_attentions: also the attention weights of all layers, `[B, N, T, S]` each.
    """
    wanted = {"output_hidden_states": output_hidden_states, "output_attentions": output_attentions}
    return outputs(self.run, **wanted, **inputs)

  @property
  def config(self) -> Any:
    """The model's configuration."""
    return self.run.config

  @property
  def parameters(self) -> int:
    """The number of parameters."""
    return sum(leaf.size for leaf in jax.tree.leaves(self.run.params))

  def _fine_tuned(self) -> tuple[Task, Trained]:
    if self.run.path is None:
      raise UserError("this model is in memory only; save its run and load it.")
    return predicting.task_of(self.run), self._trained

  @property
  def _trained(self) -> Trained:
    leaves = jax.tree.leaves(self.run.params)
    made_of, made = self.__dict__.get("_made", ((), None))
    if made is None or any(a is not b for a, b in zip(made_of, leaves, strict=True)):
      made = predicting.trained(self.run)
      self.__dict__["_made"] = leaves, made
    return made

  def __getstate__(self) -> dict[str, Any]:
    return {name: value for name, value in self.__dict__.items() if name != "_made"}

  def _facts(self) -> dict[str, str]:
    config, tokenizer = self.run.config, self.run.tokenizer
    sizes = ("layers", "width", "heads", "positions")
    facts = {"family": type(config).__name__}
    facts |= {name: f"{getattr(config, name):,}" for name in sizes if hasattr(config, name)}
    facts |= {
      "parameters": f"{self.parameters:,}",
      "tokenizer": f"{tokenizer.kind}, {tokenizer.vocab.size:,} tokens",
    }
    data: Any = self.run.experiment.data
    if hasattr(data, "question"):
      facts["fine-tuned on"] = f"{data.name}: {data.question}"
    if self.run.step:
      facts["step"] = f"{self.run.step:,}"
    return facts | {"from": str(self.path)}

  def __repr__(self) -> str:
    facts = self._facts()
    return f"{facts.pop('family')}({', '.join(f'{n} {v}' for n, v in facts.items())})"

  def _repr_html_(self) -> str:
    """A table and the curves of training, for notebooks."""
    records = read_records(self.run.path / "metrics.jsonl") if self.run.path else []
    return notebook.facts(self._facts()) + notebook.loss_curves(records)

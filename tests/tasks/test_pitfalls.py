"""Pitfalls of fine-tuning that no other test notices: a test fails if its pitfall is made."""

import dataclasses
from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from experiments.finetune import recipe
from plm_jax import overrides
from plm_jax.errors import UserError
from plm_jax.models.bart import Bart
from plm_jax.models.bert import Bert
from plm_jax.models.distilbert import DistilBert
from plm_jax.models.gpt import Gpt2
from plm_jax.models.layers import RMSNorm
from plm_jax.models.parameters import path_name
from plm_jax.models.roberta import Roberta
from plm_jax.models.t5 import T5
from plm_jax.objectives.clm import CLM
from plm_jax.tasks import spans
from plm_jax.tasks.answer import Answer
from plm_jax.tasks.class_order import in_order, stored_classes
from plm_jax.tasks.classify import Classify
from plm_jax.tasks.examples import Example, Examples
from plm_jax.tasks.finetuning import restored
from plm_jax.tasks.glue_files import PARTS
from plm_jax.tasks.multi import MultiLabel
from plm_jax.tasks.spans import SpanLoss
from plm_jax.tasks.tag import NO_TAG, TokenClassification
from plm_jax.tasks.windows import windowed_rows
from plm_jax.train.checkpoint import Checkpoints
from tests.tasks.test_rows import VOCAB, rows_of

SIZES = {"layers": 1, "width": 8, "heads": 2, "vocab_size": 20}
END = dataclasses.replace(VOCAB, pad=None, cls=None, sep=None, bos=1, eos=1)


def test_an_end_token_inside_a_text_is_no_padding():
  """GPT-2 fills rows up with its end token: a row's last token is known by its length alone."""
  assert END.filler == 1
  texts = Examples([Example(("x",))] * 2, [(np.array([5, 1, 6]),), (np.array([7]),)])
  made = rows_of(texts, END, Gpt2(vocab_size=40), 8)
  assert made.tokens["input_ids"][0, :5].tolist() == [1, 5, 1, 6, 1]
  assert made.values["length"].tolist() == [5, 3]
  batch = {"input_ids": made.tokens["input_ids"], "length": made.values["length"]}
  batch |= {"row_weight": np.ones(2, np.float32)}
  # The loss has all end tokens, and no filler.
  assert CLM().count(CLM().corrupt(batch, None, END)) == 4 + 2


@pytest.mark.parametrize("kind", [Roberta, DistilBert, Bart, T5, Bert])
def test_only_families_with_segments_have_a_table_of_several(kind):
  config = kind(**SIZES)
  params = jax.eval_shape(lambda: config.init(jax.random.key(0), {"classes": 2}))
  leaves = {path_name(p): x.shape for p, x in jax.tree_util.tree_flatten_with_path(params)[0]}
  rows = sum(shape[0] for name, shape in leaves.items() if "segment" in name)
  assert rows == 2 if kind is Bert else rows < 2


def test_windows_have_the_sizes_of_run_squad():
  task = Answer()
  assert (task.stride, task.longest, spans.NBEST) == (128, 384, 20)
  assert windowed_rows.__defaults__ == (64,)  # tokens of a question


def test_fine_tuning_corrects_the_bias_of_adam(source):
  for document in ({}, {"public": {"config": {}}}):
    run = dataclasses.replace(source, document=dict(source.document) | document)
    assert recipe(run, TASK, 100).optim.bias_correction


# --- the numbers of classes -----------------------------------------------------------------------

FAIRSEQ = {"0": "CONTRADICTION", "1": "NEUTRAL", "2": "ENTAILMENT"}  # roberta-large-mnli
TASK = Classify(labels=("contradiction", "entailment", "neutral"), length=8)


def test_a_published_classifier_keeps_its_classes_under_the_task_s_numbers(tmp_path):
  config = Bert(**SIZES, positions=8)
  stored, fresh = (
    jax.jit(lambda key: config.init(key, {"classes": 3}))(jax.random.key(seed)) for seed in (1, 2)
  )
  with Checkpoints(tmp_path / "checkpoints") as checkpoints:
    checkpoints.save(0, {"params": stored}, {})
  document = {"public": {"config": {"id2label": FAIRSEQ}}}
  experiment = SimpleNamespace(model=config, peft=None)
  source = SimpleNamespace(path=tmp_path, document=document, experiment=experiment, form=None)
  program = SimpleNamespace(
    create=lambda: SimpleNamespace(params=fresh), experiment=SimpleNamespace(data=TASK, peft=None)
  )
  made = restored(program, source).params
  names = [name.casefold() for name in FAIRSEQ.values()]
  for number, name in enumerate(TASK.labels):
    kernel = stored.classes.kernel[...][:, names.index(name)]
    np.testing.assert_array_equal(made.classes.kernel[...][:, number], kernel)
  np.testing.assert_array_equal(made.pooler.kernel[...], stored.pooler.kernel[...])


def test_classes_of_other_names_stay_where_they_are():
  config = Bert(**SIZES, positions=8)
  params = jax.eval_shape(lambda: config.init(jax.random.key(0), {"classes": 3}))
  source = SimpleNamespace(document={"classes": ["x", "y", "z"]})
  assert stored_classes(source) == ["x", "y", "z"]
  assert in_order(params, stored_classes(source), TASK.labels) is params
  generic = {"public": {"config": {"id2label": {"10": "LABEL_10", "9": "LABEL_9"}}}}
  assert stored_classes(SimpleNamespace(document=generic)) == ["LABEL_9", "LABEL_10"]


def test_each_task_of_glue_has_its_published_metrics():
  metrics = {name: part.metrics for name, part in PARTS.items()}
  assert metrics.pop("cola") == ("mcc",)
  assert metrics.pop("stsb") == ("pearson", "spearman")
  assert metrics.pop("mrpc") == metrics.pop("qqp") == ("accuracy", "f1")
  assert metrics.pop("mnli") == ("accuracy", "accuracy_mm")
  assert set(metrics.values()) == {("accuracy",)}


# --- losses ---------------------------------------------------------------------------------------


class Scores:
  """A model whose logits are the hidden states."""

  def token_class_logits(self, hidden, batch, noise):
    return hidden

  def class_logits(self, hidden, batch, noise):
    return hidden[:, 0]

  def span_logits(self, hidden, batch):
    return hidden[..., 0], hidden[..., 1]


@pytest.mark.parametrize(
  "objective", [TokenClassification(tags=3), SpanLoss(), MultiLabel(labels=3)], ids=lambda o: o.name
)
def test_the_loss_of_a_batch_is_the_sum_of_its_parts_over_their_counts(objective):
  """A mean of the means of two parts would be another number: their counts differ."""
  rng = np.random.default_rng(0)
  tag = np.full((4, 6), NO_TAG)
  tag[0], tag[1, :2], tag[3, 0] = 1, 2, 0
  batch = {
    "input_ids": np.zeros((4, 6), np.int32),
    "length": np.array([6, 4, 5, 6]),
    "row_weight": np.array([1, 1, 1, 0], np.float32),
    "span_weight": np.array([1, 1, 0, 1], np.float32),
    "tag": tag,
    "start": np.array([0, 1, 2, 3]),
    "end": np.array([1, 1, 3, 3]),
    "labels": rng.integers(0, 2, (4, 3)).astype(np.float32),
  }
  hidden = rng.normal(size=(4, 6, 3)).astype(np.float32)

  def loss(rows):
    part = {name: array[rows] for name, array in batch.items()}
    return objective.loss(Scores(), jnp.asarray(hidden[rows]), part, None)["loss"]

  whole, *parts = (loss(rows) for rows in (slice(0, 4), slice(0, 1), slice(1, 4)))
  assert len({float(count) for _, count in parts}) == 2 or isinstance(objective, SpanLoss)
  for total, first, second in zip(whole, *parts, strict=True):
    assert float(total) == pytest.approx(float(first + second), rel=1e-6)


def test_float16_is_refused_and_norms_are_of_float32(source):
  experiment = recipe(source, TASK, 100)
  with pytest.raises(UserError, match=r"compute\.dtype"):
    overrides.apply(experiment, ["compute.dtype=float16"])
  x = jnp.linspace(-100, 100, 1024).astype(jnp.bfloat16)
  norm = RMSNorm(1024, 1e-6)
  exact = np.asarray(x, np.float64)
  exact /= np.sqrt(np.mean(exact**2) + 1e-6)
  rounded = exact.astype(jnp.bfloat16)  # all in bfloat16, a third of the numbers would differ
  assert (np.asarray(norm(x)) == rounded).mean() > 0.99

"""Distillation's losses against their definitions, and masking that favours rare words."""

from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from plm_jax.data.draws import Draws
from plm_jax.errors import UserError
from plm_jax.models.bert import Bert
from plm_jax.models.distilbert import States
from plm_jax.objectives.distillation import Cosine, Distillation
from plm_jax.objectives.mlm import MLM
from plm_jax.objectives.rare_mlm import RareWordMLM
from tests.data.toy_store import toy_vocab

RNG = np.random.default_rng(0)
STUDENT, TEACHER = (jnp.asarray(RNG.normal(size=(3, 6, 7)), jnp.float32) for _ in range(2))
BATCH = {
  "input_ids": np.zeros((3, 6), np.int32),
  "length": np.array([6, 4, 2]),
  "row_weight": np.array([1, 1, 0], np.float32),
  "mlm_positions": np.array([[1, 3], [2, 0], [1, 0]], np.int32),
  "mlm_weights": np.array([[1, 1], [1, 0], [0, 0]], np.float32),
}
REAL = (np.arange(6) < BATCH["length"][:, None]) & (BATCH["row_weight"] > 0)[:, None]


def model(student, teacher):
  """States that are logits already."""

  def both(states, at):
    if at is None:
      return states.student, states.teacher
    pick = lambda x: jnp.take_along_axis(x, at[..., None], axis=1)  # noqa: E731
    return pick(states.student), pick(states.teacher)

  return SimpleNamespace(both_logits=both), States(student, teacher)


def loss(objective, student=STUDENT, teacher=TEACHER):
  heads, states = model(student, teacher)
  return objective.loss(heads, states, BATCH, None)


def expected(t):
  """KL(teacher || student) per position at temperature t, times t squared."""
  softmax = lambda x: np.exp(x) / np.exp(x).sum(-1, keepdims=True)  # noqa: E731
  p, q = softmax(np.float64(TEACHER) / t), softmax(np.float64(STUDENT) / t)
  return (p * np.log(p / q)).sum(-1) * t**2


@pytest.mark.parametrize("temperature", [1.0, 2.0, 5.0])
def test_the_loss_is_kl_times_the_square_of_the_temperature(temperature):
  """F37."""
  found = loss(Distillation(temperature=temperature))
  np.testing.assert_allclose(found["loss"][0], expected(temperature)[REAL].sum(), rtol=1e-5)
  assert found["loss"][1] == REAL.sum() == Distillation().count(BATCH)


def test_the_square_keeps_the_gradient_s_size():
  """For high temperatures it tends to the difference of the logits, which have mean 0."""

  def gradient(t):
    return jax.grad(lambda x: loss(Distillation(temperature=t), student=x)["loss"][0])(STUDENT)

  centred = lambda x: x - x.mean(-1, keepdims=True)  # noqa: E731
  limit = (centred(STUDENT) - centred(TEACHER)) / 7 * REAL[..., None]
  np.testing.assert_allclose(gradient(1000.0), limit, atol=2e-3)


def test_a_student_that_answers_as_its_teacher_has_no_loss():
  """F37. Logits may differ by a constant."""
  found = loss(Distillation(), student=TEACHER + 3.0)
  np.testing.assert_allclose(found["loss"][0], 0, atol=1e-5)
  assert found["agreement"][0] == found["agreement"][1]
  assert loss(Distillation())["loss"][0] > 1


def test_masked_positions_alone_count_where_that_is_asked():
  objective = Distillation(positions="masked")
  chosen = np.array([[0, 1], [0, 3], [1, 2]]).T
  found = loss(objective)
  np.testing.assert_allclose(found["loss"][0], expected(2.0)[tuple(chosen)].sum(), rtol=1e-5)
  assert found["loss"][1] == 3 == objective.count(BATCH)


def test_the_cosine_loss_is_one_minus_the_cosine_of_the_last_states():
  found = loss(Cosine())
  a, b = np.float64(STUDENT), np.float64(TEACHER)
  cosines = (a * b).sum(-1) / np.linalg.norm(a, axis=-1) / np.linalg.norm(b, axis=-1)
  np.testing.assert_allclose(found["loss"][0], (1 - cosines)[REAL].sum(), rtol=1e-5)
  assert found["loss"][1] == REAL.sum() == Cosine().count(BATCH)
  np.testing.assert_allclose(loss(Cosine(), student=3 * TEACHER)["loss"][0], 0, atol=1e-5)


@pytest.mark.slow
def test_losses_agree_with_those_of_the_original_code():
  torch = pytest.importorskip("torch")
  s, t = (torch.tensor(np.asarray(x)[REAL]) for x in (STUDENT, TEACHER))
  kl = torch.nn.KLDivLoss(reduction="batchmean")
  theirs = kl(torch.log_softmax(s / 2, -1), torch.softmax(t / 2, -1)) * 4
  total, count = loss(Distillation())["loss"]
  np.testing.assert_allclose(total / count, theirs.item(), rtol=1e-5)
  theirs = torch.nn.CosineEmbeddingLoss()(s, t, torch.ones(len(s)))
  total, count = loss(Cosine())["loss"]
  np.testing.assert_allclose(total / count, theirs.item(), rtol=1e-5)


def test_mistakes_are_sentences():
  with pytest.raises(UserError, match="temperature"):
    Distillation(temperature=0.0)
  with pytest.raises(UserError, match="needs MLM before"):
    Distillation(positions="masked").corrupt({}, None, None)
  with pytest.raises(UserError, match="no angle"):
    loss(Cosine(), student=STUDENT[..., :4])
  with pytest.raises(UserError, match="has no head 'teacher'"):
    Bert(vocab_size=20, layers=1, width=8, heads=2).init(jax.random.key(0), Distillation().heads)
  with pytest.raises(UserError, match="smoothing"):
    RareWordMLM(unit="whole_word")


# --- rare words ----------------------------------------------------------------------------------

COUNTS = np.ones(1000, int)
COUNTS[5:500] = 10_000


def rows(count=2000, length=128):
  ids = np.random.default_rng(3).integers(5, 1000, (count, length)).astype(np.int32)
  ids[:, 0], ids[:, 99], ids[:, 100:] = 2, 3, 0
  return {
    "input_ids": ids,
    "length": np.full(count, 100, np.int32),
    "row_weight": np.ones(count, np.float32),
  }


def corrupted(objective, batch, first=0, epoch=0):
  vocab = toy_vocab()
  vocab = type(vocab)(**{**vocab.__dict__, "counts": COUNTS})
  draws = Draws(0, epoch, np.arange(first, first + len(batch["input_ids"])))
  return objective.corrupt(batch, draws, vocab)


def test_rare_tokens_are_chosen_in_proportion_to_their_count_to_the_minus_0_7():
  done = corrupted(RareWordMLM(rate=0.01), rows())  # one prediction a row: exactly proportional
  assert (done["mlm_weights"].sum(axis=1) == 1).all()
  target = done["mlm_targets"][:, 0]
  share = (COUNTS[target] == 1).mean()
  frequent = (rows()["input_ids"][:, 1:99] < 500).mean()
  weights = np.array([frequent * 10_000**-0.7, 1 - frequent])
  np.testing.assert_allclose(share, weights[1] / weights.sum(), atol=0.003)
  uniform = corrupted(RareWordMLM(rate=0.01, smoothing=0.0), rows())["mlm_targets"][:, 0]
  np.testing.assert_allclose((COUNTS[uniform] == 1).mean(), 1 - frequent, atol=0.04)


def test_rare_words_keep_the_number_and_the_fates_of_bert_s_masking():
  done, plain = corrupted(RareWordMLM(), rows()), corrupted(MLM(), rows())
  np.testing.assert_array_equal(done["mlm_weights"].sum(1), plain["mlm_weights"].sum(1))
  weights = done["mlm_weights"] > 0
  at = done["mlm_positions"]
  assert ((at > 0) & (at < 99))[weights].all()
  assert (np.diff(at, axis=1)[weights[:, 1:]] > 0).all()
  original = rows()["input_ids"]
  np.testing.assert_array_equal(
    done["mlm_targets"][weights], np.take_along_axis(original, at, 1)[weights]
  )
  now = np.take_along_axis(done["input_ids"], at, 1)
  assert abs((now == 4)[weights].mean() - 0.8) < 0.01


def test_masks_of_rare_words_are_the_row_s_own():
  batch = rows(16)
  part = {name: x[8:12] for name, x in batch.items()}
  whole, alone = corrupted(RareWordMLM(), batch), corrupted(RareWordMLM(), part, first=8)
  np.testing.assert_array_equal(whole["input_ids"][8:12], alone["input_ids"])
  other = corrupted(RareWordMLM(), batch, epoch=1)
  assert not np.array_equal(whole["mlm_positions"], other["mlm_positions"])

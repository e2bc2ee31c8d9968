"""Texts that grow together, and begin and end at any time, are those that grow alone."""

import dataclasses

import jax
import numpy as np
import pytest

from plm_jax.decode import continuous
from plm_jax.decode.continuous import ContinuousBatch, Text
from plm_jax.decode.rules import Rules
from plm_jax.decode.writer import Prompt, write
from plm_jax.models.lstm import Lstm
from plm_jax.models.t5 import T5
from tests.decode.test_generation import CONFIGS, SIZES, VOCAB, writer_of

# Both kinds of caches: unrolled layers with rotary or learned positions, a source, a state.
WRITERS = {
  **CONFIGS,
  "t5": T5(heads=2, head_width=8, hidden=32, **SIZES),
  "lstm": Lstm(vocab_size=VOCAB, layers=1, width=16, positions=40, initializer_range=0.6),
}
RULES = [
  Rules(max_length=30),
  Rules(max_length=25, temperature=0.7, top_k=5),
  Rules(max_length=12, temperature=1.2, top_p=0.8, repetition_penalty=1.3, min_length=9),
]


@pytest.fixture(autouse=True)
def few_columns(monkeypatch):
  """Caches are soon full: they grow, and move to the left."""
  monkeypatch.setattr(continuous, "_COLUMNS", 16)


SLOW = [pytest.param(name, marks=pytest.mark.slow) for name in ("llama", "t5", "lstm")]


@pytest.fixture(scope="module", params=["gpt", *SLOW])
def writer(request):
  return writer_of(WRITERS[request.param])


def prompts_of(writer, count):
  draw = np.random.default_rng(0)
  made = []
  for size in draw.choice([3, 7, 20], count):
    ids = draw.integers(4, VOCAB, size).tolist()
    if hasattr(writer.config, "source_ids"):
      made.append(Prompt(writer.config.decoder_start(writer.tokenizer.vocab), ids))
    else:
      made.append(Prompt(ids))
  return made


def test_texts_that_join_and_leave_are_those_of_their_prompts_alone(writer):
  texts = [
    Text(prompt, RULES[number % len(RULES)], seed=number)
    for number, prompt in enumerate(prompts_of(writer, 9))
  ]
  batch, waiting, round_ = ContinuousBatch(*writer, slots=3), list(texts), 0
  while waiting or batch.texts:
    if waiting and not batch.is_full and round_ % 2 == 0:
      batch.start(waiting.pop(0))
    if batch.texts:
      batch.step()
    round_ += 1
  alone = [write(*writer, [t.prompt], t.rules, seed=t.seed)[0][0] for t in texts]
  assert [text.ids for text in texts] == [text.ids for text in alone]
  np.testing.assert_allclose([t.score for t in texts], [t.score for t in alone], atol=1e-4)
  assert len({len(text.ids) for text in texts}) > 3


def test_a_stopped_text_gives_its_slot_to_another(writer):
  first, second, third = (Text(prompt, Rules(max_length=9)) for prompt in prompts_of(writer, 3))
  batch = ContinuousBatch(*writer, slots=2)
  for text in (first, second):
    text.rules = dataclasses.replace(text.rules, min_length=9)
    batch.start(text)
  assert batch.is_full
  batch.stop(first)
  batch.start(third)
  while batch.texts:
    batch.step()
  assert len(first.ids) == 1 and len(second.ids) == 9
  assert third.ids == write(*writer, [third.prompt], third.rules)[0][0].ids


@pytest.mark.slow
def test_no_text_compiles_after_the_programs_are_run(writer):
  # As a run's, which are tied to a device.
  writer = writer._replace(params=jax.device_put(writer.params, jax.devices()[0]))
  batch, compiled = ContinuousBatch(*writer, slots=2), []
  for program in batch.programs():
    program()

  def heard(event, seconds, **_):
    if event == "/jax/core/compile/backend_compile_duration":
      compiled.append(event)

  jax.monitoring.register_event_duration_secs_listener(heard)
  try:
    for number, prompt in enumerate(prompts_of(writer, 8)):
      text = Text(prompt, RULES[number % len(RULES)], seed=number)
      batch.start(text)
      while batch.is_full or (number == 7 and batch.texts):
        batch.step()
    batch.clear()
  finally:
    jax.monitoring.unregister_event_duration_listener(heard)
  assert not compiled

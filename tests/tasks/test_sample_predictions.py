"""The reader of a fine-tuning sees its best and its worst predictions, with the targets."""

from plm_jax.tasks.answer import Answer
from plm_jax.tasks.choose import Choose
from plm_jax.tasks.classify import Classify
from plm_jax.tasks.examples import Example, Examples
from plm_jax.tasks.pairs import Pairs
from plm_jax.tasks.regress import Regress
from plm_jax.tasks.sample_predictions import sample_predictions
from plm_jax.tasks.tag import Tag
from plm_jax.tasks.write import Write


def items(*targets) -> Examples:
  named = (Example((f"text {n}",), target, str(n), str(n)) for n, target in enumerate(targets))
  return Examples(list(named), [], {})


def test_the_best_and_the_worst_predictions_are_the_surest():
  predictions = [{"label": "good", "score": p} for p in (0.6, 0.9, 0.7, 0.8)]
  shown = sample_predictions(Classify(), items("bad", "bad", "good", "good"), predictions)
  assert shown.splitlines() == [
    "2 of 4 predictions on the test split are right",
    *("the best", "  text 3", "    good 0.80   (the data have: good)"),
    *("  text 2", "    good 0.70   (the data have: good)"),
    *("the worst", "  text 1", "    good 0.90   (the data have: bad)"),
    *("  text 0", "    good 0.60   (the data have: bad)"),
  ]


def test_predictions_without_a_mistake_have_no_worst():
  shown = sample_predictions(Classify(), items("good", "good"), [{"label": "good"}] * 2)
  assert shown.count("text 0") == 1 and "worst" not in shown


def test_values_are_shown_by_the_size_of_their_error():
  predictions = [{"value": value} for value in (1.0, 5.0, 2.5)]
  shown = sample_predictions(Regress(), items(1.5, 2.0, 2.5), predictions, count=1)
  assert "the best\n  text 2\n    2.5 " in shown and "the worst\n  text 1\n    5.0 " in shown


def test_every_task_says_what_a_line_of_a_file_to_predict_for_is():
  lines = {task.name: task().line for task in (Classify, Pairs, Answer, Choose, Tag, Write)}
  assert lines["classify"] == "a text" and lines["write"] == "a source text"
  assert lines["pairs"] == "two texts with a tab between them"
  assert "a question and a text with a tab" in lines["answer"]
  assert "a prompt and its choices with tabs" in lines["choose"]
  assert "split at spaces" in lines["tag"]

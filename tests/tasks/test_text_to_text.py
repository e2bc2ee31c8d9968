"""Tasks read and write what T5's appendix D shows."""

import json
import subprocess
import sys

import pytest

from plm_jax.errors import UserError
from plm_jax.tasks.text_to_text import TASKS, lines, rounded


def test_sources_and_targets_are_those_of_the_paper_s_appendix():
  mrpc = {"sentence1": "We acted because", "sentence2": "I acted  because", "label": 1}
  assert list(lines(TASKS["mrpc"], [mrpc])) == [
    "mrpc sentence1: We acted because sentence2: I acted because\tequivalent"
  ]
  mnli = {"premise": "yeah well", "hypothesis": "The Cardinals have won.", "label": 2}
  assert TASKS["mnli"].source(mnli) == "mnli hypothesis: The Cardinals have won. premise: yeah well"
  assert TASKS["mnli"].written(mnli) == "contradiction"
  text = {"text": "That is good.", "translation": "Das ist gut."}
  assert TASKS["translate_en_de"].source(text) == "translate English to German: That is good."
  assert TASKS["translate_en_de"].written(text) == "Das ist gut."
  squad = {"question": "Who?", "context": "She did.", "answer": "She"}
  assert TASKS["squad"].source(squad) == "question: Who? context: She did."


def test_similarities_are_21_strings_and_read_as_numbers():
  strings = {rounded(score / 100) for score in range(100, 501)}
  assert len(strings) == 21 and {"1.0", "3.8", "5.0"} <= strings
  assert rounded(3.77) == "3.8" and rounded(2.61) == "2.6"
  assert TASKS["stsb"].read("3.8") == 3.8 and TASKS["stsb"].read("equivalent") is None


def test_what_is_no_label_is_no_answer():
  task = TASKS["sst2"]
  assert [task.read(t) for t in (" positive", "negative", "hamburger")] == [1, 0, None]
  assert task.written({"label": "positive"}) == "positive"
  with pytest.raises(UserError, match="2: the label 7 does not belong to this task; expected 0 to"):
    list(lines(task, [{"sentence": "a", "label": 0}, {"sentence": "a", "label": 7}]))
  with pytest.raises(UserError, match="no text 'sentence'"):
    list(lines(task, [{"text": "a", "label": 0}]))


def test_the_command_writes_a_table_and_overwrites_none(tmp_path):
  (tmp_path / "in.jsonl").write_text(json.dumps({"sentence": "fine", "label": 1}) + "\n")
  command = [sys.executable, "-m", "plm_jax.tasks.text_to_text", "--task=sst2"]
  command += [f"--from={tmp_path}/in.jsonl", f"--to={tmp_path}/out.tsv"]
  subprocess.run(command, check=True, capture_output=True)
  assert (tmp_path / "out.tsv").read_text() == "sst2 sentence: fine\tpositive\n"
  again = subprocess.run(command, capture_output=True, text=True, check=False)
  assert again.returncode == 2 and "already exists" in again.stderr

"""Overrides are typed and validated; configurations survive json; differences read well."""

from __future__ import annotations

import dataclasses
import json
from dataclasses import dataclass, replace
from typing import Any, Literal

import pytest

from plm_jax import aliases, overrides
from plm_jax.config_tree import places
from plm_jax.errors import UserError
from plm_jax.objectives.mlm import MLM
from plm_jax.tasks.classify import Classify
from plm_jax.tasks.task import with_settings
from tests import settings_page, toy_run


@dataclass(frozen=True, kw_only=True)
class Words:
  vocab_size: int = 100
  path: str | None = None


@dataclass(frozen=True, kw_only=True)
class Pieces:
  vocab_size: int = 300
  share: float = 0.5

  def __post_init__(self):
    if not 0 <= self.share <= 1:
      raise UserError(f"Pieces.share is {self.share}; it is a share from 0 to 1.")


@dataclass(frozen=True, kw_only=True)
class Data:
  source: str = "here"
  tokenizer: Words | Pieces = Words()
  segments: Pieces | None = None


@dataclass(frozen=True)
class Mask:
  rate: float = 0.15
  unit: Literal["token", "whole_word"] = "token"
  limit: int | None = None

  name = "mlm"


@dataclass(frozen=True)
class Next:
  weight: float = 1.0

  @property
  def name(self) -> str:
    return "nsp"


@dataclass(frozen=True, kw_only=True)
class Shape:
  width: int = 128
  heads: int = 2
  dropout: float = 0.1
  bias: bool = True

  def __post_init__(self):
    if self.width % self.heads:
      raise UserError(f"width {self.width} does not divide by heads {self.heads}.")


@dataclass(frozen=True)
class Rule:
  pass


@dataclass(frozen=True)
class Mild(Rule):
  pass


@dataclass(frozen=True)
class Strict(Mild):
  bound: float = 2.0


@dataclass(frozen=True, kw_only=True)
class Run:
  model: Any = Shape()
  objectives: tuple[Any, ...] = (Mask(), Next())
  stack: tuple[Mask | Next, ...] = (Mask(0.1), Mask(0.2))
  data: Data = Data()
  lengths: tuple[int, ...] = (8, 16)
  betas: tuple[float, float] = (0.9, 0.999)
  peak: float = 1e-4
  steps: int = 10
  clip: float | None = 1.0
  every: int | Literal["epoch"] = 5
  threads: Any = 4
  rule: Rule = Mild()


def value(*texts):
  """The value at the path of the last override, after all of them."""
  config = overrides.apply(Run(), texts)
  for name in texts[-1].partition("=")[0].split("."):
    config = config[int(name)] if name.isdigit() else getattr(config, name)
  return config


def refused(*texts, config=None) -> str:
  with pytest.raises(UserError) as error:
    overrides.apply(config or Run(), texts)
  return str(error.value)


@pytest.mark.parametrize(
  ("text", "expected"),
  [
    ("steps=1_000", 1000),
    ("steps=1e6", 1_000_000),
    ("steps=-3", -3),
    ("steps= 7 ", 7),
    ("peak=2e-4", 2e-4),
    ("peak=1", 1.0),
    ("peak=inf", float("inf")),
    ("clip=none", None),
    ("clip=0.5", 0.5),
    ("model.bias=false", False),
    ("model.bias=NO", False),
    ("model.bias=0", False),
    ("model.bias=1", True),
    ("model.bias=yes", True),
    ("data.source=a=b.txt", "a=b.txt"),
    ("data.source=12", "12"),
    ("data.source=", ""),
    ("data.tokenizer.path=none", None),
    ("data.tokenizer.path=/x/vocab.txt", "/x/vocab.txt"),
    ("objectives.0.unit=whole_word", "whole_word"),
    ("objectives.0.limit=20", 20),
    ("every=epoch", "epoch"),
    ("every=7", 7),
    ("lengths=1,2,3", (1, 2, 3)),
    ("lengths=(4, 5)", (4, 5)),
    ("lengths=9", (9,)),
    ("lengths=", ()),
    ("betas=0.8,0.9", (0.8, 0.9)),
    ("threads=8", 8),
  ],
)
def test_values_are_read_by_the_annotation_of_the_field(text, expected):
  got = value(text)
  assert got == expected and type(got) is type(expected)


@pytest.mark.parametrize(
  ("text", "said"),
  [
    ("steps=1.5", "an integer"),
    ("steps=ten", "an integer"),
    ("steps=none", "an integer"),
    ("steps=1e999999999", "an integer"),
    ("steps=inf", "an integer"),
    ("steps=true", "an integer"),
    ("peak=high", "a number"),
    ("peak=nan", "a number"),
    ("clip=no", "a number or none"),
    ("model.bias=2", "true or false"),
    ("objectives.0.unit=word", "token or whole_word"),
    ("every=day", "epoch"),
    ("lengths=1,x", "an integer"),
    ("betas=0.9", "2 values"),
    ("data.tokenizer=3", "Words(...) or Pieces(...)"),
  ],
)
def test_values_that_the_annotation_does_not_admit_are_refused_by_name(text, said):
  message = refused(text)
  assert message.startswith(f"--set {text}: ") and said in message


def test_elements_of_a_tuple_go_by_index_or_by_their_name():
  by_name = overrides.apply(Run(), ["objectives.mlm.rate=0.2", "objectives.nsp.weight=3"])
  by_index = overrides.apply(Run(), ["objectives.0.rate=0.2", "objectives.1.weight=3"])
  assert by_name == by_index
  assert by_name.objectives == (Mask(0.2), Next(3.0))
  mixed = overrides.apply(Run(), ["objectives.0.rate=0.2", "objectives.mlm.limit=4"])
  assert mixed.objectives[0] == Mask(0.2, limit=4)


def test_two_elements_of_one_name_go_by_index_only():
  assert value("stack.1.rate=0.7") == 0.7
  assert "There is: 0, 1." in refused("stack.mlm.rate=0.7")
  assert "There is: mlm, nsp." in refused("objectives.2.rate=0.7")


def test_the_rest_of_the_configuration_stays_as_it_was():
  config = overrides.apply(Run(), ["data.tokenizer.vocab_size=50"])
  expected = dataclasses.replace(Run(), data=Data(tokenizer=Words(vocab_size=50)))
  assert config == expected and config.model is Run().model
  assert overrides.apply(Run(), []) == Run()


def test_every_validation_on_the_way_up_runs_again():
  message = refused("model.heads=3")
  assert message == "--set model.heads=3: width 128 does not divide by heads 3."


def test_overrides_of_one_command_are_judged_together_in_any_order():
  for texts in (["model.heads=3", "model.width=96"], ["model.width=96", "model.heads=3"]):
    assert overrides.apply(Run(), texts).model == Shape(width=96, heads=3)
  assert "model.heads=3 --set model.width=97:" in refused("model.heads=3", "model.width=97")


def test_the_later_of_two_overrides_wins():
  assert value("steps=1", "steps=2") == 2
  both = ["data.tokenizer.vocab_size=7", "data.tokenizer=Words(path=none)"]
  assert value(*both) == Words()
  assert overrides.apply(Run(), both[::-1]).data.tokenizer == Words(vocab_size=7)


def test_unknown_fields_name_the_nearest_and_all_there_are():
  message = refused("model.hedas=4")
  assert message.startswith("--set model.hedas=4: ") and "'model.heads'" in message
  assert "There is: width, heads, dropout, bias." in message
  assert "Did you mean 'steps'?" in refused("step=4")
  assert "Did you mean 'model.width'?" in refused("width=4")
  assert "Did you mean 'data.tokenizer.vocab_size'?" in refused("data.vocab_size=4")
  assert "Did you mean 'objectives.mlm'?" in refused("objectives.mlmm.rate=4")
  assert "Did you mean" not in refused("zzz=4")


@pytest.mark.parametrize("text", ["steps", "", "=3", ".steps=3", "model..width=3"])
def test_what_is_no_assignment_is_refused(text):
  assert "path=value" in refused(text)


def test_a_path_cannot_go_below_a_plain_value():
  assert "steps is 10 and has no fields." in refused("steps.more=3")
  assert "--set data.segments=Pieces(...)" in refused("data.segments.share=0.2")
  assert value("data.segments=Pieces()", "data.segments.share=0.2") == 0.2


def test_a_field_takes_another_dataclass_of_its_union():
  assert value("data.tokenizer=Pieces(vocab_size=1_000, share=1)") == Pieces(
    vocab_size=1000, share=1.0
  )
  assert value("data.tokenizer=Pieces") == Pieces()
  assert value("data.tokenizer=Words(path='a b.txt')") == Words(path="a b.txt")
  assert value("data.tokenizer=Words(path=None)") == Words()
  assert value("data.segments=none") is None
  assert value("data=Data(tokenizer=Pieces(share=0.25))").tokenizer == Pieces(share=0.25)


def test_classes_in_place_may_be_named_where_the_annotation_says_nothing():
  assert value("model=Shape(width=64)") == Shape(width=64)
  assert value("objectives=Mask(rate=0.3)") == (Mask(0.3),)
  assert value("objectives=Next(),Mask(unit=whole_word)") == (Next(), Mask(unit="whole_word"))
  assert value("stack=(Next(weight=2), Mask())") == (Next(2.0), Mask())


def test_subclasses_of_the_annotation_are_admitted():
  assert value("rule=Strict(bound=3)") == Strict(3.0)
  assert "expected Rule(...) or Mild(...) or Strict(...)" in refused("rule=Shape()")


@pytest.mark.parametrize(
  ("text", "said"),
  [
    ("data.tokenizer=Run()", "expected Words(...) or Pieces(...)"),
    ("data.tokenizer=__import__('os')", "expected Words(...) or Pieces(...)"),
    ("data.tokenizer=Pieces(3)", "by name"),
    ("data.tokenizer=Pieces(**{})", "by name"),
    ("data.tokenizer=Pieces(share=2)", "share from 0 to 1"),
    ("data.tokenizer=Pieces(shar=1)", "Did you mean 'share'?"),
    ("data.tokenizer=Pieces(vocab_size='many')", "vocab_size=many: expected an integer"),
    ("data.tokenizer=Pieces(vocab_size=10*10)", "an integer"),
    ("data.tokenizer=Words(path=/a/b)", "text values in quotes"),
    ("objectives=Shape()", "expected Mask(...) or Next(...)"),
  ],
)
def test_only_admitted_classes_with_literal_fields_are_built(text, said):
  message = refused(text)
  assert message.startswith(f"--set {text}: ") and said in message


CLASSES = (Run, Data, Words, Pieces, Mask, Next, Shape, Mild)


def test_json_gives_back_an_equal_configuration():
  config = overrides.apply(
    Run(), ["data.tokenizer=Pieces(share=0.1)", "lengths=", "clip=none", "objectives=Next()"]
  )
  text = json.dumps(overrides.to_json(config))
  assert overrides.from_json(json.loads(text), CLASSES) == config
  assert json.loads(text)["data"]["tokenizer"]["type"].endswith(".Pieces")


def test_classes_of_the_project_are_found_by_their_full_name():
  from plm_jax.objectives.nsp import NSP

  data = overrides.to_json(NSP(weight=0.2))
  assert data["type"] == "plm_jax.objectives.nsp.NSP"
  assert overrides.from_json(data) == NSP(weight=0.2)


def test_json_of_another_version_is_refused():
  data = overrides.to_json(Run())
  for changed in (
    {**data, "warmth": 3},
    {**data, "type": "plm_jax.nowhere.Run"},
    {**data, "type": "plm_jax.errors.UserError"},
    {**data, "type": "plm_jax.errors.Nothing"},
    {**data, "type": "subprocess.Popen"},
    {k: v for k, v in data.items() if k != "type"},
  ):
    with pytest.raises(UserError, match="another version"):
      overrides.from_json(changed, CLASSES)


def test_a_field_newer_than_the_json_takes_its_default():
  data = overrides.to_json(Run(steps=3))
  del data["peak"]
  assert overrides.from_json(data, CLASSES) == Run(steps=3)


def test_values_without_a_form_in_json_are_a_defect():
  with pytest.raises(TypeError, match="no form in json"):
    overrides.to_json(Run(threads=object()))


def test_the_difference_names_paths_and_both_values():
  config = overrides.apply(
    Run(), ["peak=2e-4", "objectives.mlm.rate=0.2", "data.tokenizer=Pieces(share=0.1)"]
  )
  differences = overrides.diff(config, Run())
  assert differences == [
    ("objectives.mlm.rate", 0.15, 0.2),
    ("data.tokenizer", Words(), Pieces(share=0.1)),
    ("peak", 1e-4, 2e-4),
  ]
  assert [(overrides.show(old), overrides.show(new)) for _, old, new in differences] == [
    ("0.15", "0.2"),
    ("Words()", "Pieces(share=0.1)"),
    ("0.0001", "0.0002"),
  ]
  assert overrides.diff(Run(), Run()) == []


def test_a_changed_set_of_objectives_is_one_difference():
  config = dataclasses.replace(Run(), objectives=(Mask(0.2),))
  ((path, old, new),) = overrides.diff(config, Run())
  shown = overrides.show(old), overrides.show(new)
  assert (path, *shown) == ("objectives", "Mask(),Next()", "Mask(rate=0.2)")


def test_the_description_is_written_as_set_takes_it():
  config = overrides.apply(
    Run(),
    [
      "data.tokenizer=Words(path='a, b')",
      "model.bias=no",
      "clip=none",
      "lengths=",
      "peak=1e-9",
      "objectives.mlm.unit=whole_word",
    ],
  )
  lines = [line.split(maxsplit=1) for line in overrides.describe(config).splitlines()]
  assert ["model", "Shape(...)"] in lines and ["objectives.mlm", "Mask(...)"] in lines
  lines = [line for line in lines if not line[1].endswith("(...)")]
  assert ["model.bias", "false"] in lines and ["objectives.nsp.weight", "1.0"] in lines
  again = overrides.apply(
    Run(data=Data(source="x", tokenizer=Words(path="y"))), ["=".join(line) for line in lines]
  )
  assert again == config


def test_the_difference_can_be_typed_as_overrides():
  config = overrides.apply(
    Run(), ["data.tokenizer=Words(path='a, b')", "objectives=Mask(unit=whole_word,limit=3)"]
  )
  config = dataclasses.replace(config, data=dataclasses.replace(config.data, segments=Pieces()))
  typed = [f"{path}={overrides.show(new)}" for path, _, new in overrides.diff(config, Run())]
  assert overrides.apply(Run(), typed) == config


def test_the_page_of_settings_has_every_field_as_it_is():
  assert settings_page.PAGE.read_text() == settings_page.page(), (
    "a field or its docstring has changed: python -m tests.settings_page writes the page anew"
  )


@pytest.mark.parametrize(
  ("setting", "field"),
  [
    ("lr=1e-4", "optim.peak"),
    ("optim.learning_rate=1", "optim.peak"),
    ("epochs=3", "steps"),
    ("batch_size=8", "global_batch"),
    ("warmup_steps=10", "optim.warmup"),
    ("weight_decay=0", "optim.decay"),
    ("max_length=64", "data.length"),
    ("max_steps=9", "steps"),
    ("dropout=0", "model.dropout"),
    ("hidden_size=64", "model.width"),
  ],
)
def test_a_name_of_another_library_is_answered_with_the_field(setting, field):
  with pytest.raises(UserError) as error:
    overrides.apply(toy_run.TOY, [setting])
  assert str(error.value).startswith(f"--set {setting}: ") and field in str(error.value)
  assert ("not passes over the text" in str(error.value)) == ("epoch" in setting)


def test_every_field_that_an_alias_stands_for_exists():
  known = {path for path, _ in places(replace(toy_run.TOY, objectives=(MLM(),)))}
  assert set(aliases.FIELDS) - known == {"task.length"}
  task = with_settings(Classify(source="x.csv"), ["task.length=9"])
  with pytest.raises(UserError, match=r"max_len is called task.length here; write"):
    with_settings(task, ["task.max_len=9"])


def test_settings_are_compared_as_values_and_not_as_text():
  same = [["steps=1"], ["steps = 1.0"], ['steps="1"'], ["steps=1_0e-1"]]
  assert {tuple(overrides.canonical(settings)) for settings in same} == {("steps=1",)}
  assert overrides.canonical(["optim.peak=1e-3"]) == overrides.canonical(["optim.peak=0.001"])
  assert overrides.canonical(["a=yes", "a=True"]) == ["a=true", "a=true"]
  assert overrides.canonical(["a=1"]) != overrides.canonical(["a=1.5"])
  assert overrides.canonical(["a=b,1"]) == ["a=b,1"]

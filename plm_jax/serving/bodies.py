"""The bodies of requests, checked by pydantic. `Field` gives the limits that need no model."""

from __future__ import annotations

from typing import Annotated, Any

from pydantic import BaseModel, ConfigDict, Field, StrictBool, StrictFloat, StrictInt, StrictStr

Cell = StrictStr | StrictInt | StrictFloat | StrictBool | list[StrictStr] | None
ExampleBody = StrictStr | list[StrictStr] | dict[StrictStr, Cell]
Texts = StrictStr | list[StrictStr]
Seed = Annotated[StrictInt, Field(ge=0, lt=2**32)]


class Body(BaseModel):
  model_config = ConfigDict(extra="forbid")

  model: StrictStr | None = Field(None, description="The model's name, if there are several.")


class PredictBody(Body):
  inputs: StrictStr | dict[StrictStr, Cell] | list[ExampleBody] = Field(
    description="An example or a list of them: a text, a list of its texts (within a list), or an "
    "object with the columns of the training file."
  )


class TextsBody(Body):
  inputs: Texts = Field(description="A text, or a list of texts.")


class FillMaskBody(TextsBody):
  best: StrictInt = Field(5, ge=1, le=20, description="Tokens for each blank.")


class AttentionBody(Body):
  input: StrictStr
  layer: StrictInt = Field(1, ge=1, description="From 1.")
  head: StrictInt = Field(1, ge=1, description="From 1.")


class RulesBody(Body):
  """The fields of `plm_jax.decode.rules.Rules`."""

  temperature: float = 0.0
  top_k: StrictInt = Field(0, lt=2**31)
  top_p: float = 1.0
  beams: StrictInt = 1
  repetition_penalty: float = 1.0
  min_length: StrictInt = 0
  max_length: StrictInt = 64


class GenerateBody(RulesBody):
  prompt: Texts = ""
  samples: StrictInt = Field(1, ge=1, le=64)
  seed: Seed = 0
  stream: StrictBool = False


class CompletionBody(BaseModel):
  """OpenAI's, with defaults of theirs. Fields that have no meaning here are ignored."""

  model_config = ConfigDict(extra="ignore")

  model: StrictStr | None = None
  prompt: Texts = ""
  max_tokens: StrictInt | None = Field(16, ge=1)
  temperature: float | None = 1.0
  top_p: float | None = 1.0
  n: StrictInt = Field(1, ge=1, le=64)
  seed: Seed | None = None
  stop: Texts | None = None
  stream: StrictBool = False
  echo: StrictBool = False
  user: Any = None


class EmbeddingBody(BaseModel):
  """OpenAI's."""

  model_config = ConfigDict(extra="ignore")

  model: StrictStr | None = None
  input: Texts
  encoding_format: Annotated[str, Field(pattern="^(float|base64)$")] = "float"

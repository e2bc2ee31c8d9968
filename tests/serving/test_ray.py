"""The server as an application of Ray Serve."""

import contextlib
import importlib.util
import json
import re
import signal
import socket
import subprocess
import sys
from types import SimpleNamespace

import httpx
import pytest

from plm_jax.commands.generate import generate
from plm_jax.errors import UserError
from plm_jax.runs import Run
from plm_jax.serving import ray_app
from plm_jax.serving.limits import Limits, Refused
from plm_jax.serving.requests import Models
from plm_jax.tasks import predicting
from tests.serving.conftest import MAKERS
from tests.serving.test_routes import lines_of, rounded, sentence


@pytest.mark.parametrize(
  ("arguments", "words"),
  [
    ({}, "model=DIR, the directory of a model, is needed"),
    ({"model": "/a", "replica": "2"}, "no argument replica; .*, replicas, "),
    ({"model": "/a", "replicas": 0}, "^replicas=0: "),
    ({"model": "/a", "batch": "many"}, "^batch=many: "),
    ({"model": ["/a/x", "/b/x"]}, "names x twice"),
    ({"model": "/a,no/such"}, "model=no/such is no directory"),
  ],
)
def test_mistakes_in_the_arguments_are_sentences(arguments, words):
  with pytest.raises(ray_app.Mistake, match=words) as told:
    ray_app.app(arguments)
  assert "\n" not in told.value.message and told.value.exit_code == 2


def test_ray_that_is_not_installed_is_named_as_an_extra(monkeypatch):
  monkeypatch.setitem(sys.modules, "ray", None)
  with pytest.raises(UserError, match=r"plm_jax\[ray\]"):
    ray_app.app({"model": "/x"})


def test_a_replica_whose_thread_has_ended_is_not_healthy():
  model = SimpleNamespace(name="gpt", is_running=True)
  replica = ray_app.Replica()
  replica.app = SimpleNamespace(served=Models([model], Limits()))
  replica.check_health()
  model.is_running = False
  with pytest.raises(Refused, match="gpt has ended"):
    replica.check_health()


# `serve run`, in a Ray of two cores and with a port that is free.
DRIVER = """
import sys
import ray
from ray import serve
from ray.serve.scripts import cli
ray.init(num_cpus=2, include_dashboard=False, namespace="serve")
serve.start(http_options={"port": int(sys.argv[1])})
cli(["run", "plm_jax.serving.ray_app:app", *sys.argv[2:]])
"""


@contextlib.contextmanager
def serve_run(*words):
  """(process, address) of `serve run` when it is ready."""
  with socket.create_server(("127.0.0.1", 0)) as free:
    port = free.getsockname()[1]
  command = [sys.executable, "-c", DRIVER, str(port), *words]
  with subprocess.Popen(
    command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
  ) as driver:
    lines = []
    try:
      for line in driver.stdout:
        lines.append(line)
        if "is ready at" in line:
          break
      else:
        pytest.fail("".join(lines))
      yield driver, f"http://127.0.0.1:{port}"
    finally:
      if driver.poll() is None:
        driver.send_signal(signal.SIGINT)
        driver.stdout.read()


@pytest.mark.slow
def test_replicas_of_ray_answer_as_the_commands_and_end_after_the_requests_in_flight(tmp_path):
  if importlib.util.find_spec("ray") is None:
    pytest.skip("the extra `ray` is not installed")
  runs: dict[str, Run] = {name: MAKERS[name]() for name in ("classifier", "gpt")}
  for name, run in runs.items():
    run.save(tmp_path / name)
  models = ",".join(str(tmp_path / name) for name in runs)
  words = (f"model={models}", "replicas=2", "batch=1", "slots=1", "max_tokens=32", "max_texts=2")
  with serve_run(*words) as (driver, address), httpx.Client(base_url=address, timeout=60) as client:
    task, trained = predicting.task_of(runs["classifier"]), predicting.trained(runs["classifier"])
    examples = task.encode([task.parse("the cat", "text")], trained.tokenizer)
    made = client.post("/predict", json={"inputs": "the cat"}).json()["predictions"]
    assert rounded(made) == rounded(task.predict(trained, examples))
    body = {"prompt": "the", "max_length": 32, "min_length": 32}
    (expected,) = generate(runs["gpt"], ["the"], max_length=32, min_length=32)[0]
    assert client.post("/generate", json=body).json()["texts"] == [expected]
    refused = client.post("/predict", json={"inputs": ["x", "y", "z"]})
    assert refused.status_code == 422 and "3 texts" in sentence(refused)
    assert "page.js" in client.get("/").text and client.get("/page/page.js").status_code == 200
    assert client.get("/health").json()["status"] == "ok"
    pattern = r'plm_jax_compilations_total\{replica="\w+"\} 0\.0'
    assert re.search(pattern, client.get("/metrics").text)
    with client.stream("POST", "/generate", json={**body, "stream": True}) as stream:
      parts = stream.iter_text()
      text = next(parts)
      driver.send_signal(signal.SIGINT)
      text += "".join(parts)
    messages = [json.loads(line) for line in lines_of(SimpleNamespace(text=text))]
    assert "".join(message.get("text", "") for message in messages) == expected
    assert messages[-1]["done"]
    driver.stdout.read()
    assert driver.wait() == 0
    with pytest.raises(httpx.ConnectError):
      client.get("/health")

"""A real server: ports, slow bodies, signals."""

import contextlib
import json
import os
import signal
import socket
import subprocess
import sys

import pytest

from plm_jax import cli
from plm_jax.commands import serve as command
from plm_jax.runs import Run
from plm_jax.serving import server as serving
from tests.decode.test_commands import own_flags
from tests.serving.conftest import MAKERS


@pytest.fixture
def call(monkeypatch, capsys):
  """`call(*words) -> (exit code, stderr)` of the command."""

  def run(*words):
    with own_flags(command):
      monkeypatch.setattr(sys, "argv", ["serve", *map(str, words)])
      monkeypatch.setattr(command, "keep_compilations", lambda cache: None)
      with pytest.raises(SystemExit) as ended:
        cli.run(command.main)
    return ended.value.code or 0, capsys.readouterr().err

  return run


def test_a_port_in_use_is_told_before_anything_is_loaded(call, tmp_path):
  with socket.create_server(("127.0.0.1", 0)) as taken:
    port = taken.getsockname()[1]
    code, err = call(f"--model={tmp_path / 'none'}", f"--port={port}")
  assert code == 2 and f"--port={port} cannot be used" in err and len(err.splitlines()) == 1


def test_a_port_that_another_took_meanwhile_is_a_sentence(call, monkeypatch):
  """Two sockets may have one address until one of them listens."""
  monkeypatch.setattr(serving, "load", lambda *_: [])
  with socket.socket() as other:
    other.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    other.bind(("127.0.0.1", 0))
    port = other.getsockname()[1]
    bound = serving._bound("127.0.0.1", port)
    monkeypatch.setattr(serving, "_bound", lambda *_: bound)
    other.listen()
    code, err = call("--model=x", f"--port={port}")
  assert code == 2 and f"--port={port} cannot be used" in err and len(err.splitlines()) == 1


@pytest.mark.parametrize(
  ("words", "told"),
  [
    ((), "--model=DIR, the directory of a model, is needed"),
    (("--model={folder}/none", "--port=0"), "is not"),
    (("--model={folder}/a/x,{folder}/b/x", "--port=0"), "names x twice"),
    (("--model=x", "--host=nowhere.invalid"), "--host=nowhere.invalid"),
    (("--model=x", "--port=70000"), "port"),
  ],
)
def test_mistakes_are_one_sentence_and_exit_code_2(call, tmp_path, words, told):
  code, err = call(*(word.format(folder=tmp_path) for word in words))
  assert code == 2 and told in err and len(err.splitlines()) == 1, err


def test_without_its_packages_the_extra_is_named(call, monkeypatch):
  monkeypatch.setitem(sys.modules, "plm_jax.serving.server", None)
  code, err = call("--model=x")
  assert code == 2 and "pip install 'plm_jax[serve]'" in err


class Client:
  """A connection that sends and receives bytes as the tests like."""

  def __init__(self, port):
    self.socket = socket.create_connection(("127.0.0.1", port))
    self.file = self.socket.makefile("rb")

  def send(self, path, body, length=None):
    head = f"POST {path} HTTP/1.1\r\nhost: x\r\ncontent-type: application/json\r\n"
    head += f"content-length: {len(body) if length is None else length}\r\n\r\n"
    self.socket.sendall(head.encode() + body)

  def status(self):
    """The status of the response; its headers are read."""
    line = self.file.readline()
    while self.file.readline().strip():
      pass
    return int(line.split()[1])

  def close(self):
    self.file.close()
    self.socket.close()


@contextlib.contextmanager
def process(*words):
  """(process, port) of a server that is ready."""
  environment = {**os.environ, "JAX_NUM_CPU_DEVICES": "1"}
  command = [sys.executable, "-m", "plm_jax.serve", "--port=0", *words]
  with subprocess.Popen(
    command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True, env=environment
  ) as server:
    try:
      lines = iter(server.stdout.readline, "")
      ready = next(line for line in lines if "is ready" in line)
      yield server, int(ready.split(":")[2].split("/")[0])
    finally:
      if server.poll() is None:
        server.kill()


@pytest.mark.slow
def test_a_real_server_survives_its_clients_and_ends_after_the_requests_in_flight(tmp_path):
  for name in ("classifier", "gpt"):
    run: Run = MAKERS[name]()
    run.save(tmp_path / name)
  models = ",".join(str(tmp_path / name) for name in ("classifier", "gpt"))
  words = (f"--model={models}", "--max_tokens=32", "--batch=1", "--timeout=2")
  with process(*words) as (server, port), contextlib.ExitStack() as opened:

    def client():
      return opened.enter_context(contextlib.closing(Client(port)))

    good = json.dumps({"inputs": "the cat"}).encode()
    text = json.dumps({"prompt": "the", "max_length": 32, "min_length": 32, "stream": True})
    for path in tmp_path.glob("*/checkpoints"):
      path.rename(path.with_name("gone"))  # all is in memory
    slow, late, huge, leaving = (client() for _ in range(4))
    slow.send("/predict", b'{"inp', length=40)
    late.socket.sendall(b"GET /health HTTP/1.1\r\nhost: ")
    huge.send("/predict", b"x" * 100, length=10**9)
    assert huge.status() == 413
    leaving.send("/generate", text.encode())
    leaving.close()
    whole = client()
    whole.send("/predict", good)
    assert whole.status() == 200
    assert slow.status() == late.status() == 408
    numbers = client()
    numbers.socket.sendall(b"GET /metrics HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\r\n")
    assert b"plm_jax_compilations_total 0.0" in numbers.file.read()
    stream = client()
    stream.send("/generate", text.encode())
    assert stream.status() == 200
    server.send_signal(signal.SIGTERM)
    assert b'"done": true' in stream.file.read()
    assert "has ended" in server.stdout.read()
    assert server.wait() == 0
    with pytest.raises(ConnectionRefusedError):
      Client(port)

"""Throughput and latency of the server, against FastAPI around a pipeline of transformers.

  python benchmarks/serve.py --model=RUN/finetune/TASK/pretrained-all-0 --hf=EXPORTED
  python benchmarks/serve.py --model=... --soak=10

RUN is a classifier, and EXPORTED the same model as `python -m plm_jax.convert RUN EXPORTED` writes
it. Each server is a process; the clients are in this one and send one request after the other on a
connection that stays open. The rounds of the servers alternate, and the table has medians of the
rounds. --soak sends valid, invalid and aborted requests for that many minutes: every answer must be
that of its text alone.
"""

import argparse
import asyncio
import contextlib
import json
import random
import statistics
import subprocess
import sys
import time
from pathlib import Path

WORDS = [
  *("a", "the", "this", "film", "story", "actor", "scene", "music", "is", "was", "has", "with"),
  *("and", "but", "of", "in", "very", "rather", "always", "good", "bad", "dull", "fine", "long"),
  *("short", "clever", "slow", "funny", "sad", "true", "false", "moving", "empty", "familiar"),
]
BASELINE = """
import contextlib, sys, threading
import torch, uvicorn
from fastapi import FastAPI
from pydantic import BaseModel
from transformers import pipeline

model, port, locked = sys.argv[1], int(sys.argv[2]), sys.argv[3] == "locked"
classify = pipeline("text-classification", model=model, top_k=None)
app, lock = FastAPI(), threading.Lock()

class Body(BaseModel):
  inputs: str

@app.post("/predict")
def predict(body: Body):
  with lock if locked else contextlib.nullcontext(), torch.inference_mode():
    return classify([body.inputs], truncation=True)[0]

uvicorn.run(app, port=port, log_level="warning", access_log=False)
"""


def texts(count: int, seed: int) -> list[str]:
  """Texts of 2 to 50 words; half of them have fewer than 12."""
  draw = random.Random(seed)
  sizes = [min(50, 2 + int(draw.expovariate(1 / 14))) for _ in range(count)]
  return [" ".join(draw.choices(WORDS, k=size)) for size in sizes]


class Connection:
  """A client with one open connection."""

  def __init__(self, port: int):
    self._port, self._streams = port, None

  async def post(self, path: str, body: bytes) -> tuple[int, bytes]:
    """(status, content) of the response."""
    if self._streams is None:
      self._streams = await asyncio.open_connection("127.0.0.1", self._port)
    reader, writer = self._streams
    head = f"POST {path} HTTP/1.1\r\nhost: x\r\ncontent-type: application/json\r\n"
    writer.write(f"{head}content-length: {len(body)}\r\n\r\n".encode() + body)
    lines = (await reader.readuntil(b"\r\n\r\n")).decode().lower().split("\r\n")
    headers = dict(line.split(": ", 1) for line in lines[1:] if line)
    content = await reader.readexactly(int(headers["content-length"]))
    if headers.get("connection") == "close":
      self.close()
    return int(lines[0].split()[1]), content

  async def abort(self, path: str, body: bytes) -> None:
    """Sends a request and leaves before the answer; half of the time before the request's end."""
    _, writer = await asyncio.open_connection("127.0.0.1", self._port)
    head = f"POST {path} HTTP/1.1\r\nhost: x\r\ncontent-type: application/json\r\n"
    sent = body if len(body) % 2 else body[: len(body) // 2]
    writer.write(f"{head}content-length: {len(body)}\r\n\r\n".encode() + sent)
    await writer.drain()
    writer.close()

  def close(self) -> None:
    if self._streams is not None:
      self._streams[1].close()
      self._streams = None


async def load(port: int, clients: int, seconds: float, seed: int) -> tuple[float, list[float]]:
  """(requests per second, latencies in seconds)."""
  bodies = [json.dumps({"inputs": text}).encode() for text in texts(512, seed)]
  taken: list[float] = []
  start = time.perf_counter()

  async def client(number: int) -> None:
    connection, sent = Connection(port), number
    while time.perf_counter() - start < seconds:
      begin = time.perf_counter()
      status, content = await connection.post("/predict", bodies[sent % len(bodies)])
      assert status == 200, content
      taken.append(time.perf_counter() - begin)
      sent += clients
    connection.close()

  await asyncio.gather(*(client(number) for number in range(clients)))
  return len(taken) / (time.perf_counter() - start), taken


def percentile(values: list[float], share: float) -> float:
  return sorted(values)[min(len(values) - 1, int(share * len(values)))]


@contextlib.contextmanager
def server(command: list[str], port: int):
  """A process that answers at the port."""
  with subprocess.Popen(command) as process:
    try:
      asyncio.run(answers(port, process))
      yield process
    finally:
      process.terminate()


async def answers(port: int, process: subprocess.Popen) -> None:
  """Returns when the server at the port has answered."""
  while process.poll() is None:
    try:
      await Connection(port).post("/predict", b'{"inputs": "a fine film"}')
      return
    except OSError:
      await asyncio.sleep(0.5)
  raise SystemExit(f"the server ended with {process.returncode}")


def ours(args: argparse.Namespace, port: int) -> list[str]:
  flags = [f"--model=classifier={args.model}", f"--port={port}", *args.flag]
  return [sys.executable, "-m", "plm_jax.serve", *flags]


def compare(args: argparse.Namespace) -> None:
  """Prints a row for each number of clients and server."""
  names = ["plm_jax", "transformers", "transformers, one at a time"]
  ports = [args.port + place for place in range(3)]
  with contextlib.ExitStack() as stack:
    stack.enter_context(server(ours(args, ports[0]), ports[0]))
    for port, kind in zip(ports[1:], ("threads", "locked")):
      command = [sys.executable, "-c", BASELINE, args.hf, str(port), kind]
      stack.enter_context(server(command, port))
    for port in ports:
      asyncio.run(load(port, 8, 2, 0))
    print("| clients | server | requests/s | p50 ms | p95 ms | p99 ms |\n|--:|---|--:|--:|--:|--:|")
    for clients in (1, 8, 64):
      measured: dict[str, list[tuple[float, ...]]] = {name: [] for name in names}
      for seed in range(args.rounds):
        for name, port in zip(names, ports):
          rate, taken = asyncio.run(load(port, clients, args.seconds, seed))
          shares = (1e3 * percentile(taken, share) for share in (0.5, 0.95, 0.99))
          measured[name].append((rate, *shares))
      for name, rounds in measured.items():
        middle = [statistics.median(column) for column in zip(*rounds)]
        print(f"| {clients} | {name} | " + " | ".join(f"{value:.1f}" for value in middle) + " |")
      best = [max(m[0] for m in round_) for round_ in zip(*(measured[n] for n in names[1:]))]
      ratios = [m[0] / b for m, b in zip(measured[names[0]], best)]
      print(f"  ratio to the better of the two: {statistics.median(ratios):.2f}", flush=True)


# --- soak -----------------------------------------------------------------------------------------


def memory(pid: int) -> float:
  """MiB that a process holds."""
  lines = Path(f"/proc/{pid}/status").read_text().splitlines()
  return next(int(line.split()[1]) for line in lines if line.startswith("VmRSS")) / 1024


INVALID = [
  (b"{", 400), (b'{"inputs": 5}', 422), (b'{"inputs": []}', 422), (b"\xff", 400),
  (b'{"inputs": "x", "model": "none"}', 404),
  (json.dumps({"inputs": "word " * 9999}).encode(), 413),
]  # fmt: skip


async def soak(args: argparse.Namespace, process: subprocess.Popen, clients: int = 16) -> None:
  """Prints a row for every minute. Errors: `SystemExit` for an answer that is another's."""
  bodies = [json.dumps({"inputs": text}).encode() for text in texts(256, 1)]
  alone, single = [], Connection(args.port)
  for body in bodies:
    alone.append(json.loads((await single.post("/predict", body))[1])["predictions"][0])
  start, counts = time.perf_counter(), {"valid": 0, "invalid": 0, "aborted": 0}
  taken: list[float] = []
  wrong: list[str] = []

  async def client(number: int) -> None:
    draw, connection = random.Random(number), Connection(args.port)
    while time.perf_counter() - start < 60 * args.soak and not wrong:
      kind, at = draw.choices(["valid", "invalid", "aborted"], [8, 1, 1])[0], draw.randrange(256)
      counts[kind] += 1
      if kind == "aborted":
        await connection.abort("/predict", bodies[at])
      elif kind == "invalid":
        body, expected = draw.choice(INVALID)
        status, content = await connection.post("/predict", body)
        if status != expected:
          wrong.append(f"{body[:40]!r} got {status}: {content[:200]!r}")
      else:
        begin = time.perf_counter()
        status, content = await connection.post("/predict", bodies[at])
        taken.append(time.perf_counter() - begin)
        if status != 200 or not same(json.loads(content)["predictions"][0], alone[at]):
          wrong.append(f"{bodies[at]!r} got {status}: {content[:200]!r}, alone {alone[at]}")

  async def report() -> None:
    print("| minute | valid | invalid | aborted | p50 ms | p95 ms | MiB |")
    print("|--:|--:|--:|--:|--:|--:|--:|")
    for minute in range(1, 1 + int(args.soak)):
      await asyncio.sleep(60)
      times, taken[:] = list(taken), []
      shares = " | ".join(f"{1e3 * percentile(times, share):.1f}" for share in (0.5, 0.95))
      row = " | ".join(f"{counts[kind]:,}" for kind in counts)
      print(f"| {minute} | {row} | {shares} | {memory(process.pid):,.0f} |", flush=True)

  await asyncio.gather(report(), *(client(number) for number in range(clients)))
  if wrong:
    raise SystemExit(f"wrong answers: {wrong[:3]}")
  print(f"every one of {counts['valid']:,} valid requests got the answer of its text")


def same(made: dict, expected: dict) -> bool:
  """Equal labels and scores, up to the rounding of other batches."""
  close = all(abs(made["scores"][n] - p) < 1e-4 for n, p in expected["scores"].items())
  return close and (made["label"] == expected["label"] or abs(expected["score"] - 0.5) < 1e-4)


def main() -> None:
  parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
  parser.add_argument("--model", required=True, help="the directory of a classifier")
  parser.add_argument("--hf", help="the same model, exported for transformers")
  parser.add_argument("--port", type=int, default=8765)
  parser.add_argument("--rounds", type=int, default=5)
  parser.add_argument("--seconds", type=float, default=5.0, help="of a round")
  parser.add_argument("--soak", type=float, help="minutes")
  parser.add_argument("--flag", action="append", default=[], help="of plm_jax.serve; repeatable")
  args = parser.parse_args()
  if args.soak is None:
    compare(args)
    return
  with server(ours(args, args.port), args.port) as process:
    asyncio.run(soak(args, process))


if __name__ == "__main__":
  main()

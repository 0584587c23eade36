"""One contestant in a process of its own.

As a program: opens contestant NAME, then answers each line of JSON on stdin with one on stdout. `Contestant` is the
other end.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import threading
import time
import warnings
from typing import Any

from benchmarks.memory import PeakMemory

LONGEST_SECONDS = 180


class Contestant:
    """A running contestant, as the referee sees it.

    Raises
    ------
    RuntimeError
        From `measure`, when the process has ended or its work has raised.
    """

    def __init__(self, name: str) -> None:
        self.name = name
        self.process = subprocess.Popen(
            [sys.executable, "-m", "benchmarks.contestant", name],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )

    def measure(self, key: str, scale: float, kind: str) -> dict[str, Any]:
        """Run the row once; the answer's "value" is the measurement."""
        if kind == "process":
            return {"value": self._whole_process()}
        if kind == "memory":
            with PeakMemory(self.process.pid) as peak:
                self._ask(key, scale)
            return {"value": peak.rss_mb, "pss_mb": peak.pss_mb}
        return self._ask(key, scale)

    def _whole_process(self) -> float:
        start = time.perf_counter()
        command = [sys.executable, "-m", "benchmarks.first_result", self.name]
        subprocess.run(command, check=True, timeout=LONGEST_SECONDS)
        return time.perf_counter() - start

    def _ask(self, key: str, scale: float) -> dict[str, Any]:
        assert self.process.stdin and self.process.stdout
        print(json.dumps({"row": key, "scale": scale}), file=self.process.stdin, flush=True)
        # Whoever hangs is ended, and loses the row instead of the whole run.
        watchdog = threading.Timer(LONGEST_SECONDS, self.process.kill)
        watchdog.start()
        line = self.process.stdout.readline()
        watchdog.cancel()
        answer: dict[str, Any] = json.loads(line) if line else {"error": f"ended with {self.process.wait()}"}
        if "error" in answer:
            raise RuntimeError(f"{self.name}: {answer['error']}")
        return answer

    def close(self) -> None:
        assert self.process.stdin
        self.process.stdin.close()
        try:
            self.process.wait(timeout=30)
        except subprocess.TimeoutExpired:
            self.process.kill()


def serve(name: str) -> None:
    from benchmarks.contestants import CONTESTANTS
    from benchmarks.rows import ROWS

    # Tasks may print: only the answers go to the pipe.
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)
    rows = {row.key: row for row in ROWS}
    with CONTESTANTS[name]() as context:
        for line in sys.stdin:
            request = json.loads(line)
            try:
                value = rows[request["row"]].run(context, request["scale"])
                answer = value if isinstance(value, dict) else {"value": value}
            except Exception as error:
                answer = {"error": repr(error)}
            print(json.dumps(answer), file=answers, flush=True)


if __name__ == "__main__":
    warnings.filterwarnings("ignore")
    serve(sys.argv[1])

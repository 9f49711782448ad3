"""dslite as a shell starts it, without paying for the import of torch each time.

One process imports everything; each command is a fork of it with its own arguments, environment, folder, stdin, stdout
and stderr.

    dslite = Dslite(forge, folder)
    assert dslite("complete", "hello").out == b"hi\\n"
"""

import contextlib
import json
import os
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from support.paths import path_variables

_FORGE = """
import gc, json, os, signal, socket, sys, traceback
import dslite.app.cli
import dslite.app.completion.single
import dslite.runtime.engine_loader
import torch

gc.collect()
gc.freeze()  # so that no collection copies the pages that the forks share
channel = socket.socket(fileno=int(sys.argv[1]))
signal.signal(signal.SIGINT, signal.default_int_handler)
while True:
    request, descriptors, *_ = socket.recv_fds(channel, 1 << 20, 3)
    if not request:
        sys.exit()
    order = json.loads(request)
    child = os.fork()
    if child == 0:
        channel.close()
        for target, descriptor in enumerate(descriptors):
            os.dup2(descriptor, target)
            os.close(descriptor)
        os.chdir(order["cwd"])
        for number, (file, flags) in order["redirected"].items():
            os.dup2(os.open(file, flags), int(number))
        for number in order["closed"]:
            os.close(number)
        os.environ.clear()
        os.environ.update(order["env"])
        sys.argv = ["dslite", *order["args"]]
        for name, mode in (("stdin", "r"), ("stdout", "w"), ("stderr", "w")):
            number = ("stdin", "stdout", "stderr").index(name)
            errors = "backslashreplace" if name == "stderr" else "strict"
            stream = None
            if number not in order["closed"]:
                stream = open(number, mode, encoding=order["encoding"], errors=errors, closefd=False, buffering=1)
            setattr(sys, name, stream)
        code = 0
        try:
            dslite.app.cli.main()
        except SystemExit as end:
            code = end.code or 0
        except BaseException:
            traceback.print_exc()
            code = 1
        try:
            sys.stdout.flush()
        except (OSError, AttributeError):
            code = 120 if sys.stdout else code  # as Python itself does
        os._exit(code)  # taking torch down again would take longer than most commands
    for descriptor in descriptors:
        os.close(descriptor)
    channel.sendall(b"%d\\n" % child)
    _, status = os.waitpid(child, 0)
    channel.sendall(b"%d\\n" % os.waitstatus_to_exitcode(status))
"""


class Forge:
    """The process that forks."""

    def __init__(self) -> None:
        self.channel, theirs = socket.socketpair()
        self._process = subprocess.Popen(
            [sys.executable, "-c", _FORGE, str(theirs.fileno())],
            pass_fds=[theirs.fileno()],
            env={**os.environ, "OMP_NUM_THREADS": "1"},
        )
        theirs.close()
        self.answers = self.channel.makefile("r")

    def close(self) -> None:
        self.channel.shutdown(socket.SHUT_RDWR)
        self.answers.close()
        self.channel.close()
        self._process.wait()


@dataclass(frozen=True)
class Result:
    """What a command did. The code is negative where a signal ended it."""

    code: int
    out: bytes
    err: bytes

    @property
    def text(self) -> str:
        return self.out.decode("utf-8")

    @property
    def json(self) -> dict[str, object]:
        found: dict[str, object] = json.loads(self.out)
        return found

    @property
    def lines(self) -> list[dict[str, object]]:
        return [json.loads(line) for line in self.out.splitlines()]


class Running:
    """A command that has been started. `stdin` and `stdout` are our ends of its pipes."""

    def __init__(self, forge: Forge, order: Mapping[str, object], stderr: int | None) -> None:
        self._forge = forge
        their_in, self.stdin = os.pipe()
        self.stdout, their_out = os.pipe()
        self._err, their_err = (-1, stderr) if stderr is not None else os.pipe()
        socket.send_fds(forge.channel, [json.dumps(order).encode()], [their_in, their_out, their_err])
        for descriptor in (their_in, their_out, *([their_err] if stderr is None else [])):
            os.close(descriptor)
        self.pid = int(forge.answers.readline())
        self._read = {"out": b"", "err": b""}
        self._reader = threading.Thread(target=self._drain, args=("err", self._err))
        self._reader.start()

    def send(self, data: bytes) -> None:
        """All of stdin."""
        view = memoryview(data)
        with contextlib.suppress(BrokenPipeError):  # it needs no more
            while view:
                view = view[os.write(self.stdin, view) :]
        os.close(self.stdin)

    def kill(self, number: signal.Signals) -> None:
        os.kill(self.pid, number)

    def wait(self) -> Result:
        """Read what is left, and its end."""
        self._drain("out", self.stdout)
        self._reader.join()
        return Result(int(self._forge.answers.readline()), self._read["out"], self._read["err"])

    def read(self, size: int) -> bytes:
        """At least so many bytes of stdout; less only at its end."""
        while len(self._read["out"]) < size and (more := os.read(self.stdout, 65536)):
            self._read["out"] += more
        return self._read["out"]

    @property
    def err(self) -> bytes:
        """What stderr has had so far."""
        return self._read["err"]

    def _drain(self, name: str, descriptor: int) -> None:
        if descriptor < 0:
            return
        with contextlib.suppress(OSError):  # closed by the test
            while more := os.read(descriptor, 65536):
                self._read[name] += more
            os.close(descriptor)


@dataclass
class Dslite:
    """The command, with folders of its own."""

    forge: Forge
    folder: Path
    env: dict[str, str] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.env = {
            "PATH": os.environ.get("PATH", ""),
            "HOME": str(self.folder),
            **path_variables(self.folder),
            "HF_HOME": str(self.folder / "hf"),
            "HF_HUB_OFFLINE": "1",
            "OMP_NUM_THREADS": "1",
            **self.env,
        }

    def start(
        self,
        *args: str,
        stderr: int | None = None,
        env: Mapping[str, str] | None = None,
        closed: Sequence[int] = (),
        redirected: Mapping[int, tuple[str, int]] | None = None,
        encoding: str = "utf-8",
    ) -> Running:
        """Start a command. `closed` and `redirected` are descriptors, closed or opened from (file, flags) by the shell;
        `encoding` is that of the locale."""
        order = {
            "args": args,
            "env": self.env | dict(env or {}),
            "cwd": str(self.folder),
            "closed": closed,
            "redirected": redirected or {},
            "encoding": encoding,
        }
        return Running(self.forge, order, stderr)

    def __call__(self, *args: str, stdin: bytes = b"", env: Mapping[str, str] | None = None, **shell: Any) -> Result:
        """Run a command to its end."""
        running = self.start(*args, env=env, **shell)
        sender = threading.Thread(target=running.send, args=(stdin,))
        sender.start()
        result = running.wait()
        sender.join()
        assert b"Traceback" not in result.err, result.err.decode()
        return result


@contextlib.contextmanager
def forging() -> Iterator[Forge]:
    forge = Forge()
    try:
        yield forge
    finally:
        forge.close()

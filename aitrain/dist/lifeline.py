"""Connections between the supervisors of a run: all report to that of rank 0, which decides. No torch."""

from __future__ import annotations

import json
import resource
import socket
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import asdict, replace
from types import NoneType
from typing import Any

from aitrain.dist.verdict import FIRST_CONTACT_S, LOST_S, RankState, Verdict
from aitrain.errors import LaunchError

REPORT_S = 2.0
"""Seconds between two reports."""

SEND_S = 5.0
LARGEST_MESSAGE = 1 << 20
FILES_BESIDE = 64
KINDS: dict[str, Any] = {
    "node": str,
    "doing": str,
    "silent_s": (int, float),
    "beats": int,
    "stopped_s": (int, float, NoneType),
    "code": (int, NoneType),
    "tail": list,
}
"""Fields of a report and their types; anything else is ignored."""


class Line:
    """A connection that carries JSON objects, one per line; a broken one is closed.

    Args:
        connection: A connected socket.
    """

    def __init__(self, connection: socket.socket) -> None:
        self._socket = connection
        with suppress(OSError):
            connection.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
            connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self._rest = b""
        self.is_open = True
        self.heard_at = time.monotonic()

    def send(self, message: dict[str, Any]) -> None:
        """Send one object.

        Args:
            message: Plain values.
        """
        if not self.is_open:
            return
        try:
            self._socket.settimeout(SEND_S)
            self._socket.sendall(json.dumps(message).encode() + b"\n")
        except OSError:
            self.close()

    def receive(self) -> list[dict[str, Any]]:
        """Return what has come, without waiting."""
        found: list[dict[str, Any]] = []
        while self.is_open:
            try:
                self._socket.setblocking(False)
                content = self._socket.recv(1 << 16)
            except BlockingIOError:
                break
            except OSError:
                content = b""
            if not content or len(self._rest) > LARGEST_MESSAGE:
                self.close()
                break
            self.heard_at = time.monotonic()
            *lines, self._rest = (self._rest + content).split(b"\n")
            for line in lines:
                with suppress(ValueError):
                    message = json.loads(line)
                    if isinstance(message, dict):
                        found.append(message)
        return found

    def close(self) -> None:
        """Close it."""
        self.is_open = False
        with suppress(OSError):
            self._socket.close()


class Hub:
    """The side of rank 0: receives the reports of all ranks.

    Args:
        port: Where it listens.
        world: Ranks.
        run: Names the run, so that a connection meant for another one is refused.

    Raises:
        OSError: The port is in use.
        LaunchError: This process may not open a connection per rank.
    """

    def __init__(self, port: int, world: int, run: str) -> None:
        self.states = {rank: RankState(rank) for rank in range(1, world)}
        self._run = run
        self._lines: dict[int, Line] = {}
        self._unknown: list[Line] = []
        self._heard = dict.fromkeys(self.states, time.monotonic() + FIRST_CONTACT_S - LOST_S)
        self._ended: dict[int, float] = {}
        self._told_at = 0.0
        self._listener: socket.socket | None = None
        if self.states:
            _allow_connections(world)
            self._listener = socket.create_server(("", port), backlog=world, reuse_port=False)
            self._listener.setblocking(False)

    def listen(self) -> None:
        """Accept connections and reports, and tell the others that rank 0 is alive."""
        now = time.monotonic()
        self._accept()
        for line in list(self._unknown):
            for message in line.receive():
                self._greet(line, message)
            if not line.is_open and line in self._unknown:
                self._unknown.remove(line)
        for rank, line in self._lines.items():
            for message in line.receive():
                self._note(rank, message)
        if now - self._told_at > REPORT_S:
            self._told_at = now
            self.tell({"alive": True})

    def _accept(self) -> None:
        while self._listener is not None:
            try:
                connection, _ = self._listener.accept()
            except OSError:
                return
            self._unknown.append(Line(connection))

    def _greet(self, line: Line, message: dict[str, Any]) -> None:
        rank = message.get("rank")
        if message.get("run") != self._run or rank not in self.states:
            line.close()
            return
        if line in self._unknown:
            self._unknown.remove(line)
        self._lines[rank] = line
        self._note(rank, message)

    def _note(self, rank: int, message: dict[str, Any]) -> None:
        known = self.states[rank]
        fields = {name: value for name, value in message.items() if isinstance(value, KINDS.get(name, ()))}
        if not fields.get("tail"):
            fields["tail"] = known.tail
        fields["tail"] = [str(line) for line in fields["tail"]]
        self.states[rank] = replace(known, **fields)
        self._heard[rank] = time.monotonic()
        if self.states[rank].code is not None:
            ended_s = message.get("ended_s", 0.0)
            self._ended.setdefault(rank, time.monotonic() - (ended_s if isinstance(ended_s, (int, float)) else 0.0))

    def all_states(self) -> list[RankState]:
        """Return what is known about every rank but this one, as of now."""
        now = time.monotonic()
        for rank, state in self.states.items():
            line = self._lines.get(rank)
            state.unheard_s = now - self._heard[rank]
            if state.code is not None:
                state.ended_s = now - self._ended[rank]
                continue
            broken = line is not None and not line.is_open
            state.is_lost = broken or state.unheard_s > LOST_S
            if state.is_lost:
                self._ended.setdefault(rank, now)
                state.ended_s = now - self._ended[rank]
            else:
                self._ended.pop(rank, None)
        return list(self.states.values())

    def forgive(self, pause_s: float) -> None:
        """Count no silence while this process itself was stopped, for instance by `scontrol suspend`.

        Args:
            pause_s: How long.
        """
        self._heard = {rank: at + pause_s for rank, at in self._heard.items()}

    def tell(self, message: dict[str, Any]) -> None:
        """Send a message to all ranks.

        Args:
            message: Plain values.
        """
        for line in self._lines.values():
            line.send(message)

    def end(self, verdict: Verdict) -> None:
        """Send all ranks the verdict, and close the connections.

        Args:
            verdict: How.
        """
        self.tell({"end": asdict(verdict)})
        for line in [*self._lines.values(), *self._unknown]:
            line.close()
        if self._listener is not None:
            self._listener.close()


def _allow_connections(world: int) -> None:
    """Raise the limit of open files, which is often 1024, to what one connection per rank needs."""
    needed = world + FILES_BESIDE
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft == resource.RLIM_INFINITY or soft >= needed:
        return
    if hard != resource.RLIM_INFINITY and hard < needed:
        raise LaunchError(
            f"{world} ranks report to rank 0, but a process may open only {hard} files there: write `ulimit -n "
            f"{needed}` in the job script, or ask the site"
        )
    resource.setrlimit(resource.RLIMIT_NOFILE, (needed, hard))


class Spoke:
    """The side of every other rank.

    Args:
        address: Host of rank 0.
        port: Where its hub listens.
        run: Names the run.
    """

    def __init__(self, address: str, port: int, run: str) -> None:
        self._place = (address, port)
        self._run = run
        self._line: Line | None = None
        self._tried_at = self._told_at = 0.0
        self._began = time.monotonic()
        self._said: tuple[Any, ...] = ()

    def exchange(self, state: RankState, answer: Callable[[dict[str, Any]], None]) -> bool:
        """Report this rank, and receive messages from the hub.

        Args:
            state: This rank.
            answer: Called with each message.

        Returns:
            Whether rank 0 is still there.
        """
        now = time.monotonic()
        if self._line is None:
            if now - self._tried_at > 0.5:
                self._tried_at = now
                self._connect()
            return now - self._began < FIRST_CONTACT_S
        said = (state.code, state.stopped_s is None, len(state.tail))
        if now - self._told_at > REPORT_S or said != self._said:
            self._told_at, self._said = now, said
            self._line.send({"run": self._run, **asdict(state)})
        for message in self._line.receive():
            answer(message)
        return self._line.is_open and now - self._line.heard_at < LOST_S

    def forgive(self, pause_s: float) -> None:
        """Count no silence while this process itself was stopped.

        Args:
            pause_s: How long.
        """
        self._began += pause_s
        if self._line is not None:
            self._line.heard_at += pause_s

    def _connect(self) -> None:
        with suppress(OSError):  # rank 0 may not be there yet
            self._line = Line(socket.create_connection(self._place, timeout=2.0))

    def close(self) -> None:
        """Close the connection."""
        if self._line is not None:
            self._line.close()

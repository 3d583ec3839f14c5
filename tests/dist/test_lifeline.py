"""The connections between supervisors, where a whole run is not needed: strangers, rubbish, and very many ranks."""

from __future__ import annotations

import json
import resource
import socket
import subprocess
import sys
import time

import pytest

from aitrain.dist.lifeline import Hub, _allow_connections
from aitrain.errors import LaunchError

MANY = """
import resource, sys
from aitrain.dist.lifeline import Hub
resource.setrlimit(resource.RLIMIT_NOFILE, (100, resource.getrlimit(resource.RLIMIT_NOFILE)[1]))
hub = Hub(int(sys.argv[1]), 300, "run")
print("listening", flush=True)
while sum(state.beats == 7 for state in hub.all_states()) < 299:
    hub.listen()
print("all heard", flush=True)
"""


def port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def test_more_ranks_than_a_process_may_open_files_by_default() -> None:
    number = port()
    process = subprocess.Popen([sys.executable, "-c", MANY, str(number)], stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None and process.stdout.readline() == "listening\n"
    lines = []
    for rank in range(1, 300):
        lines.append(socket.create_connection(("127.0.0.1", number)))
        lines[-1].sendall(json.dumps({"run": "run", "rank": rank, "beats": 7}).encode() + b"\n")
    try:
        assert process.communicate(timeout=30)[0] == "all heard\n"
    finally:
        process.kill()
        for line in lines:
            line.close()


def test_a_limit_that_cannot_be_raised_is_told() -> None:
    before = resource.getrlimit(resource.RLIMIT_NOFILE)
    with pytest.raises(LaunchError, match="write `ulimit -n"):
        _allow_connections(before[1] + 1)
    assert resource.getrlimit(resource.RLIMIT_NOFILE) == before


@pytest.mark.parametrize(
    "said",
    [b"GET / HTTP/1.1\r\n\r\n", b'{"run": "other", "rank": 1}\n', b'{"run": "run", "rank": 9}\n', b"[1]\n", b"\xff\n"],
)
def test_strangers_change_nothing(said: bytes) -> None:
    number = port()
    hub = Hub(number, 3, "run")
    before = [vars(state).copy() for state in hub.all_states()]
    with socket.create_connection(("127.0.0.1", number)) as stranger:
        stranger.sendall(said)
        for _ in range(5):
            hub.listen()
            time.sleep(0.02)
    after = [
        {**vars(state), "unheard_s": old["unheard_s"]} for state, old in zip(hub.all_states(), before, strict=True)
    ]
    assert after == before
    with socket.create_connection(("127.0.0.1", number)) as friend:
        friend.sendall(json.dumps({"run": "run", "rank": 2, "doing": "step 9"}).encode() + b"\n")
        for _ in range(5):
            hub.listen()
            time.sleep(0.02)
        assert [state.doing for state in hub.all_states()] == ["starting", "step 9"]
    from aitrain.dist.verdict import Verdict

    hub.end(Verdict(0))

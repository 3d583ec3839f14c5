"""Whole runs on a real Slurm: submitted, requeued, hit by every fault, watched and stopped.

One cluster and a few runs are shared by all tests, because starting four ranks takes longer than what they do.
"""

from __future__ import annotations

import os
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import pytest
from hub import serve
from slurm_cluster import (
    GPUS,
    NODES,
    aitrain,
    events,
    is_over,
    job_of,
    jobs_named,
    log,
    node_of,
    queue,
    rank_processes,
    records,
    slurm,
    steps,
    submit,
    wait_for,
)
from tiny import CONTEXT_TOKENS, make_data, make_model

from aitrain.launch import local_slurm
from aitrain.launch.clusters import names
from aitrain.launch.local_nodes import why_no_namespaces

pytestmark = pytest.mark.timeout(900)  # a scenario may wait for others that share two cores with it
ROOT = Path(__file__).parents[2]
EXPECTED = ROOT / "tests/launch/expected"
PROFILES = names({})
HAS_NAMESPACES = why_no_namespaces() is None
LIMITED, FAULTY, SHORT = 240, 60, 10
"""Steps of the runs; with a constant learning rate, a short run is the beginning of a long one."""
SLOW = """
import os, sys, time
def wait(event, arguments):
    if event == "open" and str(arguments[0]).endswith("metrics.jsonl") and "a" in (arguments[1] or ""):
        time.sleep(0 if os.path.exists(os.path.dirname(arguments[0]) + ".fast") else 0.25)
sys.addaudithook(wait)
"""
"""A step of a run that must last takes longer, without taking the cores from the runs beside it; see `hurry`."""


@dataclass
class Place:
    """Where the tests of this file work."""

    folder: Path
    words: list[str]

    alone: subprocess.Popen[bytes] | None = None

    @property
    def slow(self) -> dict[str, str]:
        """Variables of a job whose steps take longer."""
        return {"PYTHONPATH": str(self.folder / "slow")}

    def recipe(self, max_steps: int) -> list[str]:
        return [*self.words, f"trainer.max_steps={max_steps}"]

    def losses(self) -> list[float]:
        """Return the losses of one rank without Slurm; that run is done while the others wait for Slurm."""
        assert self.alone is not None and self.alone.wait(400) == 0
        return [record["loss"] for record in records(self.folder / "alone/metrics.jsonl")]


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Place]:
    """A running cluster, and a folder that all of its nodes see."""
    if shutil.which("slurmctld") is None and not os.environ.get("AITRAIN_NEED_SLURM"):
        pytest.skip(f"Slurm is not installed: {local_slurm.PACKAGES}")
    with (
        tempfile.TemporaryDirectory(prefix=".aitrain-slurm-", dir=Path.home()) as name,
        pytest.MonkeyPatch.context() as patch,
    ):
        folder = Path(name)
        patch.setenv("AITRAIN_LOCAL_SLURM", str(folder / "slurm"))
        patch.delenv("SLURM_CONF", raising=False)
        patch.chdir(folder)
        (folder / "slow").mkdir()
        (folder / "slow/sitecustomize.py").write_text(SLOW)
        model, data = make_model(folder / "model"), make_data(folder / "data.jsonl", samples=64)
        words = ["sft_full", "data.validation_samples=null"]
        words += [
            f"model.path={model}",
            f"data.path={data}",
            f"data.sequence_tokens={CONTEXT_TOKENS}",
        ]
        words += ["trainer.accelerator=cpu", "trainer.precision=fp32", "trainer.max_epochs=null", "optim.lr=1e-5"]
        words += [
            "trainer.global_batch_samples=16",
            "trainer.micro_batch_samples=2",
            "schedule=constant",
            "schedule.warmup_steps=0",
            "export.at_end=false",
        ]
        aitrain("local-slurm", "start", "--nodes", str(NODES), "--gpus", str(GPUS))
        found = Place(folder, words)
        command = [sys.executable, "-m", "aitrain", "train", *found.recipe(LIMITED), f"run.dir={folder}/alone"]
        found.alone = subprocess.Popen(command, stderr=subprocess.DEVNULL)
        try:
            yield found
        finally:
            found.alone.kill()
            slurm("scancel", "--user", str(os.getuid()))
            aitrain("local-slurm", "stop")
        assert local_slurm.running_site() is None


def assert_equals(run: Path, losses: list[float]) -> None:
    """Each step once, in order, with the losses of the uninterrupted run."""
    metrics = records(run / "metrics.jsonl")
    assert [record["step"] for record in metrics] == list(range(1, len(losses) + 1))
    assert [record["loss"] for record in metrics] == pytest.approx(losses, rel=2e-4)


def next_life(run: Path, lives: int, past: int, seconds: float = 150) -> int:
    """Wait until a run was started so many times and has got past a step; return its step."""
    wait_for(f"start {lives} of {run.name}", lambda: len(events(run, "started", "resumed")) >= lives, seconds, run)
    wait_for(f"step {past} of {run.name}", lambda: steps(run) > past, seconds, run)
    return steps(run)


def hurry(run: Path) -> None:
    """Let the steps of a run be as fast as they are."""
    run.with_name(f"{run.name}.fast").touch()


def limit_twice(place: Place) -> None:
    """A run meets its time limit in the middle, twice."""
    run = place.folder / "limited"
    words = [*place.recipe(LIMITED), "trainer.devices=1"]
    submit(words, run, "cluster.signal_s=30", "--nodes", "1", variables=place.slow)
    for life in (1, 2):
        next_life(run, life, steps(run) + 2)
        # the warning comes at Slurm's next look, within 30 s; the limit itself would be 30 s later
        slurm("scontrol", "update", f"JobId={job_of(run)}", "EndTime=now+59seconds")
        wait_for(
            f"start {life + 1} after a time limit", lambda life=life: len(events(run, "launched")) > life, 180, run
        )
    slurm("scontrol", "update", f"JobId={job_of(run)}", "TimeLimit=60")  # it kept what was set above: two minutes
    hurry(run)
    wait_for("the limited run is over", lambda: is_over(run), 180, run)
    assert_equals(run, place.losses()[:LIMITED])
    first, second = (event["step"] for event in events(run, "resumed"))
    assert 0 < first < second < LIMITED, "the limit did not come in the middle of the run"
    assert len({event["job"] for event in events(run, "launched")}) == 1, "a requeued job keeps its number"


def break_in_every_way(place: Place) -> None:
    """Kill a rank, stop one, send a signal, let a node crash; the run goes on after each, and is as if it were not."""
    run = place.folder / "faulty"
    words = [*place.recipe(FAULTY), "trainer.devices=1", "checkpoint.every_steps=5"]
    submit(words, run, variables=place.slow)
    next_life(run, 1, 12)
    ranks = rank_processes(run)
    killed_on = node_of(ranks[1])
    os.kill(ranks[1], signal.SIGKILL)
    wait_for("the other rank ends", lambda: not set(rank_processes(run).values()) & set(ranks.values()), 10, run)
    wait_for("start 2 after a rank was killed", lambda: len(events(run, "launched")) == 2, 120, run)
    (failure,) = events(run, "rank_failed")
    assert (failure["rank"], failure["node"]) == (1, killed_on)
    assert f"Rank 1 on {killed_on} was killed by signal 9" in log(run)

    next_life(run, 2, 17)
    ranks = rank_processes(run)
    stopped_on = node_of(ranks[1])
    assert killed_on not in {node_of(pid) for pid in ranks.values()}, "the node was not excluded"
    os.kill(ranks[1], signal.SIGSTOP)
    wait_for("start 3 after a rank was stopped", lambda: len(events(run, "launched")) == 3, 150, run)
    failure = events(run, "rank_failed")[-1]
    assert (failure["rank"], failure["node"]) == (1, stopped_on) and "was stopped (SIGSTOP)" in failure["reason"]
    assert "most recent call first" in (run / "logs/rank-1.log").read_text(), "its stack was not written"

    done = next_life(run, 3, 22)
    slurm("scancel", "--signal=USR1", job_of(run))
    wait_for("start 4 after a signal", lambda: len(events(run, "launched")) == 4, 120, run)
    assert len(events(run, "rank_failed")) == 2
    assert steps(run) >= done, "what was done was not saved"

    if not HAS_NAMESPACES:
        print("Nodes have no namespaces of their own here, so none of them can be lost.")
    else:
        next_life(run, 4, steps(run) + 1)
        dead = node_of(rank_processes(run)[1])
        aitrain("local-slurm", "kill-node", dead)
        wait_for("the lost node is noticed", lambda: len(events(run, "rank_failed")) == 3, 90, run)
        assert events(run, "rank_failed")[-1]["node"] == dead
        wait_for("start 5 after a node was lost", lambda: len(events(run, "launched")) == 5, 120, run)
        aitrain("local-slurm", "start-node", dead)
    hurry(run)
    wait_for("the faulty run is over", lambda: is_over(run), 200, run)
    assert_equals(run, place.losses()[:FAULTY])
    assert not rank_processes(run) and not rank_processes(run, supervised=False)


def train_on_four_ranks(place: Place) -> None:
    """Two nodes x two ranks, with ddp and with ZeRO-2."""
    for name, words in (("ddp", []), ("zero", ["strategy=deepspeed_zero2"])):
        run = place.folder / name
        submit([*place.recipe(SHORT), *words], run)
        wait_for(f"{name} is over", lambda run=run: is_over(run), 120, run)
        assert_equals(run, place.losses()[:SHORT])
        assert (events(run, "started")[0]["nodes"], events(run, "started")[0]["ranks"]) == (2, 4)


def refuse_what_nodes_do_not_see(place: Place) -> None:
    """A run directory in /tmp, which each node has for itself."""
    words = ["submit", *place.recipe(SHORT), "--cluster", "local_slurm", "run.dir=/tmp/aitrain-nowhere/run"]
    if HAS_NAMESPACES:
        assert "run.dir=/tmp/aitrain-nowhere/run is on node-local storage" in aitrain(*words, code=2)
    assert not Path("/tmp/aitrain-nowhere").exists()


def sweep_as_an_array(place: Place) -> None:
    """Four runs, one array, one table."""
    sweep = place.folder / "sweep"
    words = [*place.recipe(SHORT), "optim.lr=1e-5,1e-3", "seed=1,2", "trainer.devices=1", "-m"]
    number = submit(words, sweep, "--nodes", "1")
    runs = [sweep / str(index) for index in range(4)]
    for run in runs:
        wait_for(f"run {run.name} of the sweep is over", lambda run=run: is_over(run), 120, run)
    assert {job_of(run) for run in runs} == {f"{number}_{index}" for index in range(4)}
    table = (sweep / "results.txt").read_text().splitlines()
    assert table == aitrain("runs", str(sweep)).splitlines()
    assert sorted(line.split()[0] for line in table[2:]) == [*map(str, runs)] and table[0].startswith("run ")
    in_order = sorted(table[2:])  # the table itself is sorted by the held-out metric, which these runs do not have
    assert [line.split("finished")[1].strip() for line in in_order] == [
        f"optim.lr={rate} seed={seed}" for rate in ("1e-05", "0.001") for seed in (1, 2)
    ]


def chain_without_requeue(place: Place) -> None:
    """Where requeueing is off, the next job waits from the start and goes on in the same run directory."""
    run = place.folder / "chain"
    words = [*place.recipe(40), "cluster.requeue=false", "trainer.devices=1"]
    first = submit(words, run, "--nodes", "1", variables=place.slow)
    next_life(run, 1, 3)
    (waiting,) = [job for job in jobs_named("chain") if job[0] != first]
    assert waiting[1] == "Dependency"
    slurm("scancel", "--signal=USR1", first)
    wait_for("the second job of the chain", lambda: len(events(run, "launched")) == 2, 180, run)
    assert job_of(run) == waiting[0] != first
    hurry(run)
    wait_for("the chain is over", lambda: is_over(run), 200, run)
    assert_equals(run, place.losses()[:40])
    wait_for("no third job is left", lambda: not jobs_named("chain"), 120, run)


def give_up(place: Place) -> None:
    """A rank that is killed at each start is restarted only as often as the recipe allows."""
    run = place.folder / "hopeless"
    number = submit([*place.recipe(SHORT), "cluster.restarts=1", "trainer.devices=1"], run, "--nodes", "1")
    for life in (1, 2):
        wait_for(
            f"start {life}", lambda life=life: len(events(run, "launched")) == life and rank_processes(run), 90, run
        )
        os.kill(rank_processes(run)[0], signal.SIGKILL)
    wait_for("it gives up", lambda: "was restarted 1 times without a new checkpoint" in log(run), 180, run)
    wait_for("the job is gone", lambda: number not in queue(), 120, run)


def watch_and_stop(place: Place) -> None:
    """Watched while it waits, while it runs, after it was stopped, and when it was continued and cancelled."""
    run = place.folder / "watched"
    slurm("scontrol", "update", "PartitionName=low", "State=DOWN")
    words = [*place.recipe(LIMITED), "trainer.devices=1"]
    number = submit(words, run, "--nodes", "1", "--partition", "low", variables=place.slow)
    wait_for("it waits", lambda: "waiting in the queue (PartitionDown)" in aitrain("status", str(run)), 60)
    assert f"job         {number}, number 1 of 1 waiting in partition low" in aitrain("status", str(run))
    slurm("scontrol", "update", "PartitionName=low", "State=UP")
    next_life(run, 1, 3)
    status = aitrain("status", str(run))
    (nodes,) = (words[2] for words in jobs_named("sft_full", "low"))
    for words in (f"{run}: running on {nodes}", f"of {LIMITED}, loss 5.", "tokens/s", "until the time limit"):
        assert words in status, status
    assert f"running on {nodes}" in aitrain("runs", str(place.folder))
    command = [sys.executable, "-m", "aitrain", "logs", str(run), "-f"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as follower:
        assert follower.stdout is not None
        # Slurm may speak first, when the step that made folders has not quite left the nodes
        assert any("64 samples" in line for line in follower.stdout)
        follower.kill()
    assert f"Asked job {number} to save" in aitrain("stop", str(run))
    wait_for("it has stopped", lambda: number not in queue(), 120, run)
    done = steps(run)
    assert "stopped, can be resumed" in aitrain("status", str(run)) and events(run, "checkpoint")[-1]["step"] == done
    assert "Stopped by aitrain stop" in log(run) and len(events(run, "launched")) == 1
    assert "nothing to stop" in aitrain("stop", str(run), code=2)
    assert aitrain("logs", str(run)) == log(run)
    (run / "logs/rank-1.log").write_text("what rank 1 said\n")
    assert aitrain("logs", str(run), "--rank", "1") == "what rank 1 said\n"
    assert "no log of rank 9: there are logs of ranks 0 to 1" in aitrain("logs", str(run), "--rank", "9", code=2)

    slurm("sbatch", str(run / "job.sbatch"))
    next_life(run, 2, done)
    number = job_of(run)
    assert "Cancelled job" in aitrain("stop", str(run), "--now")
    wait_for("it is gone", lambda: number not in queue(), 120, run)
    time.sleep(8)  # a requeued job would be back after six
    assert number not in queue(), "a cancelled job came back"


def cluster_on_one_host(place: Place) -> None:
    """Without namespaces, as for ordinary users: a second cluster beside the first."""
    folder, run = place.folder / "host", place.folder / "on-one-host"
    own = {"AITRAIN_LOCAL_SLURM": str(folder)}
    said = aitrain("local-slurm", "start", "--nodes", "2", "--gpus", "2", "--one-host", variables=own)
    try:
        assert "all on this host (as --one-host asks)" in said
        assert "runs in" in aitrain("local-slurm", "start", code=2, variables=own)
        submit([*place.recipe(SHORT), "trainer.devices=1"], run, variables=own)
        wait_for("the run is over", lambda: is_over(run, variables=own), 120, run)
        assert events(run, "started")[0]["nodes"] == 2
        assert "node9 is not a node" in aitrain("local-slurm", "kill-node", "node9", code=2, variables=own)
    finally:
        aitrain("local-slurm", "stop", variables=own)
    assert "No cluster was started" in aitrain("local-slurm", "stop", code=2, variables=own)
    assert slurm("sinfo", "--noheader", "-p", "debug", "-o", "%D").strip() == str(NODES), "the other one still runs"


SPY = """
import os, sys
ALLOWED = ("10.77.", "127.", "::1", "::ffff:10.77.", "node", "localhost")
def note(event, arguments):
    if event == "socket.connect" and isinstance(arguments[1], tuple):
        place = str(arguments[1][0])
    elif event == "socket.getaddrinfo" and arguments[0]:
        place = str(arguments[0])
    else:
        return
    if not place.startswith(ALLOWED):
        open(os.environ["SPY_LOG"], "a").write(f"{event} {place}\\n")
sys.addaudithook(note)
open(os.environ["SPY_LOG"] + ".alive", "a").write("x")
"""


def train_without_a_network(place: Place) -> None:
    """A model from a hub, fetched where there is a network, on nodes that have no route to anywhere."""
    run, spy = place.folder / "offline", place.folder / "spy"
    spy.mkdir()
    (spy / "sitecustomize.py").write_text(SPY)
    words = [word for word in place.recipe(SHORT) if not word.startswith("model.path=")]
    words += ["model.path=company/tiny", "trainer.devices=1"]
    with serve("company/tiny", place.folder / "model") as (address, _):
        own = {"HF_ENDPOINT": address, "HF_HUB_OFFLINE": "0", "HF_HUB_DISABLE_XET": "1"}
        aitrain("fetch", *words, variables=own)
    submit(words, run, variables={"PYTHONPATH": str(spy), "SPY_LOG": str(spy / "log"), "HF_HUB_OFFLINE": "0"})
    wait_for("the run is over", lambda: is_over(run), 200, run)
    assert_equals(run, place.losses()[:SHORT])
    assert (spy / "log.alive").stat().st_size >= 4, "supervisors and ranks were not watched"
    assert not (spy / "log").exists(), (spy / "log").read_text()
    if HAS_NAMESPACES:
        slurm("srun", "--nodes=1", "bash", "-c", "! ip route | grep -q default")


def follow_the_documentation(place: Place) -> None:
    """Every command of docs/on-a-cluster.md, in order, as somebody types it in a new home directory."""
    page = (ROOT / "docs/on-a-cluster.md").read_text()
    blocks = re.findall(r"```bash\n(.*?)```", page, re.DOTALL)
    commands = "".join(blocks).replace("\\\n", " ").splitlines()
    assert len(commands) > 20 and commands[0].startswith("aitrain local-slurm start")
    script = ["set -u", 'step() { echo "++ $*"; }']
    for number, command in enumerate(commands):
        script.append(f"step {number}")
        if "again, until it shows steps" in command:
            script.append(
                f"until {command.split('#')[0]} | tee /dev/stderr | grep -Eq 'step +[1-9]'; do sleep 0.5; done"
            )
        elif "doctor --job" in command:  # on a machine that does other things, a rank may be slow
            script.append(f"{command} || [ $? -eq 4 ] || exit 9")
        else:
            script.append(f"{command} || exit 9")
    with tempfile.TemporaryDirectory(prefix=".aitrain-docs-", dir=Path.home()) as home:
        env = {**os.environ, "HOME": home, "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}"}
        for name in ("AITRAIN_LOCAL_SLURM", "AITRAIN_CACHE"):
            env.pop(name, None)
        try:
            done = subprocess.run(
                ["bash", "-c", "\n".join(script)], env=env, cwd=home, capture_output=True, text=True, timeout=400
            )
            said = done.stdout + done.stderr
            assert done.returncode == 0, said
        finally:
            if local_slurm.running_site(Path(home) / ".cache/aitrain/local-slurm") is not None:
                aitrain("local-slurm", "stop", variables={"HOME": home, "AITRAIN_LOCAL_SLURM": ""})
        for words in ("resumed from", "Back into the queue", "finished", "optim.lr=0.001", "all-reduce between nodes"):
            assert words in said, f"{words!r} is missing in\n{said}"
        assert "Traceback" not in said


SCENARIOS: list[list[Callable[[Place], None]]] = [
    [break_in_every_way],
    [limit_twice, cluster_on_one_host, refuse_what_nodes_do_not_see],
    [follow_the_documentation, train_on_four_ranks],
    [watch_and_stop, give_up, sweep_as_an_array, chain_without_requeue, train_without_a_network],
]
"""Rows that run side by side, because much of this is waiting for Slurm."""
DAILY = (break_in_every_way, limit_twice, refuse_what_nodes_do_not_see, train_on_four_ranks, watch_and_stop)
"""What `make test` runs; the rest takes the processors for as long again, and is run where its subject has changed."""


@pytest.fixture(scope="module")
def outcomes(place: Place, request: pytest.FixtureRequest) -> Iterator[dict[str, Future[None]]]:
    """The chosen scenarios, begun."""
    chosen = {item.callspec.params.get("scenario") for item in request.session.items if hasattr(item, "callspec")}
    pools = [ThreadPoolExecutor(1) for _ in SCENARIOS]
    yield {
        scenario.__name__: pool.submit(scenario, place)
        for pool, row in zip(pools, SCENARIOS, strict=True)
        for scenario in row
        if scenario.__name__ in chosen
    }
    for pool in pools:
        pool.shutdown(cancel_futures=True)


@pytest.mark.parametrize(
    "scenario",
    [
        pytest.param(scenario.__name__, marks=() if scenario in DAILY else pytest.mark.slow)
        for row in SCENARIOS
        for scenario in row
    ],
)
def test_on_slurm(scenario: str, outcomes: dict[str, Future[None]]) -> None:
    outcomes[scenario].result()


def test_doctor_names_a_slow_node(place: Place, outcomes: dict[str, Future[None]]) -> None:
    """One rank shares a single core with others that keep it busy; before that, all are alike."""
    job = ["salloc", "--quiet", "--nodes=2", "--ntasks-per-node=1", "--partition=low"]
    doctor = [sys.executable, "-m", "aitrain", "doctor", "--job", "--cluster", "local_slurm"]
    for outcome in outcomes.values():
        outcome.exception()  # the machine must be as quiet as it gets
    said = slurm(*job, *doctor, code=None)
    assert "all-reduce between nodes: " in said and "each node writes" in said and "the nodes agree within" in said
    assert said.count("TFLOP/s  ") == 2
    script, busy = place.folder / "slow.sh", place.folder / "busy"
    # three loops on the one core of rank 1, in sessions of their own, for as long as the rank lives
    loop = f"while [ -e {busy} ]; do :; done"
    script.write_text(
        f'if [ "$SLURM_PROCID" != 1 ]; then exec "$@"; fi\ntouch {busy}\n'
        f"for i in 1 2 3; do (setsid taskset -c 0 timeout 90 bash -c '{loop}' &); done\n"
        f'taskset -c 0 "$@"\ncode=$?\nrm {busy}\nexit $code\n'
    )
    for _ in range(3):  # the other core may be busy too, with other tests
        said = slurm(*job, "srun", "bash", str(script), *doctor, code=None)
        if "rank 1 on" in said:
            break
    (slow,) = re.findall(r"rank +1  (node\d+)", said)
    assert re.search(rf"WRONG  device +rank 1 on {slow} .*sbatch --exclude={slow}", said), said
    assert "--job checks the nodes of an allocation: run it inside salloc or sbatch" in aitrain(
        "doctor", "--job", code=2
    )
    said = aitrain("doctor", "--cluster", "local_slurm")
    assert "answers; partitions debug, short, low" in said and "No problems found." in said


@pytest.mark.parametrize("name", PROFILES)
def test_the_script_of_every_profile_is_accepted(place: Place, name: str) -> None:
    """Partition, account and QoS are those of the cluster here; everything else stands as it is."""
    script = EXPECTED / f"{name}.sbatch"
    said = slurm("sbatch", "--test-only", "--partition=debug", "--account=root", "--qos=normal", str(script))
    assert re.search(r"Job \d+ to start at", said)
    with pytest.raises(AssertionError, match="allocation failure"):
        slurm("sbatch", "--test-only", "--partition=debug", "--gres=gpu:99", str(script))

"""What hosts say to each other, the exchange faked; tests/train/test_hosts.py joins real ones."""

import json

import jax
import pytest

from llama_jax.config import InputError
from llama_jax.runtime import hosts

VARIABLES = (
    "JAX_COORDINATOR_ADDRESS", "JAX_NUM_PROCESSES", "JAX_PROCESS_ID", "TPU_PROCESS_ADDRESSES",
    "TPU_WORKER_HOSTNAMES", "MEGASCALE_NUM_SLICES", "OMPI_COMM_WORLD_SIZE", "SLURM_JOB_ID",
    "SLURM_STEP_NODELIST", "SLURM_NTASKS", "SLURM_PROCID", "SLURM_LOCALID", "JAX_PLATFORMS",
)  # fmt: skip
SLURM = {"SLURM_JOB_ID": "1", "SLURM_STEP_NODELIST": "n[1-2]", "SLURM_PROCID": "0"}


@pytest.fixture
def env(monkeypatch):
    """Sets variables on a machine that says nothing of several hosts, and has no TPU."""
    for name in VARIABLES:
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("TPU_SKIP_MDS_QUERY", "1")
    return lambda **values: [monkeypatch.setenv(k, v) for k, v in values.items()]


@pytest.fixture
def joined(monkeypatch):
    """Arguments with which `jax.hosts.initialize` was called."""
    calls = []
    monkeypatch.setattr(jax.distributed, "initialize", lambda *a, **_: calls.append(a))
    return calls


def test_a_machine_by_itself_joins_nothing(env, joined):
    hosts.initialize()
    env(TPU_WORKER_HOSTNAMES="localhost", SLURM_NTASKS="4", OMPI_COMM_WORLD_SIZE="1")
    hosts.initialize()
    env(**SLURM, SLURM_LOCALID="0", SLURM_NTASKS="1")
    hosts.initialize()
    env(SLURM_NTASKS="4")  # a shell inside an allocation
    hosts.initialize(num_processes=1)
    env(JAX_NUM_PROCESSES="1")
    hosts.initialize()
    assert joined == []


@pytest.mark.parametrize(
    "variables",
    [
        {"TPU_WORKER_HOSTNAMES": "a,b"},
        {"TPU_PROCESS_ADDRESSES": "a:1,b:1"},
        {"TPU_WORKER_HOSTNAMES": "a", "MEGASCALE_NUM_SLICES": "2"},
        {**SLURM, "SLURM_LOCALID": "0", "SLURM_NTASKS": "2"},
        {"OMPI_COMM_WORLD_SIZE": "2"},
    ],
    ids=lambda variables: " ".join(variables)[:24],
)
def test_what_jax_detects_is_left_to_it(env, joined, variables):
    env(**variables)
    hosts.initialize()
    assert joined == [(None, None, None)]


def test_plain_flags_come_before_variables(env, joined):
    env(JAX_COORDINATOR_ADDRESS="a:1", JAX_NUM_PROCESSES="4", JAX_PROCESS_ID="3")
    hosts.initialize()
    hosts.initialize("b:2", process_id=0)
    assert joined == [("a:1", 4, 3), ("b:2", 4, 0)]


@pytest.mark.parametrize(
    ("given", "message"),
    [
        (("a:1", 2, None), r"all of --coordinator-address.*given a:1, 2 and None"),
        ((None, 2, 1), r"given None, 2 and 1"),
        (("a", 2, 1), r"--coordinator-address a must be HOST:PORT"),
        (("a:1", 2, 2), r"--process-id 2 must lie between 0 and 1"),
    ],
)
def test_what_is_missing_or_impossible_is_named(env, joined, given, message):
    with pytest.raises(InputError, match=message):
        hosts.initialize(*given)
    assert joined == []


def test_a_variable_that_is_no_number_is_named(env):
    env(JAX_COORDINATOR_ADDRESS="a:1", JAX_NUM_PROCESSES="two")
    with pytest.raises(InputError, match="JAX_NUM_PROCESSES=two must be a number"):
        hosts.initialize()
    env(JAX_NUM_PROCESSES="2", OMPI_COMM_WORLD_SIZE="2(x2)")
    with pytest.raises(InputError, match=r"OMPI_COMM_WORLD_SIZE=2\(x2\) must be a number"):
        hosts.initialize()


def test_hosts_that_do_not_meet_are_a_failure_of_one_line(env, monkeypatch):
    def refuse(*_, **__):
        raise OSError("no metadata server")

    monkeypatch.setattr(jax.distributed, "initialize", refuse)
    env(TPU_WORKER_HOSTNAMES="a,b")
    with pytest.raises(ConnectionError, match=r"find each other \(no metadata server\); for a TPU"):
        hosts.initialize()


def hosts_say(monkeypatch, *values):
    monkeypatch.setattr(hosts, "exchange", lambda _: list(values))


def test_hosts_that_agree_go_on(monkeypatch):
    facts = {"seed": 0, "steps": (0, 0)}
    hosts_say(monkeypatch, *[json.dumps(facts)] * 3)
    hosts.require_agreement(facts)


def test_each_difference_is_named_with_its_hosts(monkeypatch):
    usual = {"seed": 0, "the version of jax": "0.12.0"}
    facts = [usual] * 7
    facts[2] = usual | {"seed": 1}
    facts[6] = {"seed": 0}
    hosts_say(monkeypatch, *map(json.dumps, facts))
    with pytest.raises(InputError) as error:
        hosts.require_agreement(usual)
    assert str(error.value) == (
        "the hosts disagree: seed is 0 on hosts 0, 1, 3, 4, ... and 1 on host 2; the version of "
        'jax is "0.12.0" on hosts 0, 1, 2, 3, ... and null on host 6. Start all of them with one '
        "command, one version and one environment"
    )


def test_what_one_host_raises_all_raise(monkeypatch):
    hosts_say(monkeypatch, "", "InputError: no such file: x", "")
    with pytest.raises(InputError, match=r"^host 1: no such file: x$"), hosts.fail_together():
        pass
    hosts_say(monkeypatch, "", "", "OSError: disk full")
    with pytest.raises(ConnectionError, match=r"^host 2: disk full$"), hosts.fail_together():
        pass
    said = []
    monkeypatch.setattr(hosts, "exchange", said.append)
    with pytest.raises(ValueError, match="mine"), hosts.fail_together():
        raise ValueError("mine")
    assert said == ["ValueError: mine"]


@pytest.mark.parametrize("answer", [True, False])
def test_what_host_0_says_goes(monkeypatch, answer):
    hosts_say(monkeypatch, *map(json.dumps, (answer, not answer, not answer)))
    assert hosts.broadcast_from_main(not answer) is answer


def test_alone_there_is_nothing_to_wait_for():
    assert hosts.exchange("x") == ["x"]
    with hosts.fail_together():
        pass
    hosts.leave(1)  # and the process goes on

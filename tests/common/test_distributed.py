"""Collective operations over two processes and in one, and how the processes find each other."""

import multiprocessing
import os
import socket

import pytest
import torch
import torch.distributed as dist
from torch import nn

from gfl.common import distributed
from gfl.common.errors import UserError

LAUNCHER = ("RANK", "WORLD_SIZE", "LOCAL_RANK", "MASTER_ADDR", "MASTER_PORT", "TORCHELASTIC_RUN_ID")


@pytest.fixture
def alone(monkeypatch):
    for name in LAUNCHER:
        monkeypatch.delenv(name, raising=False)


def collect(rank):
    """What the operations return on one of two processes."""
    buffers = nn.BatchNorm1d(2)
    buffers.running_mean.fill_(rank + 5)
    distributed.share_buffers(buffers)
    return {
        "rank": (distributed.rank(), distributed.world_size(), distributed.is_main()),
        "mean": distributed.mean_over_processes(torch.tensor([1.0, rank])).tolist(),
        "gathered": distributed.gather_to_main(f"from {rank}"),
        "shared": distributed.share_from_main({"of": rank}),
        "buffer": buffers.running_mean.tolist(),
    }


def in_two_processes(work):
    """What `work(rank)` returns, or the code of its `UserError`, within a process group of two processes."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
    processes = multiprocessing.get_context("fork")
    results = processes.SimpleQueue()

    def enter(rank):
        common = {"WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
        os.environ.update(common, RANK=str(rank), LOCAL_RANK=str(rank))
        try:
            with distributed.process_group():
                results.put((rank, work(rank)))
        except UserError as error:
            results.put((rank, error.code))

    children = [processes.Process(target=enter, args=(rank,)) for rank in range(2)]
    for child in children:
        child.start()
    for child in children:
        child.join(60)
        child.kill()
    found = {}
    while not results.empty():
        rank, value = results.get()
        found[rank] = value
    return found


@pytest.mark.skipif(torch.cuda.is_available(), reason="one GPU cannot hold two NCCL processes")
def test_two_processes_share_their_values():
    results = in_two_processes(collect)
    main, other = results[0], results[1]
    assert (main["rank"], other["rank"]) == ((0, 2, True), (1, 2, False))
    assert main["mean"] == other["mean"] == [1.0, 0.5]
    assert (main["gathered"], other["gathered"]) == (["from 0", "from 1"], None)
    assert main["shared"] == other["shared"] == {"of": 0}
    assert main["buffer"] == other["buffer"] == [5.0, 5.0]


@pytest.mark.skipif(torch.cuda.is_available(), reason="one GPU cannot hold two NCCL processes")
def test_a_process_that_loses_another_ends_with_a_user_error():
    def work(rank):
        if rank == 1:
            os._exit(3)
        dist.barrier()

    assert in_two_processes(work) == {0: "processes"}


def test_in_one_process_every_operation_is_the_identity(alone):
    value = torch.tensor(3.0)
    assert (distributed.rank(), distributed.world_size(), distributed.is_main()) == (0, 1, True)
    assert distributed.mean_over_processes(value) is value
    assert distributed.gather_to_main(7) == [7]
    assert distributed.share_from_main(7) == 7
    with distributed.process_group() as device:
        assert device.type == ("cuda" if torch.cuda.is_available() else "cpu")
        assert not dist.is_initialized()


def test_a_launch_is_identified_by_torchrun_and_its_process(alone, monkeypatch):
    assert distributed.launch_id() == ""
    monkeypatch.setenv("TORCHELASTIC_RUN_ID", "none")
    monkeypatch.setattr("os.getppid", lambda: 41)
    first = distributed.launch_id()
    monkeypatch.setattr("os.getppid", lambda: 42)
    assert first != distributed.launch_id() != ""


@pytest.mark.parametrize(
    ("nodes", "prefix"), [("1", "3"), ("2", "")], ids=["one node: number of restarts", "more nodes: none"]
)
def test_keys_in_the_store_of_torchrun_have_the_number_of_restarts(nodes, prefix):
    environment = {"TORCHELASTIC_RESTART_COUNT": "3", "GROUP_WORLD_SIZE": nodes}
    assert distributed.restart_prefix(environment) == ""  # each start creates its own store
    assert distributed.restart_prefix(environment | {"TORCHELASTIC_USE_AGENT_STORE": "True"}) == prefix


def test_restarts_over_several_nodes_need_their_own_stores(refusal):
    environment = {"TORCHELASTIC_USE_AGENT_STORE": "True", "GROUP_WORLD_SIZE": "2", "TORCHELASTIC_MAX_RESTARTS": "3"}
    assert "TORCH_DISABLE_SHARE_RDZV_TCP_STORE=1" in refusal(distributed.restart_prefix, environment)


@pytest.mark.skipif(torch.cuda.is_available(), reason="joins with NCCL there")
def test_processes_that_cannot_connect_end_with_a_user_error(alone, monkeypatch):
    monkeypatch.setenv("WORLD_SIZE", "2")
    with pytest.raises(UserError) as error, distributed.process_group():
        pass
    assert error.value.code == "processes"

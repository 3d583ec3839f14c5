"""Lightning believes our reading of the launcher and may not change it."""

from __future__ import annotations

import pytest

from aitrain.dist.ranks import Ranks
from aitrain.strategy.environment import RankEnvironment


def test_says_what_the_launcher_said() -> None:
    told = RankEnvironment(Ranks(5, 8, 1, 4, "gcn12", 29500, "torchrun"))
    assert (told.global_rank(), told.world_size(), told.local_rank(), told.node_rank()) == (5, 8, 1, 1)
    assert (told.main_address, told.main_port) == ("gcn12", 29500)
    assert told.creates_processes_externally
    assert not RankEnvironment.detect(), "Lightning would choose it by itself"


def test_one_process_keeps_one_free_port() -> None:
    told = RankEnvironment(Ranks())
    assert 0 < told.main_port < 65536
    assert told.main_port == told.main_port


def test_agreeing_is_no_change() -> None:
    told = RankEnvironment(Ranks(5, 8, 1, 4, "gcn12", 29500, "torchrun"))
    told.set_world_size(8)
    told.set_global_rank(5)


def test_refuses_what_contradicts_the_launcher() -> None:
    told = RankEnvironment(Ranks(5, 8, 1, 4, "gcn12", 29500, "torchrun"))
    with pytest.raises(AssertionError, match="Lightning counts 4 ranks, the launcher 8"):
        told.set_world_size(4)
    with pytest.raises(AssertionError, match="Lightning takes this for rank 1, the launcher for 5"):
        told.set_global_rank(1)

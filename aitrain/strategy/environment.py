"""Tells Lightning which rank this is, from our own detection of the launcher."""

from __future__ import annotations

from lightning.pytorch.plugins.environments import ClusterEnvironment

from aitrain.dist.processes import free_port
from aitrain.dist.ranks import Ranks


class RankEnvironment(ClusterEnvironment):
    """A cluster environment whose processes exist already.

    Args:
        ranks: This process's place.
    """

    def __init__(self, ranks: Ranks) -> None:
        super().__init__()
        self.ranks = ranks
        self._port = ranks.port or free_port()

    @property
    def creates_processes_externally(self) -> bool:
        """Whether something else starts the ranks: always."""
        return True

    @property
    def main_address(self) -> str:
        """Host of rank 0."""
        return self.ranks.address

    @property
    def main_port(self) -> int:
        """Port of rank 0."""
        return self._port

    @staticmethod
    def detect() -> bool:
        """Whether Lightning may choose this by itself: never."""
        return False

    def world_size(self) -> int:
        """Number of ranks."""
        return self.ranks.world

    def set_world_size(self, size: int) -> None:
        """Refuse to change what the launcher set.

        Args:
            size: What Lightning computed.
        """
        assert size == self.ranks.world, f"Lightning counts {size} ranks, the launcher {self.ranks.world}"

    def global_rank(self) -> int:
        """Number of this rank."""
        return self.ranks.rank

    def set_global_rank(self, rank: int) -> None:
        """Refuse to change what the launcher set.

        Args:
            rank: What Lightning computed.
        """
        assert rank == self.ranks.rank, f"Lightning takes this for rank {rank}, the launcher for {self.ranks.rank}"

    def local_rank(self) -> int:
        """Number of this rank on its node."""
        return self.ranks.local_rank

    def node_rank(self) -> int:
        """Number of this node."""
        return self.ranks.node

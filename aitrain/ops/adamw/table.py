"""Addresses of a bucket's tensors in device memory, so that one launch serves them all."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch

from aitrain.ops.adamw.bucket import GRANULE, Bucket
from aitrain.ops.adamw.codes import BLOCK

CHUNK = 8192
"""Elements of one program: a multiple of 256. A chunk costs 8 bytes of table, a thousandth of its own bytes."""

PARAM, GRAD, FIRST, SECOND, FIRST_SCALE, SECOND_SCALE, SIZE, OFFSET = range(8)
"""Columns of a row: six addresses, the number of elements, the number of the first one among all (random bits)."""

COLUMNS = 8
ALIGNMENT = 16


@dataclass(frozen=True)
class Part:
    """Rows and chunks of one launch.

    Attributes:
        rows: int64 of shape `(tensors, 8)`.
        chunks: int64, one per program: the row in the upper 32 bits, the number of the chunk in the lower.
        host: `rows` on the CPU.
        owners: Number of each row's tensor in the bucket.
    """

    rows: torch.Tensor
    chunks: torch.Tensor
    host: torch.Tensor
    owners: torch.Tensor

    def moved(self, gradients: torch.Tensor) -> Part:
        """Return this part with gradients at other addresses; the chunks stay.

        Args:
            gradients: int64, by how many bytes each gradient of the bucket has moved.
        """
        host = self.host.clone()
        host[:, GRAD] += gradients[self.owners]
        return Part(_to_device(host, self.rows.device), self.chunks, host, self.owners)


@dataclass(frozen=True)
class Table:
    """A bucket as the kernels see it.

    Attributes:
        wide: What is read 16 bytes at a time: addresses divisible by 16, whole granules of 8 elements.
        narrow: What is read element by element: unaligned tensors, and ends of tensors; usually None.
    """

    wide: Part | None
    narrow: Part | None

    def parts(self) -> list[tuple[Part, bool]]:
        """Return the launches: part, and whether its accesses are wide."""
        return [(part, wide) for part, wide in ((self.wide, True), (self.narrow, False)) if part is not None]


class TableCache:
    """Keeps a bucket's table until an address changes.

    Where only gradients have moved, their column alone is written anew; with most allocators and strategies they keep
    their addresses from step to step.
    """

    def __init__(self) -> None:
        self._fixed: list[tuple[int, ...]] = []
        self._grads: tuple[int, ...] = ()
        self._table: Table | None = None

    def get(self, bucket: Bucket) -> Table:
        """Return the table of a bucket.

        Args:
            bucket: The tensors as they are now.
        """
        columns = [tuple(map(torch.Tensor.data_ptr, tensors)) for tensors in _columns(bucket)]
        grads = columns.pop(GRAD)
        if self._table is None or columns != self._fixed:
            self._table = build_table(bucket)
        elif grads != self._grads:
            by = torch.tensor(grads, device="cpu") - torch.tensor(self._grads, device="cpu")
            if (by % ALIGNMENT).any():  # one that was aligned may be so no longer
                self._table = build_table(bucket)
            else:
                parts = (self._table.wide, self._table.narrow)
                self._table = Table(*(part.moved(by) if part is not None else None for part in parts))
        self._fixed, self._grads = columns, grads
        return self._table


def build_table(bucket: Bucket) -> Table:
    """Write the addresses of a bucket into device memory.

    Args:
        bucket: Its tensors must live until the launch; a table holds no reference.
    """
    wide: dict[int, list[int]] = {}
    narrow: dict[int, list[int]] = {}
    columns = [[tensor.data_ptr() for tensor in tensors] for tensors in _columns(bucket)]
    sizes = [_item(tensors) for tensors in _columns(bucket)]
    for i, param in enumerate(bucket.params):
        row = [column[i] if column else 0 for column in columns] + [param.numel(), bucket.offsets[i]]
        cut = _wide_elements(row, sizes)
        if cut:
            wide[i] = [*row[:SIZE], cut, row[OFFSET]]
        if cut < param.numel():
            narrow[i] = _behind(row, cut, sizes)
    device = bucket.params[0].device
    return Table(_part(wide, device), _part(narrow, device))


def _columns(bucket: Bucket) -> list[Sequence[torch.Tensor]]:
    return [
        bucket.params,
        bucket.grads,
        bucket.exp_avgs,
        bucket.exp_avg_sqs,
        bucket.exp_avg_scales,
        bucket.exp_avg_sq_scales,
    ]


def _item(tensors: Sequence[torch.Tensor]) -> int:
    return tensors[0].element_size() if tensors else 0


def _wide_elements(row: list[int], sizes: list[int]) -> int:
    """Return how many leading elements may be read 16 bytes at a time."""
    aligned = all(
        address % min(ALIGNMENT, GRANULE * item) == 0 for address, item in zip(row[:FIRST_SCALE], sizes, strict=False)
    )
    if not aligned or row[OFFSET] % GRANULE:
        return 0
    size = row[SIZE]
    # an end that fills no granule takes its whole block along: a block has one scale
    return size if size % GRANULE == 0 else size - size % BLOCK


def _behind(row: list[int], cut: int, sizes: list[int]) -> list[int]:
    steps = [cut, cut, cut, cut, cut // BLOCK, cut // BLOCK]
    addresses = [address + step * item for address, step, item in zip(row[:SIZE], steps, sizes, strict=True)]
    return [*addresses, row[SIZE] - cut, row[OFFSET] + cut]


def _part(rows: dict[int, list[int]], device: torch.device) -> Part | None:
    if not rows:
        return None
    with torch.device("cpu"):  # whatever the user's default device is
        host = torch.tensor(list(rows.values()))
        counts = (host[:, SIZE] + CHUNK - 1) // CHUNK
        first = torch.repeat_interleave(counts.cumsum(0) - counts, counts)
        owner = torch.repeat_interleave(torch.arange(len(rows)), counts)
        chunks = (owner << 32) | (torch.arange(len(first)) - first)
        return Part(_to_device(host, device), _to_device(chunks, device), host, torch.tensor(list(rows)))


def _to_device(tensor: torch.Tensor, device: torch.device) -> torch.Tensor:
    return tensor.pin_memory().to(device, non_blocking=True) if device.type == "cuda" else tensor

"""Interprets the measurements of all ranks: slow nodes, wrong clocks, unused fast network."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from statistics import median
from typing import TYPE_CHECKING

from aitrain.doctor.finding import Finding, Grade
from aitrain.launch.choices import Runtime
from aitrain.launch.clusters import Cluster

if TYPE_CHECKING:
    from aitrain.doctor.measure import Measured

SLOW = 0.7
"""Share of the fastest rank's rate below which a rank counts as slow: all do the same at the same time."""

LARGEST_SKEW_S = 2.0
POOR_FABRIC = 0.3
"""Share of the profile's bandwidth below which messages seem to take a slower network."""

WRITE_SPREAD = 0.3
"""Share of the median write rate below which a node's file system counts as slow."""


def judge(found: Sequence[Measured], cluster: Cluster | None) -> list[Finding]:
    """Return the findings, with the names of the nodes.

    Args:
        found: What every rank measured.
        cluster: The cluster, for its figures; `None` = not known.
    """
    return [*_devices(found, cluster), *_links(found, cluster), *_files(found), *_clocks(found)]


def _devices(found: Sequence[Measured], cluster: Cluster | None) -> Iterator[Finding]:
    best = max(each.tflops for each in found)
    slow = [each for each in found if each.tflops < SLOW * best]
    for each in slow:
        yield Finding(
            "device",
            f"rank {each.rank} on {each.node} ({each.device}) reaches {each.tflops:.3g} TFLOP/s, "
            f"{100 * each.tflops / best:.0f} % of the fastest: exclude the node (sbatch --exclude={each.node}) and "
            "report it to the site",
            Grade.wrong,
        )
    for each in found:
        if each.memory_errors:
            yield Finding(
                "device",
                f"rank {each.rank} on {each.node} has had {each.memory_errors} uncorrectable memory errors: exclude "
                f"the node (sbatch --exclude={each.node}) and report it to the site",
                Grade.wrong,
            )
    kinds = sorted({each.device for each in found})
    if len(kinds) > 1:
        yield Finding("device", f"the ranks have different devices: {', '.join(kinds)}", Grade.note)
    if not slow:
        each_of = " each" if len(found) > 1 else ""
        rates = _span(min(each.tflops for each in found), best, "TFLOP/s")
        yield Finding("device", f"{len(found)} x {kinds[0]}, {rates}{each_of}")
    on_cpu = all(each.memory_gb is None for each in found)
    if cluster is not None and on_cpu and cluster.profile.device.runtime is not Runtime.cpu:
        advice = "does the job ask for GPUs, and is this torch built for them?"
        yield Finding("device", f"no rank sees a GPU, but {cluster.name} has some: {advice}", Grade.wrong)


def _span(low: float, high: float, unit: str) -> str:
    ends = dict.fromkeys((f"{low:.3g}", f"{high:.3g}"))
    return f"{' to '.join(ends)} {unit}"


def _links(found: Sequence[Measured], cluster: Cluster | None) -> Iterator[Finding]:
    within: dict[str, float] = {}
    for each in found:
        if each.within_gbps is not None:
            within[each.node] = min(each.within_gbps, within.get(each.node, each.within_gbps))
    if within:
        worst = min(within, key=lambda node: within[node])
        if within[worst] < 0.5 * max(within.values()):
            said = f"all-reduce within {worst}: {within[worst]:.3g} Gbit/s, others reach {max(within.values()):.3g}"
            yield Finding("node", f"{said}: exclude {worst} and report it to the site", Grade.wrong)
        else:
            yield Finding("node", f"all-reduce within a node: {min(within.values()):.3g} Gbit/s or more")
    between = [each.between_gbps for each in found if each.between_gbps is not None]
    if not between:
        return
    rate, network = min(between), found[0].network
    text = f"all-reduce between nodes: {rate:.3g} Gbit/s, {network}"
    promised = cluster.profile.fabric.gbps_per_node if cluster is not None else None
    if promised is not None:
        text += f"; the nodes have {promised:g} Gbit/s"
    on_gpu = found[0].memory_gb is not None
    if on_gpu and "Socket" in network:
        advice = "the fast network is not used: check NCCL_SOCKET_IFNAME, NCCL_NET and the plugin in the container"
        yield Finding("fabric", f"{text}: {advice}", Grade.wrong)
    elif promised is not None and on_gpu and rate < POOR_FABRIC * promised:
        yield Finding("fabric", f"{text}: less than {100 * POOR_FABRIC:.0f} % of that is reached", Grade.wrong)
    else:
        yield Finding("fabric", text)


def _files(found: Sequence[Measured]) -> Iterator[Finding]:
    rates = {each.node: each.write_gbps for each in found if each.write_gbps is not None}
    middle = median(rates.values())
    slow = [node for node, rate in rates.items() if rate < WRITE_SPREAD * middle]
    span = _span(min(rates.values()), max(rates.values()), "GB/s")
    text = f"each node writes {span}, all at the same time" if len(rates) > 1 else f"the node writes {span}"
    if slow:
        yield Finding("files", f"{text}; slow: {', '.join(slow)}: try again, then report it to the site", Grade.note)
    else:
        yield Finding("files", text)


def _clocks(found: Sequence[Measured]) -> Iterator[Finding]:
    if len({each.node for each in found}) == 1:
        return
    middle = median(each.time_s for each in found)
    off = {each.node: each.time_s - middle for each in found if abs(each.time_s - middle) > LARGEST_SKEW_S}
    if off:
        nodes = ", ".join(f"{node} by {skew:+.1f} s" for node, skew in off.items())
        yield Finding("clock", f"off on {nodes}: report it to the site; times in logs will be misleading", Grade.wrong)
    else:
        spread = max(each.time_s for each in found) - min(each.time_s for each in found)
        yield Finding("clock", f"the nodes agree within {spread:.1g} s")

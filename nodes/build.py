"""From a world to its nodes: the one place that knows which class a name stands for."""

from __future__ import annotations

from nodes.contexts import PowerMemory
from nodes.cpu import Cpu
from nodes.device import Device
from nodes.driver import Driver
from nodes.iommu import Iommu
from nodes.kvm import Kvm
from nodes.memory import Memory
from nodes.node import Node
from nodes.ocxl import Ocxl
from nodes.vcpu import Vcpu
from nodes.world import MEMORY, World


def node_class(name: str, world: World) -> type[Node]:
    """The class of the node ``name``."""
    if name == MEMORY:
        power = world.links or world.kernel.tlbie_scope != "all"
        return PowerMemory if power else Memory
    if name in world.cpus:
        return Cpu
    for unit in world.units:
        if name == unit.name:
            return Iommu
        if name in unit.devices:
            return Device
    for vm in world.vms:
        if name == vm.name:
            return Kvm
        if name in vm.vcpus:
            return Vcpu
    if name in (link.name for link in world.links):
        return Ocxl
    raise KeyError(name)


def build(name: str, world: World, seed: int) -> Driver:
    """The driver of one node, ready for its first delivery."""
    driver = Driver(name, seed)
    node = node_class(name, world)(name, world, driver.port)
    driver.handlers = node.handlers()
    driver.node = node
    return driver


def build_all(world: World, seed: int) -> dict[str, Driver]:
    """Drivers of every node."""
    return {name: build(name, world, seed) for name in world.nodes()}

"""From a world to its nodes: the one place that knows which class a name stands for."""

from __future__ import annotations

from mmurace.nodes import plugins, secondary
from mmurace.nodes.book3s64 import Book3s64Memory
from mmurace.nodes.cpu import Cpu
from mmurace.nodes.driver import Driver
from mmurace.nodes.memory import Memory
from mmurace.nodes.node import Node
from mmurace.nodes.plugin_driver import PluginDriver
from mmurace.nodes.world import MEMORY, World


def node_class(name: str, world: World) -> type[Node]:
    """The class of the node ``name``."""
    if name == MEMORY:
        return memory_class(world)
    if name in world.cpus:
        return Cpu
    part = world.part_of(name)
    if part is None:
        raise KeyError(name)
    return secondary.of(part).node_class(part, name)


def memory_class(world: World) -> type[Memory]:
    """Memory with what the machine and the drivers of this world keep in it."""
    kept = [one.memory for one in secondary.secondaries() if one.memory and one.parts(world)]
    if world.kernel.machine == "ppc" and (kept or world.kernel.arch.tlbie_scope != "all"):
        kept.append(Book3s64Memory)
    if not kept:
        return Memory
    return type("Memory", (*kept, Memory), {"__doc__": Memory.__doc__})


def build(name: str, world: World, seed: int) -> Driver:
    """The driver of one node, ready for its first delivery.  Raises ``PluginError``."""
    with plugins.at_fault():
        return _build(name, world, seed)


def _build(name: str, world: World, seed: int) -> Driver:
    driver = PluginDriver(name, seed, world) if plugins.loaded() else Driver(name, seed)
    driver.node = node = node_class(name, world)(name, world, driver.port)
    driver.handlers = node.handlers()
    return driver


def build_all(world: World, seed: int) -> dict[str, Driver]:
    """Drivers of every node.  Raises ``PluginError``."""
    with plugins.at_fault():
        return {name: _build(name, world, seed) for name in world.nodes()}

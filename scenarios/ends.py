"""What goes during a run, and what cannot be asked of it then: refused when a file is loaded.

A VM lives as long as somebody holds a reference to it, and the file of each vCPU is one, as is an
ioctl in progress (virt/kvm/kvm_main.c: ``kvm_vm_ioctl_create_vcpu``, ``kvm_put_kvm``; all
releases).  So whatever is done to it comes before it is destroyed:

    vcpu0                               cpu1
    KVM_RUN                             close(vm_fd)
    leaves; close(vcpu_fd)              [Required: after that, kvm_destroy_vm]
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Final

from mmurace.broker.programs import Program, Step
from mmurace.nodes.secondaries.kvm.messages import (
    GuestApic,
    GuestTouch,
    KvmAddMemslot,
    KvmDestroyVm,
    Sigkill,
)
from mmurace.nodes.secondaries.kvm.part import Vm
from mmurace.nodes.world import World
from mmurace.protocol.errors import UserError

_IN_GUEST: Final = (GuestTouch, GuestApic)
Steps = Mapping[str, tuple[str, Step]]
"""Operation -> the node that it is asked of, and its step."""


def steps_by_name(programs: Sequence[Program]) -> Steps:
    """All steps by the names of their operations."""
    return {
        f"{program.name}/{index}": (program.node, step)
        for program in programs
        for index, step in enumerate(program.steps)
    }


def check_ends(programs: Sequence[Program], world: World, places: Mapping[str, str]) -> None:
    """Nothing uses a VM that may have been destroyed.

    ``places``: operation -> file and key path.  Raises ``UserError``.
    """
    steps = steps_by_name(programs)
    ended: dict[str, str] = {}
    for name, (_, step) in steps.items():
        if isinstance(step.operation, KvmDestroyVm):
            vm = next(vm for vm in world.parts_of(Vm) if vm.name == step.operation.vm)
            first = ended.setdefault(vm.name, name)
            if first != name:
                expected = "one kvm_destroy_vm for each VM"
                raise UserError(places[name], f"{first} destroys {vm.name} already", expected)
            _check_users(vm, name, steps, places)


def _check_users(vm: Vm, end: str, steps: Steps, places: Mapping[str, str]) -> None:
    past = before(end, steps)
    killed = {node for name, (node, step) in steps.items()
              if name in past and isinstance(step.operation, Sigkill)}  # fmt: skip
    for name, (node, step) in steps.items():
        if name in past or node in killed or not _uses(vm, node, step):
            continue
        if end in before(name, steps):
            why = f"comes after {end}, which destroys {vm.name}"
            raise UserError(places[name], why, "nothing that is done to a VM after its end")
        why = f"destroys {vm.name} while {name} of {node} may hold a reference to it"
        last = _last(name, steps)
        raise UserError(places[end], why, f'after = ["{last}"], directly or through others')


def _uses(vm: Vm, node: str, step: Step) -> bool:
    """Whether a step needs the VM."""
    operation = step.operation
    if isinstance(operation, KvmAddMemslot):
        return operation.vm == vm.name
    return isinstance(operation, _IN_GUEST) and node in vm.vcpus


def _last(name: str, steps: Iterable[str]) -> str:
    """The last operation of the same program."""
    program = name.rpartition("/")[0]
    return [other for other in steps if other.rpartition("/")[0] == program][-1]


def before(name: str, steps: Steps) -> set[str]:
    """The operations that are over whenever this one begins."""
    found: set[str] = set()
    left = [name]
    while left:
        program, _, index = (at := left.pop()).rpartition("/")
        previous = [f"{program}/{int(index) - 1}"] if int(index) else []
        new = {*previous, *steps[at][1].after} - found
        found |= new
        left += new
    return found

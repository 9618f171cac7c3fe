"""Rules of the code base that no linter knows.  Each failure names the file and the line."""

from __future__ import annotations

import ast
import importlib
import inspect
import re
import tokenize
from collections.abc import Iterator, Mapping
from functools import cache
from graphlib import CycleError, TopologicalSorter
from pathlib import Path

import pytest

from mmurace.nodes import plugins

ROOT = Path(__file__).resolve().parents[1]
LAYERS = (
    "protocol", "nodes", "broker", "oracle", "scenarios", "explorer", "conform", "campaign",
    "report",
    "launch",
)  # fmt: skip
"""Dependencies point downwards only: to the left here."""
FUNCTION_LINES_MAX = 60
FILE_LINES_MAX = 500
PURE_EXCEPT = {
    "runtime.py", "sockets.py", "journal.py", "files.py", "disk.py", "plugins.py",
    "plugin_guard.py", "plugin_watchdog.py",
}  # fmt: skip
"""Files of ``nodes/`` that run a node as a process, or read plug-ins; all else is node logic."""
IMPURE = {
    "zmq", "time", "random", "asyncio", "datetime", "secrets", "uuid", "threading", "os", "io",
    "socket", "subprocess", "pathlib", "multiprocess",
}  # fmt: skip

Function = ast.FunctionDef | ast.AsyncFunctionDef


def sources(*packages: str) -> list[Path]:
    """All source files of these packages (or top-level modules)."""
    found = [path for package in packages for path in sorted((ROOT / package).rglob("*.py"))]
    return found + [path for p in packages if (path := ROOT / f"{p}.py").exists()]


OURS = sources(*LAYERS)
ALL = OURS + sources("tests", "benchmarks", "docs")


@cache
def tree(path: Path) -> ast.Module:
    """A parsed source file."""
    return ast.parse(path.read_text(), str(path))


def place(path: Path, node: ast.stmt | ast.expr | None = None) -> str:
    """``file:line``."""
    line = f":{node.lineno}" if node else ""
    return f"{path.relative_to(ROOT)}{line}"


def imports(path: Path) -> Iterator[tuple[str, ast.stmt]]:
    """Every module that a file imports, with where."""
    for node in ast.walk(tree(path)):
        if isinstance(node, ast.Import):
            yield from ((alias.name, node) for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module:
            yield node.module, node


def functions(path: Path) -> Iterator[Function]:
    """Every function of a file, methods and nested ones included."""
    for node in ast.walk(tree(path)):
        if isinstance(node, Function):
            yield node


def test_there_is_code_to_look_at() -> None:
    assert len(OURS) > 20
    assert {path.relative_to(ROOT).parts[0] for path in OURS} >= {"protocol", "nodes", "broker"}


def test_node_logic_reads_no_clock_and_does_no_io() -> None:
    pure = [path for path in sources("nodes") if path.name not in PURE_EXCEPT]
    assert [
        f"{place(path, node)} imports {name}"
        for path in [*pure, *sources("protocol")]
        for name, node in imports(path)
        if name.partition(".")[0] in IMPURE
    ] == []


def test_dependencies_point_downwards() -> None:
    wrong = []
    for path in OURS:
        own = LAYERS.index(path.relative_to(ROOT).parts[0].removesuffix(".py"))
        for name, node in imports(path):
            top = name.removeprefix("mmurace.").partition(".")[0]
            if top in ("tests", "benchmarks") or (top in LAYERS and LAYERS.index(top) > own):
                wrong.append(f"{place(path, node)} imports {name}")
    assert wrong == []


def run_time_imports(path: Path, known: Mapping[str, Path]) -> set[str]:
    """Modules of ours that a file imports, wherever in it, when it runs: not those for types."""
    todo: list[ast.AST] = [tree(path)]
    found: set[str] = set()
    while todo:
        node = todo.pop()
        if isinstance(node, ast.If) and getattr(node.test, "id", "") == "TYPE_CHECKING":
            todo.extend(node.orelse)
            continue
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            of = {f"{node.module}.{alias.name}" for alias in node.names}
            found |= (of & known.keys()) or {node.module}
        todo.extend(ast.iter_child_nodes(node))
    return found & known.keys()


def circle(graph: Mapping[str, set[str]]) -> list[str]:
    """Nodes that lead back to the first of them; empty: there are none."""
    try:
        TopologicalSorter(graph).prepare()
    except CycleError as error:
        return list(error.args[1])
    return []


def module_of(path: Path) -> str:
    """``mmurace.nodes.kernel.rmap``."""
    parts = path.relative_to(ROOT).with_suffix("").parts
    return ".".join(("mmurace", *parts)).removesuffix(".__init__")


def test_no_module_imports_itself_by_way_of_others() -> None:
    """Kernel files that call each other are declared in headers; here whoever is called from both
    sides is a module of its own."""
    known = {module_of(path): path for path in OURS}
    graph = {name: run_time_imports(path, known) - {name} for name, path in known.items()}
    assert len(graph["mmurace.nodes.kernel.memory"]) > 5
    assert circle(graph) == []
    assert circle({**graph, "mmurace.nodes.kernel.page_ref": {"mmurace.nodes.kernel.memory"}})


KERNEL = [p for p in sources("nodes/kernel") if "variant" not in p.parts]
NO_KERNEL_FILE = {"__init__.py", "context.py"}
"""What says how kernel code is run here, and stands for no file of it."""
DRIVERS = (
    "driver.py",
    "kvm_main.py",
    "mmu.py",
    "vmx.py",
    "kvm_mm.py",
    "context.py",
    "link.py",
    "locking.py",
    "dmirror.py",
    "amdgpu_hmm.py",
)


@pytest.mark.parametrize(
    "path",
    [p for p in KERNEL if p.name not in NO_KERNEL_FILE]
    + [p for p in sources("nodes/secondaries") if p.name in DRIVERS],
    ids=lambda path: path.stem,
)
def test_kernel_code_says_first_which_file_it_stands_for(path: Path) -> None:
    """Plug-ins name functions by file: ``@replaces("mm/mprotect.c", "change_pte_range")``."""
    document = ast.get_docstring(tree(path)) or ""
    files, colon, _ = document.partition(":")
    assert colon, document
    tops = "arch|drivers|fs|include|kernel|lib|mm|virt"
    assert re.match(rf"({tops})/[\w./-]+\.[ch]\b", files), files
    for word in re.findall(r"\S+\.[ch]\b", files):
        assert re.fullmatch(rf"({tops})/[\w./-]+", word), word


@pytest.mark.parametrize(
    ("file", "function"),
    [
        ("mm/mprotect.c", "change_pte_range"),
        ("mm/memory.c", "zap_pte_range"),
        ("mm/memory.c", "do_wp_page"),
        ("mm/memory.c", "copy_present_pte"),
        ("mm/rmap.c", "try_to_unmap_one"),
        ("mm/rmap.c", "try_to_migrate_one"),
        ("mm/rmap.c", "flush_tlb_batched_pending"),
        ("mm/page-writeback.c", "folio_clear_dirty_for_io"),
        ("virt/kvm/kvm_main.c", "kvm_unmap_gfn_range"),
    ],
)
def test_plug_ins_find_a_function_by_its_file(file: str, function: str) -> None:
    """Of several modules that stand for one file, in that which has it."""
    for path in [*KERNEL, *sources("nodes/secondaries")]:
        importlib.import_module(module_of(path))
    assert inspect.iscoroutinefunction(getattr(plugins._module_of(file, function), function))


LOCKS = {
    "PtlLock", "PtlUnlock", "MmapLock", "MmapUnlock", "MmapDowngrade", "AnonVmaLock",
    "AnonVmaUnlock", "ImmapLock", "ImmapUnlock", "FolioLock", "FolioUnlock", "FolioTrylock",
    "InodeLock", "InodeUnlock", "VmaStartRead", "VmaEndRead", "VmaStartWrite", "MmapReadTrylock",
}  # fmt: skip
WORDS = {"PteCmpxchg", "PteScan", "TlbFlushPending", "PageGet"}
WITH_NAMES = {"locking.py", "vma_lock.py", "pgtable.py", "mm_inline.py", "page_ref.py"}
"""Where the kernel's names for those messages are."""


def test_kernel_code_uses_the_kernels_names() -> None:
    """``spin_lock``, ``ptep_get``, ``try_get_page``, and not the messages that they send."""
    assert [
        f"{place(path, node)} {alias.name}"
        for path in KERNEL
        if path.name not in WITH_NAMES
        for node in ast.walk(tree(path))
        if isinstance(node, ast.ImportFrom)
        for alias in node.names
        if alias.name in LOCKS | WORDS
    ] == []


def test_functions_are_short() -> None:
    assert [
        f"{place(path, f)} {f.name} has {length} lines"
        for path in ALL
        for f in functions(path)
        if (length := (f.end_lineno or f.lineno) - f.lineno + 1) > FUNCTION_LINES_MAX
    ] == []


def test_files_are_short() -> None:
    lengths = {place(path): len(path.read_text().splitlines()) for path in ALL}
    assert {name: n for name, n in lengths.items() if n > FILE_LINES_MAX} == {}


PROCESS_MODULES = ("multiprocess", "multiprocessing")
BARE = {"Process", "Pool", "Queue", "Pipe", "Manager", "Lock", "Event", "Value", "Array"}


def takes_default_context(node: ast.AST) -> bool:
    """Whether this uses multiprocess without saying how processes start."""
    if isinstance(node, ast.ImportFrom):
        return node.module in PROCESS_MODULES and any(a.name in BARE for a in node.names)
    return (
        isinstance(node, ast.Attribute)
        and isinstance(node.value, ast.Name)
        and node.value.id in (*PROCESS_MODULES, "mp")
        and node.attr in BARE
    )


def test_processes_come_from_an_explicit_context() -> None:
    """The default start method forks, and a forked ZeroMQ socket loses messages in silence."""
    assert [
        f"{place(path)}:{getattr(node, 'lineno', 0)}"
        for path in ALL
        for node in ast.walk(tree(path))
        if takes_default_context(node)
    ] == []


def test_no_code_knows_a_scenario() -> None:
    """A race comes from protocol and interleaving, never from a special case."""
    packages = [name for name in LAYERS if name != "scenarios"]
    assert [
        f"{path.relative_to(ROOT)}:{number}: {line.strip()}"
        for path in sources(*packages)
        for number, line in enumerate(path.read_text().splitlines(), 1)
        if re.search(r"\bE\d\d[a-z]?\b", line)
    ] == []


def undocumented(path: Path) -> Iterator[str]:
    """Public functions, classes and methods without a docstring."""
    if not ast.get_docstring(tree(path)):
        yield place(path)
    todo: list[ast.AST] = [tree(path)]
    while todo:
        for node in ast.iter_child_nodes(todo.pop()):
            if not isinstance(node, ast.ClassDef | Function) or node.name.startswith("_"):
                continue
            if not ast.get_docstring(node):
                yield f"{place(path, node)} {node.name}"
            if isinstance(node, ast.ClassDef):
                todo.append(node)


@pytest.mark.parametrize("package", [layer for layer in LAYERS if layer != "launch"])
def test_what_is_public_is_documented(package: str) -> None:
    assert [line for path in sources(package) for line in undocumented(path)] == []


def test_silenced_checks_say_why() -> None:
    silent = re.compile(r"#\s*type:\s*ignore(\[[\w, -]+\])?\s*$")
    assert [
        f"{path.relative_to(ROOT)}:{number}"
        for path in ALL
        for number, line in enumerate(path.read_text().splitlines(), 1)
        if silent.search(line)
    ] == []


def test_nothing_is_left_for_later() -> None:
    later = re.compile(r"\b(TODO|FIXME|XXX|HACK)\b")
    assert [
        place(path)
        for path in ALL
        if path != Path(__file__).resolve() and later.search(path.read_text())
    ] == []


# ---- nobody but a secondary's own folder knows it -----------------------------------------------

DRIVERS_WORDS = re.compile(
    r"(?i:kvm|vcpu|spte|gtlb|vmcs|apic|memslot|iotlb|iommu|smmu|iopf|pasid|ocxl|xsl|atsd|vmid"
    r"|opencapi|vt-d|guest_?(touch|apic)|\bgpus?\b|gpu\d|gmmu|dmirror)"
    r"|(\b|\b_|_)(atc|dma|sva|afu|vms)\b|\b_?(atc|dma|sva|afu)_"
    r"|(Atc|Dma|Sva|Afu)(?=[A-Z_]|\b)|\bVm\b|\b(ATC|DMA|SVA|AFU)\b|\bVMs?\b(?! entry| exit)"
)
"""Names of drivers, of their objects, messages and caches."""
DECLARED = (
    "nodes/secondaries/",
    "nodes/kernel/variant/",  # switches by owner: which profile a driver of a machine has
    "conform/",  # what was measured is what a guest's kernel did
)
"""Where they are declared."""
PICTURES = {
    "nodes/kernel/do_wp_page.py": "who else has the page while it is copied",
    "nodes/kernel/gup.py": "who walks while a table goes",
    "nodes/kernel/mmu_gather.py": "who still has the page when it is freed",
    "nodes/kernel/mmu_notifier.py": "the two kinds of subscribers, with an example of each",
    "nodes/kernel/pgtable.py": "who else has the page while its entry changes",
    "nodes/kernel/rmap.py": "who faults on the page that reclaim takes",
    "nodes/kernel/tlb.py": "who hears a broadcast, and who waits for an IPI",
}
"""Docstrings that explain with an example: the two columns of a race name who is in the other."""


def docstrings(path: Path) -> set[int]:
    """Lines of strings that stand for themselves: docstrings, and those of attributes."""
    return {
        line
        for node in ast.walk(tree(path))
        if isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant)
        for line in range(node.lineno, (node.end_lineno or node.lineno) + 1)
    }


def words_of(path: Path) -> Iterator[tuple[int, str, bool]]:
    """(line, text, whether it only explains) of names, strings and comments."""
    explained = docstrings(path)
    with path.open("rb") as file:
        for token in tokenize.tokenize(file.readline):
            if token.type == tokenize.COMMENT:
                yield token.start[0], token.string, True
            elif token.type in (tokenize.NAME, tokenize.STRING):
                for number, line in enumerate(token.string.split("\n"), token.start[0]):
                    yield number, line, token.start[0] in explained


def knowing(path: Path, explains: bool) -> list[str]:
    """``file:line: text`` where a driver's name is, in code or in what explains it."""
    return [
        f"{path.relative_to(ROOT)}:{line}: {text.strip()}"
        for line, text, only_explains in words_of(path)
        if only_explains == explains and DRIVERS_WORDS.search(text)
    ]


def core() -> list[Path]:
    """All of ours but the folders of declarations."""
    return [
        path for path in OURS if not path.relative_to(ROOT).as_posix().startswith(DECLARED)
    ]  # fmt: skip


def test_no_code_but_a_drivers_own_knows_it() -> None:
    assert len(core()) > 100
    assert [line for path in core() for line in knowing(path, explains=False)] == []


def test_only_pictures_of_races_explain_with_a_driver() -> None:
    asked = [path for path in core() if path.relative_to(ROOT).as_posix() not in PICTURES]
    assert [line for path in asked for line in knowing(path, explains=True)] == []
    assert [name for name in PICTURES if not knowing(ROOT / name, explains=True)] == []


@pytest.mark.parametrize(
    ("text", "found"),
    [
        ("KvmRequest", True), ("iommu0", True), ("self.vms", True), ("vm.oom_kill", False),
        ("world.parts_of(Vm)", True), ("VmFault", False),
        ("make_gtlb", True), ("batch", False), ("dispatch", False), ("Dma", True),
        ("folio_maybe_dma_pinned", False), ("CLONE_VM", False), ("VM entry", False), ("a VM", True),
        ("AtcInvalidate", True), ("match", False), ("isValid", False), ("after", False),
    ],
)  # fmt: skip
def test_names_of_drivers_are_told_from_others(text: str, found: bool) -> None:
    assert bool(DRIVERS_WORDS.search(text)) == found

"""JSON Schema of the TOML files that people write: races, worlds, chaos rules.

What a file holds is in structs, and msgspec tells of those; here are put together the tables whose
rows depend on what there is: operations, secondaries, switches.  A plug-in's are among them.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterable, Mapping
from typing import Any, Final, get_args

import msgspec

from mmurace.broker import chaos_config
from mmurace.nodes.kernel.variant.switch import fields
from mmurace.nodes.secondary import by_node_order
from mmurace.oracle.sometimes import Condition, known_caches, known_operations
from mmurace.protocol.errors import UserError
from mmurace.scenarios import catalogue, world_file
from mmurace.scenarios.arena import Counts, MixedOptions, addable
from mmurace.scenarios.operations import ProgramTable, operations, table_of
from mmurace.scenarios.worlds import WorldTable

Schema = dict[str, Any]
DRAFT: Final = "http://json-schema.org/draft-07/schema#"
"""What TOML language servers read (taplo 0.9.3 knows no ``prefixItems``)."""
_AT: Final = "#/$defs/{name}"


class _Definitions:
    """The schemas of structs, by name, as ``$defs`` of one schema."""

    def __init__(self) -> None:
        self.all: dict[str, Schema] = {}

    def of(self, kind: Any, name: str = "") -> Schema:
        """The schema of a type, in which more can be said; ``name``: as a definition of its own."""
        (schema,), found = msgspec.json.schema_components([kind], ref_template=_AT)
        own = schema.get("$ref", "").rpartition("/")[2]
        made: Schema = found.pop(own) if own else schema
        self.all |= found
        _tell(made)
        return self.put(name, made) if name else made

    def put(self, name: str, schema: Schema) -> Schema:
        """Make it a definition; what refers to that."""
        self.all[name] = schema
        return {"$ref": _AT.format(name=name)}

    def whole(self, top: Schema, title: str) -> Schema:
        """A schema with its definitions."""
        for schema in self.all.values():
            _tell(schema)
        head = {"$schema": DRAFT, "title": title}
        made: Schema = _older(
            head | top | {"title": title, "$defs": dict(sorted(self.all.items()))}
        )
        return made


def _tell(schema: Schema) -> None:
    """Docstrings as prose: without the marks of literals, on one line."""
    if "description" in schema:
        schema["description"] = " ".join(inspect.cleandoc(schema["description"]).split())
        schema["description"] = schema["description"].replace("``", "`")


def _older(value: Any) -> Any:
    """The same in the words of the older draft: an array of so many items of one kind."""
    if isinstance(value, list):
        return [_older(part) for part in value]
    if not isinstance(value, dict):
        return value
    told = {key: _older(part) for key, part in value.items()}
    first, *others = told.pop("prefixItems", [None])
    if first is not None and all(other == first for other in others):
        told["items"] = first
    return told


def _names(known: Iterable[str]) -> Schema:
    return {"enum": sorted(known)}


def _array(items: Schema) -> Schema:
    return {"type": "array", "items": items}


# ---- races -------------------------------------------------------------------------------------


def race() -> Schema:
    """A race's file."""
    known = _Definitions()
    top = known.of(catalogue.RaceTable)
    steps = _steps(known)
    program = known.of(ProgramTable)
    program["properties"]["steps"] = _array(steps)
    programs = _array(known.put("Program", program))
    conditions = _array(_conditions(known))
    world = known.put("World", _world(known))
    scope = known.of(catalogue.ScopeTable)
    scope["properties"] |= {"program": programs, "sometimes": conditions, "world": world}
    top["properties"] |= {
        "world": world,
        "program": programs,
        "kernel": {"minItems": 1} | _array(_kernel(known)),
        "sometimes": conditions,
        "chaos": known.of(chaos_config.ChaosConfig, "Chaos"),
        "scope": _array(known.put("Scope", scope)),
    }
    return known.whole(top, "A race")


def _steps(known: _Definitions) -> Schema:
    """One of the operations; ``op`` says which."""
    one_of = []
    for name, kind in operations().items():
        schema = known.of(table_of(kind))
        schema["properties"]["op"] = {"const": name}
        described = inspect.cleandoc(kind.__doc__ or "").split("\n\n")[0]
        schema |= {"title": name, "description": described}
        _tell(schema)
        one_of.append(known.put(f"op_{name}", schema))
    return {"oneOf": one_of}


def _conditions(known: _Definitions) -> Schema:
    """One of the conditions, with names that there are."""
    of = {"cache": _names(known_caches()), "op": _names(known_operations()),
          "of": _names(known_operations())}  # fmt: skip
    one_of = []
    for kind in get_args(Condition):
        schema = known.of(kind)
        properties = schema["properties"]
        properties |= {key: named for key, named in of.items() if key in properties}
        one_of.append(known.put(kind.__name__, schema))
    return {"oneOf": one_of}


def _world(known: _Definitions) -> Schema:
    """A race's world: sizes, and rows of secondaries."""
    schema = known.of(WorldTable)
    for one in by_node_order():
        schema["properties"][one.key] = _array(known.of(one.part, one.part.__name__))
    return schema


def _kernel(known: _Definitions) -> Schema:
    schema = known.of(catalogue.KernelTable)
    schema["properties"]["set"] = known.put("Switches", switches())
    return known.put("Kernel", schema)


def switches() -> Schema:
    """The switches of a kernel: where the code is, and what each can be."""
    return {
        "type": "object",
        "additionalProperties": False,
        "properties": {
            field.name: {
                "description": f"{field.switch.function} in {field.switch.file}",
                "enum": list(field.values),
            }
            for field in fields()
        },
    }


# ---- the others --------------------------------------------------------------------------------


def world() -> Schema:
    """A world file of ``stress``."""
    known = _Definitions()
    top = known.of(world_file.WorldFileTable)
    kernel = known.of(world_file.KernelTable)
    kernel["properties"]["set"] = known.put("Switches", switches())
    mixed = known.of(MixedOptions)
    nodes = known.of(Counts)
    nodes["properties"] |= {name: known.of(kind) for name, kind in addable().items()}
    for key in (*Counts.__struct_fields__, "added"):
        mixed["properties"].pop(key, None)
    top["properties"] |= {
        "kernel": known.put("Kernel", kernel),
        "nodes": known.put("Nodes", nodes),
        "mixed": known.put("Mixed", mixed),
    }
    top["properties"]["schema"] = {"const": world_file.SCHEMA}
    return known.whole(top, "A world")


def chaos() -> Schema:
    """A file of chaos rules."""
    known = _Definitions()
    top = known.of(chaos_config.ChaosConfig)
    top["properties"]["schema"] = {"const": chaos_config.SCHEMA}
    return known.whole(top, "Chaos rules")


SCHEMAS: Final[Mapping[str, Callable[[], Schema]]] = {
    "race": race, "world": world, "chaos": chaos,
}  # fmt: skip
"""By the name of what they are of."""


def schema_of(name: str) -> Schema:
    """The schema of a kind of file.  Raises ``UserError``."""
    if name not in SCHEMAS:
        raise UserError("schema", f"no file is called {name!r}", f"one of {', '.join(SCHEMAS)}")
    return SCHEMAS[name]()

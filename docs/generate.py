"""Write the generated parts of the documentation: `python docs/generate.py`. A test fails when they are stale."""

import itertools
import json
import re
from inspect import cleandoc
from pathlib import Path
from types import UnionType
from typing import Any, Literal, Union, get_args, get_origin

import msgspec
from msgspec import Raw, Struct

from saga_core.commands import Compensate, Execute, Reply, StateChanged
from saga_core.diagram import machine_diagram, machine_table
from saga_core.remote import Work
from saga_core.states import StepState

FOLDER = Path(__file__).parent
SCHEMAS = FOLDER / "schemas"
PART = re.compile(r"(<!-- generated: (\w+) -->\n).*?(<!-- end -->)", re.DOTALL)


def states_of_a_step() -> str:
    """Name the states of a step, in the order of its life."""
    return ", ".join(f"`{state}`" for state in StepState) + "\n"


def scenarios() -> str:
    """List the transcripts that are run as tests, each with the rule that it shows."""
    folder = FOLDER.parent / "tests" / "core" / "scenarios"
    lines: list[str] = []
    for path in sorted(folder.glob("*.txt")):
        comment = itertools.takewhile(lambda line: line.startswith("#"), path.read_text().splitlines())
        told = " ".join(line.lstrip("# ") for line in comment)
        lines.append(f"* [{path.stem.replace('_', ' ')}](../tests/core/scenarios/{path.name}): {told}\n")
    return "".join(lines)


PARTS = {
    "machine_diagram": lambda: f"```mermaid\n{machine_diagram()}```\n",
    "machine_table": machine_table,
    "step_states": states_of_a_step,
    "scenarios": scenarios,
}


def generated(text: str) -> str:
    """Return a page with its generated parts made anew."""
    return PART.sub(lambda found: found[1] + PARTS[found[2]]() + found[3], text)


def schemas() -> dict[str, str]:
    """Return the JSON Schema of every message between an orchestrator and others, by the name of its file."""
    return {
        "execute.json": schema_of(Execute, work=Work),
        "compensate.json": schema_of(Compensate, work=Work),
        "reply.json": schema_of(Reply),
        "state_changed.json": schema_of(StateChanged),
    }


def schema_of(kind: type[Struct], **beside: type[Struct]) -> str:
    """Return the JSON Schema of a struct, and of what travels beside its own fields."""
    _, components = msgspec.json.schema_components((as_read(kind, beside),), ref_template="#/$defs/{name}")
    schema = {"$schema": "https://json-schema.org/draft/2020-12/schema", **components.pop(kind.__name__)}
    return json.dumps(schema | ({"$defs": components} if components else {}), indent=2) + "\n"


def as_read(kind: type[Struct], beside: dict[str, type[Struct]] | None = None) -> type[Struct]:
    """Return a struct like this one that has, where this one keeps a payload's bytes, the JSON object that they are."""
    fields: list[Any] = []
    for field in msgspec.structs.fields(kind):
        described = (field.encode_name, with_objects(field.type))
        if isinstance(field.default, Raw):
            described += (msgspec.field(default_factory=dict),)
        elif field.default is not msgspec.NODEFAULT:
            described += (field.default,)
        fields.append(described)
    fields += [(name, with_objects(more)) for name, more in (beside or {}).items()]
    config = kind.__struct_config__
    more = {"__doc__": cleandoc(kind.__doc__ or "")}
    return msgspec.defstruct(
        kind.__name__, fields, namespace=more, kw_only=True, tag_field=config.tag_field, tag=config.tag
    )


def with_objects(type_: Any) -> Any:
    """Return a type like this one, with objects in the place of the bytes of payloads."""
    if type_ is Raw:
        return dict[str, Any]
    if isinstance(type_, type) and issubclass(type_, Struct):
        return as_read(type_)
    origin, inner = get_origin(type_), tuple(map(with_objects, get_args(type_)))
    if origin in (None, Literal):
        return type_
    return Union[inner] if origin is UnionType else origin[inner]  # noqa: UP007, they are known only now


if __name__ == "__main__":
    for page in FOLDER.glob("*.md"):
        page.write_text(generated(page.read_text()))
    SCHEMAS.mkdir(exist_ok=True)
    for old in SCHEMAS.glob("*.json"):
        old.unlink()
    for name, text in schemas().items():
        (SCHEMAS / name).write_text(text)

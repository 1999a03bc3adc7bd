"""Public names as Markdown: their signatures, and their docstrings with the sections as lists."""

from __future__ import annotations

import ast
import enum
import inspect
import re
from types import FunctionType
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

_WIDTH: Final = 96
_SECTION: Final = re.compile(r"^(Args|Attributes|Raises|Returns|Yields):$")
_ITEM: Final = re.compile(r"^(\**[\w.]+):(?: (.*))?$")


def as_markdown(docstring: str) -> list[str]:
    """Turn the sections of a Google docstring into lists."""
    lines: list[str] = []
    section = ""
    for line in docstring.splitlines():
        found = _SECTION.match(line)
        if found:
            section = found[1]
            lines += [f"**{section}**", ""]
        elif not section or not line.strip():
            lines.append(line)
        else:
            lines.append(_item(line.removeprefix("    "), section))
    return lines


def _item(line: str, section: str) -> str:
    if section in {"Returns", "Yields"}:
        return line
    found = _ITEM.match(line)
    if found:
        return f"- `{found[1]}`: {found[2] or ''}".rstrip()
    return f"  {line.strip()}"


def docstring_of(thing: object) -> list[str]:
    """Give an object's docstring as Markdown; SystemExit where there is none."""
    text = inspect.getdoc(thing)
    if not text:
        raise SystemExit(f"{thing!r} is public and has no docstring")
    return as_markdown(text)


def attribute_docs(cls: type) -> dict[str, str]:
    """Read the strings that stand under a class's attributes."""
    [body] = [
        node for node in ast.parse(inspect.getsource(cls)).body if isinstance(node, ast.ClassDef)
    ]
    found = {}
    for node, following in zip(body.body, body.body[1:], strict=False):
        match node, following:
            case (
                ast.Assign(targets=[ast.Name(id=name)]) | ast.AnnAssign(target=ast.Name(id=name)),
                ast.Expr(value=ast.Constant(value=str(text))),
            ):
                found[name] = " ".join(text.split())
    return found


class _Words(str):
    """Text that stands in a signature as it is."""

    __slots__ = ()

    def __repr__(self) -> str:
        return str(self)


def signature_of(name: str, thing: object) -> str:
    """Give a callable's signature on one line, or on several where that is too long."""
    signature = inspect.signature(thing)  # type: ignore[arg-type]
    parameters = [
        _plain(each) for each in signature.parameters.values() if each.name not in {"self", "cls"}
    ]
    signature = signature.replace(
        parameters=parameters, return_annotation=_worded(signature.return_annotation)
    )
    line = f"{name}{signature}"
    if len(line) <= _WIDTH:
        return line
    ends = line.rpartition(" -> ")[2] if " -> " in line.rpartition(")")[2] else ""
    shown = "".join(f"    {text},\n" for text in _marked(parameters))
    return f"{name}(\n{shown})" + (f" -> {ends}" if ends else "")


def _plain(parameter: inspect.Parameter) -> inspect.Parameter:
    default = parameter.default
    if isinstance(default, enum.Enum):
        default = _Words(default)
    elif isinstance(default, tuple) and default and isinstance(default[0], enum.Enum):
        default = _Words(f"tuple({type(default[0]).__name__})")
    return parameter.replace(annotation=_worded(parameter.annotation), default=default)


def _worded(annotation: object) -> object:
    return _Words(annotation) if isinstance(annotation, str) else annotation


def _marked(parameters: Sequence[inspect.Parameter]) -> Iterator[str]:
    """Give the parameters in words, with the `*` before those that have to be named."""
    star = False
    for parameter in parameters:
        if parameter.kind is parameter.VAR_POSITIONAL:
            star = True
        elif parameter.kind is parameter.KEYWORD_ONLY and not star:
            star = True
            yield "*"
        yield str(parameter)


def heading_of(name: str, thing: object) -> str:
    """Give the line of code that shows how a name is used."""
    if isinstance(thing, type):
        return _class_heading(name, thing)
    if callable(thing):
        prefix = "async " if inspect.iscoroutinefunction(thing) else ""
        return f"{prefix}def {signature_of(name, thing)}"
    return name


def _class_heading(name: str, cls: type) -> str:
    bases = ", ".join(_known_as(base) for base in cls.__bases__ if base is not object)
    heading = f"class {name}({bases})" if bases else f"class {name}"
    own = cls.__dict__.get("__init__")
    if isinstance(own, FunctionType) and not issubclass(cls, enum.Enum):
        heading += f"\n{signature_of(name, own).removesuffix(' -> None')}"
    return heading


def _known_as(base: type) -> str:
    for package in ("redis.asyncio", "redis"):
        if base.__module__.startswith(f"{package}."):
            return f"{package}.{base.__name__}"
    return base.__name__


def members_of(cls: type, told: Sequence[object] = ()) -> Iterator[tuple[str, object]]:
    """Give the public methods and properties that this package defines; its own come first.

    Without those that it has from a class that is told of beside it.
    """
    seen = set()
    elsewhere = {
        base
        for other in told
        if isinstance(other, type) and issubclass(cls, other) and other is not cls
        for base in other.__mro__
    }
    for each in cls.__mro__:
        if not each.__module__.startswith("resilient_io") or each in elsewhere:
            continue
        for name, thing in vars(each).items():
            public = not name.startswith("_") and name not in seen
            if public and isinstance(thing, FunctionType | property | classmethod):
                seen.add(name)
                yield name, thing


def describe(name: str, thing: object, told: Sequence[object] = ()) -> list[str]:
    """Describe a public name, but not again what those that are told of beside it have."""
    if not isinstance(thing, type) and not callable(thing):
        return []  # a type alias: its definition says it all
    lines = [f"### {name}", "", "```text", *heading_of(name, thing).splitlines(), "```", ""]
    lines += [*docstring_of(thing), ""]
    if isinstance(thing, type):
        lines += _describe_members(thing, told)
    return lines


def _describe_members(cls: type, told: Sequence[object]) -> list[str]:
    lines: list[str] = []
    docs = attribute_docs(cls)
    if issubclass(cls, enum.Enum):
        for member in cls:
            said = f": {docs[member.name]}" if member.name in docs else ""
            lines.append(f"- `{member.name}` = `{member.value!r}`{said}")
        lines.append("")
    elif docs:
        lines += [*(f"- `{name}`: {text}" for name, text in docs.items()), ""]
    for name, thing in members_of(cls, told):
        if isinstance(thing, property):
            title, documented = f"{name}", thing.fget
        else:
            documented = thing.__func__ if isinstance(thing, classmethod) else thing
            title = heading_of(name, documented)
            if isinstance(thing, classmethod):
                title = f"@classmethod\n{title}"
        if not inspect.getdoc(documented):
            continue  # what an enum or a base of another package makes
        lines += [f"#### {cls.__name__}.{name}", "", "```text", *title.splitlines(), "```", ""]
        lines += [*docstring_of(documented), ""]
    return lines

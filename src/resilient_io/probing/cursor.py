"""A place in a manifest: what stands there, where that is, and what else was expected."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Any

import yaml

from resilient_io.errors import ConfigurationError

if TYPE_CHECKING:
    from collections.abc import Iterator

__all__ = ["Cursor", "NotAManifestError", "documents"]

_QUANTITY = re.compile(r"^([0-9]*\.?[0-9]+)(m?)$")


class NotAManifestError(ConfigurationError):
    """A file cannot be read, or a field does not hold what Kubernetes expects there.

    Attributes:
        line: Where.
    """

    def __init__(self, message: str, line: int = 0) -> None:
        super().__init__(message)
        self.line = line


class Cursor:
    """A place in a manifest, or where something could be that is not there.

    Attributes:
        value: What stands there; None if nothing does.
        path: Its way from the root: "spec.template".
        line: Its line, or that of what should have it.
    """

    def __init__(self, value: Any, node: yaml.Node | None, path: str, line: int) -> None:
        self.value = value
        self.path = path
        self.line = line
        self._node = node

    def at(self, *keys: str) -> Cursor:
        """Go to a field, and on from there. What is not there is a place, too.

        Raises:
            NotAManifestError: One on the way has no fields.
        """
        here = self
        for key in keys:
            here = here._field(key)
        return here

    def items(self) -> Iterator[Cursor]:
        """Go to each item of a list; nothing has none.

        Raises:
            NotAManifestError: It is no list.
        """
        if self.value is None:
            return
        if not isinstance(self.value, list) or not isinstance(self._node, yaml.SequenceNode):
            raise self.wrong("a list")
        for number, (value, node) in enumerate(zip(self.value, self._node.value, strict=True)):
            yield Cursor(value, node, f"{self.path}[{number}]", node.start_mark.line + 1)

    def fields(self) -> dict[str, Any]:
        """Give what stands in its fields; nothing has none.

        Raises:
            NotAManifestError: It has no fields.
        """
        if self.value is None:
            return {}
        if not isinstance(self.value, dict):
            raise self.wrong("fields")
        return {str(key): value for key, value in self.value.items()}

    def text(self, default: str = "") -> str:
        """Give a string.

        Raises:
            NotAManifestError: It is none.
        """
        if self.value is None:
            return default
        if not isinstance(self.value, str):
            raise self.wrong("a string")
        return self.value

    def count(self, default: int) -> int:
        """Give a whole number.

        Raises:
            NotAManifestError: It is none.
        """
        if self.value is None:
            return default
        if type(self.value) is not int:
            raise self.wrong("a whole number without quotes")
        return self.value

    def quantity(self) -> float | None:
        """Give a quantity of CPU, such as "100m"; None for nothing.

        Raises:
            NotAManifestError: It is none.
        """
        if self.value is None:
            return None
        found = _QUANTITY.match(str(self.value))
        if isinstance(self.value, bool) or found is None:
            raise self.wrong('a quantity such as 1, 0.5 or "100m"')
        return float(found[1]) / (1000 if found[2] else 1)

    def share(self, whole: int) -> float | None:
        """Give a whole number or a percentage of `whole`; None for nothing.

        Raises:
            NotAManifestError: It is neither.
        """
        value = self.value
        if isinstance(value, str) and value.endswith("%") and value[:-1].isdecimal():
            return whole * int(value[:-1]) / 100
        if value is None or type(value) is int:
            return value
        raise self.wrong('a whole number or a percentage such as "25%"')

    def words(self) -> tuple[str, ...]:
        """Give a list of strings.

        Raises:
            NotAManifestError: It is none.
        """
        return tuple(item.text() for item in self.items())

    def wrong(self, wanted: str) -> NotAManifestError:
        """Say that something else was expected."""
        return NotAManifestError(f"{self.path or 'it'} has to be {wanted}", self.line)

    def _field(self, key: str) -> Cursor:
        path = f"{self.path}.{key}" if self.path else key
        value = self.fields().get(key)
        if isinstance(self._node, yaml.MappingNode):
            # What is merged (`<<`) stands before what overrides it.
            for name, node in reversed(self._node.value):
                if name.value == key:
                    return Cursor(value, node, path, name.start_mark.line + 1)
        return Cursor(value, None, path, self.line)


def documents(text: str) -> Iterator[Cursor]:
    """Read the documents of a file of YAML or JSON; empty ones are left out.

    Raises:
        NotAManifestError: It is neither.
    """
    try:
        yield from _read(yaml.SafeLoader(text))
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark
        template = " (a template has to be rendered first)" if "{{" in text else ""
        problem = error.problem or "cannot be read"
        raise NotAManifestError(
            f"this is no YAML: {problem}{template}", mark.line + 1 if mark is not None else 0
        ) from None
    except (yaml.YAMLError, ValueError, RecursionError) as error:
        what = " ".join(str(error).split())[:100]
        raise NotAManifestError(f"this is no YAML: {what}") from None


def _read(loader: yaml.SafeLoader) -> Iterator[Cursor]:
    try:
        while loader.check_node():
            node = loader.get_node()
            value = loader.construct_document(node) if node is not None else None
            if node is not None and value is not None:
                yield Cursor(value, node, "", node.start_mark.line + 1)
    finally:
        loader.dispose()

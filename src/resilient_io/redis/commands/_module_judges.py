"""Effects that depend on the arguments: JSON, search, time series, sketches, vectors."""

from __future__ import annotations

from typing import TYPE_CHECKING

from resilient_io.redis.commands._arguments import index_of, integer, text, token
from resilient_io.redis.commands._collection_judges import ltrim
from resilient_io.redis.commands._judges import (
    CONDITIONAL,
    IDEMPOTENT,
    NON_IDEMPOTENT,
    overwriting,
)

if TYPE_CHECKING:
    from collections.abc import Sequence

    from resilient_io.redis.commands._spec import Effect

_KEEP_THE_ONE_VALUE = {"FIRST", "LAST", "MIN", "MAX"}


def _one_place(path: object) -> bool:
    """Tell whether a path names one place: wildcards and filters may match more afterwards."""
    spelled = text(path)
    return not any(mark in spelled for mark in ("*", "?", "..", ":", ","))


def json_set(operands: Sequence[object]) -> Effect:
    """JSON.SET key path value [NX | XX] [FPHA type]."""
    if len(operands) < 3 or not _one_place(operands[1]):  # noqa: PLR2004 -- said above
        return NON_IDEMPOTENT
    effect = IDEMPOTENT
    index = 3
    while index < len(operands):
        option = token(operands[index])
        index += 1
        if option == "NX":
            effect = CONDITIONAL
        elif option == "FPHA":
            index += 1
        elif option not in {"XX", "FORMAT"}:
            return NON_IDEMPOTENT
    return effect


def json_mset(operands: Sequence[object]) -> Effect:
    """JSON.MSET key path value [key path value ...]."""
    plain = bool(operands) and len(operands) % 3 == 0 and all(map(_one_place, operands[1::3]))
    return IDEMPOTENT if plain else NON_IDEMPOTENT


def json_merge(operands: Sequence[object]) -> Effect:
    """JSON.MERGE key path value: a merge patch changes nothing the second time (RFC 7396)."""
    plain = len(operands) == 3 and _one_place(operands[1])  # noqa: PLR2004 -- said above
    return IDEMPOTENT if plain else NON_IDEMPOTENT


def json_del(operands: Sequence[object]) -> Effect:
    """JSON.DEL key [path]: once an array's element is gone, its place names the next one."""
    path = text(operands[1]) if len(operands) > 1 else "$"
    names = path.replace("['", ".").replace('["', ".")
    return NON_IDEMPOTENT if "[" in names else CONDITIONAL


def json_arrtrim(operands: Sequence[object]) -> Effect:
    """JSON.ARRTRIM key path start stop: as LTRIM."""
    if len(operands) != 4 or not _one_place(operands[1]):  # noqa: PLR2004 -- said above
        return NON_IDEMPOTENT
    return ltrim([operands[0], *operands[2:]])


def sugadd(operands: Sequence[object]) -> Effect:
    """FT.SUGADD key text score [INCR] [PAYLOAD payload]."""
    options = operands[3:]
    payload = index_of(options, "PAYLOAD")
    added = "INCR" in {token(each) for each in (*options[:payload], *options[payload + 2 :])}
    return NON_IDEMPOTENT if added else IDEMPOTENT


def ts_add(operands: Sequence[object]) -> Effect:
    """TS.ADD key timestamp value [options]: the series' own policy may be to sum duplicates."""
    if len(operands) < 3 or integer(operands[1]) is None:  # noqa: PLR2004 -- said above
        return NON_IDEMPOTENT
    at = index_of(operands, "ON_DUPLICATE", 3) + 1
    policy = token(operands[at]) if at < len(operands) else ""
    if policy in _KEEP_THE_ONE_VALUE:
        return IDEMPOTENT
    return CONDITIONAL if policy == "BLOCK" else NON_IDEMPOTENT


def cms_merge(operands: Sequence[object]) -> Effect:
    """CMS.MERGE destination numkeys source [...] [WEIGHTS ...]."""
    count = integer(operands[1]) if len(operands) > 1 else None
    if count is None or count < 1:
        return NON_IDEMPOTENT
    return overwriting(operands[:1], operands[2 : 2 + count])


def tdigest_merge(operands: Sequence[object]) -> Effect:
    """TDIGEST.MERGE destination numkeys source [...] [COMPRESSION n] [OVERRIDE]."""
    count = integer(operands[1]) if len(operands) > 1 else None
    if count is None or count < 1:
        return NON_IDEMPOTENT
    if "OVERRIDE" not in {token(option) for option in operands[2 + count :]}:
        return NON_IDEMPOTENT  # it merges into what is there
    return overwriting(operands[:1], operands[2 : 2 + count])

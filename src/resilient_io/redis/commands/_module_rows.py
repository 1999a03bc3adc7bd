"""The reviewed list, third part: JSON, search, time series, sketches, vectors."""

from __future__ import annotations

from resilient_io.redis.commands import _blocking as blocking
from resilient_io.redis.commands import _module_judges as judges
from resilient_io.redis.commands._judges import CONDITIONAL, IDEMPOTENT, NON_IDEMPOTENT, READ
from resilient_io.redis.commands._rows import Row
from resilient_io.redis.commands._spec import Route

_PATHS = "a path with wildcards or filters may match more, or other places, the second time"

ROWS = (
    # JSON.
    Row(READ, "JSON.GET JSON.MGET JSON.ARRINDEX JSON.ARRLEN JSON.OBJKEYS JSON.OBJLEN JSON.RESP"),
    Row(READ, "JSON.STRLEN JSON.TYPE JSON.DEBUG"),
    Row(NON_IDEMPOTENT, "JSON.SET", judge=judges.json_set, reason=_PATHS),
    Row(NON_IDEMPOTENT, "JSON.MSET", judge=judges.json_mset, reason=_PATHS),
    Row(NON_IDEMPOTENT, "JSON.MERGE", judge=judges.json_merge, reason=_PATHS),
    Row(
        NON_IDEMPOTENT,
        "JSON.DEL JSON.FORGET",
        judge=judges.json_del,
        reason="an array closes the gap: the next element has the place of the deleted one",
    ),
    Row(CONDITIONAL, "JSON.CLEAR", reason="replies how many were not yet clear"),
    Row(NON_IDEMPOTENT, "JSON.ARRTRIM", judge=judges.json_arrtrim, reason="as LTRIM"),
    Row(NON_IDEMPOTENT, "JSON.ARRAPPEND JSON.ARRINSERT JSON.ARRPOP JSON.STRAPPEND JSON.TOGGLE"),
    Row(NON_IDEMPOTENT, "JSON.NUMINCRBY JSON.NUMMULTBY JSON.NUMPOWBY"),
    # Search.
    Row(READ, "FT._LIST FT.INFO FT.SEARCH FT.AGGREGATE FT.HYBRID FT.PROFILE FT.EXPLAIN"),
    Row(READ, "FT.EXPLAINCLI FT.SPELLCHECK FT.TAGVALS FT.MGET FT.GET FT.ALIASLIST FT.DICTDUMP"),
    Row(READ, "FT.SYNDUMP FT.SUGGET FT.SUGLEN FT.CONFIG|GET FT.CONFIG|HELP"),
    Row(IDEMPOTENT, "FT.CONFIG|SET FT.ALIASUPDATE FT.SYNUPDATE"),
    Row(CONDITIONAL, "FT.CREATE FT.ALTER FT.DROPINDEX FT.DROP FT.ALIASADD FT.ALIASDEL FT.DICTADD"),
    Row(CONDITIONAL, "FT.DICTDEL FT.SUGDEL FT.ADD FT.ADDHASH FT.DEL FT.CURSOR|DEL FT.CURSOR|GC"),
    Row(NON_IDEMPOTENT, "FT.SUGADD", judge=judges.sugadd, reason="INCR adds to the score"),
    Row(NON_IDEMPOTENT, "FT.SYNADD", reason="makes one more group"),
    Row(NON_IDEMPOTENT, "FT.CURSOR|READ", reason="the second reply is the next page"),
    # Time series.
    Row(READ, "TS.GET TS.MGET TS.INFO TS.QUERYINDEX TS.QUERYLABELS TS.RANGE TS.REVRANGE"),
    Row(READ, "TS.MRANGE TS.MREVRANGE TS.NRANGE TS.NREVRANGE"),
    Row(
        READ,
        "TS.READ",
        route=Route.DEDICATED,
        blocks_if=blocking.series_read_blocks,
        block=blocking.series_read,
    ),
    Row(IDEMPOTENT, "TS.ALTER"),
    Row(CONDITIONAL, "TS.CREATE TS.DEL TS.CREATERULE TS.DELETERULE"),
    Row(
        NON_IDEMPOTENT,
        "TS.ADD",
        judge=judges.ts_add,
        reason="* is another time; the series' own policy may be to sum duplicates",
    ),
    Row(NON_IDEMPOTENT, "TS.MADD TS.INCRBY TS.DECRBY", reason="as TS.ADD"),
    # Bloom and cuckoo filters, count-min sketch, top-k, t-digest.
    Row(READ, "BF.CARD BF.EXISTS BF.MEXISTS BF.INFO BF.SCANDUMP"),
    Row(CONDITIONAL, "BF.RESERVE BF.ADD BF.MADD BF.INSERT"),
    Row(READ, "CF.COUNT CF.EXISTS CF.MEXISTS CF.INFO CF.SCANDUMP"),
    Row(CONDITIONAL, "CF.RESERVE CF.ADDNX CF.INSERTNX"),
    Row(NON_IDEMPOTENT, "CF.ADD CF.INSERT CF.DEL", reason="an item may be in it several times"),
    Row(NON_IDEMPOTENT, "BF.LOADCHUNK CF.LOADCHUNK", reason="undocumented when given twice"),
    Row(READ, "CMS.INFO CMS.QUERY TOPK.COUNT TOPK.INFO TOPK.LIST TOPK.QUERY"),
    Row(CONDITIONAL, "CMS.INITBYDIM CMS.INITBYPROB TOPK.RESERVE TDIGEST.CREATE"),
    Row(NON_IDEMPOTENT, "CMS.INCRBY TOPK.ADD TOPK.INCRBY TDIGEST.ADD"),
    Row(
        NON_IDEMPOTENT,
        "CMS.MERGE",
        judge=judges.cms_merge,
        reason="into one of its sources it adds",
    ),
    Row(
        NON_IDEMPOTENT, "TDIGEST.MERGE", judge=judges.tdigest_merge, reason="merges unless OVERRIDE"
    ),
    Row(IDEMPOTENT, "TDIGEST.RESET"),
    Row(READ, "TDIGEST.BYRANK TDIGEST.BYREVRANK TDIGEST.CDF TDIGEST.INFO TDIGEST.MAX TDIGEST.MIN"),
    Row(READ, "TDIGEST.QUANTILE TDIGEST.RANK TDIGEST.REVRANK TDIGEST.TRIMMED_MEAN"),
    # Vector sets.
    Row(READ, "VCARD VDIM VEMB VGETATTR VINFO VISMEMBER VLINKS VRANDMEMBER VRANGE VSIM"),
    Row(CONDITIONAL, "VADD VREM", reason="the reply tells whether the element was new"),
    Row(IDEMPOTENT, "VSETATTR"),
)

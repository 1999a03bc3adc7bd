"""Draws scripts of commands for the comparison with a real Redis."""

from __future__ import annotations

import re
from random import Random

from tests.simulation.reply_comparison import Script

_LENGTH = 60
_KEYS = "abc"
_VALUES = ("x", "y", "1", "2")
_TEMPLATES = """
SET K V
SET K V NX
SET K V XX GET
SET K V EX 100
GET K
INCR K
APPEND K V
DEL K K
EXISTS K K
TYPE K
TTL K
EXPIRE K 100
PERSIST K
RENAME K K
COPY K K REPLACE
RPUSH K V V
LPUSH K V
LPOP K
RPOP K 2
LRANGE K 0 -1
LMOVE K K RIGHT LEFT
LREM K 0 V
LTRIM K 0 1
LINSERT K BEFORE x z
BLPOP K K 0
BRPOP K 0
BLMOVE K K LEFT RIGHT 0
BLMPOP 0 2 K K LEFT COUNT 2
HSET K f V
HGETALL K
HDEL K f
HINCRBY K f 2
SADD K V V
SREM K V
SMEMBERS K
ZADD K 1 V
ZADD K 2 V
ZRANGE K 0 -1 WITHSCORES
ZPOPMIN K
BZPOPMIN K 0
XADD s * f V
XADD K * f V
XLEN K
XREAD COUNT 1 STREAMS K 0
XREAD BLOCK 0 STREAMS K $
XGROUP CREATE K g 0 MKSTREAM
XGROUP DESTROY K g
XREADGROUP GROUP g c BLOCK 0 STREAMS K >
MULTI
MULTI
EXEC
EXEC
EXEC
EXEC
DISCARD
WATCH K
WATCH K
UNWATCH
SELECT 0
SELECT 0
SELECT 1
DBSIZE
FLUSHDB
PING
NOSUCH
GET
PUBLISH K V
CLIENT UNBLOCK {id:C} TIMEOUT
CLIENT UNBLOCK {id:C} ERROR
CLIENT UNBLOCK {id:C} ERROR
EVAL "redis.call('rpush', KEYS[1], ARGV[1]) return ARGV[1]" 1 K V
EVAL "redis.call('incr', KEYS[1]) return redis.error_reply('LOADING ' .. ARGV[1])" 1 K t
""".strip().splitlines()
_CONDITIONS = ("replica", "oom", "noreplicas")
_PLACES = re.compile(r"\b[KV]\b|(?<={id:)C")


def draw_script(seed: int) -> Script:
    """Return commands of three connections, mixed with times at which writes are refused."""
    random = Random(seed)
    choices = {"K": _KEYS, "V": _VALUES, "C": "ABC"}

    def draw_command() -> str:
        text = _PLACES.sub(
            lambda found: random.choice(choices[found[0]]), random.choice(_TEMPLATES)
        )
        return f"{random.choice('ABC')}: {text}"

    lines = ["A: PING", "B: PING", "C: PING"]
    while len(lines) < _LENGTH:
        if random.random() < 0.01:
            condition = random.choice(_CONDITIONS)
            refused = (draw_command(), draw_command(), draw_command())
            lines += [f"@{condition} on", *refused, f"@{condition} off"]
        else:
            lines.append(draw_command())
    return Script(f"seed {seed}", tuple(lines), newer=False)

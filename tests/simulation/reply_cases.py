"""Scripts of commands whose replies must be those of a real server.

`reply_comparison.Runner` describes their form.
"""

from __future__ import annotations

SCRIPTS: dict[str, str] = {
    "ping and echo": r"""
        PING
        PING hello
        PING ""
        PING a b
        ping
        ECHO hello
        ECHO
        ECHO a b
        ECHO "\x00\xff\r\n"
    """,
    "inline and split input": r"""
        ! "PING\r\n"
        ! "SET k v\r\nGET k\r\n"
        ! "*1\r\n$4\r\nPI"
        ! "NG\r\n*2\r\n$3\r\nGET\r\n"
        ! "$1\r\nk\r\n"
        ! "\r\n"
        ! "PING"
        ! "\r\n"
        ! "*0\r\n"
        ! "*-1\r\n*1\r\n$4\r\nPING\r\n"
    """,
    "invalid length of a string": r"""
        ! "*1\r\n$x\r\n"
        PING
    """,
    "invalid length of an array": r"""
        ! "*x\r\n"
        PING
    """,
    "missing dollar": r"""
        ! "*1\r\nPING\r\n"
        PING
    """,
    "unknown commands": r"""
        NOSUCH
        NOSUCH a b
        NOSUCH "with \"quotes\" and \r\n lines"
        "" a
        CLIENT NOSUCH
        CLIENT
        SCRIPT NOSUCH
        ACL NOSUCH
        CONFIG NOSUCH
        nosuchlower ABC def
        OBJECT NOSUCH k
        XGROUP NOSUCH k g
        XINFO NOSUCH k
    """,
    "wrong number of arguments": r"""
        GET
        GET a b
        SET a
        MGET
        MSET a
        MSET a 1 b
        DEL
        EXISTS
        INCR
        INCRBY a
        LPUSH l
        RPUSH l
        BLPOP l
        BRPOP
        BLMOVE a b LEFT
        LRANGE l 0
        HSET h
        HSET h f
        HSET h f v g
        HGET h
        SADD s
        SREM s
        ZADD z
        ZADD z 1
        XADD s
        XADD s *
        XADD s * f
        MULTI a
        EXEC a
        DISCARD a
        WATCH
        UNWATCH a
        EVAL
        EVAL "return 1"
        EVALSHA abc
        PUBLISH c
        SUBSCRIBE
        PSUBSCRIBE
        SELECT
        EXPIRE k
        TTL
        WAIT 1
        CLIENT KILL
        CLIENT ID a
        CLIENT SETNAME
        CLIENT UNBLOCK
        CLIENT PAUSE
        CLIENT LIST ID
        AUTH
        FLUSHALL a
        ROLE a
        TIME a
        DBSIZE a
        SCRIPT LOAD
        APPEND a
        GETSET a
        SETNX a
        SETEX a 1
        PERSIST
        TYPE
        RENAME a
    """,
    "strings": r"""
        SET k v
        GET k
        GET missing
        SET k w NX
        SET k w XX
        GET k
        SET missing w XX
        SET other w NX
        SET k x GET
        SET new x GET
        SET k y NX GET
        SET k z XX GET
        SET k2 z XX GET
        GETSET k w2
        GETSET missing2 w2
        GETDEL k
        GETDEL k
        SETNX n 1
        SETNX n 2
        GET n
        APPEND n abc
        APPEND fresh abc
        STRLEN n
        STRLEN missing
        GETRANGE n 0 1
        GETRANGE n -2 -1
        GETRANGE missing 0 1
        SETRANGE n 1 XY
        GET n
        SETRANGE padded 3 a
        GET padded
        SETRANGE n -1 a
        MSET a 1 b 2 a 3
        MGET a b missing
        MSETNX a 1 c 2
        MSETNX c 2 d 3
        MGET c d
        SET "" empty
        GET ""
        SET bin "\x00\xff\r\n"
        GET bin
        SUBSTR n 0 1
        LCS a b
    """,
    "options of SET": r"""
        SET k v EX 100
        TTL k
        SET k v PX 100000
        PTTL k
        SET k v KEEPTTL
        TTL k
        SET k v
        TTL k
        SET k v EX 0
        SET k v EX -1
        SET k v EX abc
        SET k v PX 0
        SET k v EX
        SET k v NX XX
        SET k v EX 1 PX 1
        SET k v EX 1 KEEPTTL
        SET k v FOO
        SET k v EXAT 99999999999
        SET k v PXAT 99999999999999
        EXPIRETIME k
        SET k v ex 100 nx
        SET k2 v ex 100 nx get
        TTL k2
        SET k v EX 9223372036854775807
        GET k
    """,
    "numbers": r"""
        INCR n
        INCR n
        DECR n
        INCRBY n 10
        DECRBY n 3
        INCRBY n abc
        INCRBY n 1.5
        DECRBY n -9223372036854775808
        INCRBYFLOAT n 0.5
        INCR n
        INCRBYFLOAT n abc
        SET s abc
        INCR s
        INCRBYFLOAT s 1
        SET big 9223372036854775807
        INCR big
        GET big
        DECR big
        SET pad " 1"
        INCR pad
        SET plus +1
        INCR plus
        SET zero 007
        INCR zero
        SET f 3.0e3
        INCRBYFLOAT f 200
        SET f2 10.50
        INCRBYFLOAT f2 0.1
        INCRBYFLOAT f2 -5
        INCRBYFLOAT f2 inf
        SET e ""
        INCR e
    """,
    "numbers keep their time to live": r"""
        SET n 1 EX 100
        INCR n
        TTL n
        INCRBYFLOAT n 0.5
        TTL n
        APPEND n 1
        TTL n
        GETSET n 5
        TTL n
    """,
    "keys": r"""
        SET a 1
        SET b 2
        RPUSH l 1
        EXISTS a
        EXISTS a b missing a
        DEL a missing b
        DEL a
        UNLINK l missing
        TYPE a
        SET a 1
        RPUSH l 1
        HSET h f v
        SADD s m
        ZADD z 1 m
        XADD x 1-1 f v
        TYPE a
        TYPE l
        TYPE h
        TYPE s
        TYPE z
        TYPE x
        RENAME a a2
        RENAME missing q
        RENAME a2 l
        GET l
        RENAMENX l h
        RENAMENX l fresh
        RENAMENX missing fresh
        TOUCH fresh missing
        COPY fresh copied
        COPY fresh copied
        COPY fresh copied REPLACE
        COPY missing copied
        DBSIZE
        KEYS f*
        KEYS *
        KEYS nothing*
        KEYS [hs]
        KEYS ?
        FLUSHDB
        RANDOMKEY
        DBSIZE
        FLUSHALL
        FLUSHALL ASYNC
        FLUSHALL SYNC
        FLUSHDB ASYNC
        FLUSHALL NOW
        OBJECT ENCODING missing
    """,
    "time to live": r"""
        SET k v
        TTL k
        PTTL k
        TTL missing
        PTTL missing
        EXPIRE k 100
        TTL k
        PTTL k
        PERSIST k
        PERSIST k
        PERSIST missing
        EXPIRE missing 10
        PEXPIRE k 100000
        TTL k
        EXPIRE k 200 NX
        EXPIRE k 200 XX
        EXPIRE k 100 GT
        EXPIRE k 300 GT
        EXPIRE k 400 LT
        EXPIRE k 50 LT
        TTL k
        EXPIRE k 1 NX XX
        EXPIRE k 1 GT LT
        EXPIRE k 1 FOO
        EXPIRE k abc
        EXPIRE k 9223372036854775807
        EXPIREAT k 1
        EXISTS k
        SET k v
        EXPIRE k -1
        EXISTS k
        SET k v
        EXPIRE k 0
        GET k
        SET k v
        PEXPIREAT k 99999999999999
        EXPIRETIME k
        PEXPIRETIME k
        EXPIRETIME missing
        SETEX k 100 v
        PSETEX k 100000 v
        TTL k
        SETEX k 0 v
        SETEX k abc v
        PSETEX k -1 v
        GETEX k
        GETEX k PERSIST
        TTL k
        GETEX k EX 100
        TTL k
        GETEX missing EX 100
        GETEX k EX 0
        GETEX k FOO
        RENAME k moved
        TTL moved
    """,
    "expired keys": r"""
        SET k v PX 20
        SET keep v
        RPUSH l a
        PEXPIRE l 20
        HSET h f v
        PEXPIRE h 20
        @sleep 0.05
        GET k
        EXISTS k l h
        TTL k
        LRANGE l 0 -1
        HGET h f
        SET k w NX
        RPUSH l b
        LRANGE l 0 -1
        TTL l
        SET r v PX 20
        SET r v
        @sleep 0.04
        GET r
        DEL h
        RENAME h h2
        PERSIST h
    """,
    "wrong types": r"""
        RPUSH l a
        SET s v
        HSET h f v
        SADD set m
        ZADD z 1 m
        XADD x 1-1 f v
        GET l
        INCR l
        APPEND l a
        GETSET l v
        GETDEL l
        SET l v GET
        STRLEN l
        MGET s l h
        SETRANGE l 0 a
        GETRANGE l 0 1
        LPUSH s a
        RPUSHX s a
        LPOP s
        LRANGE s 0 -1
        LLEN s
        LINDEX s 0
        LSET s 0 a
        LREM s 0 a
        LTRIM s 0 1
        BLPOP s 0.01
        BLMOVE s d LEFT LEFT 0.01
        LMOVE l s LEFT LEFT
        RPOPLPUSH l s
        HSET s f v
        HGET s f
        HDEL s f
        HINCRBY s f 1
        HGETALL l
        SADD s m
        SREM s m
        SMEMBERS s
        SISMEMBER s m
        ZADD s 1 m
        ZSCORE s m
        ZRANGE s 0 -1
        BZPOPMIN s 0.01
        XADD s * f v
        XRANGE s - +
        XREAD STREAMS s 0
        XLEN s
        XGROUP CREATE s g $
        XREADGROUP GROUP g c STREAMS s >
        XACK s g 1-1
        TTL s
        DEL s
    """,
    "databases": r"""
        SELECT 1
        SET k one
        SELECT 0
        GET k
        SET k zero
        SELECT 1
        GET k
        DBSIZE
        SELECT 99
        SELECT -1
        SELECT abc
        GET k
        SWAPDB 0 1
        GET k
        MOVE k 0
        SELECT 0
        DEL k
        SELECT 1
        MOVE k 0
        MOVE missing 0
        MOVE missing 1
        COPY missing k DB 1
        DBSIZE
        SET k2 v
        FLUSHDB
        SELECT 0
        GET k
    """,
    "lists": r"""
        RPUSH l a b c
        LPUSH l z y
        LRANGE l 0 -1
        LRANGE l 1 2
        LRANGE l -2 -1
        LRANGE l 5 10
        LRANGE l 3 1
        LRANGE missing 0 -1
        LRANGE l a b
        LLEN l
        LLEN missing
        LPOP l
        RPOP l
        LPOP l 2
        LPOP l 0
        LPOP missing
        LPOP missing 2
        LPOP l -1
        LPOP l abc
        RPOP l 10
        EXISTS l
        LPUSHX l a
        RPUSHX l a
        RPUSH l a b a c a
        LREM l 1 a
        LREM l -1 a
        LREM l 0 a
        LREM l 0 missing
        LRANGE l 0 -1
        LSET l 0 x
        LSET l 9 x
        LSET missing 0 x
        LINDEX l 0
        LINDEX l -1
        LINDEX l 9
        LINDEX missing 0
        LINSERT l BEFORE x w
        LINSERT l AFTER x y
        LINSERT l AFTER missing y
        LINSERT missing AFTER x y
        LINSERT l NEAR x y
        LRANGE l 0 -1
        LTRIM l 1 2
        LRANGE l 0 -1
        LTRIM l 5 9
        EXISTS l
        LTRIM missing 0 1
        RPUSH src 1 2 3
        LMOVE src dst LEFT RIGHT
        LMOVE src dst RIGHT LEFT
        LMOVE src src LEFT RIGHT
        LMOVE missing dst LEFT LEFT
        LMOVE src dst UP DOWN
        RPOPLPUSH dst src
        RPOPLPUSH missing src
        LRANGE src 0 -1
        LRANGE dst 0 -1
        LPOS src 2
        LPOS src 9
        LMPOP 1 src LEFT
        LMPOP 2 missing src LEFT COUNT 5
        LMPOP 1 missing LEFT
        LMPOP 0 src LEFT
    """,
    "blocking pops with an element": r"""
        RPUSH l a b c
        BLPOP l 0
        BRPOP l 0
        BLPOP missing l 0
        BLPOP l -1
        BLPOP l abc
        BLPOP l inf  # not in Redis 7.0
        BLPOP l 0.01
        @sleep 0.05
        RPUSH l a b
        BRPOPLPUSH l d 0
        BLMOVE l d LEFT RIGHT 0
        BLMOVE l d LEFT RIGHT 0.01
        @sleep 0.05
        BLMOVE l d UP RIGHT 0
        LRANGE d 0 -1
        BRPOPLPUSH missing d 0.01
        @sleep 0.05
        BLMPOP 0.01 1 missing LEFT
        @sleep 0.05
        BLMPOP 0 1 d LEFT
        BLMPOP 0 1 d LEFT COUNT 5
        BLMPOP -1 1 d LEFT
    """,
    "blocking pops that are served": r"""
        A: BLPOP l 0
        B: RPUSH l a b
        A: LRANGE l 0 -1
        A: DEL l
        A: BRPOP l 0
        B: RPUSH l a b
        A: LRANGE l 0 -1
        A: DEL l
        A: BLPOP l1 l2 0
        B: LPUSH l2 x
        A: BLMOVE src dst RIGHT LEFT 0
        B: RPUSH src 1 2
        A: LRANGE dst 0 -1
        A: BRPOPLPUSH src2 dst 0
        B: LPUSH src2 9
        B: LRANGE dst 0 -1
        A: BLMPOP 0 2 m1 m2 RIGHT COUNT 2
        B: RPUSH m2 1 2 3
        A: LRANGE m2 0 -1
        # A chain: one blocked move serves another blocked pop.
        A: BLMOVE c1 c2 LEFT LEFT 0
        B: BLPOP c2 0
        C: RPUSH c1 x
        C: EXISTS c1 c2
    """,
    "blocked callers are served in their order": r"""
        # not in Redis 7.0
        A: BLPOP l 0
        B: BLPOP l 0
        C: BLPOP l 0
        D: RPUSH l 1
        D: RPUSH l 2 3
        D: LRANGE l 0 -1
        A: BLPOP x y 0
        B: BLPOP y 0
        D: MULTI
        D: RPUSH y 1
        D: RPUSH x 2
        D: EXEC
        D: EXISTS x y
    """,
    "a blocked caller is served at the end of a transaction": r"""
        A: BLPOP l 0
        B: MULTI
        B: RPUSH l a
        B: LPUSH l b
        B: EXEC
        B: LRANGE l 0 -1
        A: BLPOP l2 0
        B: MULTI
        B: RPUSH l2 a
        B: DEL l2
        B: EXEC
        B: RPUSH l2 x
        A: BLPOP l3 0
        B: EVAL "redis.call('RPUSH', KEYS[1], 'a', 'b'); return redis.call('LLEN', KEYS[1])" 1 l3
        B: LRANGE l3 0 -1
    """,
    "a blocked caller and wrong types": r"""
        A: BLPOP l 0
        B: SET l v
        B: DEL l
        B: SADD l m
        B: DEL l
        B: RPUSH l x
        A: BLMOVE s d LEFT LEFT 0
        B: SET d v
        B: RPUSH s 1
        B: LRANGE s 0 -1
        A: BLPOP r 0
        B: RPUSH q 1
        B: RENAME q r
        B: EXISTS q r
    """,
    "commands behind a blocked one wait": r"""
        A: BLPOP l 0
        A: SET k v
        B: GET k
        B: RPUSH l x
        B: GET k
        ! "*3\r\n$5\r\nBLPOP\r\n$1\r\nm\r\n$1\r\n0\r\n*1\r\n$4\r\nPING\r\n*2\r\n$4\r\nECHO\r\n$1\r\nx\r\n"
        B: RPUSH m 1
        A: BLPOP l 0.02
        A: PING
        @sleep 0.06
    """,
    "CLIENT UNBLOCK": r"""
        A: BLPOP l 0
        B: CLIENT UNBLOCK {id:A}
        A: BLPOP l 0
        B: CLIENT UNBLOCK {id:A} TIMEOUT
        A: BLPOP l 0
        B: CLIENT UNBLOCK {id:A} ERROR
        B: CLIENT UNBLOCK {id:A}
        B: CLIENT UNBLOCK 99999999
        B: CLIENT UNBLOCK abc
        B: CLIENT UNBLOCK {id:A} FOO
        A: BLMOVE a b LEFT LEFT 0
        B: CLIENT UNBLOCK {id:A}
        A: BLMOVE a b LEFT LEFT 0
        B: CLIENT UNBLOCK {id:A} ERROR
        A: BRPOPLPUSH a b 0
        B: CLIENT UNBLOCK {id:A}
        A: XREAD BLOCK 0 STREAMS s $
        B: CLIENT UNBLOCK {id:A}
        A: XREAD BLOCK 0 STREAMS s $
        B: CLIENT UNBLOCK {id:A} ERROR
        A: BZPOPMIN z 0
        B: CLIENT UNBLOCK {id:A}
        A: BLMPOP 0 1 l LEFT
        B: CLIENT UNBLOCK {id:A}
        A: PING
        A: CLIENT UNBLOCK {id:A}
    """,
    "CLIENT KILL of a blocked client": r"""
        A: BLPOP l 0
        B: CLIENT KILL ID {id:A}
        B: RPUSH l x
        B: LRANGE l 0 -1
        C: BLPOP m 0
        @close C
        B: RPUSH m x
        B: LRANGE m 0 -1
    """,
    "blocking in a transaction or a script": r"""
        MULTI
        BLPOP l 0
        BLMOVE a b LEFT LEFT 0
        XREAD BLOCK 0 STREAMS s $
        BZPOPMIN z 0
        EXEC
        EVAL "return redis.call('BLPOP', 'l', 0)" 0  # not in Redis 7.0
        EVAL "return redis.call('BLMOVE', 'a', 'b', 'LEFT', 'LEFT', 0)" 0  # not in Redis 7.0
        RPUSH l x
        MULTI
        BLPOP l 0
        EXEC
    """,
    "hashes": r"""
        HSET h a 1 b 2
        HSET h a 3 c 4
        HGET h a
        HGET h missing
        HGET missing a
        HMGET h a b missing
        HMGET missing a
        HGETALL h
        HGETALL missing
        HKEYS h
        HVALS h
        HKEYS missing
        HLEN h
        HEXISTS h a
        HEXISTS h missing
        HSETNX h a 9
        HSETNX h d 9
        HDEL h a missing
        HDEL h a
        HDEL missing a
        HINCRBY h n 5
        HINCRBY h n -7
        HINCRBY h n abc
        HSET h s abc
        HINCRBY h s 1
        HINCRBYFLOAT h f 1.5
        HINCRBYFLOAT h s 1
        HSTRLEN h s
        HMSET h x 1 y 2
        HMSET h x
        HDEL h b c d n s f x y
        EXISTS h
        HSET h big 9223372036854775807
        HINCRBY h big 1
        HRANDFIELD missing
    """,
    "sets": r"""
        SADD s a b c a
        SADD s a
        SCARD s
        SCARD missing
        SISMEMBER s a
        SISMEMBER s z
        SMISMEMBER s a z
        SMEMBERS s
        SMEMBERS missing
        SREM s a z
        SREM missing a
        SADD t b d
        SUNION s t
        SINTER s t
        SDIFF s t
        SINTER s missing
        SDIFFSTORE d s t
        SUNIONSTORE u s t
        SINTERSTORE i s missing
        SMEMBERS u
        SMOVE s t c
        SMOVE s t missing
        SMEMBERS s
        SPOP s
        EXISTS s
        SPOP s
        SPOP missing 2
        SRANDMEMBER missing
        SRANDMEMBER missing 2
        SADD one x
        SRANDMEMBER one
        SRANDMEMBER one 5
        SPOP one 5
        SPOP one -1
        SINTERCARD 1 t
    """,
    "sorted sets": r"""
        ZADD z 1 a 2 b 3 c
        ZADD z 1 a
        ZADD z 5 a
        ZADD z NX 9 a 4 d
        ZADD z XX 6 a 9 e
        ZADD z GT 1 a
        ZADD z LT 1 a
        ZADD z CH 2 a 2 b
        ZADD z INCR 1 a
        ZADD z NX INCR 1 a
        ZADD z NX XX 1 a
        ZADD z abc a
        ZADD z 1.5 f
        ZADD z inf max
        ZADD z -inf min
        ZADD z nan x
        ZSCORE z a
        ZSCORE z f
        ZSCORE z max
        ZSCORE z min
        ZSCORE z missing
        ZMSCORE z a missing
        ZINCRBY z 2.5 a
        ZINCRBY z abc a
        ZINCRBY z 1 fresh
        ZCARD z
        ZCARD missing
        ZRANGE z 0 -1
        ZRANGE z 0 -1 WITHSCORES
        ZRANGE z 0 1 REV
        ZRANGE z 1 3 BYSCORE
        ZRANGE z (1 3 BYSCORE LIMIT 0 1
        ZRANGE missing 0 -1
        ZREVRANGE z 0 1 WITHSCORES
        ZRANGEBYSCORE z 1 3
        ZRANGEBYSCORE z (1 +inf WITHSCORES
        ZRANGEBYSCORE z -inf 2 LIMIT 0 1
        ZRANGEBYSCORE z a b
        ZREVRANGEBYSCORE z 3 1
        ZCOUNT z 1 3
        ZCOUNT z -inf +inf
        ZRANK z a
        ZRANK z missing
        ZREVRANK z a
        ZREM z a missing
        ZPOPMIN z
        ZPOPMAX z
        ZPOPMIN z 2
        ZPOPMIN missing
        ZREMRANGEBYSCORE z 0 2
        ZREMRANGEBYRANK z 0 0
        ZRANGE z 0 -1
        DEL z
        ZADD z 1 a 2 b
        BZPOPMIN z 0
        BZPOPMAX missing z 0
        BZPOPMIN z 0.01
        @sleep 0.05
        A: BZPOPMIN z 0
        B: ZADD z 1 m 2 n
        B: ZCARD z
        A: ZADD p 0.5 x 100 y 1e20 w 3.25 v 17179869184 big
        A: ZADD q 0.1 x 3.14159 v
        A: ZRANGE q 0 -1 WITHSCORES  # not in Redis 7.0
        A: DEL q
        A: ZRANGE p 0 -1 WITHSCORES
    """,
    "streams": r"""
        XADD s 1-1 f v
        XADD s 1-2 f v g w
        XADD s 1-2 f v
        XADD s 0-0 f v
        XADD s 1-* f v
        XADD s 2 f v
        XADD s abc f v
        XADD s * f v
        XLEN s
        XLEN missing
        XADD missing NOMKSTREAM * f v
        XRANGE s - +
        XRANGE s 1-2 +
        XRANGE s (1-1 2
        XRANGE s - + COUNT 1
        XRANGE missing - +
        XRANGE s abc +
        XREVRANGE s + - COUNT 2
        XREAD STREAMS s 0
        XREAD COUNT 1 STREAMS s 1-1
        XREAD STREAMS s $
        XREAD STREAMS missing 0
        XREAD COUNT 1 STREAMS s missing 0 0
        XREAD STREAMS s
        XREAD STREAMS s t 0
        XREAD BLOCK 10 STREAMS s $
        @sleep 0.05
        XREAD BLOCK -1 STREAMS s $
        XREAD BLOCK abc STREAMS s $
        XDEL s 1-1 9-9
        XDEL missing 1-1
        XTRIM s MAXLEN 1
        XLEN s
        XADD s MAXLEN 1 99999999999999-1 f v
        XRANGE s - +
        XADD s MAXLEN ~ 100 99999999999999-2 f v
        XADD s MAXLEN = 1 99999999999999-3 f v
        XLEN s
        XTRIM s MINID 99999999999999-4
        XLEN s
        XADD s 5-5 f v
        EXISTS s
    """,
    "blocked reads of a stream": r"""
        A: XREAD BLOCK 0 STREAMS s $
        B: XADD s 1-1 f v
        A: XREAD BLOCK 0 STREAMS s 1-1
        B: XADD s 1-2 f v
        A: XREAD BLOCK 0 COUNT 1 STREAMS s t $ $
        B: XADD t 1-1 a b
        A: XREAD BLOCK 0 STREAMS s 0
        A: XREAD BLOCK 0 STREAMS s $
        B: DEL s
        B: SET s v
        B: CLIENT UNBLOCK {id:A}
    """,
    "groups of a stream": r"""
        XGROUP CREATE s g $
        XGROUP CREATE s g $ MKSTREAM
        XGROUP CREATE s g $
        XGROUP CREATE s h 0
        XREADGROUP GROUP g c STREAMS s >
        XADD s 1-1 f v
        XADD s 1-2 f v
        XREADGROUP GROUP g c COUNT 1 STREAMS s >
        XREADGROUP GROUP g c STREAMS s >
        XREADGROUP GROUP g c STREAMS s 0
        XREADGROUP GROUP g other STREAMS s 0
        XREADGROUP GROUP g c STREAMS s 1-1
        XREADGROUP GROUP missing c STREAMS s >
        XREADGROUP GROUP g c STREAMS missing >
        XREADGROUP GROUP g c STREAMS s $
        XREADGROUP c STREAMS s >
        XPENDING s g
        XPENDING s h
        XPENDING s missing
        XACK s g 1-1 9-9
        XACK s missing 1-1
        XACK missing g 1-1
        XPENDING s g
        XREADGROUP GROUP h d NOACK STREAMS s >
        XPENDING s h
        XREADGROUP GROUP g c BLOCK 10 STREAMS s >
        @sleep 0.05
        A: XREADGROUP GROUP g c BLOCK 0 STREAMS s >
        B: XADD s 2-1 f v
        A: XPENDING s g - + 10 nobody
        A: XDEL s 2-1
        A: XREADGROUP GROUP g c STREAMS s 0
        A: XCLAIM s g d 0 1-2
        A: XCLAIM s g d 0 1-2 JUSTID
        A: XAUTOCLAIM s g e 0 0
        A: XGROUP CREATECONSUMER s g new
        A: XGROUP CREATECONSUMER s g new
        A: XGROUP DELCONSUMER s g e
        A: XGROUP SETID s g 0
        A: XREADGROUP GROUP g c COUNT 1 STREAMS s >
        A: XGROUP DESTROY s h
        A: XGROUP DESTROY s h
        A: XGROUP DESTROY missing h
    """,
    "a blocked read of a group that is deleted": r"""
        # not in Redis 7.0
        A: XGROUP CREATE s g $ MKSTREAM
        A: XREADGROUP GROUP g c BLOCK 0 STREAMS s >
        B: XGROUP DESTROY s g
        A: XGROUP CREATE s g $ MKSTREAM
        A: XREADGROUP GROUP g c BLOCK 0 STREAMS s >
        B: DEL s
        A: PING
    """,
    "transactions": r"""
        MULTI
        SET k v
        INCR n
        GET k
        EXEC
        MULTI
        EXEC
        EXEC
        DISCARD
        MULTI
        SET k w
        DISCARD
        GET k
        MULTI
        INCR k
        SET k z
        LPUSH k 1
        EXEC
        GET k
        MULTI
        PING
        ECHO x
        SELECT 1
        SET other v
        EXEC
        GET other
        SELECT 0
        UNWATCH
        MULTI
        UNWATCH
        EXEC
        multi
        set k lower
        exec
    """,
    "nested transactions": r"""
        # not in Redis 7.0
        MULTI
        MULTI
        SET k x
        EXEC
        MULTI
        WATCH k
        SET k y
        EXEC
        MULTI
        SET k z
        MULTI
        DISCARD
        GET k
    """,
    "aborted transactions": r"""
        MULTI
        SET k
        SET k v
        EXEC
        GET k
        EXEC
        MULTI
        NOSUCH a
        SET k v
        EXEC
        GET k
        MULTI
        SUBSCRIBE
        DISCARD
        MULTI
        SET k
        DISCARD
        SET k v
        MULTI
        SET k w
        SET k
        EXEC
        GET k
    """,
    "WATCH": r"""
        A: SET k 1
        A: WATCH k
        B: SET k 2
        A: MULTI
        A: SET k 3
        A: EXEC
        A: GET k
        A: WATCH k
        A: MULTI
        A: SET k 3
        A: EXEC
        A: WATCH k
        A: SET k 4
        A: MULTI
        A: SET k 5
        A: EXEC
        A: WATCH k
        B: SET k 9
        A: UNWATCH
        A: MULTI
        A: SET k 5
        A: EXEC
        A: WATCH k
        B: SET k 9
        A: MULTI
        A: DISCARD
        A: MULTI
        A: EXEC
        A: WATCH missing other
        B: SET missing 1
        A: MULTI
        A: PING
        A: EXEC
        A: WATCH gone
        B: DEL gone
        A: MULTI
        A: PING
        A: EXEC
        A: WATCH k
        B: EXPIRE k 100
        A: MULTI
        A: PING
        A: EXEC
        A: WATCH k
        B: GET k
        B: SET unrelated 1
        A: MULTI
        A: PING
        A: EXEC
        A: WATCH k
        B: FLUSHALL
        A: MULTI
        A: PING
        A: EXEC
        A: WATCH l
        B: RPUSH l a
        B: LPOP l
        A: MULTI
        A: PING
        A: EXEC
        A: WATCH never
        B: FLUSHALL
        A: MULTI
        A: PING
        A: EXEC
        A: WATCH k
        B: SELECT 1
        B: SET k 1
        A: MULTI
        A: PING
        A: EXEC
        A: WATCH k
        A: MULTI
        B: SELECT 0
        B: SET k 1
        A: INCR k
        A: NOSUCH
        A: EXEC
        A: WATCH k
        B: SET k 1 XX
        B: SETNX k 2
        A: MULTI
        A: EXEC
        A: WATCH n
        B: DEL n
        B: LREM n 0 a
        B: SREM n a
        A: MULTI
        A: EXEC
    """,
    "WATCH of a key that expires": r"""
        A: SET k v PX 20
        A: WATCH k
        @sleep 0.05
        A: MULTI
        A: SET k w
        A: EXEC
        A: SET k v PX 20
        @sleep 0.05
        A: WATCH k
        A: MULTI
        A: SET k w
        A: EXEC
    """,
    "WATCH and a killed client": r"""
        A: WATCH k
        A: MULTI
        A: SET k v
        B: CLIENT KILL ID {id:A}
        B: GET k
        C: WATCH k
        C: MULTI
        C: SET k v
        @close C
        B: GET k
    """,
    "scripts": r"""
        EVAL "return 1" 0
        EVAL "return 'text'" 0
        EVAL "return {1, 'two', {3}}" 0
        EVAL "return nil" 0
        EVAL "return false" 0
        EVAL "return true" 0
        EVAL "return 3.99" 0
        EVAL "return {KEYS[1], ARGV[1]}" 1 k v
        EVAL "return redis.call('SET', KEYS[1], ARGV[1])" 1 k v
        EVAL "return redis.call('GET', KEYS[1])" 1 k
        EVAL "return redis.call('GET', KEYS[1])" 1 missing
        EVAL "return redis.call('INCR', KEYS[1])" 1 n
        EVAL "return redis.status_reply('FINE')" 0
        EVAL "return redis.error_reply('MYERR text')" 0
        EVAL "return redis.call('INCR', KEYS[1])" 1 k
        EVAL "return redis.pcall('INCR', KEYS[1])" 1 k
        EVAL "if redis.call('GET', KEYS[1]) == ARGV[1] then return redis.call('DEL', KEYS[1]) else return 0 end" 1 k v
        EVAL "return 1" abc
        EVAL "return 1" 2 a
        EVAL "return 1" -1
        EVALSHA ffffffffffffffffffffffffffffffffffffffff 0
        EVALSHA short 0
        SCRIPT LOAD "return 1"
        EVALSHA e0e1f9fabfc9d4800c877a703b823ac0578ff8db 0
        EVALSHA E0E1F9FABFC9D4800C877A703B823AC0578FF8DB 0
        SCRIPT EXISTS e0e1f9fabfc9d4800c877a703b823ac0578ff8db ffff
        SCRIPT FLUSH
        SCRIPT EXISTS e0e1f9fabfc9d4800c877a703b823ac0578ff8db
        EVALSHA e0e1f9fabfc9d4800c877a703b823ac0578ff8db 0
        SCRIPT KILL
        MULTI
        EVAL "return 1" 0
        EVALSHA ffffffffffffffffffffffffffffffffffffffff 0
        EXEC
        SCRIPT FLUSH SYNC
        SCRIPT FLUSH FOO
    """,
    "scripts of locks": r"""
        SET lock token NX PX 10000
        EVAL "local token = redis.call('get', KEYS[1])\nif not token or token ~= ARGV[1] then\n    return 0\nend\nredis.call('del', KEYS[1])\nreturn 1\n" 1 lock wrong
        EVAL "local token = redis.call('get', KEYS[1])\nif not token or token ~= ARGV[1] then\n    return 0\nend\nredis.call('del', KEYS[1])\nreturn 1\n" 1 lock token
        EXISTS lock
        SET lock token NX PX 10000
        EVAL "local token = redis.call('get', KEYS[1])\nif not token or token ~= ARGV[1] then\n    return 0\nend\nlocal expiration = redis.call('pttl', KEYS[1])\nif not expiration then\n    expiration = 0\nend\nif expiration < 0 then\n    return 0\nend\n\nlocal newttl = ARGV[2]\nif ARGV[3] == \"0\" then\n    newttl = ARGV[2] + expiration\nend\nredis.call('pexpire', KEYS[1], newttl)\nreturn 1\n" 1 lock token 60000 0
        PTTL lock
        EVAL "local token = redis.call('get', KEYS[1])\nif not token or token ~= ARGV[1] then\n    return 0\nend\nredis.call('pexpire', KEYS[1], ARGV[2])\nreturn 1\n" 1 lock token 30000
        PTTL lock
    """,
    "client commands": r"""
        CLIENT ID
        CLIENT GETNAME
        CLIENT SETNAME one
        CLIENT GETNAME
        CLIENT SETNAME "with blank"
        CLIENT SETNAME "line\n"
        CLIENT GETNAME
        CLIENT SETNAME ""
        CLIENT GETNAME
        CLIENT SETINFO LIB-NAME lib  # not in Redis 7.0
        CLIENT SETINFO LIB-VER 1.2  # not in Redis 7.0
        CLIENT SETINFO LIB-NAME "with blank"  # not in Redis 7.0
        CLIENT SETINFO FOO bar  # not in Redis 7.0
        CLIENT INFO
        CLIENT LIST
        CLIENT LIST ID {id:A}
        CLIENT LIST ID {id:A} {id:B}
        CLIENT LIST ID 99999999
        CLIENT LIST ID abc  # not in Redis 7.0
        CLIENT LIST TYPE normal
        CLIENT LIST TYPE foo
        CLIENT LIST FOO
        B: SELECT 1
        B: CLIENT SETNAME two
        B: MULTI
        B: GET k
        A: CLIENT LIST ID {id:B}
        B: EXEC
        B: BLPOP l 0
        A: CLIENT LIST ID {id:B}
        A: RPUSH l x
        B: SUBSCRIBE c
        A: CLIENT LIST ID {id:B}
        CLIENT NO-EVICT on
        CLIENT NO-TOUCH on  # not in Redis 7.0
        CLIENT REPLY FOO
        CLIENT REPLY ON
        CLIENT GETREDIR
        CLIENT TRACKING ON
        CLIENT TRACKING OFF
        CLIENT CACHING YES
    """,
    "CLIENT KILL": r"""
        A: PING
        B: CLIENT KILL ID {id:A}
        B: CLIENT KILL ID {id:A}
        B: CLIENT KILL ID 99999999
        B: CLIENT KILL ID abc  # not in Redis 7.0
        B: CLIENT KILL ID 0
        B: CLIENT KILL {id:A} b
        C: PING
        B: CLIENT KILL ADDR {address:C}
        B: CLIENT KILL ADDR 1.2.3.4:5
        B: CLIENT KILL 1.2.3.4:5
        D: PING
        B: CLIENT KILL {address:D}
        E: PING
        B: CLIENT KILL ID {id:E} SKIPME yes
        B: CLIENT KILL ID {id:B} SKIPME yes
        B: CLIENT KILL ID {id:B} FOO yes
        B: CLIENT KILL ID {id:B}
        F: PING
        F: CLIENT KILL ID {id:F} SKIPME no
    """,
    "CLIENT REPLY": r"""
        CLIENT REPLY OFF
        SET k v
        NOSUCH
        CLIENT REPLY ON
        GET k
        CLIENT REPLY SKIP
        SET k w
        GET k
    """,
    "HELLO": r"""
        HELLO
        HELLO 2
        HGETALL missing
        HELLO 3
        HGETALL missing
        HELLO 4
        HELLO 1
        HELLO abc
        HELLO 3 SETNAME named
        CLIENT GETNAME
        HELLO 3 SETNAME "with blank"
        HELLO 3 SETNAME
        HELLO 3 AUTH default wrong
        HELLO 3 AUTH nobody wrong
        HELLO 3 AUTH default
        HELLO 3 FOO
        HELLO 2
        GET missing
        HELLO 3
        RESET
        GET missing
    """,
    "RESET": r"""
        CLIENT SETNAME x
        SELECT 1
        MULTI
        SET k v
        RESET
        CLIENT GETNAME
        SET k v
        WATCH k
        RESET
        SUBSCRIBE c
        RESET
        GET k
    """,
    "QUIT": r"""
        SET k v
        QUIT
        PING
        B: GET k
    """,
    "AUTH without a password": r"""
        AUTH x
        AUTH default x
        AUTH nobody x
        AUTH a b c
        ACL WHOAMI
    """,
    "AUTH": r"""
        @password secret
        @open A
        A: PING
        A: GET k
        A: MULTI
        A: NOSUCH  # not in Redis 7.0
        A: GET  # not in Redis 7.0
        A: AUTH wrong
        A: AUTH default wrong
        A: HELLO 3
        A: HELLO 3 AUTH default wrong
        A: CLIENT ID
        A: CLIENT SETNAME x
        A: AUTH secret
        A: PING
        A: AUTH default secret
        A: SET k v
        A: AUTH wrong
        A: GET k
        A: ACL WHOAMI
        @open B
        B: HELLO 3 AUTH default secret SETNAME me
        B: CLIENT GETNAME
        B: CONFIG SET requirepass ""
        @open C
        C: PING
    """,
    "denied commands": r"""
        A: PING
        B: PING
        @deny client|kill client|list
        A: CLIENT KILL ID {id:B}
        A: CLIENT LIST ID {id:B}
        A: CLIENT ID
        A: CLIENT SETNAME x
        @deny get flushall evalsha
        A: GET k
        A: get
        A: FLUSHALL
        A: EVALSHA ffffffffffffffffffffffffffffffffffffffff 0
        A: SET k v
        A: MULTI
        A: GET k
        A: SET k w
        A: EXEC
        A: MULTI
        A: SET k x
        A: EXEC
        A: EVAL "return redis.call('GET', KEYS[1])" 1 k
        A: EVAL "return redis.pcall('GET', KEYS[1])" 1 k
        @deny client
        A: CLIENT ID
        A: CLIENT SETNAME x
        A: CLIENT SETINFO LIB-NAME x  # not in Redis 7.0
        A: ACL WHOAMI
        @deny ping info role
        A: PING
        A: INFO
        A: ROLE
        A: CLIENT NOSUCH
        A: NOSUCH
        @deny blpop
        A: BLPOP l 0
        A: BLPOP
        A: DEL k
    """,
    "users": r"""
        A: ACL SETUSER worker on >pw ~* &* +@all
        A: ACL SETUSER off off >pw ~* +@all
        A: ACL SETUSER reader on >pw ~r:* +get +mget +ping
        B: AUTH worker pw
        B: ACL WHOAMI
        B: SET k v
        B: AUTH worker wrong
        B: AUTH off pw
        B: ACL WHOAMI
        C: AUTH reader pw
        C: GET r:1
        C: GET k
        C: SET r:1 v
        C: PING
        C: MGET r:1 k
        A: ACL DELUSER worker
        B: PING
        A: ACL GETUSER missing
        A: ACL DELUSER missing
    """,
    "OOM": r"""
        # not in Redis 7.0
        SET k v
        RPUSH l a
        @oom on
        SET k w
        INCR n
        RPUSH l b
        LPUSH l b
        HSET h f v
        SADD s m
        ZADD z 1 m
        XADD x * f v
        APPEND k x
        MSET a 1 b 2
        GET k
        DEL k
        LPOP l
        EXPIRE l 100
        BLPOP l 0.01
        @sleep 0.05
        BLMOVE l d LEFT LEFT 0
        MULTI
        GET k
        SET k v
        GET k
        EXEC
        MULTI
        GET k
        EXEC
        EVAL "return redis.call('SET', KEYS[1], 'v')" 1 k
        EVAL "return redis.call('GET', KEYS[1])" 1 k
        EVAL "return 1" 0
        PING
        PUBLISH c m
        CLIENT SETNAME x
        SETRANGE k 0 v
        LMOVE l d LEFT LEFT
        SUNIONSTORE u s
        SETEX k 10 v
        GETSET k v
        INCRBYFLOAT k 1
        UNLINK k
        @oom off
        SET k w
    """,
    "OOM in the middle of a transaction": r"""
        # not in Redis 7.0
        MULTI
        SET k v
        @oom on
        SET k w
        EXEC
        MULTI
        @oom off
        SET k v
        @oom on
        EXEC
        @oom off
        GET k
    """,
    "READONLY": r"""
        SET k v
        RPUSH l a
        WATCH k
        @readonly on
        SET k w
        GET k
        DEL k
        INCR n
        BLPOP l 0
        LPOP l
        EXPIRE k 10
        UNWATCH
        MULTI
        GET k
        SET k w
        EXEC
        MULTI
        GET k
        EXEC
        EVAL "return redis.call('SET', KEYS[1], 'v')" 1 k
        EVAL "return redis.call('GET', KEYS[1])" 1 k
        FLUSHALL
        PUBLISH c m
        PING
        ROLE
        INFO replication
        SET k
        XREADGROUP GROUP g c STREAMS s >
        @readonly off
        ROLE
        SET k w
    """,
    "a master that becomes a replica unblocks callers": r"""
        A: BLPOP l 0
        B: BLMOVE a b LEFT LEFT 0
        C: XREAD BLOCK 0 STREAMS s $
        @readonly on
        A: PING
        C: PING
        @readonly off
        D: RPUSH l x
        D: XADD s 1-1 f v
    """,
    "NOREPLICAS": r"""
        SET k v
        @noreplicas on
        SET k w
        GET k
        INCR n
        DEL k
        BLPOP l 0.01
        MULTI
        GET k
        SET k w
        EXEC
        EVAL "return redis.call('SET', KEYS[1], 'v')" 1 k
        EVAL "return redis.call('GET', KEYS[1])" 1 k
        PING
        PUBLISH c m
        FLUSHALL
        @noreplicas off
        SET k w
    """,
    "too many clients": r"""
        A: PING
        B: PING
        @maxclients 2
        @open C
        C: PING
        A: PING
        @close B
        @open D
        D: PING
        @maxclients 1000
    """,
    "CLIENT PAUSE of writes": r"""
        A: SET k v
        B: CLIENT PAUSE 60000 WRITE
        A: GET k
        A: SET k w
        A: GET k
        C: PING
        C: INCR n
        D: EVAL "return redis.call('GET', 'k')" 0
        E: EVAL "return redis.call('SET', 'k', 'x')" 0
        F: MULTI
        F: SET m 1
        F: EXEC
        G: MULTI
        G: GET k
        G: EXEC
        H: BLPOP l 0
        B: CLIENT UNPAUSE
        A: GET k
        H: PING
        A: RPUSH l x
    """,
    "CLIENT PAUSE and UNPAUSE": r"""
        A: PING
        B: CLIENT PAUSE 60000 WRITE
        A: SET k v
        B: CLIENT UNPAUSE
        B: GET k
        B: CLIENT PAUSE abc
        B: CLIENT PAUSE -1
        B: CLIENT PAUSE 10 FOO
        B: CLIENT UNPAUSE
        A: PUBLISH c m
        B: CLIENT PAUSE 60000 WRITE
        A: PUBLISH c m
        C: CLIENT KILL ID {id:A}
        B: CLIENT UNPAUSE
    """,
    "CLIENT PAUSE of everything": r"""
        A: PING
        B: PING
        @paused
        B: CLIENT PAUSE 200
        A: PING
        A: SET k v
        B: CLIENT UNPAUSE
        @sleep 0.25
        A: GET k
        @paused
        B: CLIENT PAUSE 100 ALL
        B: GET k
        @sleep 0.15
        B: CLIENT PAUSE 200 WRITE
        A: SET k w
        @sleep 0.25
    """,
    "publish and subscribe": r"""
        A: SUBSCRIBE c d
        B: PUBLISH c hello
        B: PUBLISH nobody hello
        A: PSUBSCRIBE c*
        B: PUBLISH c hello
        B: PUBLISH cx hello
        B: PUBLISH d hello
        A: PING
        A: PING text
        A: UNSUBSCRIBE d
        B: PUBLISH d hello
        A: GET k
        A: SUBSCRIBE c
        A: UNSUBSCRIBE
        A: PUNSUBSCRIBE
        A: GET k
        A: UNSUBSCRIBE
        A: UNSUBSCRIBE missing
        A: PUNSUBSCRIBE missing
        A: SUBSCRIBE "bin\xff"
        B: PUBLISH "bin\xff" "\x00"
        B: PUBSUB CHANNELS
        B: PUBSUB NUMSUB c
        B: PUBSUB NUMPAT
        A: RESET
        B: PUBLISH "bin\xff" "\x00"
        A: SUBSCRIBE c
        B: MULTI
        B: PUBLISH c one
        B: PUBLISH c two
        B: EXEC
        B: EVAL "return redis.call('PUBLISH', 'c', 'script')" 0
        B: CLIENT KILL ID {id:A}
        B: PUBLISH c gone
        C: SUBSCRIBE c
        C: PUBLISH c self  # not in Redis 7.0
        C: SSUBSCRIBE shard
        B: SPUBLISH shard m
        C: SUNSUBSCRIBE shard
        C: MULTI
    """,
    "subscribing in a transaction": r"""
        A: MULTI
        A: SUBSCRIBE c
        A: PING
        A: EXEC
        B: PUBLISH c x
        A: UNSUBSCRIBE c
        A: EVAL "return redis.call('SUBSCRIBE', 'c')" 0
    """,
    "role and information": r"""
        ROLE
        INFO replication
        INFO server
        INFO persistence
        INFO nosuch
        INFO
        INFO replication server
        TIME
        LASTSAVE
        COMMAND COUNT x
        WAIT 0 10
        WAIT 1 10
        @sleep 0.05
        WAIT abc 10
        WAIT 1 -1
        CONFIG GET maxclients2
        CONFIG GET appendonly
        CONFIG SET nosuch 1
        READONLY  # not in Redis 7.0
        READWRITE  # not in Redis 7.0
        ASKING
        CLUSTER INFO
        SENTINEL masters
        MEMORY USAGE missing
        DEBUG SLEEP 0
        FAILOVER ABORT
        SUBSCRIBE
        LATENCY RESET
    """,
    "replicas": r"""
        REPLICAOF NO ONE
        REPLICAOF a
        REPLICAOF 127.0.0.1 abc
        ROLE
        REPLICAOF 127.0.0.1 1
        SET k v
        REPLICAOF NO ONE
        SET k v
        SLAVEOF NO ONE
        MULTI
        REPLICAOF NO ONE
        EXEC
    """,
    "SCAN": r"""
        SCAN 0
        SET a 1
        SCAN 0
        SCAN 0 MATCH b*
        SCAN 0 COUNT 100
        SCAN abc
        SCAN 0 COUNT 0
        SCAN 0 FOO
        SCAN 0 TYPE list
        HSET h f v
        HSCAN h 0
        HSCAN missing 0
        SADD s m
        SSCAN s 0
        ZADD z 1 m
        ZSCAN z 0
    """,
    "pipelines": r"""
        ! "*3\r\n$3\r\nSET\r\n$1\r\na\r\n$1\r\n1\r\n*2\r\n$4\r\nINCR\r\n$1\r\na\r\n*2\r\n$5\r\nLPUSH\r\n$1\r\na\r\n*2\r\n$3\r\nGET\r\n$1\r\na\r\n"
        ! "MULTI\r\nSET a 5\r\nINCR a\r\nEXEC\r\nGET a\r\n"
        ! "PING\r\nQUIT\r\nSET a 9\r\n"
        B: GET a
    """,
    "a client that kills itself in a pipeline": r"""
        A: PING
        A: ! "CLIENT KILL ID {id:A} SKIPME no\r\nSET a 9\r\n"
        B: GET a
    """,
    "a busy script": r"""
        A: CONFIG SET busy-reply-threshold 20
        A: PING
        B: PING
        C: PING
        D: MULTI
        D: SET k v
        @busy 60
        B: PING
        B: GET k
        B: SET k v
        B: CLIENT SETNAME x  # not in Redis 7.0
        B: CLIENT ID  # not in Redis 7.0
        B: CLIENT LIST
        B: CLIENT KILL ID 1
        B: EVAL "return 1" 0
        B: MULTI
        B: SET k v
        B: EXEC
        B: WATCH k
        B: UNWATCH
        B: SUBSCRIBE c
        B: INFO
        B: ROLE
        B: NOSUCH
        B: GET
        B: HELLO 3
        B: AUTH x
        B: BLPOP l 0
        B: CONFIG GET maxclients
        B: FUNCTION STATS
        D: EXEC
        B: CLIENT UNBLOCK 1
        B: CLIENT PAUSE 10
        C: SCRIPT KILL
        @sleep 0.02
        B: PING
        B: GET k
        C: SCRIPT KILL
    """,
}

"""What Redis does in one step, as Lua scripts of ``prompts.redis_store``, which tells what the keys hold."""

from __future__ import annotations

# KEYS[1] to KEYS[7] of the scripts that write, each behind the store's prefix.
WRITTEN = ("fences", "revision", "versions", "classifiers", "builds", "progress", "checkpoints")

# Tickets follow the clock of Redis, so that they go on rising after its memory was lost.
TICKET = """
local time = redis.call('TIME')
local last = tonumber(redis.call('GET', KEYS[1]) or '0')
local ticket = string.format('%.0f', math.max(time[1] * 1000000 + time[2], last + 1))
redis.call('SET', KEYS[1], ticket)
return ticket
"""
_FENCED = """
local fence = tonumber(redis.call('HGET', KEYS[1], ARGV[1]) or '0')
if fence > tonumber(ARGV[2]) then return 0 end
redis.call('HSET', KEYS[1], ARGV[1], ARGV[2])
local revision = redis.call('INCR', KEYS[2])
"""
_FORGET_BUILD = "for i = 5, 7 do redis.call('HDEL', KEYS[i], ARGV[1]) end\n"
PUT = f"""{_FENCED}{_FORGET_BUILD}
redis.call('HSET', KEYS[3], ARGV[1], revision)
redis.call('HSET', KEYS[4], ARGV[1], ARGV[3])
return revision
"""
PUT_PARTIAL = f"""{_FENCED}
redis.call('HSET', KEYS[5], ARGV[1], ARGV[3])
redis.call('HSET', KEYS[6], ARGV[1], ARGV[4])
if ARGV[5] == '' then redis.call('HDEL', KEYS[7], ARGV[1])
else redis.call('HSET', KEYS[7], ARGV[1], ARGV[5]) end
return revision
"""
DELETE = f"""
local there = redis.call('HEXISTS', KEYS[4], ARGV[1]) + redis.call('HEXISTS', KEYS[5], ARGV[1])
if there == 0 then return -1 end
{_FENCED}{_FORGET_BUILD}
redis.call('HDEL', KEYS[3], ARGV[1])
redis.call('HDEL', KEYS[4], ARGV[1])
return revision
"""
LEASE = """
local holder = redis.call('GET', KEYS[1])
if holder and holder ~= ARGV[1] then return 0 end
redis.call('SET', KEYS[1], ARGV[1], 'PX', ARGV[2])
return 1
"""
RENEW = "return redis.call('GET', KEYS[1]) == ARGV[1] and redis.call('PEXPIRE', KEYS[1], ARGV[2])"
RELEASE = "return redis.call('GET', KEYS[1]) == ARGV[1] and redis.call('DEL', KEYS[1])"

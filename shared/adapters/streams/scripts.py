"""Lua scripts: operations that must be atomic, or must work while Redis is out of memory.

At its memory limit Redis rejects every command that needs memory and, within MULTI (since Redis 7), also
those that free it. The flag `allow-oom` lets a script run anyway. All writes use it except those of
trajectories: their stream is not capped, so rejecting them keeps a full Redis from growing. Every other
stream is capped by entry count, and by bytes if its entries may be large. Commands to stop
trading, heartbeats and dead letters are needed most when Redis is full (ADR 21).
"""

_BEGIN = "#!lua flags=allow-oom\n"

#: Trim the oldest entries of a stream, a hundredth at a time, until it uses at most `most_bytes` of memory;
#: 0: no limit. The newest entry always stays. SAMPLES 0 measures every node; there are a few thousand at
#: most.
_KEEP_WITHIN = """
local function keep_within(stream, most_bytes)
  if tonumber(most_bytes) == 0 then return end
  local length = redis.call('XLEN', stream)
  while length > 1 and redis.call('MEMORY', 'USAGE', stream, 'SAMPLES', 0) > tonumber(most_bytes) do
    length = length - math.ceil(length / 100)
    redis.call('XTRIM', stream, 'MAXLEN', length)
  end
end
"""

#: Append an entry. KEYS: stream, optionally a hash that receives the same fields. ARGV: most entries, most
#: bytes (0: no limit), names and values of the fields.
ADD = f"""{_BEGIN}{_KEEP_WITHIN}
local entry = redis.call('XADD', KEYS[1], 'MAXLEN', '~', ARGV[1], '*', unpack(ARGV, 3))
keep_within(KEYS[1], ARGV[2])
if KEYS[2] then redis.call('HSET', KEYS[2], unpack(ARGV, 3)) end
return entry
"""

#: Append an entry and store its phase in the hash, unless the hash has this phase already.
#: KEYS: stream, hash. ARGV: most entries, most bytes, field of the hash, phase, text, names and values of the
#: entry's fields.
ADD_PHASE = f"""{_BEGIN}{_KEEP_WITHIN}
local before = redis.call('HGET', KEYS[2], ARGV[3])
if before and string.sub(before, 1, #ARGV[4] + 1) == ARGV[4] .. ' ' then return false end
local entry = redis.call('XADD', KEYS[1], 'MAXLEN', '~', ARGV[1], '*', unpack(ARGV, 6))
keep_within(KEYS[1], ARGV[2])
redis.call('HSET', KEYS[2], ARGV[3], ARGV[4] .. ' ' .. ARGV[5])
return entry
"""

#: Store a heartbeat. KEYS: heartbeat. ARGV: text, seconds until it expires.
BEAT = f"{_BEGIN}return redis.call('SET', KEYS[1], ARGV[1], 'EX', ARGV[2])"

#: Create a group that begins at the start of the stream. KEYS: stream. ARGV: group.
CREATE_GROUP = f"{_BEGIN}return redis.call('XGROUP', 'CREATE', KEYS[1], ARGV[1], '0', 'MKSTREAM')"

#: Claim abandoned entries without changing their delivery counts. KEYS: stream. ARGV: group, consumer, idle
#: milliseconds, id to begin at, most entries. Returns the id to continue at; claimed ids with their delivery
#: counts; ids of pending entries that are missing from the stream.
CLAIM = (
    _BEGIN
    + """
local group, consumer = ARGV[1], ARGV[2]
local reply =
  redis.call('XAUTOCLAIM', KEYS[1], group, consumer, ARGV[3], ARGV[4], 'COUNT', ARGV[5], 'JUSTID')
local claimed = {}
for _, entry in ipairs(reply[2]) do
  local pending = redis.call('XPENDING', KEYS[1], group, entry, entry, 1, consumer)
  claimed[#claimed + 1] = {entry, pending[1][4]}
end
return {reply[1], claimed, reply[3]}
"""
)

#: Set a pending entry's delivery count. KEYS: stream. ARGV: group, consumer, entry, delivery count. Returns a
#: list with the entry, or an empty one if it is missing from the stream; nil if it is not pending with this
#: consumer.
SET_DELIVERY_COUNT = f"""{_BEGIN}
local pending = redis.call('XPENDING', KEYS[1], ARGV[1], ARGV[3], ARGV[3], 1, ARGV[2])
if #pending == 0 then return false end
return redis.call('XCLAIM', KEYS[1], ARGV[1], ARGV[2], 0, ARGV[3], 'RETRYCOUNT', ARGV[4])
"""

#: Acknowledge entries and delete them. KEYS: stream. ARGV: group, entries.
REMOVE = f"""{_BEGIN}
redis.call('XACK', KEYS[1], ARGV[1], unpack(ARGV, 2))
return redis.call('XDEL', KEYS[1], unpack(ARGV, 2))
"""

#: Move an entry to the dead letters. KEYS: dead letters, stream. ARGV: group, entry, most letters, most
#: bytes, names and values of the letter's fields. If the entry is missing, an earlier attempt whose reply was
#: lost has moved it. XLEN makes the script fail before it removes anything if the key of the dead letters has
#: another type.
DEAD_LETTER = f"""{_BEGIN}{_KEEP_WITHIN}
redis.call('XLEN', KEYS[1])
redis.call('XACK', KEYS[2], ARGV[1], ARGV[2])
if redis.call('XDEL', KEYS[2], ARGV[2]) == 0 then return false end
local letter = redis.call('XADD', KEYS[1], 'MAXLEN', '~', ARGV[3], '*', unpack(ARGV, 5))
keep_within(KEYS[1], ARGV[4])
return letter
"""

#: Replay a letter. KEYS: dead letters, stream. ARGV: letter, entry, number of copies, the copies, names and
#: values of the fields. WATCH instead of a script would fail for as long as new letters keep arriving.
REPLAY = f"""{_BEGIN}
if #redis.call('XRANGE', KEYS[1], ARGV[1], ARGV[1]) == 0 then return false end
local first = 4 + tonumber(ARGV[3])
local appended = redis.call('XADD', KEYS[2], '*', unpack(ARGV, first))
redis.call('XDEL', KEYS[1], ARGV[1])
for copy = 4, first - 1 do redis.call('XDEL', KEYS[1], ARGV[copy]) end
redis.call('XDEL', KEYS[2], ARGV[2])
return appended
"""

#: Acquire or renew a lease. KEYS: lease, token. ARGV: holder, milliseconds. Returns the token, or 0 if
#: another holder has the lease. A token is at least the time in seconds, so it grows even if Redis lost its
#: data.
ACQUIRE_LEASE = f"""{_BEGIN}
local held = redis.call('GET', KEYS[1])
if held then
  local token, holder = held:match('^(%d+) (.*)$')
  if holder ~= ARGV[1] then return 0 end
  redis.call('PEXPIRE', KEYS[1], ARGV[2])
  return tonumber(token)
end
local token = redis.call('INCR', KEYS[2])
local now = tonumber(redis.call('TIME')[1])
if token < now then
  token = now
  redis.call('SET', KEYS[2], token)
end
redis.call('SET', KEYS[1], token .. ' ' .. ARGV[1], 'PX', ARGV[2])
return token
"""

#: Release a lease. KEYS: lease. ARGV: token and holder.
RELEASE_LEASE = f"""{_BEGIN}
if redis.call('GET', KEYS[1]) == ARGV[1] then return redis.call('DEL', KEYS[1]) end
return 0
"""

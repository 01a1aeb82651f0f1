"""What is done in Redis all at once, or in a Redis that is full.

At its memory's limit Redis refuses every command that takes memory, and within MULTI (from Redis 7 on) also
those that give it back. `allow-oom` lets a script go on. Every write does but one, the trajectories': their
stream has no bound, so waiting is what keeps a full Redis from growing. All else is bounded, by a number of
entries and, where what they hold is others', by bytes; and a full Redis is when an order to stop trading, a
heartbeat or a letter is needed most (ADR 21).
"""

_BEGIN = "#!lua flags=allow-oom\n"

#: Take the oldest entries of a stream off, a hundredth at a time, until it takes no more memory than so many
#: bytes; 0: as it likes. Its newest entry stays. SAMPLES 0: every node is counted, some thousands at most.
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

#: KEYS: stream, maybe a hash that then holds the same. ARGV: most entries, most bytes (0: no matter), names
#: and values of the fields.
ADD = f"""{_BEGIN}{_KEEP_WITHIN}
local entry = redis.call('XADD', KEYS[1], 'MAXLEN', '~', ARGV[1], '*', unpack(ARGV, 3))
keep_within(KEYS[1], ARGV[2])
if KEYS[2] then redis.call('HSET', KEYS[2], unpack(ARGV, 3)) end
return entry
"""

#: KEYS: stream, hash. ARGV: most entries, most bytes, field, phase, text, names and values of the entry's
#: fields. Append unless the hash has this phase under the field already; then it has.
ADD_PHASE = f"""{_BEGIN}{_KEEP_WITHIN}
local before = redis.call('HGET', KEYS[2], ARGV[3])
if before and string.sub(before, 1, #ARGV[4] + 1) == ARGV[4] .. ' ' then return false end
redis.call('HSET', KEYS[2], ARGV[3], ARGV[4] .. ' ' .. ARGV[5])
local entry = redis.call('XADD', KEYS[1], 'MAXLEN', '~', ARGV[1], '*', unpack(ARGV, 6))
keep_within(KEYS[1], ARGV[2])
return entry
"""

#: KEYS: heartbeat. ARGV: its text, seconds that it holds.
BEAT = f"{_BEGIN}return redis.call('SET', KEYS[1], ARGV[1], 'EX', ARGV[2])"

#: KEYS: stream. ARGV: group, which begins at the stream's start.
CREATE_GROUP = f"{_BEGIN}return redis.call('XGROUP', 'CREATE', KEYS[1], ARGV[1], '0', 'MKSTREAM')"

#: KEYS: stream. ARGV: group, consumer, milliseconds that an entry was left alone, where to begin, most
#: entries. What was left is this consumer's then, and its number of deliveries what it was. Where to go on;
#: ids with their deliveries; ids of what is pending and no longer there.
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

#: KEYS: stream. ARGV: group, consumer, entry, its number of deliveries from now on. A list with the entry, or
#: an empty one where it is no longer there; nil where it is not pending with this consumer.
DELIVER = f"""{_BEGIN}
local pending = redis.call('XPENDING', KEYS[1], ARGV[1], ARGV[3], ARGV[3], 1, ARGV[2])
if #pending == 0 then return false end
return redis.call('XCLAIM', KEYS[1], ARGV[1], ARGV[2], 0, ARGV[3], 'RETRYCOUNT', ARGV[4])
"""

#: KEYS: stream. ARGV: group, entries.
REMOVE = f"""{_BEGIN}
redis.call('XACK', KEYS[1], ARGV[1], unpack(ARGV, 2))
return redis.call('XDEL', KEYS[1], unpack(ARGV, 2))
"""

#: KEYS: dead letters, stream. ARGV: group, entry, number of letters kept, bytes of them kept, names and
#: values of the letter's fields. An entry that is there no longer has its letter, from a try whose reply was
#: lost. XLEN fails before anything is removed where the dead letters are no stream.
BURY = f"""{_BEGIN}{_KEEP_WITHIN}
redis.call('XLEN', KEYS[1])
redis.call('XACK', KEYS[2], ARGV[1], ARGV[2])
if redis.call('XDEL', KEYS[2], ARGV[2]) == 0 then return false end
local letter = redis.call('XADD', KEYS[1], 'MAXLEN', '~', ARGV[3], '*', unpack(ARGV, 5))
keep_within(KEYS[1], ARGV[4])
return letter
"""

#: KEYS: dead letters, stream. ARGV: letter, entry, number of copies, the copies, names and values of the
#: fields. A script, since WATCH on the dead letters fails for as long as new ones keep coming.
REPLAY = f"""{_BEGIN}
if #redis.call('XRANGE', KEYS[1], ARGV[1], ARGV[1]) == 0 then return false end
local first = 4 + tonumber(ARGV[3])
local appended = redis.call('XADD', KEYS[2], '*', unpack(ARGV, first))
redis.call('XDEL', KEYS[1], ARGV[1])
for copy = 4, first - 1 do redis.call('XDEL', KEYS[1], ARGV[copy]) end
redis.call('XDEL', KEYS[2], ARGV[2])
return appended
"""

#: KEYS: lease, token. ARGV: holder, milliseconds. The token, or 0 when another one holds the lease.
#: A token is at least the time in seconds, so that it grows even when Redis lost all it knew.
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

#: KEYS: lease. ARGV: token and holder.
RELEASE_LEASE = f"""{_BEGIN}
if redis.call('GET', KEYS[1]) == ARGV[1] then return redis.call('DEL', KEYS[1]) end
return 0
"""

-- Acknowledge leases: end each with a disposition, and release the slots it holds. (Runs after limiter_common.lua.)
--
-- KEYS[1] high: sorted set of the high lane
-- KEYS[2] normal: sorted set of the normal lane
-- KEYS[3] low: sorted set of the low lane
-- KEYS[4] wake: wake list of the queue
-- KEYS[5] dead_letters: stream of dead letters
-- KEYS[6] quarantine_high: sorted set of the high lane of the queue's quarantine
-- KEYS[7] quarantine_normal: sorted set of its normal lane
-- KEYS[8] quarantine_low: sorted set of its low lane
-- KEYS[9] quarantine_wake: wake list of the quarantine
-- ARGV[1] batch: msgpack, one flat list of 9 values per lease
--   1 lane: index of the lane in KEYS
--   2 id: the leased id
--   3 token: token of the lease
--   4 try: the try that ends here, as claim.lua counted it; 0 for a record, whose tries are counted in Postgres
--   5 disposition: one of the values below
--   6 time_ms: a duration or a time, ms; see the disposition
--   7 text: bytes; see the disposition
--   8 keep_lease_ms: for `done`: above 0 the lease stays for this time, so that the same id cannot run again
--     immediately (arq's cron jobs)
--   9 limit_keys: the limit keys of which the lease holds a slot, separated by spaces; may be empty
-- values of disposition
--   0 done: the job is final and the id leaves Redis; a `text` that is not empty is the result, kept for `time_ms` (0:
--     without expiry)
--   1 retry: ready again `time_ms` from now by Redis's clock; a `text` that is not empty is the new payload
--   2 release: the id returns to the score `time_ms`, the one it had before the lease; the try is not counted
--   3 dead_letter: the id leaves the queue; its payload goes to the stream of dead letters with `text` as the reason
--   4 postpone: ready again `time_ms` from now, and the try is not counted
--   5 quarantine: as retry, in the quarantine of the queue
-- returns a list of codes, one per lease
--   1 applied: the disposition was applied
--   0 fenced: another lease of this id exists; nothing was changed
--   -1 unknown: there is no lease of this id; nothing was changed
local now = redis.call('TIME')
local now_ms = now[1] * 1000 + math.floor(now[2] / 1000)
local has_aborts = redis.call('EXISTS', 'arq:abort') == 1
local results, wake, quarantined, released = {}, false, false, {}
local acks, FIELDS = cmsgpack.unpack(ARGV[1]), 9
local deleted, removed = {}, { {}, {}, {} } -- keys to delete, and ids to remove from each lane: together, at the end

local function remove(lane, id, lease_key, try, keep_lease_ms)
  local at, ids = #deleted, removed[lane]
  deleted[at + 1] = 'arq:job:' .. id
  if keep_lease_ms > 0 then redis.call('PEXPIRE', lease_key, keep_lease_ms) else deleted[at + 2] = lease_key end
  if try > 1 then deleted[#deleted + 1] = 'arq:retry:' .. id end
  ids[#ids + 1] = id
  if has_aborts then redis.call('ZREM', 'arq:abort', id) end
end

local function apply(lane, id, lease_key, try, disposition, time_ms, text, keep_lease_ms)
  if disposition == 0 then
    if text ~= '' and time_ms > 0 then
      redis.call('SET', 'arq:result:' .. id, text, 'PX', math.floor(time_ms))
    elseif text ~= '' then
      redis.call('SET', 'arq:result:' .. id, text)
    end
    return remove(lane, id, lease_key, try, keep_lease_ms)
  elseif disposition == 3 then
    local payload = redis.call('GET', 'arq:job:' .. id) or ''
    redis.call('XADD', KEYS[5], 'MAXLEN', '~', 10000, '*', 'queue', KEYS[lane], 'id', id, 'reason', text,
      'payload', payload)
    return remove(lane, id, lease_key, try, keep_lease_ms)
  end
  deleted[#deleted + 1] = lease_key
  local set = KEYS[lane]
  if disposition == 5 then
    redis.call('ZREM', set, id)
    set, quarantined = ({ KEYS[6], KEYS[7], KEYS[8] })[lane], true
  else
    wake = true
  end
  if disposition == 1 or disposition == 5 then
    if text ~= '' then redis.call('SET', 'arq:job:' .. id, text, 'KEEPTTL') end
    if try > 0 then redis.call('SET', 'arq:retry:' .. id, try, 'PX', 88400000) end
    redis.call('ZADD', set, string.format('%.0f', math.max(1, now_ms + time_ms)), id)
  else
    if disposition == 4 then time_ms = now_ms + time_ms end
    redis.call('ZADD', set, string.format('%.0f', math.max(1, time_ms)), id)
  end
end

local function in_chunks(command, key, list) -- Lua passes a few thousand arguments at most
  for from = 1, #list, 1000 do
    local to = math.min(from + 999, #list)
    if key then redis.call(command, key, unpack(list, from, to)) else redis.call(command, unpack(list, from, to)) end
  end
end

local count = #acks / FIELDS
for from = 1, count, 500 do
  local keys = {}
  for i = from, math.min(from + 499, count) do
    keys[i - from + 1] = 'arq:in-progress:' .. acks[(i - 1) * FIELDS + 2]
  end
  for n, lease in ipairs(redis.call('MGET', unpack(keys))) do
    local i = from + n - 1
    local at = (i - 1) * FIELDS
    local lane, id, token, try, disposition, time_ms, text, keep_lease_ms, limit_keys =
      unpack(acks, at + 1, at + FIELDS)
    if not lease then
      results[i] = -1
    elseif lease ~= token then
      results[i] = 0
    else
      results[i] = 1
      apply(lane, id, keys[n], try, disposition, time_ms, text, keep_lease_ms)
      if limit_keys ~= '' then
        for name in each_key(limit_keys) do
          call_or_reset('ZREM', 'cplane:host:' .. name .. ':slots', id .. ' ' .. token)
          released[name] = true
        end
      end
    end
  end
end
in_chunks('DEL', nil, deleted)
for lane = 1, 3 do in_chunks('ZREM', KEYS[lane], removed[lane]) end
for name in pairs(released) do make_waiters_ready(read_limit(name, now_ms), now_ms) end
if wake and redis.call('LLEN', KEYS[4]) < 64 then redis.call('LPUSH', KEYS[4], '1') end
if quarantined and redis.call('LLEN', KEYS[9]) < 64 then redis.call('LPUSH', KEYS[9], '1') end
return results

-- Lease ready ids of a queue.
--
-- KEYS[1] first: sorted set of the lane that is served first
-- KEYS[2] second: sorted set of the lane that is served second
-- KEYS[3] third: sorted set of the lane that is served last
-- KEYS[4] wake: wake list of the queue
-- ARGV[1] capacity: maximum number of ids to lease
-- ARGV[2] lease_ms: length of each lease, ms
-- ARGV[3] token: token of these leases, unique for this call
-- ARGV[4] scan_limit: maximum number of ready ids to read
-- returns a list of four values
--   1 leases: flat list, 5 values per lease: index of the lane in KEYS, id, payload, try (negative: an abort is
--     wanted), score before the lease (when it was due, ms)
--   2 missing: flat list, 2 values per id that has no payload: index of the lane, id
--   3 malformed: flat list, 4 values per id: index of the lane, id, reason, payload (empty if it is not a string)
--   4 wait_ms: ms until the next id falls due; -1: none is scheduled
--
-- The score of a leased id becomes the end of its lease: it leaves the head of the queue, and after a dead lease it
-- falls due without further action. Half a millisecond is added to that score: an id that falls due with such a score
-- has an unfinished try behind it. Only then, and when a try ends and another follows, are tries counted (arq:retry):
-- most jobs are tried once.
--
-- Ids without a payload, and ids whose keys hold another type than they should, leave the queue and are reported. Their
-- lease and count are deleted, so that a record among them can be scheduled again.
local now = redis.call('TIME')
local now_ms = now[1] * 1000 + math.floor(now[2] / 1000)
local capacity, lease_ms, scan_limit = tonumber(ARGV[1]), tonumber(ARGV[2]), tonumber(ARGV[4])
local RECORD = '\166record\195' -- envelope.RECORD_SUFFIX
local has_aborts = redis.call('EXISTS', 'arq:abort') == 1
local leases, missing, malformed, count, scanned, wait_ms = {}, {}, {}, 0, 0, -1
local lease_end = string.format('%.1f', now_ms + lease_ms + 0.5) -- once: formatting a number is slow

-- remove an id whose keys are malformed, and report it with its payload, if it has one
local function report_malformed(lane, id, payload, reason)
  redis.call('DEL', 'arq:retry:' .. id, 'arq:in-progress:' .. id)
  if payload ~= '' then redis.call('DEL', 'arq:job:' .. id) end
  redis.call('ZREM', KEYS[lane], id)
  local at = #malformed
  malformed[at + 1], malformed[at + 2], malformed[at + 3], malformed[at + 4] = lane, id, reason, payload
end

-- report an id without a payload: it is missing, or its key holds another type
local function report_missing(lane, id)
  local kind = redis.call('TYPE', 'arq:job:' .. id).ok
  if kind ~= 'none' then return report_malformed(lane, id, '', 'arq:job:' .. id .. ' holds a ' .. kind) end
  redis.call('ZREM', KEYS[lane], id)
  missing[#missing + 1], missing[#missing + 2] = lane, id
end

-- which try of an id this is; nil: its count is not a number. The tries of a record are counted in Postgres
local function try_of(id, payload, ended, due_ms)
  if string.sub(payload, -8) == RECORD then return 1 end
  local tries, score = ended and tonumber(ended) or not ended and 0, tonumber(due_ms)
  if tries and score > 1e12 and score % 1 == 0.5 then
    tries = tries + 1
    redis.call('SET', 'arq:retry:' .. id, tries, 'PX', 88400000)
  end
  return tries and tries + 1
end

-- lease an id to this call; a key of another type in place of its lease is overwritten
local rescored = {}
local function lease_to_caller(lane, id, lease_key, payload, ended, due_ms)
  local try = try_of(id, payload, ended, due_ms)
  if not try then return report_malformed(lane, id, payload, 'arq:retry:' .. id .. ' holds no number') end
  if has_aborts and redis.call('ZSCORE', 'arq:abort', id) then try = -try end
  count = count + 1
  redis.call('SET', lease_key, ARGV[3], 'PX', ARGV[2])
  local to, at = #rescored, #leases
  rescored[to + 1], rescored[to + 2] = lease_end, id
  leases[at + 1], leases[at + 2], leases[at + 3], leases[at + 4], leases[at + 5] = lane, id, payload, try, due_ms
end

for lane = 1, 3 do
  local set, skip = KEYS[lane], 0
  while count < capacity and scanned < scan_limit do
    local page_size = math.min(capacity - count, scan_limit - scanned, 250)
    local due = redis.call('ZRANGEBYSCORE', set, '-inf', now_ms, 'WITHSCORES', 'LIMIT', skip, page_size)
    if #due == 0 then break end
    local keys = {}
    for i = 1, #due, 2 do
      local id, at = due[i], #keys
      keys[at + 1], keys[at + 2], keys[at + 3] = 'arq:in-progress:' .. id, 'arq:job:' .. id, 'arq:retry:' .. id
    end
    local values = redis.call('MGET', unpack(keys)) -- a key of another type than string reads as absent
    for i = 1, #due, 2 do
      local id, at = due[i], (i - 1) / 2 * 3
      local lease, payload, ended = values[at + 1], values[at + 2], values[at + 3]
      scanned = scanned + 1
      if lease == '1' then
        skip = skip + 1 -- leased by a plain arq worker: its score is not ours to change
      elseif lease then
        redis.call('ZADD', set, now_ms + math.max(1, redis.call('PTTL', 'arq:in-progress:' .. id)) + 0.5, id)
      elseif payload then
        lease_to_caller(lane, id, keys[at + 1], payload, ended, due[i + 1])
      else
        report_missing(lane, id)
      end
    end
    if #rescored > 0 then redis.call('ZADD', set, unpack(rescored)) end
    rescored = {}
  end
  local next_due = redis.call('ZRANGEBYSCORE', set, '-inf', '+inf', 'WITHSCORES', 'LIMIT', skip, 1)[2]
  if next_due and tonumber(next_due) ~= math.huge then
    local ms = math.max(0, math.ceil(tonumber(next_due) - now_ms))
    if wait_ms < 0 or ms < wait_ms then wait_ms = ms end
  end
end
-- more ids are ready than this worker has capacity for: wake the next blocked worker
if wait_ms == 0 and redis.call('LLEN', KEYS[4]) < 64 then redis.call('LPUSH', KEYS[4], '1') end
return { leases, missing, malformed, wait_ms }

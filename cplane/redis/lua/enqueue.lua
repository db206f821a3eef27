-- Schedule ids. Repeating a call changes nothing, so a caller that lost the reply sends the call again.
--
-- KEYS[1] high: sorted set of the high lane
-- KEYS[2] normal: sorted set of the normal lane
-- KEYS[3] low: sorted set of the low lane
-- KEYS[4] wake: wake list of the queue
-- ARGV[1] batch: msgpack, one flat list of 7 values per id
--   1 lane: index of the lane in KEYS
--   2 id: the job's id
--   3 payload: the envelope
--   4 delay_ms: ms from now (Redis's clock) until the id is due; may be negative
--   5 once: true if a kept result of the id blocks it
--   6 late_ms: an id that is scheduled already, and not leased, may be due up to `late_ms` later than this request; if
--     it is due later than that, it is moved to the time of this request. Negative: it stays as it is
--   7 limit_keys: the limit keys of the job, separated by spaces; may be empty. While the id is in the wait queue of
--     one (limiter_common.lua), `late_ms` does not apply
-- ARGV[2] payload_ttl_ms: how long a payload lives after its id is due, ms
-- returns a list of codes, one per id
--   1 scheduled: the id is new, or a part of it was missing and is restored
--   0 already_there: the id was scheduled or leased already
--   -1 result_blocks: a kept result of the id blocks it
local now = redis.call('TIME')
local now_ms = now[1] * 1000 + math.floor(now[2] / 1000)
local payload_ttl_ms = tonumber(ARGV[2])
local results, wake, heads = {}, false, {}
local new, added = { {}, {}, {} }, {} -- scores and ids to add to each lane: together, at the end
local function head_ms(lane) -- when the first id of the lane was due before this call
  if not heads[lane] then
    heads[lane] = tonumber(redis.call('ZRANGE', KEYS[lane], 0, 0, 'WITHSCORES')[2]) or math.huge
  end
  return heads[lane]
end
local function schedule(i, lane, id, due_ms)
  if due_ms <= now_ms or due_ms < head_ms(lane) then wake = true end
  local due = new[lane]
  due[#due + 1], due[#due + 2] = due_ms, id
  added[id] = true
  results[i] = 1
end
local function is_waiting(limit_keys, member)
  for name in string.gmatch(limit_keys, '%S+') do
    if type(redis.pcall('ZSCORE', 'cplane:host:' .. name .. ':waiters', member)) == 'string' then return true end
  end
end
local requests, FIELDS = cmsgpack.unpack(ARGV[1]), 7
for i = 1, #requests / FIELDS do
  local lane, id, payload, delay_ms, once, late_ms, limit_keys = unpack(requests, (i - 1) * FIELDS + 1, i * FIELDS)
  local due_ms = math.max(1, math.floor(now_ms + delay_ms))
  local job_key, ttl_ms = 'arq:job:' .. id, math.max(0, math.floor(delay_ms)) + payload_ttl_ms
  if once and redis.call('EXISTS', 'arq:result:' .. id) == 1 then
    results[i] = -1
  elseif redis.call('SET', job_key, payload, 'NX', 'PX', ttl_ms) then
    schedule(i, lane, id, due_ms)
  elseif added[id] or redis.call('ZSCORE', KEYS[lane], id) or redis.call('EXISTS', 'arq:in-progress:' .. id) == 1 then
    results[i] = 0
    local score_ms = late_ms >= 0 and not is_waiting(limit_keys, KEYS[lane] .. ' ' .. id)
      and tonumber(redis.call('ZSCORE', KEYS[lane], id))
    if score_ms and score_ms > due_ms + late_ms and redis.call('EXISTS', 'arq:in-progress:' .. id) == 0 then
      redis.call('ZADD', KEYS[lane], string.format('%.0f', due_ms), id)
      wake = true
    end
  else -- a payload without an id: the id was lost
    redis.call('SET', job_key, payload, 'PX', ttl_ms)
    schedule(i, lane, id, due_ms)
  end
end
for lane = 1, 3 do
  for from = 1, #new[lane], 1000 do -- Lua passes a few thousand arguments at most
    redis.call('ZADD', KEYS[lane], unpack(new[lane], from, math.min(from + 999, #new[lane])))
  end
end
-- one token wakes one blocked worker; tokens that no worker takes must not pile up
if wake and redis.call('LLEN', KEYS[4]) < 64 then redis.call('LPUSH', KEYS[4], '1') end
return results

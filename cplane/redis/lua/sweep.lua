-- Remove lost ids and old aborts from a queue.
--
-- KEYS[1] high: sorted set of the high lane
-- KEYS[2] normal: sorted set of the normal lane
-- KEYS[3] low: sorted set of the low lane
-- ARGV[1] scan_limit: maximum number of ready ids of each lane to read
-- ARGV[2] abort_ttl_ms: age at which an entry of arq:abort is deleted, ms
-- returns a flat list, 2 values per lost id: index of the lane in KEYS, id
--
-- A lost id is ready and has neither a payload nor a lease. It leaves the queue and is reported. arq never deletes an
-- abort that came too late: it would end the next job of that id.
local now = redis.call('TIME')
local now_ms = now[1] * 1000 + math.floor(now[2] / 1000)
local missing = {}
redis.call('ZREMRANGEBYSCORE', 'arq:abort', '-inf', now_ms - ARGV[2])
for lane = 1, 3 do
  for _, id in ipairs(redis.call('ZRANGEBYSCORE', KEYS[lane], '-inf', now_ms, 'LIMIT', 0, ARGV[1])) do
    if redis.call('EXISTS', 'arq:job:' .. id, 'arq:in-progress:' .. id) == 0 then
      redis.call('ZREM', KEYS[lane], id)
      missing[#missing + 1] = lane
      missing[#missing + 1] = id
    end
  end
end
return missing

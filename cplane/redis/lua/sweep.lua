-- Remove lost ids and old aborts from one queue.
-- KEYS[1…3] lanes of the queue (sorted sets, score = due in ms)
-- ARGV[1] how many due ids of each lane to read, at most   ARGV[2] ms after which a wanted abort is forgotten
-- returns the missing ids {lane, id, …}
-- Due ids with neither payload nor lease leave the queue and are reported. arq never forgets an abort: one that came too late
-- would end the next job of that id.
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

-- Cancel a transient job: at once if nobody has leased it, else its worker is told.
-- KEYS[1…3] lanes of the queue (sorted sets, score = due in ms)
-- ARGV[1] id   ARGV[2] the result that says it was cancelled   ARGV[3] ms that result is kept
-- answers 2 cancelled now, 1 its worker is told, 0 there is no such job, or it has ended
local id = ARGV[1]
local now = redis.call('TIME')
if redis.call('EXISTS', 'arq:in-progress:' .. id) == 1 then
  redis.call('ZADD', 'arq:abort', now[1] * 1000 + math.floor(now[2] / 1000), id)
  return 1
end
if redis.call('DEL', 'arq:job:' .. id) == 0 then return 0 end
redis.call('DEL', 'arq:retry:' .. id)
for lane = 1, 3 do redis.call('ZREM', KEYS[lane], id) end
redis.call('SET', 'arq:result:' .. id, ARGV[2], 'PX', ARGV[3])
return 2

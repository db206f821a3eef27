-- Cancel a transient job: immediately if no worker has leased it, otherwise by a request to its worker.
--
-- KEYS[1] high: sorted set of the high lane
-- KEYS[2] normal: sorted set of the normal lane
-- KEYS[3] low: sorted set of the low lane
-- ARGV[1] id: the job's id
-- ARGV[2] result: the kept result that says the job was cancelled
-- ARGV[3] keep_ms: how long that result is kept, ms
-- returns one code
--   2 cancelled: the job left the queue, and the result is kept
--   1 told: the id is in arq:abort; its worker reads that when it renews the lease
--   0 unknown: there is no such job, or it is final already
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

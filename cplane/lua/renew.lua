-- Extend leases.
-- KEYS[1] queue (sorted set, score = due in ms)
-- ARGV[1] lease in ms   ARGV[2…] for each lease: id, token
-- answers for each: 1 renewed, 2 renewed and an abort is wanted (arq:abort), 0 someone else's lease, -1 Redis knows no lease
local now = redis.call('TIME')
local now_ms = now[1] * 1000 + math.floor(now[2] / 1000)
local lease_ms = tonumber(ARGV[1])
local answers = {}
for i = 2, #ARGV, 2 do
  local id, token = ARGV[i], ARGV[i + 1]
  local lease = redis.call('GET', 'arq:in-progress:' .. id)
  if lease == token then
    redis.call('PEXPIRE', 'arq:in-progress:' .. id, lease_ms)
    redis.call('ZADD', KEYS[1], 'XX', now_ms + lease_ms, id)
    answers[#answers + 1] = redis.call('ZSCORE', 'arq:abort', id) and 2 or 1
  elseif lease then
    answers[#answers + 1] = 0
  else
    answers[#answers + 1] = -1
  end
end
return answers

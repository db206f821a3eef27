-- Extend leases.
-- KEYS[1…3] lanes of the queue (sorted sets, score = due in ms)
-- ARGV[1] msgpack: for each lease { lane, id, token, the hosts of which it holds a place or '' }   ARGV[2] lease in ms
-- answers for each: 1 renewed, 2 renewed and an abort is wanted (arq:abort), 0 someone else's lease, -1 Redis knows no lease
local now = redis.call('TIME')
local now_ms = now[1] * 1000 + math.floor(now[2] / 1000)
local lease_ms = tonumber(ARGV[2])
local answers = {}
for i, held in ipairs(cmsgpack.unpack(ARGV[1])) do
  local lane, id, token = held[1], held[2], held[3]
  local lease = redis.pcall('GET', 'arq:in-progress:' .. id)
  if lease == token then
    redis.call('PEXPIRE', 'arq:in-progress:' .. id, lease_ms)
    redis.call('ZADD', KEYS[lane], 'XX', now_ms + lease_ms + 0.5, id) -- the half: see claim.lua
    for host in string.gmatch(held[4] or '', '%S+') do -- its places: see limiter_common.lua
      local places = 'cplane:host:' .. host .. ':held'
      redis.pcall('ZADD', places, now_ms + lease_ms, id .. ' ' .. token)
      redis.call('PEXPIRE', places, lease_ms + 60000)
    end
    answers[i] = redis.call('ZSCORE', 'arq:abort', id) and 2 or 1
  elseif lease then
    answers[i] = 0
  else
    answers[i] = -1
  end
end
return answers

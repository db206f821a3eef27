-- Extend leases, and with them the slots they hold.
--
-- KEYS[1] high: sorted set of the high lane
-- KEYS[2] normal: sorted set of the normal lane
-- KEYS[3] low: sorted set of the low lane
-- ARGV[1] batch: msgpack, a list of lists of 4 values, one per lease
--   1 lane: index of the lane in KEYS
--   2 id: the leased id
--   3 token: token of the lease
--   4 limit_keys: the limit keys of which the lease holds a slot, separated by spaces; may be empty
-- ARGV[2] lease_ms: length of the lease from now, ms
-- returns a list of codes, one per lease
--   1 renewed: the lease is extended
--   2 abort_wanted: the lease is extended, and the id is in arq:abort
--   0 fenced: another lease of this id exists; nothing was changed
--   -1 unknown: there is no lease of this id; nothing was changed
local now = redis.call('TIME')
local now_ms = now[1] * 1000 + math.floor(now[2] / 1000)
local lease_ms = tonumber(ARGV[2])
local results = {}
for i, renewal in ipairs(cmsgpack.unpack(ARGV[1])) do
  local lane, id, token, limit_keys = unpack(renewal, 1, 4)
  local lease = redis.pcall('GET', 'arq:in-progress:' .. id)
  if lease == token then
    redis.call('PEXPIRE', 'arq:in-progress:' .. id, lease_ms)
    redis.call('ZADD', KEYS[lane], 'XX', now_ms + lease_ms + 0.5, id) -- half a millisecond: see claim.lua
    for name in string.gmatch(limit_keys or '', '%S+') do -- its slots: see limiter_common.lua
      local slots = 'cplane:host:' .. name .. ':slots'
      redis.pcall('ZADD', slots, now_ms + lease_ms, id .. ' ' .. token)
      redis.call('PEXPIRE', slots, lease_ms + 60000)
    end
    results[i] = redis.call('ZSCORE', 'arq:abort', id) and 2 or 1
  elseif lease then
    results[i] = 0
  else
    results[i] = -1
  end
end
return results

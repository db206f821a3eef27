-- Leave a host alone: no job of it starts for a while. See limiter_common.lua.
-- KEYS[1] the host's hash   KEYS[2] the hosts somebody had to wait for   ARGV[1] host   ARGV[2] ms
-- answers ms until the cooldown ends; one that lasts longer already stays
local now = redis.call('TIME')
local now_ms = now[1] * 1000 + math.floor(now[2] / 1000)
for place, kind in ipairs({ 'hash', 'zset' }) do -- what is of another kind gives way
  local found = redis.call('TYPE', KEYS[place]).ok
  if found ~= kind and found ~= 'none' then redis.call('DEL', KEYS[place]) end
end
local until_ms = math.max(tonumber(redis.call('HGET', KEYS[1], 'until')) or 0, now_ms + tonumber(ARGV[2]))
redis.call('HSET', KEYS[1], 'until', string.format('%.0f', until_ms))
local keep_ms = until_ms - now_ms + 60000
if redis.call('PTTL', KEYS[1]) < keep_ms then redis.call('PEXPIRE', KEYS[1], keep_ms) end
redis.call('ZADD', KEYS[2], now_ms, ARGV[1])
redis.call('PEXPIRE', KEYS[2], 172800000)
return until_ms - now_ms

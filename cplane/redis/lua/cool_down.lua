-- Cool a host down: no job of it starts before the cooldown ends. See limiter_common.lua.
--
-- KEYS[1] host: hash of the host
-- KEYS[2] hosts: sorted set of the limit keys for which a job had to wait
-- ARGV[1] name: name of the host
-- ARGV[2] cooldown_ms: length of the cooldown, ms
-- returns ms until the cooldown ends: more than `cooldown_ms` if an earlier one lasts longer, which is not shortened
local now = redis.call('TIME')
local now_ms = now[1] * 1000 + math.floor(now[2] / 1000)
for i, kind in ipairs({ 'hash', 'zset' }) do -- a key of another type is deleted
  local found = redis.call('TYPE', KEYS[i]).ok
  if found ~= kind and found ~= 'none' then redis.call('DEL', KEYS[i]) end
end
local until_ms = math.max(tonumber(redis.call('HGET', KEYS[1], 'cooldown_until')) or 0, now_ms + tonumber(ARGV[2]))
redis.call('HSET', KEYS[1], 'cooldown_until', string.format('%.0f', until_ms))
local keep_ms = until_ms - now_ms + 60000
if redis.call('PTTL', KEYS[1]) < keep_ms then redis.call('PEXPIRE', KEYS[1], keep_ms) end
redis.call('ZADD', KEYS[2], now_ms, ARGV[1])
redis.call('PEXPIRE', KEYS[2], 172800000)
return until_ms - now_ms

-- Tell who listens. Nothing is written while nobody does.
-- KEYS[1] stream   KEYS[2] key that listeners keep alive
-- ARGV[1] msgpack: a list of events   ARGV[2] ms an entry is kept
-- answers 1 if it was written
if redis.call('EXISTS', KEYS[2]) == 0 then return 0 end
local now = redis.call('TIME')
local oldest_ms = now[1] * 1000 + math.floor(now[2] / 1000) - ARGV[2]
redis.call('XADD', KEYS[1], 'MINID', '~', string.format('%.0f', oldest_ms), '*', 'e', ARGV[1])
return 1

-- Publish events to a stream. Without a subscriber nothing is written.
--
-- KEYS[1] stream: the stream
-- KEYS[2] subscribed: the key that subscribers keep alive
-- ARGV[1] events: msgpack, a list of events; one entry of the stream
-- ARGV[2] retention_ms: how long an entry is kept, ms, approximately
-- returns one code
--   1 written: there is a subscriber
--   0 skipped: there is no subscriber
if redis.call('EXISTS', KEYS[2]) == 0 then return 0 end
local now = redis.call('TIME')
local oldest_ms = now[1] * 1000 + math.floor(now[2] / 1000) - ARGV[2]
redis.call('XADD', KEYS[1], 'MINID', '~', string.format('%.0f', oldest_ms), '*', 'e', ARGV[1])
return 1

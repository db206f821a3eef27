-- Advance the counter by which a Redis that lost its data is detected.
--
-- KEYS[1] epoch: the counter
-- ARGV[1] minimum: the least value of the counter afterwards
-- returns the counter: one more than before, or `minimum`, whichever is greater
local epoch = math.max((tonumber(redis.call('GET', KEYS[1])) or 0) + 1, tonumber(ARGV[1]))
redis.call('SET', KEYS[1], string.format('%.0f', epoch))
return epoch

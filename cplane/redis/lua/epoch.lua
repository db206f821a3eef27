-- Move the counter on by which a Redis that lost its memory is noticed.
-- KEYS[1] counter   ARGV[1] the least it is to be
-- answers the counter
local epoch = math.max((tonumber(redis.call('GET', KEYS[1])) or 0) + 1, tonumber(ARGV[1]))
redis.call('SET', KEYS[1], string.format('%.0f', epoch))
return epoch

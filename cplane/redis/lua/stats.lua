-- Read the state of a queue. Nothing is changed.
--
-- KEYS[1] high: sorted set of the high lane
-- KEYS[2] normal: sorted set of the normal lane
-- KEYS[3] low: sorted set of the low lane
-- ARGV[1] max_lease_ms: the longest lease there can be, ms
-- ARGV[2] scan_limit: maximum number of ids of each lane that are read to count the running ones
-- returns a list of four values
--   1 ready: ids that are due
--   2 scheduled: ids that are due later
--   3 running: ids that are leased
--   4 latency_ms: how long the longest ready id has waited, ms
--
-- The score of a leased id is the end of its lease and half a millisecond (claim.lua): running and scheduled ids are
-- told apart by their scores. `running` is exact while at most `scan_limit` ids of a lane fall due within the longest
-- lease; beyond that, the rest counts as scheduled.
local now = redis.call('TIME')
local now_ms = now[1] * 1000 + math.floor(now[2] / 1000)
local horizon_ms = string.format('%.1f', now_ms + ARGV[1] + 1)
local ready, later, running, latency_ms = 0, 0, 0, 0
for lane = 1, 3 do
  local head = redis.call('ZRANGEBYSCORE', KEYS[lane], '(1', now_ms, 'WITHSCORES', 'LIMIT', 0, 1)[2]
  if head then latency_ms = math.max(latency_ms, now_ms - tonumber(head)) end
  local lane_ready = redis.call('ZCOUNT', KEYS[lane], '-inf', now_ms)
  ready = ready + lane_ready
  later = later + redis.call('ZCARD', KEYS[lane]) - lane_ready
  local soon = redis.call('ZRANGEBYSCORE', KEYS[lane], '(' .. now_ms, horizon_ms, 'WITHSCORES', 'LIMIT', 0, ARGV[2])
  for i = 2, #soon, 2 do
    if tonumber(soon[i]) % 1 == 0.5 then running = running + 1 end
  end
end
return { ready, later - running, running, math.floor(latency_ms) }

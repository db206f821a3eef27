-- Look after one queue: what is due and lost, what is old, and how it stands.
-- KEYS[1…3] lanes of the queue (sorted sets, score = due in ms)
-- ARGV[1] how many due ids to look at in each lane, at most   ARGV[2] ms after which a wanted abort is forgotten
-- answers { missing: {lane, id, …}, ms the longest due id has waited, ids due, ids that are not (scheduled or leased) }
-- Due ids with neither payload nor lease leave the queue and are reported. arq never forgets an abort: one that came too late
-- would end the next job of that id.
local now = redis.call('TIME')
local now_ms = now[1] * 1000 + math.floor(now[2] / 1000)
local missing, lag_ms, due, later = {}, 0, 0, 0
redis.call('ZREMRANGEBYSCORE', 'arq:abort', '-inf', now_ms - ARGV[2])
for lane = 1, 3 do
  local waits_ms = 0
  for _, id in ipairs(redis.call('ZRANGEBYSCORE', KEYS[lane], '-inf', now_ms, 'LIMIT', 0, ARGV[1])) do
    if redis.call('EXISTS', 'arq:job:' .. id, 'arq:in-progress:' .. id) == 0 then
      redis.call('ZREM', KEYS[lane], id)
      missing[#missing + 1] = lane
      missing[#missing + 1] = id
    end
  end
  local head = redis.call('ZRANGEBYSCORE', KEYS[lane], '(1', now_ms, 'WITHSCORES', 'LIMIT', 0, 1)[2]
  if head then waits_ms = now_ms - tonumber(head) end
  lag_ms = math.max(lag_ms, waits_ms)
  local lane_due = redis.call('ZCOUNT', KEYS[lane], '-inf', now_ms)
  due = due + lane_due
  later = later + redis.call('ZCARD', KEYS[lane]) - lane_due
end
return { missing, math.floor(lag_ms), due, later }

-- Say how one queue stands; nothing is changed.
-- KEYS[1…3] lanes of the queue (sorted sets, score = due in ms)
-- answers { ms the longest due id has waited, ids due, ids that are not (scheduled or leased) }
local now = redis.call('TIME')
local now_ms = now[1] * 1000 + math.floor(now[2] / 1000)
local lag_ms, due, later = 0, 0, 0
for lane = 1, 3 do
  local head = redis.call('ZRANGEBYSCORE', KEYS[lane], '(1', now_ms, 'WITHSCORES', 'LIMIT', 0, 1)[2]
  if head then lag_ms = math.max(lag_ms, now_ms - tonumber(head)) end
  local lane_due = redis.call('ZCOUNT', KEYS[lane], '-inf', now_ms)
  due = due + lane_due
  later = later + redis.call('ZCARD', KEYS[lane]) - lane_due
end
return { math.floor(lag_ms), due, later }

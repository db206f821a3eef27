-- Acquire a slot of each limit key for leased ids. An id that must wait is requeued. (Runs after limiter_common.lua.)
--
-- KEYS[1] high: sorted set of the high lane
-- KEYS[2] normal: sorted set of the normal lane
-- KEYS[3] low: sorted set of the low lane
-- KEYS[4] wake: wake list of the queue
-- ARGV[1] batch: msgpack, a list of lists of 8 values, one per lease
--   1 lane: index of the lane in KEYS
--   2 id: the leased id
--   3 token: token of its lease
--   4 due_ms: its score before the lease, as text
--   5 limit_keys: a host, a browser session (`@NAME`), or both, separated by spaces
--   6 concurrency: jobs that may run on the host concurrently; 0: unlimited
--   7 interval_ms: ms between two starts on the host; 0: unlimited
--   8 burst: starts on the host that may follow each other without the interval
-- ARGV[2] recheck_ms: when an id that waits for a slot is due again although no slot was released, ms; the more wait
--   before it, the later
-- returns a list of codes, one per lease; every other value is ms: the id was requeued, its try is not counted, and it
--   is due again in this time
--   -1 granted: the job may start; it holds a slot of each limit key for as long as its lease
--   -2 lease_gone: the lease does not exist or is another's; nothing was changed
local now = redis.call('TIME')
local now_ms = now[1] * 1000 + now[2] / 1000
local recheck_ms = tonumber(ARGV[2])
local limits, results, wake, any_waits = {}, {}, false, false

-- how many waiters are before this one, as far as that matters when `starts` are allowed
local function count_ahead(limit, member, since_ms, starts)
  local count = 0
  local waiters = redis.call('ZRANGE', limit.key .. ':waiters', 0, starts + 7, 'WITHSCORES')
  for i = 1, #waiters, 2 do
    local score = tonumber(waiters[i + 1])
    if score > since_ms or waiters[i] == member or (score == since_ms and waiters[i] > member) then break end
    local state = waiter_state(limit, waiters[i], now_ms)
    if state == 'waiting' or state == 'leased' then count = count + 1 end
  end
  return count
end

-- how many jobs may start now
local function free_starts(limit)
  if next_start_ms(limit, now_ms) > now_ms then return 0 end
  local starts = free_slots(limit)
  if limit.interval > 0 then
    local unused_ms = now_ms - math.max(limit.tat, now_ms) + (limit.burst - 1) * limit.interval
    starts = math.min(starts, math.floor(unused_ms / limit.interval) + 1)
  end
  return starts
end

-- in how many ms the waiter at a position of the wait queue is expected to start
local function wait_ms(limit, position)
  local at = next_start_ms(limit, now_ms)
  if limit.interval > 0 then
    at = math.max(at,
      math.max(limit.tat, limit.cooldown_until_ms, now_ms) + (position - limit.burst + 1) * limit.interval)
  elseif at > now_ms then
    at = at + math.min(position, 600) * 100 -- after a cooldown they do not all become ready at the same time
  end
  if position >= free_slots(limit) then at = math.max(at, now_ms + recheck_ms * (1 + position / 10)) end
  return math.max(1, math.min(math.ceil(at - now_ms), DAY_MS))
end

-- since when an id has waited, in whichever wait queue it is; one that is in none has waited since it was due
local function waiting_since(needed, member, due_ms)
  local since_ms = math.huge
  for _, limit in ipairs(needed) do
    since_ms = math.min(since_ms, tonumber(redis.call('ZSCORE', limit.key .. ':waiters', member)) or math.huge)
  end
  if since_ms < math.huge then return since_ms end
  return due_ms % 1 == 0.5 and due_ms - 600000 or due_ms -- its worker died (see claim.lua): it has waited before
end

local function requeue(limit, lane, id, member, since_ms)
  redis.call('ZADD', limit.key .. ':waiters', since_ms, member)
  local ms = wait_ms(limit, redis.call('ZRANK', limit.key .. ':waiters', member))
  redis.call('ZADD', lane, string.format('%.0f', math.floor(now_ms) + ms), id)
  return ms
end

-- the job and the limit keys of a payload
local function read(payload)
  if not payload or #payload > 1000 then return end
  local is_msgpack, envelope = pcall(cmsgpack.unpack, payload)
  if is_msgpack and type(envelope) == 'table' then return envelope.f, envelope.limit_keys end
end

local function has(limit_keys, name)
  if type(limit_keys) ~= 'table' then return false end
  for _, key in ipairs(limit_keys) do
    if key == name then return true end
  end
  return false
end

-- Ready ids behind one that must wait, of the same job and limit key, would be claimed one by one with the same result:
-- they join the wait queue here, so that the head of the queue is soon free for other limit keys. It goes on while most
-- ids of a page are such.
local function requeue_similar(limit, lane, payload)
  local job = read(payload)
  local skip, pages = 0, 0
  while job and pages < 10 do
    local due = redis.call('ZRANGEBYSCORE', lane, '-inf', now_ms, 'WITHSCORES', 'LIMIT', skip, 50)
    local keys, requeued = {}, 0
    for i = 1, #due, 2 do keys[i], keys[i + 1] = 'arq:job:' .. due[i], 'arq:in-progress:' .. due[i] end
    local found = #due > 0 and redis.call('MGET', unpack(keys)) or {}
    for i = 1, #due, 2 do
      local id, due_ms, member = due[i], tonumber(due[i + 1]), lane .. ' ' .. due[i]
      local its_job, its_keys = read(found[i])
      if its_job == job and has(its_keys, limit.name) and not found[i + 1] and due_ms % 1 == 0
        and not redis.call('ZSCORE', limit.key .. ':waiters', member) then
        requeue(limit, lane, id, member, due_ms)
        requeued = requeued + 1
      end
    end
    skip, pages = skip + #due / 2 - requeued, pages + 1
    if requeued < 25 then return end
  end
end

-- the limit keys of a request, with their limits; a browser session has one slot
local function limits_of(request)
  local needed = {}
  for name in each_key(request[5]) do
    local limit = limits[name]
    if not limit then
      limit = read_limit(name, now_ms)
      limit.name, limits[name] = name, limit
    end
    if string.sub(name, 1, 1) == '@' then
      limit.concurrency, limit.interval, limit.burst = 1, 0, 1
    else
      limit.concurrency, limit.interval, limit.burst = request[6], request[7], request[8]
    end
    needed[#needed + 1] = limit
  end
  return needed
end

-- the first limit key that allows this one no start
local function first_busy(needed, member, since_ms)
  for _, limit in ipairs(needed) do
    local starts = free_starts(limit)
    if starts ~= math.huge and (starts < 1 or count_ahead(limit, member, since_ms, starts) >= starts) then
      return limit
    end
  end
end

local function decide(request)
  local lane, id, token = KEYS[request[1]], request[2], request[3]
  local lease_key = 'arq:in-progress:' .. id
  if redis.call('GET', lease_key) ~= token then return -2 end
  local needed, member = limits_of(request), lane .. ' ' .. id
  local since_ms = waiting_since(needed, member, tonumber(request[4]))
  local busy = first_busy(needed, member, since_ms)
  for _, limit in ipairs(needed) do -- it waits in one wait queue at most: the others need not make it ready
    redis.call('ZREM', limit.key .. ':waiters', member)
  end
  if not busy then
    local lease_ms = math.max(1, redis.call('PTTL', lease_key))
    for _, limit in ipairs(needed) do
      count_start(limit, now_ms)
      redis.call('ZADD', limit.key .. ':slots', now_ms + lease_ms, id .. ' ' .. token)
      redis.call('PEXPIRE', limit.key .. ':slots', lease_ms + 60000)
      limit.in_use = limit.in_use + 1
    end
    return -1
  end
  redis.call('DEL', lease_key)
  local ms = requeue(busy, lane, id, member, since_ms)
  if not busy.has_waiters then requeue_similar(busy, lane, redis.call('GET', 'arq:job:' .. id)) end
  busy.has_waiters, any_waits, wake = true, true, true
  return ms
end

for i, request in ipairs(cmsgpack.unpack(ARGV[1])) do results[i] = decide(request) end
for name, limit in pairs(limits) do
  redis.call('HSET', limit.key, 'tat', string.format('%.3f', limit.tat), 'concurrency', limit.concurrency,
    'interval', limit.interval, 'burst', limit.burst)
  local keep_ms = math.max(limit.tat, limit.cooldown_until_ms, now_ms) - now_ms + 60000
  if redis.call('EXISTS', limit.key .. ':waiters') == 1 then
    keep_ms = keep_ms + 2 * DAY_MS
    redis.call('PEXPIRE', limit.key .. ':waiters', 2 * DAY_MS)
  end
  redis.call('PEXPIRE', limit.key, math.ceil(keep_ms))
  if limit.has_waiters then call_or_reset('ZADD', 'cplane:hosts', math.floor(now_ms), name) end
  make_waiters_ready(limit, now_ms)
end
if any_waits then
  redis.call('ZREMRANGEBYRANK', 'cplane:hosts', 0, -10001)
  redis.call('PEXPIRE', 'cplane:hosts', 2 * DAY_MS)
end
if wake and redis.call('LLEN', KEYS[4]) < 64 then redis.call('LPUSH', KEYS[4], '1') end
return results

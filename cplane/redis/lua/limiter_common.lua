-- Limit keys: the hosts that limit jobs, and the browser sessions that one job at a time may use. acquire.lua and
-- ack.lua begin with this text. A browser session is a limit key named `@NAME` with one slot. A job names its limit
-- keys in one text, separated by spaces.
--
-- cplane:host:KEY          hash: `tat` (GCRA: theoretical arrival time of the next start, ms), `cooldown_until` (ms),
--                          and the limits of the last request: `concurrency` and `interval` (ms from start to start),
--                          0: unlimited; `burst`
-- cplane:host:KEY:slots    the slots in use: "ID TOKEN", score = end of the lease, ms
-- cplane:host:KEY:waiters  the wait queue: "LANE ID", score = since when the id has waited, ms
-- cplane:hosts             limit keys for which a job had to wait, score = when, ms
--
-- A waiter stays in its queue, scheduled for the time at which it is expected to start. If it may start earlier, it is
-- made ready. A waiter that was made ready and is not claimed within 2 seconds is skipped; after a minute it moves to
-- the end of the wait queue: a queue without a worker holds up no other.
local DAY_MS, SKIP_MS, DEMOTE_MS, MAX_READY, SCAN_MARGIN = 86400000, 2000, 60000, 64, 64

-- call a command on one of our keys; a key of another type is deleted first
local function call_or_reset(command, key, ...)
  local reply = redis.pcall(command, key, ...)
  if type(reply) ~= 'table' or not reply.err then return reply end
  redis.call('DEL', key)
  return redis.call(command, key, ...)
end

local function read_limit(name, now_ms)
  local key = 'cplane:host:' .. name
  local fields = call_or_reset('HMGET', key, 'tat', 'cooldown_until', 'concurrency', 'interval', 'burst')
  call_or_reset('ZREMRANGEBYSCORE', key .. ':slots', '-inf', now_ms)
  call_or_reset('ZCARD', key .. ':waiters')
  return {
    key = key, in_use = redis.call('ZCARD', key .. ':slots'),
    tat = tonumber(fields[1]) or 0, cooldown_until_ms = tonumber(fields[2]) or 0,
    concurrency = tonumber(fields[3]) or 0, interval = tonumber(fields[4]) or 0, burst = tonumber(fields[5]) or 1,
  }
end

-- when rate and cooldown allow the next start
local function next_start_ms(limit, now_ms)
  local at = math.max(now_ms, limit.cooldown_until_ms)
  if limit.interval > 0 then at = math.max(at, limit.tat - (limit.burst - 1) * limit.interval) end
  return at
end

local function each_key(limit_keys) return string.gmatch(limit_keys, '%S+') end

local function count_start(limit, at)
  if limit.interval > 0 then limit.tat = math.max(limit.tat, at) + limit.interval end
end

local function free_slots(limit)
  return limit.concurrency > 0 and math.max(0, limit.concurrency - limit.in_use) or math.huge
end

-- the state of a waiter in its queue: 'gone', 'skipped', 'leased' or 'waiting'; and when it is due
local function waiter_state(limit, member, now_ms)
  local lane, id = string.match(member, '^(%S+) (.*)$')
  local due_ms = tonumber(redis.call('ZSCORE', lane, id))
  local lease = due_ms and redis.call('GET', 'arq:in-progress:' .. id)
  if not due_ms or lease == '1' then -- it left the queue, or a plain arq worker, which knows no limit keys, leased it
    redis.call('ZREM', limit.key .. ':waiters', member)
    return 'gone'
  end
  if lease then return 'leased' end
  return due_ms < now_ms - SKIP_MS and 'skipped' or 'waiting', due_ms, lane, id
end

local function wake_queue(lane)
  local name = string.gsub(lane, '@.*$', '')
  local key = 'cplane:wake:' .. (name == 'arq:queue' and 'default' or string.sub(name, 11))
  if redis.call('LLEN', key) < 64 then redis.call('LPUSH', key, '1') end
end

-- make the first waiters ready, for as many starts as the limits allow
local function make_waiters_ready(limit, now_ms)
  local starts = math.min(free_slots(limit), MAX_READY)
  if starts < 1 or (limit.concurrency == 0 and limit.interval == 0) then return end
  local tat, woken = limit.tat, {}
  for _, member in ipairs(redis.call('ZRANGE', limit.key .. ':waiters', 0, starts + SCAN_MARGIN)) do
    local state, due_ms, lane, id = waiter_state(limit, member, now_ms)
    if state == 'waiting' or state == 'leased' then
      local at = next_start_ms(limit, now_ms)
      count_start(limit, at)
      starts = starts - 1
      if state == 'waiting' and due_ms > math.ceil(at) then
        redis.call('ZADD', lane, 'XX', string.format('%.0f', math.ceil(at)), id)
        woken[lane] = true
      end
      if starts < 1 then break end
    elseif state == 'skipped' and due_ms < now_ms - DEMOTE_MS then
      redis.call('ZADD', limit.key .. ':waiters', 'XX', now_ms, member)
    end
  end
  limit.tat = tat -- the starts counted above are planned, not made
  for lane in pairs(woken) do wake_queue(lane) end
end


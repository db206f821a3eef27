-- The hosts that jobs take the time of, and the browser sessions that one job at a time may have: acquire.lua and ack.lua begin with
-- this text. A session is a host with one place, and stands as "@NAME". A job names what it needs in one text, with a space between.
-- cplane:host:HOST       hash: `tat` (GCRA: when the next start is due at a steady rate, ms), `until` (the end of the cooldown, ms), and the
--                        limits that were asked for last: `concurrency` and `interval` (ms from start to start), 0: any; `burst`
-- cplane:host:HOST:held  the places that are taken: "ID TOKEN", score = the end of the lease, ms
-- cplane:host:HOST:line  who waits for a turn: "LANE ID", score = since when, ms
-- cplane:hosts           the hosts somebody had to wait for, score = when, ms
-- Who waits stays in the queue, due when its turn is thought to come. When a turn comes sooner, the first of the line are called: made
-- due. Whom nobody claims for two seconds though it was called is passed over, and after a minute stands last: a queue without a worker
-- holds up nobody.
local DAY_MS, STALE_MS, LEFT_MS, CALLED, LOOKS = 86400000, 2000, 60000, 64, 64

-- a call whose key may hold something foreign: that gives way
local function sound(command, key, ...)
  local answer = redis.pcall(command, key, ...)
  if type(answer) ~= 'table' or not answer.err then return answer end
  redis.call('DEL', key)
  return redis.call(command, key, ...)
end

local function read_host(host, now_ms)
  local key = 'cplane:host:' .. host
  local found = sound('HMGET', key, 'tat', 'until', 'concurrency', 'interval', 'burst')
  sound('ZREMRANGEBYSCORE', key .. ':held', '-inf', now_ms)
  sound('ZCARD', key .. ':line')
  return {
    key = key, held = redis.call('ZCARD', key .. ':held'),
    tat = tonumber(found[1]) or 0, cool_ms = tonumber(found[2]) or 0,
    concurrency = tonumber(found[3]) or 0, interval = tonumber(found[4]) or 0, burst = tonumber(found[5]) or 1,
  }
end

-- when the next job may start, as far as rate and cooldown go
local function start_ms(host, now_ms)
  local at = math.max(now_ms, host.cool_ms)
  if host.interval > 0 then at = math.max(at, host.tat - (host.burst - 1) * host.interval) end
  return at
end

-- the hosts and the session in a text
local function each_host(text) return string.gmatch(text, '%S+') end

local function note_start(host, at)
  if host.interval > 0 then host.tat = math.max(host.tat, at) + host.interval end
end

-- places that are free
local function free(host)
  return host.concurrency > 0 and math.max(0, host.concurrency - host.held) or math.huge
end

-- how an id of the line stands in its queue: 'gone', 'passed over', 'leased' or 'waits'; and when it is due
local function stand_of(host, member, now_ms)
  local lane, id = string.match(member, '^(%S+) (.*)$')
  local due_ms = tonumber(redis.call('ZSCORE', lane, id))
  local lease = due_ms and redis.call('GET', 'arq:in-progress:' .. id)
  if not due_ms or lease == '1' then -- it left the queue, or a plain arq worker, which knows no hosts, has it
    redis.call('ZREM', host.key .. ':line', member)
    return 'gone'
  end
  if lease then return 'leased' end
  return due_ms < now_ms - STALE_MS and 'passed over' or 'waits', due_ms, lane, id
end

local function wake_queue(lane)
  local name = string.gsub(lane, '@.*$', '')
  local key = 'cplane:wake:' .. (name == 'arq:queue' and 'default' or string.sub(name, 11))
  if redis.call('LLEN', key) < 64 then redis.call('LPUSH', key, '1') end
end

-- make the first of the line due when their turns come
local function call_next(host, now_ms)
  local turns = math.min(free(host), CALLED)
  if turns < 1 or (host.concurrency == 0 and host.interval == 0) then return end
  local tat, woken = host.tat, {}
  for _, member in ipairs(redis.call('ZRANGE', host.key .. ':line', 0, turns + LOOKS)) do
    local stand, due_ms, lane, id = stand_of(host, member, now_ms)
    if stand == 'waits' or stand == 'leased' then
      local at = start_ms(host, now_ms)
      note_start(host, at)
      turns = turns - 1
      if stand == 'waits' and due_ms > math.ceil(at) then
        redis.call('ZADD', lane, 'XX', string.format('%.0f', math.ceil(at)), id)
        woken[lane] = true
      end
      if turns < 1 then break end
    elseif stand == 'passed over' and due_ms < now_ms - LEFT_MS then
      redis.call('ZADD', host.key .. ':line', 'XX', now_ms, member)
    end
  end
  host.tat = tat
  for lane in pairs(woken) do wake_queue(lane) end
end


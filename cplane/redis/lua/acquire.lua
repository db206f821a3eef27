-- Ask whether leased ids may start on their hosts; who may not goes back to the queue. (limiter_common.lua stands before this.)
-- KEYS[1…3] lanes of the queue (sorted sets, score = due in ms)   KEYS[4] wake list
-- ARGV[1] msgpack: for each { lane, id, token of its lease, due in ms (its score before it was leased), host and session,
--   places of the host (0: any), ms between two starts (0: any), starts that may come at once }
-- ARGV[2] ms from the next start that may have to wait for a place until it is looked at again
-- answers for each: -1 it may start, and holds a place of each for as long as its lease; -2 the lease is not the asker's any more;
--   else it went back, its try not counted, and is due again in so many ms
local now = redis.call('TIME')
local now_ms = now[1] * 1000 + now[2] / 1000
local look_ms = tonumber(ARGV[2])
local hosts, answers, wake, waits = {}, {}, false, false

-- who is before this one in the line, as far as that matters when `turns` may start
local function count_ahead(host, member, since_ms, turns)
  local count = 0
  local line = redis.call('ZRANGE', host.key .. ':line', 0, turns + 7, 'WITHSCORES')
  for i = 1, #line, 2 do
    local score = tonumber(line[i + 1])
    if score > since_ms or line[i] == member or (score == since_ms and line[i] > member) then break end
    local stand = stand_of(host, line[i], now_ms)
    if stand == 'waits' or stand == 'leased' then count = count + 1 end
  end
  return count
end

-- how many may start now
local function turns_now(host)
  if start_ms(host, now_ms) > now_ms then return 0 end
  local turns = free(host)
  if host.interval > 0 then
    local late_ms = now_ms - math.max(host.tat, now_ms) + (host.burst - 1) * host.interval
    turns = math.min(turns, math.floor(late_ms / host.interval) + 1)
  end
  return turns
end

-- when the one at a position of the line may have its turn
local function wait_ms(host, position)
  local at = start_ms(host, now_ms)
  if host.interval > 0 then
    at = math.max(at, math.max(host.tat, host.cool_ms, now_ms) + (position - host.burst + 1) * host.interval)
  elseif at > now_ms then
    at = at + math.min(position, 600) * 100 -- after a cooldown they do not come back all at once
  end
  if position >= free(host) then at = math.max(at, now_ms + look_ms * (1 + position / 10)) end
  return math.max(1, math.min(math.ceil(at - now_ms), DAY_MS))
end

-- since when one waits, in whichever line it stands; who stands in none has waited since it was due
local function since_of(wanted, member, due_ms)
  local since_ms = math.huge
  for _, host in ipairs(wanted) do
    since_ms = math.min(since_ms, tonumber(redis.call('ZSCORE', host.key .. ':line', member)) or math.huge)
  end
  if since_ms < math.huge then return since_ms end
  return due_ms % 1 == 0.5 and due_ms - 600000 or due_ms -- its worker died (see claim.lua): it has waited before
end

local function go_back(host, lane, id, member, since_ms)
  redis.call('ZADD', host.key .. ':line', since_ms, member)
  local ms = wait_ms(host, redis.call('ZRANK', host.key .. ':line', member))
  redis.call('ZADD', lane, string.format('%.0f', math.floor(now_ms) + ms), id)
  return ms
end

-- the job and the limit keys of a payload
local function read(payload)
  if not payload or #payload > 1000 then return end
  local sound, envelope = pcall(cmsgpack.unpack, payload)
  if sound and type(envelope) == 'table' then return envelope.f, envelope.limit_keys end
end

local function has(keys, name)
  if type(keys) ~= 'table' then return false end
  for _, key in ipairs(keys) do
    if key == name then return true end
  end
  return false
end

-- Those due behind one that must wait, of the same job and host, would be claimed one by one only to be told the same: they are put
-- into the line here, so that the head of the queue is soon free for other hosts. It goes on while most of a look were such.
local function take_along(host, lane, payload)
  local job = read(payload)
  local skip, looks = 0, 0
  while job and looks < 10 do
    local due = redis.call('ZRANGEBYSCORE', lane, '-inf', now_ms, 'WITHSCORES', 'LIMIT', skip, 50)
    local keys, taken = {}, 0
    for i = 1, #due, 2 do keys[i], keys[i + 1] = 'arq:job:' .. due[i], 'arq:in-progress:' .. due[i] end
    local found = #due > 0 and redis.call('MGET', unpack(keys)) or {}
    for i = 1, #due, 2 do
      local id, due_ms, member = due[i], tonumber(due[i + 1]), lane .. ' ' .. due[i]
      local its_job, its_keys = read(found[i])
      if its_job == job and has(its_keys, host.name) and not found[i + 1] and due_ms % 1 == 0
        and not redis.call('ZSCORE', host.key .. ':line', member) then
        go_back(host, lane, id, member, due_ms)
        taken = taken + 1
      end
    end
    skip, looks = skip + #due / 2 - taken, looks + 1
    if taken < 25 then return end
  end
end

-- the hosts that an ask names, with their limits; a session's is one at a time
local function wanted_by(ask)
  local wanted = {}
  for name in each_host(ask[5]) do
    local host = hosts[name]
    if not host then
      host = read_host(name, now_ms)
      host.name, hosts[name] = name, host
    end
    if string.sub(name, 1, 1) == '@' then
      host.concurrency, host.interval, host.burst = 1, 0, 1
    else
      host.concurrency, host.interval, host.burst = ask[6], ask[7], ask[8]
    end
    wanted[#wanted + 1] = host
  end
  return wanted
end

-- the first of the hosts that has no turn for this one
local function busy_one(wanted, member, since_ms)
  for _, host in ipairs(wanted) do
    local turns = turns_now(host)
    if turns ~= math.huge and (turns < 1 or count_ahead(host, member, since_ms, turns) >= turns) then return host end
  end
end

local function decide(ask)
  local lane, id, token = KEYS[ask[1]], ask[2], ask[3]
  local lease_key = 'arq:in-progress:' .. id
  if redis.call('GET', lease_key) ~= token then return -2 end
  local wanted, member = wanted_by(ask), lane .. ' ' .. id
  local since_ms = since_of(wanted, member, tonumber(ask[4]))
  local busy = busy_one(wanted, member, since_ms)
  for _, host in ipairs(wanted) do -- it waits in one line at most: the others need not call it
    redis.call('ZREM', host.key .. ':line', member)
  end
  if not busy then
    local lease_ms = math.max(1, redis.call('PTTL', lease_key))
    for _, host in ipairs(wanted) do
      note_start(host, now_ms)
      redis.call('ZADD', host.key .. ':held', now_ms + lease_ms, id .. ' ' .. token)
      redis.call('PEXPIRE', host.key .. ':held', lease_ms + 60000)
      host.held = host.held + 1
    end
    return -1
  end
  redis.call('DEL', lease_key)
  local ms = go_back(busy, lane, id, member, since_ms)
  if not busy.waits then take_along(busy, lane, redis.call('GET', 'arq:job:' .. id)) end
  busy.waits, waits, wake = true, true, true
  return ms
end

for i, ask in ipairs(cmsgpack.unpack(ARGV[1])) do answers[i] = decide(ask) end
for name, host in pairs(hosts) do
  redis.call('HSET', host.key, 'tat', string.format('%.3f', host.tat), 'concurrency', host.concurrency,
    'interval', host.interval, 'burst', host.burst)
  local keep_ms = math.max(host.tat, host.cool_ms, now_ms) - now_ms + 60000
  if redis.call('EXISTS', host.key .. ':line') == 1 then
    keep_ms = keep_ms + 2 * DAY_MS
    redis.call('PEXPIRE', host.key .. ':line', 2 * DAY_MS)
  end
  redis.call('PEXPIRE', host.key, math.ceil(keep_ms))
  if host.waits then sound('ZADD', 'cplane:hosts', math.floor(now_ms), name) end
  call_next(host, now_ms)
end
if waits then
  redis.call('ZREMRANGEBYRANK', 'cplane:hosts', 0, -10001)
  redis.call('PEXPIRE', 'cplane:hosts', 2 * DAY_MS)
end
if wake and redis.call('LLEN', KEYS[4]) < 64 then redis.call('LPUSH', KEYS[4], '1') end
return answers

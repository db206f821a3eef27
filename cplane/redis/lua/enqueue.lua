-- Put ids into the schedule. Repeating it changes nothing, so a lost reply is answered by sending again.
-- KEYS[1…3] lanes of the queue (sorted sets, score = due in ms)   KEYS[4] wake list
-- ARGV[1] msgpack: for each id lane, id, payload, delay in ms from now (Redis's clock), true if a kept result blocks it,
--   ms by which an id that is there already, and that nobody has leased, may be due later than that; negative: it stays as it is,
--   the hosts that it takes the time of or '': who waits in the line of one (limiter_common.lua) is as late as the line says
-- ARGV[2] ms a payload lives after it is due
-- answers for each id: 1 scheduled, 0 already there, -1 a kept result blocks it
local now = redis.call('TIME')
local now_ms = now[1] * 1000 + math.floor(now[2] / 1000)
local keep_ms = tonumber(ARGV[2])
local answers, wake, heads = {}, false, {}
local new, added = { {}, {}, {} }, {} -- scores and ids for each lane: together, at the end
local function head_ms(lane) -- when the first of the lane falls due, before this call
  if not heads[lane] then heads[lane] = tonumber(redis.call('ZRANGE', KEYS[lane], 0, 0, 'WITHSCORES')[2]) or math.huge end
  return heads[lane]
end
local function schedule(i, lane, id, due_ms)
  if due_ms <= now_ms or due_ms < head_ms(lane) then wake = true end
  local due = new[lane]
  due[#due + 1], due[#due + 2] = due_ms, id
  added[id] = true
  answers[i] = 1
end
local function in_line(hosts, member)
  for host in string.gmatch(hosts, '%S+') do
    if type(redis.pcall('ZSCORE', 'cplane:host:' .. host .. ':line', member)) == 'string' then return true end
  end
end
local pushes, FIELDS = cmsgpack.unpack(ARGV[1]), 7
for i = 1, #pushes / FIELDS do
  local lane, id, payload, delay_ms, once, late_ms, hosts = unpack(pushes, (i - 1) * FIELDS + 1, i * FIELDS)
  local due_ms = math.max(1, math.floor(now_ms + delay_ms))
  local job_key, ttl_ms = 'arq:job:' .. id, math.max(0, math.floor(delay_ms)) + keep_ms
  if once and redis.call('EXISTS', 'arq:result:' .. id) == 1 then
    answers[i] = -1
  elseif redis.call('SET', job_key, payload, 'NX', 'PX', ttl_ms) then
    schedule(i, lane, id, due_ms)
  elseif added[id] or redis.call('ZSCORE', KEYS[lane], id) or redis.call('EXISTS', 'arq:in-progress:' .. id) == 1 then
    answers[i] = 0
    local there_ms = late_ms >= 0 and not in_line(hosts, KEYS[lane] .. ' ' .. id) and tonumber(redis.call('ZSCORE', KEYS[lane], id))
    if there_ms and there_ms > due_ms + late_ms and redis.call('EXISTS', 'arq:in-progress:' .. id) == 0 then
      redis.call('ZADD', KEYS[lane], string.format('%.0f', due_ms), id)
      wake = true
    end
  else -- a payload alone: its id was lost
    redis.call('SET', job_key, payload, 'PX', ttl_ms)
    schedule(i, lane, id, due_ms)
  end
end
for lane = 1, 3 do
  for from = 1, #new[lane], 1000 do -- Lua passes some thousands of arguments at most
    redis.call('ZADD', KEYS[lane], unpack(new[lane], from, math.min(from + 999, #new[lane])))
  end
end
-- one token wakes one sleeper; tokens nobody takes must not pile up
if wake and redis.call('LLEN', KEYS[4]) < 64 then redis.call('LPUSH', KEYS[4], '1') end
return answers

-- Give leases back. (limiter_common.lua stands before this.)
-- KEYS[1…3] lanes of the queue (sorted sets, score = due in ms)   KEYS[4] wake list   KEYS[5] stream of dead letters
-- ARGV[1] msgpack: for each lease lane, id, token, try, action, number, text, keep, the hosts of which it holds a place or ''
--   0 done     the job is final: the id leaves Redis; a result (`text`) that is not empty is kept `number` ms (0: for ever);
--              with `keep` > 0 the lease stays for so many ms, so that the same id cannot run at once again (arq's cron jobs)
--   1 retry    due again in `number` ms from now (Redis's clock); a `text` that is not empty is the new payload
--   2 release  handed back, due at `number` (its old score, ms), the try not counted
--   3 dead letter  the id leaves the queue; its payload goes to the stream of dead letters with `text`, the reason
--   4 postpone due again in `number` ms from now, the try not counted
-- `try` is the one that ends here, as claim.lua counted it; 0 for a record, whose tries are counted in Postgres
-- answers for each: 1 applied, 0 another's lease (nothing touched), -1 no lease known (nothing touched)
local now = redis.call('TIME')
local now_ms = now[1] * 1000 + math.floor(now[2] / 1000)
local aborts = redis.call('EXISTS', 'arq:abort') == 1
local answers, wake, hosts = {}, false, {}
local backs, FIELDS = cmsgpack.unpack(ARGV[1]), 9
local gone, left = {}, { {}, {}, {} } -- keys to delete, and ids that leave each lane: together, at the end

local function leave(lane, id, lease_key, try, keep)
  local at, ids = #gone, left[lane]
  gone[at + 1] = 'arq:job:' .. id
  if keep > 0 then redis.call('PEXPIRE', lease_key, keep) else gone[at + 2] = lease_key end
  if try > 1 then gone[#gone + 1] = 'arq:retry:' .. id end
  ids[#ids + 1] = id
  if aborts then redis.call('ZREM', 'arq:abort', id) end
end

local function apply(lane, id, lease_key, try, action, number, text, keep)
  if action == 0 then
    if text ~= '' and number > 0 then
      redis.call('SET', 'arq:result:' .. id, text, 'PX', math.floor(number))
    elseif text ~= '' then
      redis.call('SET', 'arq:result:' .. id, text)
    end
    return leave(lane, id, lease_key, try, keep)
  elseif action == 3 then
    local payload = redis.call('GET', 'arq:job:' .. id) or ''
    redis.call('XADD', KEYS[5], 'MAXLEN', '~', 10000, '*', 'queue', KEYS[lane], 'id', id, 'reason', text, 'payload', payload)
    return leave(lane, id, lease_key, try, keep)
  end
  wake = true
  gone[#gone + 1] = lease_key
  if action == 1 then
    if text ~= '' then redis.call('SET', 'arq:job:' .. id, text, 'KEEPTTL') end
    if try > 0 then redis.call('SET', 'arq:retry:' .. id, try, 'PX', 88400000) end
    redis.call('ZADD', KEYS[lane], string.format('%.0f', math.max(1, now_ms + number)), id)
  else
    if action == 4 then number = now_ms + number end
    redis.call('ZADD', KEYS[lane], string.format('%.0f', math.max(1, number)), id)
  end
end

local function in_parts(command, key, list) -- Lua passes some thousands of arguments at most
  for from = 1, #list, 1000 do
    local to = math.min(from + 999, #list)
    if key then redis.call(command, key, unpack(list, from, to)) else redis.call(command, unpack(list, from, to)) end
  end
end

local count = #backs / FIELDS
for from = 1, count, 500 do
  local keys = {}
  for i = from, math.min(from + 499, count) do keys[i - from + 1] = 'arq:in-progress:' .. backs[(i - 1) * FIELDS + 2] end
  for n, lease in ipairs(redis.call('MGET', unpack(keys))) do
    local i = from + n - 1
    local at = (i - 1) * FIELDS
    local lane, id, token, try, action, number, text, keep, places = unpack(backs, at + 1, at + FIELDS)
    if not lease then
      answers[i] = -1
    elseif lease ~= token then
      answers[i] = 0
    else
      answers[i] = 1
      apply(lane, id, keys[n], try, action, number, text, keep)
      if places ~= '' then
        for host in each_host(places) do
          sound('ZREM', 'cplane:host:' .. host .. ':held', id .. ' ' .. token)
          hosts[host] = true
        end
      end
    end
  end
end
in_parts('DEL', nil, gone)
for lane = 1, 3 do in_parts('ZREM', KEYS[lane], left[lane]) end
for host in pairs(hosts) do call_next(read_host(host, now_ms), now_ms) end -- whose turn it is now
if wake and redis.call('LLEN', KEYS[4]) < 64 then redis.call('LPUSH', KEYS[4], '1') end
return answers

-- Give leases back. (line.lua stands before this.)
-- KEYS[1…3] lanes of the queue (sorted sets, score = due in ms)   KEYS[4] wake list   KEYS[5] set-aside stream
-- ARGV[1] msgpack: for each lease { lane, id, token, try, action, number, text, keep, the hosts of which it holds a place or '' }
--   0 done     the job is final: the id leaves Redis; a result (`text`) that is not empty is kept `number` ms (0: for ever);
--              with `keep` > 0 the lease stays for so many ms, so that the same id cannot run at once again (arq's cron jobs)
--   1 retry    due again in `number` ms from now (Redis's clock); a `text` that is not empty is the new payload
--   2 release  handed back, due at `number` (its old score, ms), the try not counted
--   3 aside    the id leaves the queue; its payload goes to the set-aside stream with `text`, the reason
--   4 postpone due again in `number` ms from now, the try not counted
-- `try` is the one that ends here, as claim.lua counted it; 0 for a record, whose tries are counted in Postgres
-- answers for each: 1 applied, 0 another's lease (nothing touched), -1 no lease known (nothing touched)
local now = redis.call('TIME')
local now_ms = now[1] * 1000 + math.floor(now[2] / 1000)
local aborts = redis.call('EXISTS', 'arq:abort') == 1
local answers, wake, hosts = {}, false, {}
local backs = cmsgpack.unpack(ARGV[1])
local gone, left = {}, { {}, {}, {} } -- keys to delete, and ids that leave each lane: together, at the end

local function leave(back)
  local id, keep = back[2], back[8]
  local ids = left[back[1]]
  gone[#gone + 1] = 'arq:job:' .. id
  if back[4] > 1 then gone[#gone + 1] = 'arq:retry:' .. id end
  if keep > 0 then redis.call('PEXPIRE', 'arq:in-progress:' .. id, keep) else gone[#gone + 1] = 'arq:in-progress:' .. id end
  ids[#ids + 1] = id
  if aborts then redis.call('ZREM', 'arq:abort', id) end
end

local function apply(back)
  local lane, id, action, number, text = KEYS[back[1]], back[2], back[5], back[6], back[7]
  if action == 0 then
    if text ~= '' and number > 0 then
      redis.call('SET', 'arq:result:' .. id, text, 'PX', math.floor(number))
    elseif text ~= '' then
      redis.call('SET', 'arq:result:' .. id, text)
    end
    return leave(back)
  elseif action == 3 then
    local payload = redis.call('GET', 'arq:job:' .. id) or ''
    redis.call('XADD', KEYS[5], 'MAXLEN', '~', 10000, '*', 'queue', lane, 'id', id, 'reason', text, 'payload', payload)
    return leave(back)
  end
  wake = true
  gone[#gone + 1] = 'arq:in-progress:' .. id
  if action == 1 then
    if text ~= '' then redis.call('SET', 'arq:job:' .. id, text, 'KEEPTTL') end
    if back[4] > 0 then redis.call('SET', 'arq:retry:' .. id, back[4], 'PX', 88400000) end
    redis.call('ZADD', lane, string.format('%.0f', math.max(1, now_ms + number)), id)
  else
    if action == 4 then number = now_ms + number end
    redis.call('ZADD', lane, string.format('%.0f', math.max(1, number)), id)
  end
end

local function in_parts(command, key, list) -- Lua passes some thousands of arguments at most
  for from = 1, #list, 1000 do
    local part = { unpack(list, from, math.min(from + 999, #list)) }
    if key then redis.call(command, key, unpack(part)) else redis.call(command, unpack(part)) end
  end
end

for from = 1, #backs, 500 do
  local keys = {}
  for i = from, math.min(from + 499, #backs) do keys[#keys + 1] = 'arq:in-progress:' .. backs[i][2] end
  for n, lease in ipairs(redis.call('MGET', unpack(keys))) do
    local back = backs[from + n - 1]
    if not lease then
      answers[#answers + 1] = -1
    elseif lease ~= back[3] then
      answers[#answers + 1] = 0
    else
      answers[#answers + 1] = 1
      apply(back)
      if back[9] and back[9] ~= '' then
        for host in each_host(back[9]) do
          sound('ZREM', 'cplane:host:' .. host .. ':held', back[2] .. ' ' .. back[3])
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

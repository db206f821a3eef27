-- Lease ids that are due.
-- KEYS[1…3] lanes of the queue (sorted sets, score = due in ms), in the order in which they are served   KEYS[4] wake list
-- ARGV[1] how many at most   ARGV[2] lease in ms   ARGV[3] grant prefix, unique for this call; the n-th lease's token is prefix:n
-- ARGV[4] how many due ids to look at, at most
-- answers { claimed: {place of its lane in KEYS, id, payload, try (negative: an abort is wanted), due in ms, …},
--           missing: {place, id, …}, odd: {place, id, what is wrong, payload if it is one, …}, ms until the next id falls due or -1 }
-- The score of a leased id moves to the lease's end: it leaves the head of the queue, and a dead lease falls due by itself.
-- Ids without a payload, and ids whose keys are not what they should be, leave the queue and are reported: their lease and count
-- are deleted, so that a record among them can be scheduled again.
local now = redis.call('TIME')
local now_ms = now[1] * 1000 + math.floor(now[2] / 1000)
local room, lease_ms, looks = tonumber(ARGV[1]), tonumber(ARGV[2]), tonumber(ARGV[4])
local aborts = redis.call('EXISTS', 'arq:abort') == 1
local claimed, missing, odd, count, looked, wait_ms = {}, {}, {}, 0, 0, -1

local function add(list, ...)
  for _, part in ipairs({ ... }) do list[#list + 1] = part end
end

local function set_aside(place, id, what)
  local payload = redis.pcall('GET', 'arq:job:' .. id)
  if type(payload) ~= 'string' then payload = '' else redis.call('DEL', 'arq:job:' .. id) end
  redis.call('DEL', 'arq:retry:' .. id, 'arq:in-progress:' .. id)
  redis.call('ZREM', KEYS[place], id)
  add(odd, place, id, what, payload)
end

-- the payload of an id and how often it was tried; nil and what is wrong, if its keys hold something else
local function read(id)
  local payload = redis.pcall('GET', 'arq:job:' .. id)
  if not payload then return false, nil end
  local try = redis.pcall('INCR', 'arq:retry:' .. id)
  if type(payload) == 'table' then return nil, 'arq:job:' .. id .. ': ' .. payload.err end
  if type(try) == 'table' then return nil, 'arq:retry:' .. id .. ': ' .. try.err end
  if try == 1 then redis.call('PEXPIRE', 'arq:retry:' .. id, 88400000) end
  if aborts and redis.call('ZSCORE', 'arq:abort', id) then try = -try end
  return payload, try
end

for place = 1, 3 do
  local lane, skip = KEYS[place], 0
  while count < room and looked < looks do
    local due = redis.call('ZRANGEBYSCORE', lane, '-inf', now_ms, 'WITHSCORES', 'LIMIT', skip, math.min(room - count, looks - looked))
    if #due == 0 then break end
    for i = 1, #due, 2 do
      local id, due_ms = due[i], due[i + 1]
      local lease_key = 'arq:in-progress:' .. id
      local lease = redis.pcall('GET', lease_key)
      looked = looked + 1
      if type(lease) == 'table' then
        set_aside(place, id, lease_key .. ': ' .. lease.err)
      elseif lease == '1' then
        skip = skip + 1 -- leased by a plain arq worker: its score is not ours to move
      elseif lease then
        redis.call('ZADD', lane, now_ms + math.max(1, redis.call('PTTL', lease_key)), id)
      else
        local payload, try = read(id)
        if payload then
          count = count + 1
          redis.call('SET', lease_key, ARGV[3] .. ':' .. count, 'PX', lease_ms)
          redis.call('ZADD', lane, now_ms + lease_ms, id)
          add(claimed, place, id, payload, try, due_ms)
        elseif payload == nil then
          set_aside(place, id, try)
        else
          redis.call('ZREM', lane, id)
          add(missing, place, id)
        end
      end
    end
  end
  local next_due = redis.call('ZRANGEBYSCORE', lane, '-inf', '+inf', 'WITHSCORES', 'LIMIT', skip, 1)[2]
  if next_due and tonumber(next_due) ~= math.huge then
    local ms = math.max(0, math.ceil(tonumber(next_due) - now_ms))
    if wait_ms < 0 or ms < wait_ms then wait_ms = ms end
  end
end
-- more is due than this worker has room for: wake the next sleeper
if wait_ms == 0 and redis.call('LLEN', KEYS[4]) < 64 then redis.call('LPUSH', KEYS[4], '1') end
return { claimed, missing, odd, wait_ms }

-- Lease ids that are due.
-- KEYS[1] queue (sorted set, score = due in ms)   KEYS[2] wake list
-- ARGV[1] how many at most   ARGV[2] lease in ms   ARGV[3] grant prefix, unique for this call; a lease's token is prefix:number
-- ARGV[4] how many due ids to look at, at most
-- answers { claimed: {id, payload, try, due in ms, token, …}, missing: {id, …}, ms until the next id falls due or -1 }
-- The score of a leased id moves to the lease's end: it leaves the head of the queue, and a dead lease falls due by itself.
local now = redis.call('TIME')
local now_ms = now[1] * 1000 + math.floor(now[2] / 1000)
local room, lease_ms, looks = tonumber(ARGV[1]), tonumber(ARGV[2]), tonumber(ARGV[4])
local claimed, missing, count, skip, looked = {}, {}, 0, 0, 0
while count < room and looked < looks do
  local due = redis.call('ZRANGEBYSCORE', KEYS[1], '-inf', now_ms, 'WITHSCORES', 'LIMIT', skip, math.min(room - count, looks - looked))
  if #due == 0 then break end
  for i = 1, #due, 2 do
    local id, due_ms = due[i], due[i + 1]
    local lease_key = 'arq:in-progress:' .. id
    local lease = redis.call('GET', lease_key)
    looked = looked + 1
    if lease == '1' then
      skip = skip + 1 -- leased by a plain arq worker: its score is not ours to move
    elseif lease then
      redis.call('ZADD', KEYS[1], now_ms + math.max(1, redis.call('PTTL', lease_key)), id)
    else
      local payload = redis.call('GET', 'arq:job:' .. id)
      if payload then
        count = count + 1
        local token = ARGV[3] .. ':' .. count
        local try = redis.call('INCR', 'arq:retry:' .. id)
        redis.call('PEXPIRE', 'arq:retry:' .. id, 88400000)
        redis.call('SET', lease_key, token, 'PX', lease_ms)
        redis.call('ZADD', KEYS[1], now_ms + lease_ms, id)
        for _, part in ipairs({ id, payload, try, due_ms, token }) do claimed[#claimed + 1] = part end
      else
        redis.call('ZREM', KEYS[1], id)
        missing[#missing + 1] = id
      end
    end
  end
end
local next_due = redis.call('ZRANGEBYSCORE', KEYS[1], '-inf', '+inf', 'WITHSCORES', 'LIMIT', skip, 1)
local wait_ms = -1
if #next_due > 0 then wait_ms = math.max(0, math.ceil(tonumber(next_due[2]) - now_ms)) end
-- more is due than this worker has room for: wake the next sleeper
if wait_ms == 0 and redis.call('LLEN', KEYS[2]) < 64 then redis.call('LPUSH', KEYS[2], '1') end
return { claimed, missing, wait_ms }

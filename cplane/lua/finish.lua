-- Give leases back.
-- KEYS[1] queue (sorted set, score = due in ms)   KEYS[2] wake list
-- ARGV for each lease: id, token, action, number, result, ms the result is kept
--   done     the job is final: the id leaves Redis; a result that is not empty is kept
--   retry    due again in `number` ms from now (Redis's clock)
--   release  handed back, due at `number` (its old score, ms), the try uncounted
-- answers for each: 1 applied, 0 another's lease (nothing touched), -1 no lease known (nothing touched)
local now = redis.call('TIME')
local now_ms = now[1] * 1000 + math.floor(now[2] / 1000)
local answers, wake = {}, false
for i = 1, #ARGV, 6 do
  local id, token, action, number, result, keep_ms = unpack(ARGV, i, i + 5)
  local lease = redis.call('GET', 'arq:in-progress:' .. id)
  if not lease then
    answers[#answers + 1] = -1
  elseif lease ~= token then
    answers[#answers + 1] = 0
  else
    answers[#answers + 1] = 1
    redis.call('DEL', 'arq:in-progress:' .. id)
    if action == 'done' then
      redis.call('DEL', 'arq:job:' .. id, 'arq:retry:' .. id)
      redis.call('ZREM', KEYS[1], id)
      redis.call('ZREM', 'arq:abort', id)
      if result ~= '' then redis.call('SET', 'arq:result:' .. id, result, 'PX', keep_ms) end
    elseif action == 'retry' then
      redis.call('ZADD', KEYS[1], string.format('%.0f', math.max(1, now_ms + number)), id)
      wake = true
    else
      redis.call('ZADD', KEYS[1], math.max(1, number), id)
      redis.call('DECR', 'arq:retry:' .. id)
      wake = true
    end
  end
end
if wake and redis.call('LLEN', KEYS[2]) < 64 then redis.call('LPUSH', KEYS[2], '1') end
return answers

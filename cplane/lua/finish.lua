-- Give leases back.
-- KEYS[1…3] lanes of the queue (sorted sets, score = due in ms)   KEYS[4] wake list   KEYS[5] set-aside stream
-- ARGV[1] msgpack: for each lease { lane, id, token, action, number, text, keep }
--   0 done     the job is final: the id leaves Redis; a result (`text`) that is not empty is kept `number` ms (0: for ever);
--              with `keep` > 0 the lease stays for so many ms, so that the same id cannot run at once again (arq's cron jobs)
--   1 retry    due again in `number` ms from now (Redis's clock); a `text` that is not empty is the new payload
--   2 release  handed back, due at `number` (its old score, ms), the try uncounted
--   3 aside    the id leaves the queue; its payload goes to the set-aside stream with `text`, the reason
--   4 postpone due again in `number` ms from now, the try uncounted
-- answers for each: 1 applied, 0 another's lease (nothing touched), -1 no lease known (nothing touched)
local now = redis.call('TIME')
local now_ms = now[1] * 1000 + math.floor(now[2] / 1000)
local aborts = redis.call('EXISTS', 'arq:abort') == 1
local answers, wake = {}, false

for i, back in ipairs(cmsgpack.unpack(ARGV[1])) do
  local lane, id, action, number, text, keep = KEYS[back[1]], back[2], back[4], back[5], back[6], back[7]
  local lease_key = 'arq:in-progress:' .. id
  local lease = redis.pcall('GET', lease_key) -- a table, unlike any token, if it holds something else
  if not lease then
    answers[i] = -1
  elseif lease ~= back[3] then
    answers[i] = 0
  else
    answers[i] = 1
    if action == 0 or action == 3 then
      if action == 3 then
        local payload = redis.call('GET', 'arq:job:' .. id) or ''
        redis.call('XADD', KEYS[5], 'MAXLEN', '~', 10000, '*', 'queue', lane, 'id', id, 'reason', text, 'payload', payload)
      elseif text ~= '' and number > 0 then
        redis.call('SET', 'arq:result:' .. id, text, 'PX', math.floor(number))
      elseif text ~= '' then
        redis.call('SET', 'arq:result:' .. id, text)
      end
      if keep > 0 then
        redis.call('PEXPIRE', lease_key, keep)
        redis.call('DEL', 'arq:job:' .. id, 'arq:retry:' .. id)
      else
        redis.call('DEL', lease_key, 'arq:job:' .. id, 'arq:retry:' .. id)
      end
      redis.call('ZREM', lane, id)
      if aborts then redis.call('ZREM', 'arq:abort', id) end
    elseif action == 1 then
      redis.call('DEL', lease_key)
      if text ~= '' then redis.call('SET', 'arq:job:' .. id, text, 'KEEPTTL') end
      redis.call('ZADD', lane, string.format('%.0f', math.max(1, now_ms + number)), id)
      wake = true
    else
      redis.call('DEL', lease_key)
      if action == 4 then number = now_ms + number end
      redis.call('ZADD', lane, string.format('%.0f', math.max(1, number)), id)
      redis.call('DECR', 'arq:retry:' .. id)
      wake = true
    end
  end
end
if wake and redis.call('LLEN', KEYS[4]) < 64 then redis.call('LPUSH', KEYS[4], '1') end
return answers

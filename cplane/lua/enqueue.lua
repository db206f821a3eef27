-- Put ids into the schedule. Repeating it changes nothing, so a lost reply is answered by sending again.
-- KEYS[1] queue (sorted set, score = due in ms)   KEYS[2] wake list
-- ARGV[1] ms a payload lives after it is due
-- ARGV[2…] for each id: id, payload, delay in ms from now (Redis's clock), "1" if a kept result blocks it (transient jobs)
-- answers for each id: 1 scheduled, 0 already there, -1 a kept result blocks it
local now = redis.call('TIME')
local now_ms = now[1] * 1000 + math.floor(now[2] / 1000)
local head = redis.call('ZRANGE', KEYS[1], 0, 0, 'WITHSCORES')
local head_ms = tonumber(head[2]) or math.huge
local answers, wake = {}, false
for i = 2, #ARGV, 4 do
  local id, payload, delay_ms, once = ARGV[i], ARGV[i + 1], tonumber(ARGV[i + 2]), ARGV[i + 3]
  local job_key = 'arq:job:' .. id
  if redis.call('EXISTS', 'arq:in-progress:' .. id) == 1
    or (redis.call('EXISTS', job_key) == 1 and redis.call('ZSCORE', KEYS[1], id)) then
    answers[#answers + 1] = 0
  elseif once == '1' and redis.call('EXISTS', 'arq:result:' .. id) == 1 then
    answers[#answers + 1] = -1
  else
    local due_ms = math.max(1, now_ms + delay_ms)
    redis.call('SET', job_key, payload, 'PX', math.max(0, math.floor(delay_ms)) + ARGV[1])
    redis.call('ZADD', KEYS[1], string.format('%.0f', due_ms), id)
    if due_ms <= now_ms or due_ms < head_ms then wake = true end
    answers[#answers + 1] = 1
  end
end
-- one token wakes one sleeper; tokens nobody takes must not pile up
if wake and redis.call('LLEN', KEYS[2]) < 64 then redis.call('LPUSH', KEYS[2], '1') end
return answers

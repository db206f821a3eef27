-- Lease ids that are due.
-- KEYS[1…3] lanes of the queue (sorted sets, score = due in ms), in the order in which they are served   KEYS[4] wake list
-- ARGV[1] how many at most   ARGV[2] lease in ms   ARGV[3] token of these leases, unique for this call
-- ARGV[4] how many due ids to look at, at most
-- answers { claimed: {place of its lane in KEYS, id, payload, try (negative: an abort is wanted), due in ms, …},
--           missing: {place, id, …}, malformed: {place, id, what is wrong, payload if it is one, …}, ms until the next id falls due or -1 }
-- The score of a leased id moves to the lease's end: it leaves the head of the queue, and a dead lease falls due by itself. Half a
-- millisecond is added to it: an id that falls due with such a score has a try behind it that nobody ended, and only then, and when a
-- try ends that is followed by another, are tries written down (arq:retry). Most jobs are tried once.
-- Ids without a payload, and ids whose keys are not what they should be, leave the queue and are reported: their lease and count
-- are deleted, so that a record among them can be scheduled again.
local now = redis.call('TIME')
local now_ms = now[1] * 1000 + math.floor(now[2] / 1000)
local room, lease_ms, looks = tonumber(ARGV[1]), tonumber(ARGV[2]), tonumber(ARGV[4])
local RECORD = '\166record\195' -- envelope.RECORD_END
local aborts = redis.call('EXISTS', 'arq:abort') == 1
local claimed, missing, malformed, count, looked, wait_ms = {}, {}, {}, 0, 0, -1
local ends = string.format('%.1f', now_ms + lease_ms + 0.5) -- once: to print a number takes long

-- an id whose keys are of a foreign kind leaves the queue whole; its payload, if it has one, is reported with it
local function dead_letter(place, id, payload, what)
  redis.call('DEL', 'arq:retry:' .. id, 'arq:in-progress:' .. id)
  if payload ~= '' then redis.call('DEL', 'arq:job:' .. id) end
  redis.call('ZREM', KEYS[place], id)
  local at = #malformed
  malformed[at + 1], malformed[at + 2], malformed[at + 3], malformed[at + 4] = place, id, what, payload
end

-- what an id without a payload is: missing, or something of a foreign kind stands in its place
local function leave(place, id)
  local kind = redis.call('TYPE', 'arq:job:' .. id).ok
  if kind ~= 'none' then return dead_letter(place, id, '', 'arq:job:' .. id .. ' holds a ' .. kind) end
  redis.call('ZREM', KEYS[place], id)
  missing[#missing + 1], missing[#missing + 2] = place, id
end

-- which try of an id this is; nil: its count is none. The tries of a record are counted in Postgres
local function try_of(id, payload, ended, due_ms)
  if string.sub(payload, -8) == RECORD then return 1 end
  local tries, score = ended and tonumber(ended) or not ended and 0, tonumber(due_ms)
  if tries and score > 1e12 and score % 1 == 0.5 then
    tries = tries + 1
    redis.call('SET', 'arq:retry:' .. id, tries, 'PX', 88400000)
  end
  return tries and tries + 1
end

-- lease an id to this call; whatever kind of thing stood in the place of its lease gives way
local moves = {}
local function grant(place, id, lease_key, payload, ended, due_ms)
  local try = try_of(id, payload, ended, due_ms)
  if not try then return dead_letter(place, id, payload, 'arq:retry:' .. id .. ' holds no number') end
  if aborts and redis.call('ZSCORE', 'arq:abort', id) then try = -try end
  count = count + 1
  redis.call('SET', lease_key, ARGV[3], 'PX', ARGV[2])
  local to, at = #moves, #claimed
  moves[to + 1], moves[to + 2] = ends, id
  claimed[at + 1], claimed[at + 2], claimed[at + 3], claimed[at + 4], claimed[at + 5] = place, id, payload, try, due_ms
end

for place = 1, 3 do
  local lane, skip = KEYS[place], 0
  while count < room and looked < looks do
    local most = math.min(room - count, looks - looked, 250)
    local due = redis.call('ZRANGEBYSCORE', lane, '-inf', now_ms, 'WITHSCORES', 'LIMIT', skip, most)
    if #due == 0 then break end
    local keys = {}
    for i = 1, #due, 2 do
      local id, at = due[i], #keys
      keys[at + 1], keys[at + 2], keys[at + 3] = 'arq:in-progress:' .. id, 'arq:job:' .. id, 'arq:retry:' .. id
    end
    local held = redis.call('MGET', unpack(keys)) -- what is no string reads as nothing
    for i = 1, #due, 2 do
      local id, at = due[i], (i - 1) / 2 * 3
      local lease, payload, ended = held[at + 1], held[at + 2], held[at + 3]
      looked = looked + 1
      if lease == '1' then
        skip = skip + 1 -- leased by a plain arq worker: its score is not ours to move
      elseif lease then
        redis.call('ZADD', lane, now_ms + math.max(1, redis.call('PTTL', 'arq:in-progress:' .. id)) + 0.5, id)
      elseif payload then
        grant(place, id, keys[at + 1], payload, ended, due[i + 1])
      else
        leave(place, id)
      end
    end
    if #moves > 0 then redis.call('ZADD', lane, unpack(moves)) end
    moves = {}
  end
  local next_due = redis.call('ZRANGEBYSCORE', lane, '-inf', '+inf', 'WITHSCORES', 'LIMIT', skip, 1)[2]
  if next_due and tonumber(next_due) ~= math.huge then
    local ms = math.max(0, math.ceil(tonumber(next_due) - now_ms))
    if wait_ms < 0 or ms < wait_ms then wait_ms = ms end
  end
end
-- more is due than this worker has room for: wake the next sleeper
if wait_ms == 0 and redis.call('LLEN', KEYS[4]) < 64 then redis.call('LPUSH', KEYS[4], '1') end
return { claimed, missing, malformed, wait_ms }

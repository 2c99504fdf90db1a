-- Takes messages for one worker: those that became due, then those handed back, then new ones; as many as it has slots for.
-- KEYS  1 crashes (hash)  then for each queue: its stream and its delayed messages (sorted set)
-- ARGV  1 group  2 consumer  3 free slots  4 whether a suspect may be among them
-- Answers with the milliseconds until the next delayed message, -1 if there is none, and the entries:
-- number of the queue, entry id, message, crashes.
local group, consumer, free, suspects = ARGV[1], ARGV[2], tonumber(ARGV[3]), ARGV[4] == '1'
local DUE_PER_FETCH, LOOK_AT = 500, 100
local time = redis.call('TIME')
local now = time[1] * 1000 + math.floor(time[2] / 1000)
local taken, next_due = {}, -1

local function field(fields)
  for index = 1, #fields, 2 do
    if fields[index] == 'data' then return fields[index + 1] end
  end
  return ''
end

local function take(queue, entry, crashes)
  -- A message deleted behind the group's back has no fields any more.
  if entry and entry[2] then
    taken[#taken + 1] = {queue, entry[1], field(entry[2]), crashes}
  end
end

local function move_due(queue)
  local delayed, stream = KEYS[2 * queue + 1], KEYS[2 * queue]
  for _, message in ipairs(redis.call('ZRANGEBYSCORE', delayed, '-inf', now, 'LIMIT', 0, DUE_PER_FETCH)) do
    redis.call('XADD', stream, '*', 'data', message)
    redis.call('ZREM', delayed, message)
  end
  local first = redis.call('ZRANGE', delayed, 0, 0, 'WITHSCORES')[2]
  if first then
    local wait = math.max(0, tonumber(first) - now)
    if next_due < 0 or wait < next_due then next_due = wait end
  end
end

-- What was handed back runs before what is new: it has waited its turn once. A suspect runs alone.
local function take_released(queue)
  local stream = KEYS[2 * queue]
  for _, pending in ipairs(redis.call('XPENDING', stream, group, '-', '+', LOOK_AT, 'released')) do
    if free <= #taken then return end
    local crashes = tonumber(redis.call('HGET', KEYS[1], stream .. '/' .. pending[1]) or '0')
    if crashes == 0 or suspects then
      take(queue, redis.call('XCLAIM', stream, group, consumer, 0, pending[1])[1], crashes)
      if crashes > 0 then suspects = false end
    end
  end
end

local function take_new(queue)
  if free <= #taken then return end
  local fetched = redis.call('XREADGROUP', 'GROUP', group, consumer, 'COUNT', free - #taken,
    'STREAMS', KEYS[2 * queue], '>')
  for _, entry in ipairs(fetched and fetched[1][2] or {}) do take(queue, entry, 0) end
end

local queues = (#KEYS - 1) / 2
for queue = 1, queues do move_due(queue) end
for queue = 1, queues do take_released(queue) end
for queue = 1, queues do take_new(queue) end
return {next_due, taken}

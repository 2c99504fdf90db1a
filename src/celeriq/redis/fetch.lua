-- Takes messages for one worker: those that became due, then those handed back, then new ones, the highest priority
-- first; as many as it has slots for, and none of a paused queue.
-- KEYS  1 crashes (hash)  2 paused queues (set)  3 how often revocations have changed (counter)  then for each queue: its delayed messages (sorted set), its streams
-- ARGV  1 group  2 consumer  3 free slots  4 whether a suspect may be among them  5 how many streams a queue has
--       6 … the names of the queues
-- Answers with the milliseconds until the next delayed message, -1 if there is none, the numbers of the paused queues,
-- the entries, and the counter; of each entry: key number of the stream, entry id, message, crashes, 1 if another
-- worker has held it before.
local group, consumer, free, suspects, steps = ARGV[1], ARGV[2], tonumber(ARGV[3]), ARGV[4] == '1', tonumber(ARGV[5])
local DUE_PER_FETCH, LOOK_AT = 500, 100
local time = redis.call('TIME')
local now = time[1] * 1000 + math.floor(time[2] / 1000)
local taken, next_due, paused, open = {}, -1, {}, {}

-- The key number of a queue's delayed messages; those of its streams follow.
local function base(queue) return 4 + (queue - 1) * (steps + 1) end

local function field(fields)
  for index = 1, #fields, 2 do
    if fields[index] == 'data' then return fields[index + 1] end
  end
  return ''
end

local function take(key, entry, crashes, again)
  -- A message deleted behind the group's back has no fields any more.
  if entry and entry[2] then
    taken[#taken + 1] = {key, entry[1], field(entry[2]), crashes, again}
  end
end

local function move_due(queue)
  local delayed = KEYS[base(queue)]
  for _, member in ipairs(redis.call('ZRANGEBYSCORE', delayed, '-inf', now, 'LIMIT', 0, DUE_PER_FETCH)) do
    local step = tonumber(string.sub(member, 1, 1))
    -- Refused while memory is full: it stays where it is, and what can be taken is taken.
    local message = string.sub(member, (string.find(member, '{', 2, true)))
    local added = redis.pcall('XADD', KEYS[base(queue) + 1 + step], '*', 'data', message)
    if type(added) == 'table' then break end
    redis.call('ZREM', delayed, member)
  end
  local first = redis.call('ZRANGE', delayed, 0, 0, 'WITHSCORES')[2]
  if first then
    local wait = math.max(0, tonumber(first) - now)
    if next_due < 0 or wait < next_due then next_due = wait end
  end
end

-- What was handed back runs before what is new: it has waited its turn once. A suspect runs alone.
local function take_released(key)
  local stream, from, page = KEYS[key], '-', nil
  repeat
    page = redis.call('XPENDING', stream, group, from, '+', LOOK_AT, 'released')
    for _, pending in ipairs(page) do
      if free <= #taken then return end
      from = '(' .. pending[1]
      local crashes = tonumber(redis.call('HGET', KEYS[1], stream .. '/' .. pending[1]) or '0')
      if crashes == 0 or suspects then
        take(key, redis.call('XCLAIM', stream, group, consumer, 0, pending[1])[1], crashes, 1)
        if crashes > 0 then suspects = false end
      end
    end
    -- Behind many suspects there may be others.
  until #page < LOOK_AT
end

local function take_new(key)
  if free <= #taken then return end
  local fetched = redis.call('XREADGROUP', 'GROUP', group, consumer, 'COUNT', free - #taken,
    'STREAMS', KEYS[key], '>')
  for _, entry in ipairs(fetched and fetched[1][2] or {}) do take(key, entry, 0, 0) end
end

for queue = 1, #ARGV - 5 do
  if redis.call('SISMEMBER', KEYS[2], ARGV[5 + queue]) == 1 then
    paused[#paused + 1] = queue
  else
    open[#open + 1] = queue
    move_due(queue)
  end
end
for step = 1, steps do
  for _, queue in ipairs(open) do take_released(base(queue) + step) end
end
for step = 1, steps do
  for _, queue in ipairs(open) do take_new(base(queue) + step) end
end
return {next_due, paused, taken, tonumber(redis.call('GET', KEYS[3]) or '0')}

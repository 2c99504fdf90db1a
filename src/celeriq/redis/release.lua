-- Hands a worker's messages back: they stay pending, in the name of `released`, and every fetch takes those first.
-- KEYS  1 beats (hash)  2 crashes (hash)  3 leaving workers (set)  4 wake (channel)  then the streams
-- ARGV  1 group  2 worker  3 its beat when it was given up for dead, '' when it leaves by itself  4 …: entries to hand
-- back, each behind the number of its stream; without any, all that the worker holds
local group, worker, beat = ARGV[1], ARGV[2], ARGV[3]
local dead = beat ~= ''
-- Whoever was given up for dead may have beaten since.
if dead and (redis.call('HGET', KEYS[1], worker) or 'none') ~= beat then return -1 end

local entries = {}
if #ARGV > 3 then
  for index = 4, #ARGV, 2 do
    local stream = KEYS[tonumber(ARGV[index]) + 4]
    if #redis.call('XPENDING', stream, group, ARGV[index + 1], ARGV[index + 1], 1, worker) == 1 then
      entries[#entries + 1] = {stream, ARGV[index + 1]}
    end
  end
else
  for index = 5, #KEYS do
    for _, pending in ipairs(redis.call('XPENDING', KEYS[index], group, '-', '+', 1000000, worker)) do
      entries[#entries + 1] = {KEYS[index], pending[1]}
    end
  end
end

-- A crash counts for the suspects among them; only where there was none before, anyone may have been it. Who was told
-- to stop did not crash, whatever ended it.
if dead and redis.call('SISMEMBER', KEYS[3], worker) == 0 then
  local suspects = {}
  for _, entry in ipairs(entries) do
    if redis.call('HEXISTS', KEYS[2], entry[1] .. '/' .. entry[2]) == 1 then suspects[#suspects + 1] = entry end
  end
  for _, entry in ipairs(#suspects > 0 and suspects or entries) do
    redis.call('HINCRBY', KEYS[2], entry[1] .. '/' .. entry[2], 1)
  end
end
for _, entry in ipairs(entries) do
  redis.call('XCLAIM', entry[1], group, 'released', 0, entry[2], 'JUSTID')
end
if dead then
  redis.call('HDEL', KEYS[1], worker)
  redis.call('SREM', KEYS[3], worker)
  -- With pending entries it would have to stay, for nobody could reach them afterwards.
  for index = 5, #KEYS do
    if #redis.call('XPENDING', KEYS[index], group, '-', '+', 1, worker) == 0 then
      redis.call('XGROUP', 'DELCONSUMER', KEYS[index], group, worker)
    end
  end
end
if #entries > 0 then redis.call('PUBLISH', KEYS[4], '') end
return #entries

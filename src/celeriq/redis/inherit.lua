-- Takes over what recorders of the history have read and not acknowledged for long, and signs off those that are gone.
-- KEYS  1 history (stream)  2 what was recorded (hash)
-- ARGV  1 group  2 consumer  3 milliseconds after which an entry is taken over  4 how many at most
--       5 milliseconds after which an entry that was dropped meanwhile is given up, and a recorder that has nothing is gone
-- Answers with the entries.
local idle, last = tonumber(ARGV[3]), tonumber(ARGV[5])
local first = redis.call('XRANGE', KEYS[1], '-', '+', 'COUNT', 1)[1]
local mine = {}
if first then
  for _, one in ipairs(redis.call('XPENDING', KEYS[1], ARGV[1], 'IDLE', idle, first[1], '+', ARGV[4])) do
    if one[2] ~= ARGV[2] then mine[#mine + 1] = one[1] end
  end
end
-- Not before: whoever has them may live, and record them yet.
local dropped = redis.call('XPENDING', KEYS[1], ARGV[1], 'IDLE', last, '-', first and '(' .. first[1] or '+', ARGV[4])
for _, one in ipairs(dropped) do redis.call('XACK', KEYS[1], ARGV[1], one[1]) end
for _, consumer in ipairs(redis.call('XINFO', 'CONSUMERS', KEYS[1], ARGV[1])) do
  local known = {}
  for index = 1, #consumer, 2 do known[consumer[index]] = consumer[index + 1] end
  if known.pending == 0 and known.idle >= last and known.name ~= ARGV[2] then
    redis.call('XGROUP', 'DELCONSUMER', KEYS[1], ARGV[1], known.name)
    redis.call('HDEL', KEYS[2], 'by ' .. known.name)
  end
end
if #mine == 0 then return {} end
return redis.call('XCLAIM', KEYS[1], ARGV[1], ARGV[2], idle, unpack(mine))

-- Lets a message run if fewer than so many of its kind do; otherwise it waits in line: it stays pending, in the name of
-- `waiting`, until somebody gives it a slot.
-- KEYS  1 stream of the message  2 who has a slot (hash: ticket to limit and kind)  3 those that run (set of tickets)
--       4 the line (list)
-- ARGV  1 group  2 consumer  3 entry id  4 ticket  5 kind  6 how many may run
-- Answers with 1 if it may run, 0 if it waits, -1 if it is not this consumer's any more.
if #redis.call('XPENDING', KEYS[1], ARGV[1], ARGV[3], ARGV[3], 1, ARGV[2]) == 0 then return -1 end
local slot = ARGV[6] .. ' ' .. ARGV[5]
-- It may have had one before its worker died, was handed one while it waited, or waited for its rate with it. The limit
-- may be another one since then; under another kind it counts as before, until it gives back what it has.
local has = redis.call('HGET', KEYS[2], ARGV[4])
if has then
  if string.match(has, '^%d+ (.*)$') == ARGV[5] then redis.call('HSET', KEYS[2], ARGV[4], slot) end
  return 1
end
if redis.call('SCARD', KEYS[3]) < tonumber(ARGV[6]) then
  redis.call('SADD', KEYS[3], ARGV[4])
  redis.call('HSET', KEYS[2], ARGV[4], slot)
  return 1
end
-- First where memory can refuse.
redis.call('RPUSH', KEYS[4], ARGV[4] .. '\n' .. KEYS[1] .. '\n' .. ARGV[3])
redis.call('XCLAIM', KEYS[1], ARGV[1], 'waiting', 0, ARGV[3], 'JUSTID')
return 0

-- Lets a message run if fewer than so many of its kind do; otherwise it leaves its queue and waits in line.
-- KEYS  1 stream of the message  2 who has a slot (hash: task id to kind)  3 those that run (set)  4 the line (list)
--       5 crashes (hash)
-- ARGV  1 group  2 consumer  3 entry id  4 task id  5 kind  6 how many may run  7 message
-- Answers with 1 if it may run, 0 if it waits, -1 if it is not this consumer's any more.
if #redis.call('XPENDING', KEYS[1], ARGV[1], ARGV[3], ARGV[3], 1, ARGV[2]) == 0 then return -1 end
-- It may have had one before its worker died, or was handed one while it waited.
if redis.call('HGET', KEYS[2], ARGV[4]) == ARGV[5] then return 1 end
if redis.call('SCARD', KEYS[3]) < tonumber(ARGV[6]) then
  redis.call('SADD', KEYS[3], ARGV[4])
  redis.call('HSET', KEYS[2], ARGV[4], ARGV[5])
  return 1
end
-- First where memory can refuse.
redis.call('RPUSH', KEYS[4], ARGV[4] .. ' ' .. KEYS[1] .. ' ' .. ARGV[7])
redis.call('XACK', KEYS[1], ARGV[1], ARGV[3])
redis.call('XDEL', KEYS[1], ARGV[3])
redis.call('HDEL', KEYS[5], KEYS[1] .. '/' .. ARGV[3])
return 0

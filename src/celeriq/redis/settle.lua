-- Ends one attempt, once and whole: state and result, the next run, the acknowledgement.
-- Lua is isolated but not transactional: checks first, then writes that memory can refuse, the acknowledgement last.
-- KEYS  1 queue (stream)  2 delayed messages (sorted set)  3 record  4 crashes (hash)  5 dead letters (stream)
-- ARGV  1 group  2 consumer  3 entry id  4 fenced  5 record  6 milliseconds to keep it  7 next message  8 its delay in ms
--       9 why it is dead, '' if it is not  10 message
local group, consumer, entry = ARGV[1], ARGV[2], ARGV[3]
local FINAL = '{"status":"SUCCESS"'

-- The fence: a worker that was given up for dead must not settle what is no longer its own.
if ARGV[4] == '1' and #redis.call('XPENDING', KEYS[1], group, entry, entry, 1, consumer) == 0 then
  return 0
end
if ARGV[5] ~= '' and redis.call('GETRANGE', KEYS[3], 0, #FINAL - 1) ~= FINAL then
  redis.call('SET', KEYS[3], ARGV[5], 'PX', ARGV[6])
  redis.call('PUBLISH', KEYS[3], ARGV[5])
end
if ARGV[7] ~= '' then
  local now = redis.call('TIME')
  redis.call('ZADD', KEYS[2], now[1] * 1000 + math.floor(now[2] / 1000) + ARGV[8], ARGV[7])
end
if ARGV[9] ~= '' then
  redis.call('XADD', KEYS[5], '*', 'data', ARGV[10], 'reason', ARGV[9])
end
redis.call('XACK', KEYS[1], group, entry)
redis.call('XDEL', KEYS[1], entry)
redis.call('HDEL', KEYS[4], KEYS[1] .. '/' .. entry)
return 1

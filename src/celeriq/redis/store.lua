-- Stores a state between start and end, and tells who waits. SUCCESS is final.
-- KEYS  1 record  2 stream of the message, if only who holds it may do so
-- ARGV  1 record  2 milliseconds to keep it, -1 for ever  3 only if there is none  4 group  5 entry id  6 worker
local FINAL = '{"status":"SUCCESS"'
if KEYS[2] and #redis.call('XPENDING', KEYS[2], ARGV[4], ARGV[5], ARGV[5], 1, ARGV[6]) == 0 then return 0 end
if redis.call('GETRANGE', KEYS[1], 0, #FINAL - 1) == FINAL then return 0 end
if ARGV[3] == '1' and redis.call('EXISTS', KEYS[1]) == 1 then return 0 end
if ARGV[2] == '-1' then redis.call('SET', KEYS[1], ARGV[1]) else redis.call('SET', KEYS[1], ARGV[1], 'PX', ARGV[2]) end
redis.call('PUBLISH', KEYS[1], ARGV[1])
return 1

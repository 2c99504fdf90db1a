-- Stores a state between start and end, and tells who waits. SUCCESS is final.
-- KEYS  1 record    ARGV  1 record  2 milliseconds to keep it  3 only if there is none
local FINAL = '{"status":"SUCCESS"'
if redis.call('GETRANGE', KEYS[1], 0, #FINAL - 1) == FINAL then return 0 end
if ARGV[3] == '1' and redis.call('EXISTS', KEYS[1]) == 1 then return 0 end
redis.call('SET', KEYS[1], ARGV[1], 'PX', ARGV[2])
redis.call('PUBLISH', KEYS[1], ARGV[1])
return 1

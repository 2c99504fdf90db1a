-- Parks a message that no module here can run: it stays pending, in the name of `parked`, until a worker comes that can.
-- KEYS  1 its stream  2 what is parked (set of names)  3 what is parked under this name (sorted set: since when)
-- ARGV  1 group  2 worker  3 entry id  4 name
if #redis.call('XPENDING', KEYS[1], ARGV[1], ARGV[3], ARGV[3], 1, ARGV[2]) == 0 then return 0 end
local time = redis.call('TIME')
-- Who is parked again waits on from the first time.
redis.call('ZADD', KEYS[3], 'NX', time[1] * 1000 + math.floor(time[2] / 1000), KEYS[1] .. ' ' .. ARGV[3])
redis.call('SADD', KEYS[2], ARGV[4])
redis.call('XCLAIM', KEYS[1], ARGV[1], 'parked', 0, ARGV[3], 'JUSTID')
return 1

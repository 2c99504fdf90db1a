-- Sends a dead letter again, once.
-- KEYS  1 dead letters (stream)  2 the queue's stream    ARGV  1 id of the letter  2 message
if #redis.call('XRANGE', KEYS[1], ARGV[1], ARGV[1]) == 0 then return 0 end
redis.call('XADD', KEYS[2], '*', 'data', ARGV[2])
redis.call('XDEL', KEYS[1], ARGV[1])
return 1

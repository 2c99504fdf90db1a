-- Keeps a message that nobody here can run, with the reason, and takes it off the queue.
-- KEYS  1 queue (stream)  2 dead letters (stream)    ARGV  1 group  2 entry id  3 message  4 reason
redis.call('XADD', KEYS[2], '*', 'data', ARGV[3], 'reason', ARGV[4])
redis.call('XACK', KEYS[1], ARGV[1], ARGV[2])
redis.call('XDEL', KEYS[1], ARGV[2])

-- Whether a queue has ever had a worker.
-- KEYS: the names of all queues. ARGV: the queue.
return redis.call('SISMEMBER', KEYS[1], ARGV[1])

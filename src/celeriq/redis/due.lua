-- Moves delayed messages whose time has come to their queue, at most as many as ARGV[1] says.
-- KEYS  1 delayed messages (sorted set)  2 queue (stream)
local now = redis.call('TIME')
local ripe = redis.call('ZRANGEBYSCORE', KEYS[1], '-inf', now[1] * 1000 + math.floor(now[2] / 1000), 'LIMIT', 0, ARGV[1])
for _, message in ipairs(ripe) do
  redis.call('XADD', KEYS[2], '*', 'data', message)
  redis.call('ZREM', KEYS[1], message)
end
return #ripe

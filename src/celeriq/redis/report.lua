-- Tells a circuit how an attempt has ended.
-- KEYS  1 circuit (hash)
-- ARGV  1 task id  2 '1' if it succeeded, '0' if it failed, '' if that says nothing  3 failures in a row that open it
--       4 milliseconds that it stays open  5 milliseconds after which failures are forgotten
local time = redis.call('TIME')
local now = time[1] * 1000 + math.floor(time[2] / 1000)
local found = redis.call('HMGET', KEYS[1], 'until', 'probe')
local is_probe = found[2] == ARGV[1]
-- What began before it was opened says nothing of now.
if found[1] and not is_probe then return 0 end
if ARGV[2] == '1' then return redis.call('DEL', KEYS[1]) end
if ARGV[2] == '' and not is_probe then return 0 end
redis.call('HDEL', KEYS[1], 'probe')
if ARGV[2] == '' then
  redis.call('HSET', KEYS[1], 'until', now)
elseif redis.call('HINCRBY', KEYS[1], 'failures', 1) >= tonumber(ARGV[3]) or is_probe then
  redis.call('HSET', KEYS[1], 'until', now + ARGV[4])
end
redis.call('PEXPIRE', KEYS[1], ARGV[4] + ARGV[5])
return 1

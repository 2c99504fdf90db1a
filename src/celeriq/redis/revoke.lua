-- Calls tasks off: remembers them, tells the workers, and stores REVOKED for those that have not begun.
-- KEYS  1 what is revoked (sorted set: until when)  2 how often it has changed (counter)  3 control (channel)
--       then for each task the record
-- ARGV  1 milliseconds to remember it  2 milliseconds to keep a record, 0 stores none, -1 for ever  3 what the workers are told
--       4 what is remembered, one member for each task or header, behind it for each task the record
local UNBEGUN = {PENDING = true, RECEIVED = true, RETRY = true, REJECTED = true}
local time = redis.call('TIME')
local now = time[1] * 1000 + math.floor(time[2] / 1000)
redis.call('ZREMRANGEBYSCORE', KEYS[1], '-inf', now)
local records = #KEYS - 3
for index = 4, #ARGV - records do redis.call('ZADD', KEYS[1], now + ARGV[1], ARGV[index]) end
for index = 1, records do
  local record, stored = KEYS[3 + index], ARGV[#ARGV - records + index]
  local state = string.match(redis.call('GETRANGE', record, 0, 40), '^{"status":"([^"]*)"') or 'PENDING'
  if UNBEGUN[state] and ARGV[2] ~= '0' then
    if ARGV[2] == '-1' then redis.call('SET', record, stored) else redis.call('SET', record, stored, 'PX', ARGV[2]) end
    redis.call('PUBLISH', record, stored)
  end
end
redis.call('INCR', KEYS[2])
redis.call('PUBLISH', KEYS[3], ARGV[3])
return 1

-- Sends a batch of messages, once however often it is asked: a sender has one batch on its way at a time, numbers
-- them, and here the number of the last one is kept. What somebody else may send as well has an id of its own.
-- KEYS  1 sender's last batch  2 wake (channel)  3 ids of what was sent (sorted set: when)  then the streams and the
--       delayed messages (sorted sets) to write to
-- ARGV  1 number of the batch  2 milliseconds to keep it, and the ids  then for each message: number of its key, when
--       ('' now, '+ms' from now, '@ms' since 1970), its id or '', message (behind the digit of its priority step, if it
--       is delayed; what else is between digit and message makes it differ from others of the same content)
-- A batch that its sender gave up may come late, behind the next one.
if tonumber(redis.call('GET', KEYS[1]) or '0') >= tonumber(ARGV[1]) then return 0 end
local time = redis.call('TIME')
local now = time[1] * 1000 + math.floor(time[2] / 1000)
redis.call('SET', KEYS[1], ARGV[1], 'PX', ARGV[2])
local earlier, named = false, false
for index = 3, #ARGV, 4 do
  local key, when, id, message = KEYS[ARGV[index] + 3], ARGV[index + 1], ARGV[index + 2], ARGV[index + 3]
  if id == '' or not redis.call('ZSCORE', KEYS[3], id) then
    if when == '' then
      redis.call('XADD', key, '*', 'data', message)
    else
      local due = tonumber(string.sub(when, 2))
      if string.sub(when, 1, 1) == '+' then due = now + due end
      local unique = string.match(KEYS[1], '[^:]*$') .. '/' .. ARGV[1] .. '/' .. index
      local member = string.sub(message, 1, 1) .. unique .. string.sub(message, 2)
      redis.call('ZADD', key, due, member)
      earlier = earlier or redis.call('ZRANGE', key, 0, 0)[1] == member
    end
    -- Behind the message: what fails before leaves no trace of it.
    if id ~= '' then redis.call('ZADD', KEYS[3], now, id) end
  end
  named = named or id ~= ''
end
if named then redis.call('ZREMRANGEBYSCORE', KEYS[3], '-inf', now - ARGV[2]) end
-- Who sleeps does so until the message that was the earliest.
if earlier then redis.call('PUBLISH', KEYS[2], '') end
return 1

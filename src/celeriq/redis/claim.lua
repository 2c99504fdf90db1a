-- Takes a key for a call, and sends the call in the same step if it is not sent yet.
-- KEYS  1 the key (the task id that has it)  2 what is revoked (sorted set: until when)  3 whether another call has taken
--       the place of this one  4 wake (channel)  5 where the message goes (stream, or sorted set of delayed ones)
--       6 whether this very sending has sent it, under a name that no other sending has
-- ARGV  1 task id  2 milliseconds to hold the key, from when the call is due  3 '1' to take the place of another one
--       4 when ('' now, '+ms' from now, '@ms' since 1970)  5 message (behind the digit of its priority step, if it is
--       delayed)  6 milliseconds to remember that it is sent
-- Answers with the task id that has the key, '' if another call has taken the place of this one.
local task, when = ARGV[1], ARGV[4]
-- It was sent, and the answer was lost: it may have ended since.
if KEYS[6] and redis.call('EXISTS', KEYS[6]) == 1 then return task end
if redis.call('EXISTS', KEYS[3]) == 1 then return '' end
local first = redis.call('GET', KEYS[1])
if first == task then
  -- It begins; or another call of this id waits.
  if not KEYS[5] then redis.call('PEXPIRE', KEYS[1], ARGV[2]) end
  return task
end
local time = redis.call('TIME')
local now = time[1] * 1000 + math.floor(time[2] / 1000)
-- What was called off keeps its message until a worker reads it, but not its key.
local over = not first or tonumber(redis.call('ZSCORE', KEYS[2], 'i' .. first) or '0') > now
if not over and ARGV[3] ~= '1' then return first end
local due = now
if when ~= '' then due = (string.sub(when, 1, 1) == '+' and now or 0) + string.sub(when, 2) end
-- First where memory can refuse.
if KEYS[5] and when == '' then
  redis.call('XADD', KEYS[5], '*', 'data', ARGV[5])
elseif KEYS[5] then
  redis.call('ZADD', KEYS[5], due, ARGV[5])
  if redis.call('ZRANGE', KEYS[5], 0, 0)[1] == ARGV[5] then redis.call('PUBLISH', KEYS[4], '') end
end
if not over then
  -- It learns of it when it is read, for as long as it would have had the key.
  redis.call('SET', string.sub(KEYS[3], 1, -#task - 1) .. first, task, 'PX', math.max(1, redis.call('PTTL', KEYS[1])))
end
redis.call('SET', KEYS[1], task, 'PX', math.max(0, due - now) + ARGV[2])
if KEYS[6] then redis.call('SET', KEYS[6], 1, 'PX', ARGV[6]) end
return task

-- Lets a task start, or reserves the next moment at which it may (the generic cell rate algorithm, twice: reserved are
-- moments without a burst, started is with a burst of those that come late to theirs).
-- KEYS  1 the moment after the last one that was reserved, and the one after the last start (µs)
-- ARGV  1 µs between two starts  2 a moment that was reserved before (µs), '' if there was none, 0 from who asks again
--       instead of reserving one  3 µs by which starts may be closer
-- Answers with 0 if it starts now, and otherwise with the moment that is reserved.
local time = redis.call('TIME')
local now = time[1] * 1000000 + time[2]
local interval, early = tonumber(ARGV[1]), tonumber(ARGV[3])
local reserved, started = string.match(redis.call('GET', KEYS[1]) or '0 0', '^(%d+) (%d+)$')
reserved, started = tonumber(reserved or 0), tonumber(started or 0)
local moment, starts

if ARGV[2] ~= '' then
  moment = tonumber(ARGV[2])
  if now < moment then return ARGV[2] end
  -- However late it is: what counts is how many start.
  starts = now >= started - early
  if not starts and moment == 0 then return '1' end
end
if not starts then
  moment = math.max(now, reserved, started)
  reserved = moment + interval
  starts = moment == now
end
if starts then started = math.max(now, started) + interval end
local keep = math.ceil((math.max(reserved, started) - now) / 1000) + 1000
redis.call('SET', KEYS[1], string.format('%.0f %.0f', reserved, started), 'PX', keep)
return starts and '0' or string.format('%.0f', moment)

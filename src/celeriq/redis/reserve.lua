-- Reserves the next moment at which a task may start (the generic cell rate algorithm, without a burst).
-- KEYS  1 the moment after the last one that was reserved (µs)
-- ARGV  1 µs between two starts  2 a moment that was reserved before (µs), '' if there was none  3 µs that it may be late
-- Answers with the µs to wait, and the moment that is reserved.
local time = redis.call('TIME')
local now = time[1] * 1000000 + time[2]
if ARGV[2] ~= '' and now - ARGV[2] <= tonumber(ARGV[3]) then
  return {math.max(0, ARGV[2] - now), ARGV[2]}
end
local interval = tonumber(ARGV[1])
local moment = math.max(now, tonumber(redis.call('GET', KEYS[1]) or '0'))
local following = moment + interval
redis.call('SET', KEYS[1], string.format('%.0f', following), 'PX', math.ceil((following - now) / 1000) + 1000)
return {moment - now, string.format('%.0f', moment)}

-- Lets an attempt pass a circuit: any while it is closed, none while it is open, and then one of them, the probe.
-- KEYS  1 circuit (hash)    ARGV  1 task id  2 milliseconds that it stays open
-- Answers with the milliseconds since 1970 at which to ask again, 0 if it may pass.
local found = redis.call('HMGET', KEYS[1], 'until', 'probe')
local opens, probe = found[1], found[2]
-- The probe may come again: its worker died, or something else had it wait.
if not opens or probe == ARGV[1] then return 0 end
local time = redis.call('TIME')
local now = time[1] * 1000 + math.floor(time[2] / 1000)
local wait = opens - now
-- A probe may end at any moment.
if wait > 0 then return now + math.ceil(probe and math.min(wait, ARGV[2] / 10) or wait) end
-- The place of a probe that nobody hears of any more is taken by the next one.
redis.call('HSET', KEYS[1], 'until', now + ARGV[2], 'probe', ARGV[1])
return 0

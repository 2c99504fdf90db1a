-- Counts the entries of the history that were dropped unread: all that were ever added, less those that were recorded, those
-- that are in the stream, and those that a recorder has read and is still to acknowledge.
-- KEYS  1 history (stream)  2 what was recorded (hash)
-- ARGV  1 group  2 a name for the stream, if it has none yet
-- Answers with the stream's name, their number (-1 from a server that does not say how many were added: Redis 7 does), the
-- last id that was read and the first one that is there ('' if none is).
redis.call('HSETNX', KEYS[2], 'stream', ARGV[2])
local name, recorded = redis.call('HGET', KEYS[2], 'stream'), tonumber(redis.call('HGET', KEYS[2], 'recorded') or 0)
local function field(list, name)
  for index = 1, #list, 2 do if list[index] == name then return list[index + 1] end end
end
local stream = redis.call('XINFO', 'STREAM', KEYS[1])
local added, first, read = field(stream, 'entries-added'), field(stream, 'first-entry'), '0-0'
for _, group in ipairs(redis.call('XINFO', 'GROUPS', KEYS[1])) do
  if field(group, 'name') == ARGV[1] then read = field(group, 'last-delivered-id') end
end
first = first and first[1] or ''
if not added then return {name, -1, read, first} end
-- What was dropped while a recorder had it is not missing yet.
local before = first == '' and '+' or '(' .. first
local held = #redis.call('XPENDING', KEYS[1], ARGV[1], '-', before, 100000)
return {name, added - recorded - redis.call('XLEN', KEYS[1]) - held, read, first}

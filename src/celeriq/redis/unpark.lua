-- A worker takes parked messages: because it knows what they are, or because they waited for too long.
-- KEYS  1 what is parked (set of names)  2 what is parked under this name (sorted set: since when)
--       then the streams that the worker reads
-- ARGV  1 group  2 worker  3 name  4 milliseconds that they must have waited  5 how many at most
-- Answers with how many are not parked any more, and the key number of the stream, entry id and message of each that it
-- took.
local group, worker, name, at_most = ARGV[1], ARGV[2], ARGV[3], tonumber(ARGV[5])
local AT_ONCE = 500
local time = redis.call('TIME')
local latest = time[1] * 1000 + math.floor(time[2] / 1000) - ARGV[4]
local streams, taken, removed, skipped = {}, {}, 0, 0
for index = 3, #KEYS do streams[KEYS[index]] = index end

local function take_back(member, stream, entry)
  if #redis.call('XPENDING', stream, group, entry, entry, 1, 'parked') == 1 then
    local claimed = redis.call('XCLAIM', stream, group, worker, 0, entry)[1]
    if claimed and claimed[2] then taken[#taken + 1] = {streams[stream], entry, claimed[2][2]} end
  end
  redis.call('ZREM', KEYS[2], member)
  removed = removed + 1
end

repeat
  local page = redis.call('ZRANGEBYSCORE', KEYS[2], '-inf', latest, 'LIMIT', skipped, AT_ONCE)
  for _, member in ipairs(page) do
    local stream, entry = string.match(member, '^(.*) ([^ ]+)$')
    if removed >= at_most then break end
    -- Those of queues that this worker does not read are for others.
    if streams[stream] then take_back(member, stream, entry) else skipped = skipped + 1 end
  end
until #page < AT_ONCE or removed >= at_most
if redis.call('EXISTS', KEYS[2]) == 0 then redis.call('SREM', KEYS[1], name) end
return {removed, taken}

-- Takes parked messages back: to the others that were handed back, or, when they waited for too long, to this worker.
-- KEYS  1 what is parked (set of names)  2 what is parked under this name (sorted set)  3 wake (channel)
--       then the streams that the worker reads
-- ARGV  1 group  2 worker  3 name  4 milliseconds after which it takes them itself, '' to hand them back
-- Answers with how many it took back, and the key number of the stream, entry id and message of each that it took.
local group, worker, name, grace = ARGV[1], ARGV[2], ARGV[3], ARGV[4]
local AT_ONCE = 500
local latest = '+inf'
if grace ~= '' then
  local time = redis.call('TIME')
  latest = time[1] * 1000 + math.floor(time[2] / 1000) - grace
end
local streams, taken, released, skipped = {}, {}, 0, 0
for index = 4, #KEYS do streams[KEYS[index]] = index end

local function take_back(member, stream, entry)
  local parked = #redis.call('XPENDING', stream, group, entry, entry, 1, 'parked') == 1
  if parked and grace == '' then
    redis.call('XCLAIM', stream, group, 'released', 0, entry, 'JUSTID')
  elseif parked then
    local claimed = redis.call('XCLAIM', stream, group, worker, 0, entry)[1]
    if claimed and claimed[2] then taken[#taken + 1] = {streams[stream], entry, claimed[2][2]} end
  end
  redis.call('ZREM', KEYS[2], member)
  released = released + 1
end

repeat
  local page = redis.call('ZRANGEBYSCORE', KEYS[2], '-inf', latest, 'LIMIT', skipped, AT_ONCE)
  for _, member in ipairs(page) do
    local stream, entry = string.match(member, '^(.*) ([^ ]+)$')
    -- Those of queues that this worker does not read are for others.
    if streams[stream] then take_back(member, stream, entry) else skipped = skipped + 1 end
  end
until #page < AT_ONCE or released >= AT_ONCE
if redis.call('EXISTS', KEYS[2]) == 0 then redis.call('SREM', KEYS[1], name) end
if released > #taken then redis.call('PUBLISH', KEYS[3], '') end
return {released, taken}

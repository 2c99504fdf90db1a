-- Takes entries of the history that are in PostgreSQL off the stream, and counts them.
-- KEYS  1 history (stream)  2 what was recorded (hash: `recorded` is how many, `stream` the stream's own name, and of each
--       recorder how often it has done so)
-- ARGV  1 group  2 consumer, then the ids of entries
-- Answers how often this recorder has done so. That only grows, unless Redis has forgotten something.
local ids = {}
for index = 3, #ARGV do ids[#ids + 1] = ARGV[index] end
if #ids > 0 then
  -- Another recorder may have counted some of them.
  redis.call('HINCRBY', KEYS[2], 'recorded', redis.call('XACK', KEYS[1], ARGV[1], unpack(ids)))
  redis.call('XDEL', KEYS[1], unpack(ids))
end
return redis.call('HINCRBY', KEYS[2], 'by ' .. ARGV[2], 1)

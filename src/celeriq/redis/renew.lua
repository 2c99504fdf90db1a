-- Tells that this worker still holds these entries. What another worker has taken over meanwhile stays with that one.
-- KEYS  1 queue (stream)    ARGV  1 group  2 consumer  3… entry ids
for index = 3, #ARGV do
  local entry = ARGV[index]
  if #redis.call('XPENDING', KEYS[1], ARGV[1], entry, entry, 1, ARGV[2]) == 1 then
    redis.call('XCLAIM', KEYS[1], ARGV[1], ARGV[2], 0, entry, 'JUSTID')
  end
end

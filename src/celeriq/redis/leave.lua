-- Signs a worker off that holds nothing any more: with pending entries it must stay, for nobody could reach them then.
-- KEYS  1 beats (hash)  2 leaving workers (set)  then the streams    ARGV  1 group  2 worker
for index = 3, #KEYS do
  if #redis.call('XPENDING', KEYS[index], ARGV[1], '-', '+', 1, ARGV[2]) > 0 then return 0 end
end
for index = 3, #KEYS do redis.call('XGROUP', 'DELCONSUMER', KEYS[index], ARGV[1], ARGV[2]) end
redis.call('HDEL', KEYS[1], ARGV[2])
redis.call('SREM', KEYS[2], ARGV[2])
return 1

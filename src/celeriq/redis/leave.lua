-- Deletes a consumer that holds nothing: with pending entries it must stay, for nobody could reach them afterwards.
-- KEYS  1 queue (stream)    ARGV  1 group  2 consumer
if #redis.call('XPENDING', KEYS[1], ARGV[1], '-', '+', 1, ARGV[2]) == 0 then
  redis.call('XGROUP', 'DELCONSUMER', KEYS[1], ARGV[1], ARGV[2])
end

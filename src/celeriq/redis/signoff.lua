-- Ends a recorder of the history that has acknowledged all that it has read.
-- KEYS  1 history (stream)  2 what was recorded (hash)
-- ARGV  1 group  2 consumer
if #redis.call('XPENDING', KEYS[1], ARGV[1], '-', '+', 1, ARGV[2]) == 0 then
  redis.call('XGROUP', 'DELCONSUMER', KEYS[1], ARGV[1], ARGV[2])
  redis.call('HDEL', KEYS[2], 'by ' .. ARGV[2])
end
return 1

-- Ends attempts, each once and whole: states and results, the next messages, the history, the acknowledgement.
-- Lua is isolated but not transactional: checks first, then writes that memory can refuse, the acknowledgement last.
-- KEYS  1 crashes (hash)  2 history (stream)  3 wake (channel)  4 who has a slot (hash: ticket to limit and kind),
--       beside which those that run and the line of a kind are `running:` and `line:`  then for each attempt: its stream, its
--       records, where its next messages go (streams, or sorted sets of delayed ones), the dead letters (stream) if it is one,
--       the key that it has taken; of a part of a chord the parts (hash: place in the header to value as JSON, or `!` and
--       why the body cannot run), and where the body's messages go
-- ARGV  1 group  2 consumer  3 milliseconds to keep a record, -1 for ever  4 entries of history to keep
--       5 dead letters to keep  6 milliseconds to keep them, and parts of chords  7 milliseconds to keep the record of a failure
--       then for each attempt: a line of entry id, whether it is fenced, numbers of
--       records and of next messages, whether it is dead, has a history entry, has taken a key, is a part of a chord, and
--       the ticket of the slot that it gives back if it has one ('' its place, '-' it keeps it); records; for each next
--       message when it is due ('' now, '+ms' from now, '@ms' since 1970) and the message (behind the digit of its priority
--       step, if it is delayed); why it is dead, and message; history entry; task id and milliseconds to hold the key, 0
--       gives it back; of a part a line of its place, their number, the number of the body's messages and whether its value belongs to an outer part, what is told of it, and for each message when it is due
--       and its text: up to its first brace, from there to where the results belong, and from there on ('' if it takes
--       none), then the same of the outer part, of which nothing is told yet. In one line because each argument costs as much as a command.
-- Answers for each attempt with 1, 0 if it is no longer this consumer's, 2 if it has been settled, or the text of an error.
local FINAL, FAILED = '{"status":"SUCCESS"', '{"status":"FAILURE"'
local group, consumer = ARGV[1], ARGV[2]
local time = redis.call('TIME')
local now = time[1] * 1000 + math.floor(time[2] / 1000)
local key, argument = 4, 7
local wake = false
local limits = redis.call('EXISTS', KEYS[4]) == 1

local function next_key() key = key + 1 return KEYS[key] end
local function next_argument() argument = argument + 1 return ARGV[argument] end

local read_part, count

function read_part()
  local place, size, messages, outer = string.match(next_argument(), '^(%d+) (%d+) (%d+) (%d)$')
  local part = {chord = next_key(), place = place, size = tonumber(size), messages = {}}
  part.told = next_argument()
  for index = 1, tonumber(messages) do
    part.messages[index] = {next_key(), next_argument(), next_argument(), next_argument(), next_argument()}
  end
  if outer == '1' then part.outer = read_part() end
  return part
end

local function read_attempt()
  local entry, fenced, records, messages, dead, history, claim, part, ticket =
    string.match(next_argument(), '^(%S+) (%d) (%d+) (%d+) (%d) (%d) (%d) (%d) (.*)$')
  local attempt = {stream = next_key(), entry = entry, fenced = fenced == '1', records = {}, messages = {}, ticket = ticket}
  for index = 1, tonumber(records) do attempt.records[index] = {next_key(), next_argument()} end
  for index = 1, tonumber(messages) do
    attempt.messages[index] = {next_key(), next_argument(), next_argument()}
  end
  if dead == '1' then
    attempt.dead, attempt.dead_because, attempt.message = next_key(), next_argument(), next_argument()
  end
  if history == '1' then attempt.history = next_argument() end
  if claim == '1' then attempt.claim = {key = next_key(), task = next_argument(), hold = next_argument()} end
  if part == '1' then attempt.part = read_part() end
  return attempt
end

local function store(record, stored)
  if redis.call('GETRANGE', record, 0, #FINAL - 1) == FINAL then return end
  local keep = string.sub(stored, 1, #FAILED) == FAILED and ARGV[7] or ARGV[3]
  if keep == '-1' then redis.call('SET', record, stored) else redis.call('SET', record, stored, 'PX', keep) end
  redis.call('PUBLISH', record, stored)
end

local function send(target, when, message, unique)
  if when == '' then
    redis.call('XADD', target, '*', 'data', message)
  else
    local due = tonumber(string.sub(when, 2))
    if string.sub(when, 1, 1) == '+' then due = now + due end
    -- Other messages may have the same content.
    local member = string.sub(message, 1, 1) .. unique .. string.sub(message, 2)
    redis.call('ZADD', target, due, member)
    wake = wake or redis.call('ZRANGE', target, 0, 0)[1] == member
  end
end

-- Whichever part is the last one to end sends the body.
function count(part, unique)
  redis.call('HSET', part.chord, part.place, part.told)
  if redis.call('HLEN', part.chord) < part.size then
    redis.call('PEXPIRE', part.chord, ARGV[6])
    return
  end
  local told, results, failed = redis.call('HGETALL', part.chord), {}, nil
  for index = 1, #told, 2 do results[told[index] + 1] = told[index + 1] end
  for _, result in ipairs(results) do
    if not failed and string.sub(result, 1, 1) == '!' then failed = result end
  end
  local value = failed and 'null' or '[' .. table.concat(results, ',') .. ']'
  local broken = failed and '"broken":' .. string.sub(failed, 2) .. ',' or ''
  if part.outer then
    part.outer.told = failed or value
    count(part.outer, unique)
  end
  for index, message in ipairs(part.messages) do
    local target, when, opening, before, after = unpack(message)
    if after ~= '' then before = before .. value .. after end
    send(target, when, opening .. broken .. before, unique .. '/' .. index)
  end
  redis.call('DEL', part.chord)
end

local function bury(attempt)
  redis.call('XADD', attempt.dead, 'MAXLEN', ARGV[5], '*', 'data', attempt.message, 'reason', attempt.dead_because)
  redis.call('XTRIM', attempt.dead, 'MINID', now - ARGV[6])
end

-- The ticket of who waits longest, handed back to its queue, where it comes before what is new; nil if nobody waits.
local function next_in_line(line)
  while true do
    local ticket, stream, entry = string.match(redis.call('LPOP', line) or '', '^([^\n]+)\n([^\n]+)\n(.*)$')
    if not ticket then return nil end
    -- Somebody may have deleted it, or its queue.
    if #redis.pcall('XPENDING', stream, group, entry, entry, 1, 'waiting') == 1
      and #redis.call('XCLAIM', stream, group, 'released', 0, entry, 'JUSTID') == 1 then
      wake = true
      return ticket
    end
  end
end

-- As many as wait get a slot: one, and more or none if the limit is another one by now.
local function release(ticket)
  local slot = redis.call('HGET', KEYS[4], ticket)
  if not slot then return end
  local most, kind = string.match(slot, '^(%d+) (.*)$')
  local base = string.sub(KEYS[4], 1, -#'slots' - 1)
  local running, line = base .. 'running:' .. kind, base .. 'line:' .. kind
  redis.call('SREM', running, ticket)
  redis.call('HDEL', KEYS[4], ticket)
  for _ = redis.call('SCARD', running) + 1, most do
    local following = next_in_line(line)
    if not following then return end
    redis.call('SADD', running, following)
    redis.call('HSET', KEYS[4], following, slot)
  end
end

-- Another one may have the key by now.
local function hold(claim)
  if redis.call('GET', claim.key) ~= claim.task then return end
  if claim.hold == '0' then redis.call('DEL', claim.key) else redis.call('PEXPIRE', claim.key, claim.hold) end
end

local function settle(attempt)
  local stream, entry = attempt.stream, attempt.entry
  -- The fence: a worker that was given up for dead must not settle what is no longer its own.
  if attempt.fenced and #redis.call('XPENDING', stream, group, entry, entry, 1, consumer) == 0 then
    return #redis.call('XRANGE', stream, entry, entry) == 0 and 2 or 0
  end
  for _, record in ipairs(attempt.records) do store(record[1], record[2]) end
  for index, message in ipairs(attempt.messages) do
    send(message[1], message[2], message[3], entry .. '/' .. index)
  end
  if attempt.part then count(attempt.part, entry .. '/body') end
  if attempt.dead then bury(attempt) end
  if attempt.history then
    redis.call('XADD', KEYS[2], 'MAXLEN', '~', ARGV[4], '*', 'data', attempt.history)
  end
  if limits and attempt.ticket ~= '-' then release(attempt.ticket ~= '' and attempt.ticket or stream .. '/' .. entry) end
  if attempt.claim then hold(attempt.claim) end
  redis.call('XACK', stream, group, entry)
  redis.call('XDEL', stream, entry)
  -- A suspect has ended, so that the next one may run.
  if redis.call('HDEL', KEYS[1], stream .. '/' .. entry) == 1 then wake = true end
  return 1
end

local answers = {}
while argument < #ARGV do
  local ok, answer = pcall(settle, read_attempt())
  if not ok and type(answer) == 'table' then answer = answer.err end
  answers[#answers + 1] = ok and answer or tostring(answer)
end
if wake then redis.call('PUBLISH', KEYS[3], '') end
return answers

-- KEYS: a stream, its dead-letter stream. ARGV: the id of a dead letter, its event. Appends the event to the stream and removes
-- the dead letter. Returns 1, or 0 if that is gone. It is removed last: what Redis refuses is not undone.
if #redis.call('XRANGE', KEYS[2], ARGV[1], ARGV[1]) == 0 then return 0 end
local _, _, keep, rest = streams()
rest().append(KEYS[1], ARGV[2])
keep()
return redis.call('XDEL', KEYS[2], ARGV[1])

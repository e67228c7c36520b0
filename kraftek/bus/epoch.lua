-- KEYS: the epoch. ARGV: a name for a new one.
-- Returns the epoch of the data, or false if it is unknown because Redis refuses to write the new one.
local info = redis.call('INFO', 'server')
local run = info:match('run_id:(%x+)')
-- keep_type() would also delete an absent key: after any deletion Redis takes writes in spite of 'maxmemory'.
local known = redis.pcall('HMGET', KEYS[1], 'run', 'epoch')
if known.err then redis.call('DEL', KEYS[1]) end
if known[1] == run and known[2] then return known[2] end
local written = redis.pcall('HSET', KEYS[1], 'run', run, 'epoch', ARGV[1])
return type(written) == 'number' and ARGV[1]

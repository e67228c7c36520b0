-- KEYS: the epoch. ARGV: a name for a new one.
-- Returns the epoch of the data, or false if it is unknown because Redis refuses to write the new one; why Redis refuses
-- to be written, or false; the run id of the server; and its role.
local run = redis.call('INFO', 'server'):match('run_id:(%x+)')
local role = redis.call('INFO', 'replication'):match('role:(%a+)')
-- keep_type() would also delete an absent key: after any deletion Redis takes writes in spite of 'maxmemory'.
local known = redis.pcall('HMGET', KEYS[1], 'run', 'epoch')
if known.err then redis.call('DEL', KEYS[1]) end
local epoch = known[1] == run and known[2] and known[2]:match('^%x+$')
-- Also when nothing changes: this shows whether it can be written.
local written = redis.pcall('HSET', KEYS[1], 'run', run, 'epoch', epoch or ARGV[1])
if type(written) ~= 'table' then return {epoch or ARGV[1], false, run, role} end
-- Redis 6.2 puts '@user_script: 14: -' before it.
return {epoch, written.err:gsub('^@user_script: %d+: %-', ''), run, role}

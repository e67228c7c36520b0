-- KEYS: what is kept of a client's connection. ARGV: the socket that it belonged to, and does now; what is kept, and for how
-- many milliseconds. Returns 1, or 0 if it belongs to another one.
local owner = redis.call('HGET', KEYS[1], 'owner')
if owner and owner ~= ARGV[1] and owner ~= ARGV[2] then return 0 end
if not owner and ARGV[1] ~= ARGV[2] then return 0 end
redis.call('HSET', KEYS[1], 'owner', ARGV[2], 'state', ARGV[3])
redis.call('PEXPIRE', KEYS[1], ARGV[4])
return 1

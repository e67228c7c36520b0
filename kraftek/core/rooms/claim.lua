-- KEYS: the set of lost entries, the leases; then for each entry its room, sockets, and the entries of its gateway.
-- ARGV: the lease in seconds; then for each entry its user, its socket, the entry itself, and the id of its gateway.
-- Entries that stand and that nobody would remove are handed to their gateway; one that is dead gets a lease, which
-- expires as others do. Returns how many there were.
local handed = 0
for i = 0, (#KEYS - 2) / 3 - 1 do
    local room, sockets, entries = KEYS[3 * i + 3], KEYS[3 * i + 4], KEYS[3 * i + 5]
    local user, socket, entry, gateway = ARGV[4 * i + 2], ARGV[4 * i + 3], ARGV[4 * i + 4], ARGV[4 * i + 5]
    local done, stands = pcall(function()
        return redis.call('HGET', room, user) == socket or redis.call('ZSCORE', sockets, socket)
    end)
    if done and stands and redis.call('SISMEMBER', KEYS[1], entry) == 0 then
        keep_type('set', entries)
        local unnamed = redis.call('SADD', entries, entry)
        local unleased = redis.call('ZADD', KEYS[2], 'NX', now / 1000000 + ARGV[1], gateway)
        handed = handed + math.max(unnamed, unleased)
    end
end
return handed

-- KEYS: the set of lost entries, the leases; then for each entry its room, its user's sockets there, and the entries of its
-- gateway. ARGV: the lease in seconds; then for each entry its user, its socket, the entry itself, and its gateway's id.
-- Hands entries that stand, and that nobody would remove, to their gateway. One that has no lease gets one: if it is dead
-- that expires as others do. Returns how many there were.
local handed = 0
local function hand(room, sockets, entries, user, socket, entry, gateway)
    if redis.call('HGET', room, user) ~= socket and not redis.call('ZSCORE', sockets, socket) then return end
    if redis.call('SISMEMBER', KEYS[1], entry) == 1 then return end
    local unnamed = redis.call('SADD', entries, entry)
    local unleased = redis.call('ZADD', KEYS[2], 'NX', now / 1000000 + ARGV[1], gateway)
    handed = handed + math.max(unnamed, unleased)
end
for i = 0, (#KEYS - 2) / 3 - 1 do
    local k, a = 3 * i + 3, 4 * i + 2
    local done, problem = pcall(hand, KEYS[k], KEYS[k + 1], KEYS[k + 2], unpack(ARGV, a, a + 3))
    if not done then
        local reason = type(problem) == 'table' and problem.err or tostring(problem)
        if not reason:find('WRONGTYPE', 1, true) then error(problem, 0) end
    end
end
return handed

-- KEYS: the stream. ARGV: the group, this consumer, milliseconds that an entry has been idle at least, how many entries
-- at most, the consumer to take them from ('' is any), attempts (0 is no bound), '1' if an entry on its last attempt is
-- in hand, and the ids in hand.
-- Takes over pending entries; returns {id, fields, how often it was delivered by now} of each.
-- Of the entries in hand when a consumer died only one is the cause. So an entry on its last attempt is tried without
-- another one on its last attempt beside it: a crash then counts against that entry alone.
local stream, group, me, idle, most, whose, attempts = KEYS[1], unpack(ARGV)
local alone, in_hand, entries = ARGV[7] == '1', {}, {}
for i = 8, #ARGV do in_hand[ARGV[i]] = true end
local search = {'XPENDING', stream, group, 'IDLE', idle, '-', '+', most + #ARGV - 7}
if whose ~= '' then search[#search + 1] = whose end
for _, found in ipairs(redis.call(unpack(search))) do
    local id, delivered = found[1], found[4] + 1
    local last = delivered == tonumber(attempts)
    if not in_hand[id] and not (last and alone) then
        alone = alone or last
        local entry = claimed(stream, group, me, idle, id)
        if entry then entries[#entries + 1] = {id, entry[2], delivered} end
    end
end
return entries

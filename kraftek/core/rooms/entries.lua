-- KEYS: the set that contains the entries, the set of lost entries, the epoch; then for each entry its room, string and
-- sockets, the channel or stream of each service with presence, the sockets of its rivals: users and rooms whose names
-- come to the same string, and what users show in the room (shown.lua), if clients may watch it. ARGV: the number of
-- these services, and for each how many events and bytes may wait in its stream ('100000 268435456'), or 0 for a channel;
-- the epoch that the gateway knows of; then for each entry its user, its socket, the entry itself, the event, when it
-- entered, how many rivals, and what its user shows.
-- each(change): calls change(room, string, sockets, user, socket, entry, shown, what) for every entry; without presence for
-- clients shown is nil. An entry with a key of another type does not affect the others: failure then holds the key and the
-- reason.
-- key, arg: where the entry at hand begins. told: what presence.lua announces at the end, which also returns result.
local key, arg = 4, services + 3
local function each(change)
    while key <= #KEYS do
        local next_key, what = key + 3 + services + ARGV[arg + 5], ARGV[arg + 6]
        local shown = what ~= '' and KEYS[next_key]
        if shown then next_key = next_key + 1 end
        local done, raised =
            pcall(change, KEYS[key], KEYS[key + 1], KEYS[key + 2], ARGV[arg], ARGV[arg + 1], ARGV[arg + 2], shown, what)
        if not done then
            local reason = type(raised) == 'table' and raised.err or tostring(raised)
            if not reason:find('WRONGTYPE', 1, true) then
                problem = raised
                break
            end
            failure = {KEYS[key], reason}
        end
        key, arg = next_key, arg + 7
    end
end

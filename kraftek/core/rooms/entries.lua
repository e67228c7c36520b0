-- KEYS: the set that contains the entries, the set of lost entries; then for each entry its room, string and sockets,
-- and the channel or stream of each service with presence. ARGV: the number of these services, and for each the length
-- of its stream, 0 for a channel; then for each entry its user, its socket, the entry itself, and the event.
-- each(change): calls change(room, string, sockets, user, socket, entry, publish) for every entry. An event that cannot
-- be sent to a service (its key is no stream) and an entry with a key of another type do not affect the others: failure
-- then holds the key and the reason.
local services, failure = tonumber(ARGV[1]), {}
local function each(change)
    local key, arg = 3, services + 2
    while key <= #KEYS do
        local function publish()
            for i = 1, services do
                local place, most, result = KEYS[key + 2 + i], ARGV[i + 1], nil
                if most == '0' then
                    result = redis.pcall('PUBLISH', place, ARGV[arg + 3])
                else
                    result = redis.pcall('XADD', place, 'MAXLEN', '~', most, '*', 'event', ARGV[arg + 3])
                end
                if type(result) == 'table' then failure = {place, result.err} end
            end
        end
        local done, problem =
            pcall(change, KEYS[key], KEYS[key + 1], KEYS[key + 2], ARGV[arg], ARGV[arg + 1], ARGV[arg + 2], publish)
        if not done then
            local reason = type(problem) == 'table' and problem.err or tostring(problem)
            if not reason:find('WRONGTYPE', 1, true) then error(problem, 0) end
            failure = {KEYS[key], reason}
        end
        key, arg = key + 3 + services, arg + 4
    end
end

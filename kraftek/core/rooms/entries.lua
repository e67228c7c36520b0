-- KEYS: the set that names the entries, the set of lost ones; then for each entry its room, string and sockets, and
-- where each service with presence reads. ARGV: how many services these are, and of each how long its stream may be, 0
-- for a channel; then for each entry its user, socket, name, and what services are told.
-- each(change): calls change(room, string, sockets, user, socket, entry, tell) for every entry. A service that cannot
-- be told (its key is no stream) keeps nothing from being written, and nobody else from being told; nor does an entry of
-- which a key has another type keep others from being written: failure then says where and why.
local services, failure = tonumber(ARGV[1]), {}
local function each(change)
    local key, arg = 3, services + 2
    while key <= #KEYS do
        local function tell()
            for i = 1, services do
                local place, most, told = KEYS[key + 2 + i], ARGV[i + 1], nil
                if most == '0' then
                    told = redis.pcall('PUBLISH', place, ARGV[arg + 3])
                else
                    told = redis.pcall('XADD', place, 'MAXLEN', '~', most, '*', 'event', ARGV[arg + 3])
                end
                if type(told) == 'table' then failure = {place, told.err} end
            end
        end
        local done, problem =
            pcall(change, KEYS[key], KEYS[key + 1], KEYS[key + 2], ARGV[arg], ARGV[arg + 1], ARGV[arg + 2], tell)
        if not done then
            local reason = type(problem) == 'table' and problem.err or tostring(problem)
            if not reason:find('WRONGTYPE', 1, true) then error(problem, 0) end
            failure = {KEYS[key], reason}
        end
        key, arg = key + 3 + services, arg + 4
    end
end

-- KEYS: a room, what its users show there (shown.lua), and the epoch. ARGV: the epoch, if the gateway knows it, the most
-- users to return, and some of them, preferred.
-- Returns false if the data are of another epoch: they were lost a moment ago, and are being written anew. Otherwise how many
-- there are; then each of at most so many, and what it shows, or nothing: all, if there are no more. Otherwise
-- the preferred ones that are still there, and any others. Without them all the list would be another one each time.
if of_another_epoch(KEYS[3], ARGV[1]) then return false end
local most, count = tonumber(ARGV[2]), redis.call('HLEN', KEYS[1])
local users, sockets, taken = {}, {}, {}
local function take(user, socket)
    if #users < most and not taken[user] then
        taken[user] = true
        users[#users + 1], sockets[#sockets + 1] = user, socket
    end
end
if count <= most then
    local all = redis.call('HGETALL', KEYS[1])
    for i = 1, #all, 2 do take(all[i], all[i + 1]) end
else
    if ARGV[3] then
        local there = redis.call('HMGET', KEYS[1], unpack(ARGV, 3))
        for i, socket in ipairs(there) do
            if socket then take(ARGV[i + 2], socket) end
        end
    end
    if #users < most then
        local any = redis.call('HRANDFIELD', KEYS[1], most, 'WITHVALUES')
        for i = 1, #any, 2 do take(any[i], any[i + 1]) end
    end
end
local shown = users[1] and redis.call('EXISTS', KEYS[2]) == 1 and redis.call('HMGET', KEYS[2], unpack(sockets)) or {}
local result = {count}
for i, user in ipairs(users) do
    result[2 * i], result[2 * i + 1] = user, shown[i] or ''
end
return result

-- telling_users(prefix, channel, users, whole, id, message): as telling, of a message to users: it is kept for each of them, and
-- nothing in it says who the others are. What it returns publishes it then, and returns {how many took it in all, {the offset
-- of the first, its epoch}, …}. Where no history is kept `channel` gets `whole`, once.
local function telling_users(prefix, channel, users, whole, id, message)
    local stand, keeps, expected = rules_of(prefix), true, nil
    local first = stand and history_of(stand, 'user:' .. users[1])
    if first and first.patterns then keeps, expected = kept(message, first.patterns) end
    if keeps == nil then return nil, expected end
    if not (first and keeps) then
        return function()
            local answer = {redis.call('PUBLISH', channel, whole)}
            for i = 1, #users do answer[1 + i] = {0, ''} end
            return answer
        end
    end
    local publish, rest = {}, message:sub((message:find('"', 1, true)))
    for _, user in ipairs(users) do
        if not publish[user] then
            local to_one = '{"userIds":' .. cjson.encode({user}) .. ',' .. rest
            publish[user] = telling_by(stand, channel, 'user:' .. user, to_one, id, message)
        end
    end
    return function()
        local answer, told = {0}, {}
        for i, user in ipairs(users) do
            if not told[user] then
                local took, offset, epoch = unpack(publish[user]())
                answer[1], told[user] = answer[1] + took, {offset, epoch}
            end
            answer[1 + i] = told[user]
        end
        return answer
    end
end

-- telling_to(prefix, channel, whom, whole, id): as telling, of what the SDKs write. `whom` is a topic; or it is `users:` and the
-- JSON list of users with which the message ends, and what is returned is about the first of them.
local function telling_to(prefix, channel, whom, whole, id)
    local list = whom:match('^users:(.*)$')
    if not list then return telling(prefix, channel, whom, whole, id) end
    local message = whole:sub(1, -1 - #list - #',"userIds":}') .. '}'
    local publish = telling_users(prefix, channel, cjson.decode(list), whole, id, message)
    return function()
        if not publish then return {redis.call('PUBLISH', channel, whole), 0, ''} end
        local took, first = unpack(publish())
        return {took, unpack(first)}
    end
end

-- tell_users(list, message, id, prefix, broadcast): tells the users of a JSON list, at once.
local MOST = 1000
local function tell_users(list, message, id, prefix, broadcast)
    local function wrong(expected)
        return redis.error_reply('ERR kraftek_tell_users: expected ' .. expected)
    end
    local read, users = pcall(cjson.decode, list)
    local fits = read and type(users) == 'table' and #users > 0 and #users <= MOST
    for _, user in ipairs(fits and users or {}) do fits = fits and type(user) == 'string' and user ~= '' end
    if not fits then return wrong('a JSON list of 1 to ' .. MOST .. ' user ids') end
    local _, start = message:find('^%s*{%s*"')
    if not start then return wrong('a JSON object with a type as the message') end
    local whole = '{"userIds":' .. cjson.encode(users) .. ',' .. message:sub(start)
    local publish, expected = telling_users(prefix, prefix .. broadcast, users, whole, id, message)
    if not publish then return wrong(expected) end
    return publish()
end

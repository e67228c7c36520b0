-- Tells a room something, and keeps it if the room has a history: first in its log, and only then is it published, so that Redis
-- has refused by then what it refuses. An id that is known is told once.
-- What is more than the message are the fields of a text, of which it is `size` bytes more.
local function append(history, message, id, size, ...)
    local order, offset, told = history.stand, history.offset + 1, history.bytes + size
    order.offset = order.offset + 1
    -- As text, once: each number that a command is given becomes one.
    local number, in_all, total = text_of(offset), text_of(order.offset), text_of(told)
    local entry = number .. '-' .. text_of(history.bytes)
    redis.call('HSET', order.key, 'told', in_all)
    redis.call('HSET', history.position, 'offset', number, 'bytes', total, 'told', in_all)
    local added = redis.pcall('XADD', history.log, 'MAXLEN', history.count, entry, 'm', message, 'o', in_all, ...)
    if type(added) == 'table' then
        -- A key of another type, or the log of another position.
        redis.call('DEL', history.log)
        redis.call('XADD', history.log, 'MAXLEN', history.count, entry, 'm', message, 'o', in_all, ...)
    end
    if told - history.floor > history.most then
        local floor
        repeat
            local oldest = redis.call('XRANGE', history.log, '-', '+', 'COUNT', 1)[1][1]
            floor = tonumber(oldest:match('-(%d+)$'))
            local fits = told - floor <= history.most or oldest == entry
            if not fits then redis.call('XDEL', history.log, oldest) end
        until fits
        redis.call('HSET', history.position, 'floor', floor)
    end
    if id ~= '' then
        redis.call('ZADD', history.ids, offset, id)
        if history.lost then
            redis.call('ZREMRANGEBYRANK', history.ids, 0, -1 - history.count)
        else
            redis.call('ZREMRANGEBYSCORE', history.ids, '-inf', offset - history.count)
        end
        redis.call('PEXPIRE', history.ids, history.ttl)
    end
    redis.call('PEXPIRE', history.log, history.ttl)
    outlive(history)
    return offset, number, in_all, entry
end

-- Whether every gateway that has a lease follows these rules. None does that has no lease: follow.lua.
local function all_follow(stand)
    if stand.all_follow == nil then
        local follow = redis.call('ZCARD', stand.own .. 'following')
        stand.all_follow = redis.call('ZCARD', stand.prefix .. 'gateways') == follow
    end
    return stand.all_follow
end

-- known_at(history, id): the offset of the message with that id, if it was told.
local function known_at(history, id)
    if id == '' then return nil end
    local known = redis.pcall('ZSCORE', history.ids, id)
    if type(known) ~= 'table' then return known and tonumber(known) end
    redis.call('DEL', history.ids)
end

-- publishing(channel, history, message, whole, …): a function that publishes what was kept. What else is given
-- is what append() has returned.
local function publishing(channel, history, message, whole, offset, number, in_all)
    local where = history.epoch .. ' ' .. number .. ' ' .. history.stand.epoch .. '.' .. in_all .. ' '
    return function()
        local took = redis.call('PUBLISH', history.channel, where .. message)
        if not all_follow(history.stand) then
            local numbered = '{"offset":' .. number .. ',' .. whole:sub((whole:find('"', 1, true)))
            took = took + redis.call('PUBLISH', channel, numbered)
        end
        return {took, offset, history.epoch}
    end
end

-- telling_by(stand, channel, topic, whole, id, message): keeps the message by the rules that stand, if any do. Returns a
-- function that publishes it and returns {how many took it, its offset, the epoch}; the offset is 0 where no history is kept,
-- and `channel` gets `whole` then: the message, and in it whom it is for. Without `message`, which strangers have written,
-- that is what is kept. Returns nil, and what was expected, if that has no type that can be read.
local function telling_by(stand, channel, topic, whole, id, message)
    local history = stand and history_of(stand, topic)
    if history and history.patterns then
        local keeps, expected = kept(message or whole, history.patterns)
        if keeps == nil and message then return nil, expected end
        if keeps == false then history = nil end
    end
    message = message or whole
    if not history then
        return function() return {redis.call('PUBLISH', channel, whole), 0, ''} end
    end
    position_of(history)
    local known = known_at(history, id)
    if known then
        return function() return {0, known, history.epoch} end
    end
    if history.lost then make_room(history, #message) end
    return publishing(channel, history, message, whole, append(history, message, id, #message))
end

local function telling(prefix, ...)
    return telling_by(rules_of(prefix), ...)
end

-- tell(room, message, id, prefix, broadcast): the same of a message to a room, at once.
local function tell(room, message, id, prefix, broadcast)
    local _, start = message:find('^%s*{%s*"')
    local publish, expected = nil, 'a JSON object with a type as the message'
    if start then
        local whole = '{"roomId":' .. cjson.encode(room) .. ',' .. message:sub(start)
        publish, expected = telling(prefix, prefix .. broadcast, 'room:' .. room, whole, id, message)
    end
    if not publish then return redis.error_reply('ERR kraftek_tell: expected ' .. expected) end
    return publish()
end

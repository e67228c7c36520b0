-- Tells a room something, and keeps it if the room has a history: first in its log, and only then is it published, so that Redis
-- has refused by then what it refuses. An id that is known is told once.
local function append(history, order, message, id)
    local offset, told = history.offset + 1, history.bytes + #message
    local entry = string.format('%.0f-%.0f', offset, history.bytes)
    order.offset = order.offset + 1
    redis.call('HSET', order.key, 'told', order.offset)
    redis.call('HSET', history.position, 'offset', offset, 'bytes', told, 'told', order.offset)
    local added = redis.pcall('XADD', history.log, 'MAXLEN', history.count, entry, 'm', message, 'o', order.offset)
    if type(added) == 'table' then
        -- A key of another type, or the log of another position.
        redis.call('DEL', history.log)
        redis.call('XADD', history.log, 'MAXLEN', history.count, entry, 'm', message, 'o', order.offset)
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
        redis.call('ZREMRANGEBYSCORE', history.ids, '-inf', offset - history.count)
        redis.call('PEXPIRE', history.ids, history.ttl)
    end
    redis.call('PEXPIRE', history.log, history.ttl)
    outlive(history)
    return offset
end

-- Whether every gateway that has a lease follows these rules.
local function all_follow(prefix)
    local gateways = redis.call('ZRANGE', prefix .. 'gateways', 0, -1)
    if #gateways == 0 then return true end
    local now = tonumber(redis.call('TIME')[1])
    for _, until_when in ipairs(redis.call('ZMSCORE', prefix .. OWN .. 'following', unpack(gateways))) do
        if not until_when or tonumber(until_when) < now then return false end
    end
    return true
end

-- telling(prefix, channel, topic, whole, id, message): keeps the message. Returns a function that publishes it and returns {how
-- many took it, its offset, the epoch}; the offset is 0 where no history is kept, and `channel` gets `whole` then: the message,
-- and in it whom it is for. Without `message`, which strangers have written, that is what is kept. Returns nil, and what was
-- expected, if that has no type that can be read.
local function telling(prefix, channel, topic, whole, id, message)
    local history = history_of(prefix, topic)
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
    if id ~= '' then
        local known = redis.pcall('ZSCORE', history.ids, id)
        if type(known) == 'table' then
            redis.call('DEL', history.ids)
        elseif known then
            return function() return {0, tonumber(known), history.epoch} end
        end
    end
    local order = order_of(prefix)
    local offset = append(history, order, message, id)
    local number = string.format('%.0f', offset)
    local where = history.epoch .. ' ' .. number .. ' ' .. in_order(order)
    return function()
        local took = redis.call('PUBLISH', history.channel, where .. ' ' .. message)
        if not all_follow(prefix) then
            local numbered = '{"offset":' .. number .. ',' .. whole:sub((whole:find('"', 1, true)))
            took = took + redis.call('PUBLISH', channel, numbered)
        end
        return {took, offset, history.epoch}
    end
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

-- Texts that are told in pieces. Each piece takes an offset of its topic. Of a text one entry is kept in the log, at the
-- offset of its last piece, so that offsets are missing which are not lost. The text is in the hash history.texts, in chunks:
-- 'c<offset of its first piece>.<number of the chunk>'; 'k<key>' says of one that goes on where it is.
-- The fields of an entry: m, message, o, number in the order; of a text t, the offset of its first piece, n, its number of
-- chunks, s, its size, k, its key, and `message` is what stands before the text.

-- lost_at(history): the offset, and the number in the order, at and before which something may be missing that was kept; nil
-- for a topic that was not told any text: its offsets say what is missing.
local function lost_at(history)
    if not history.lost then return nil end
    local offset, number = history.lost:match('^(%d+) (%d+)$')
    return tonumber(offset), tonumber(number)
end

local function size_of(fields)
    return #fields[2] + tonumber(fields[10] or 0)
end

local function chunks_of(first, count)
    local names = {}
    for i = 1, tonumber(count) do names[i] = 'c' .. first .. '.' .. i end
    return names
end

-- message_of(history, fields): what is kept of an entry, as it was told; a text as a whole, or nil if Redis has lost some of it.
local function message_of(history, fields)
    if not fields[6] then return fields[2] end
    local names, parts = chunks_of(fields[6], fields[8]), {fields[2]}
    for from = 1, #names, 1000 do
        local found = redis.call('HMGET', history.texts, unpack(names, from, math.min(#names, from + 999)))
        for _, part in ipairs(found) do
            if not part then return nil end
            parts[#parts + 1] = part
        end
    end
    parts[#parts + 1] = '"}'
    return table.concat(parts)
end

-- forget(history, id, fields): an entry is not kept any more.
local function forget(history, id, fields)
    redis.call('XDEL', history.log, id)
    history.floor = history.floor + size_of(fields)
    if not fields[6] then return end
    local names, key = chunks_of(fields[6], fields[8]), 'k' .. fields[12]
    for from = 1, #names, 1000 do
        redis.call('HDEL', history.texts, unpack(names, from, math.min(#names, from + 999)))
    end
    if (redis.call('HGET', history.texts, key) or ''):match('^%d+') == fields[6] then
        redis.call('HDEL', history.texts, key)
    end
end

-- begin_texts(history): from now on the topic says itself what is lost.
local function begin_texts(history)
    local oldest = redis.pcall('XRANGE', history.log, '-', '+', 'COUNT', 1)
    local offset, number = history.offset, history.told or 0
    history.floor = history.bytes
    if not oldest.err and oldest[1] then
        local before
        offset, before = oldest[1][1]:match('^(%d+)-(%d+)$')
        offset, number, history.floor = offset - 1, (tonumber(oldest[1][2][4]) or 1) - 1, tonumber(before)
    end
    history.lost = string.format('%.0f %.0f', offset, number)
end

-- make_room(history, size, old, fields, anew): for one entry that is `size` bytes more, in a topic that is told texts. It takes
-- the place of the entry `old` with these fields, if there is one; `anew`: its text is not kept, either.
local function make_room(history, size, old, fields, anew)
    if not history.lost then begin_texts(history) end
    local offset, number = lost_at(history)
    local length = redis.pcall('XLEN', history.log)
    if type(length) == 'table' or length == 0 then
        redis.call('DEL', history.log, history.texts)
        offset, number, history.floor, length = history.offset, history.told or 0, history.bytes, 0
    elseif old then
        if anew then
            forget(history, old, fields)
        else
            redis.call('XDEL', history.log, old)
            history.floor = history.floor + #fields[2]
        end
        length = length - 1
    end
    while length > 0 and (length >= history.count or history.bytes + size - history.floor > history.most) do
        local oldest = redis.call('XRANGE', history.log, '-', '+', 'COUNT', 1)[1]
        forget(history, oldest[1], oldest[2])
        offset, number, length = tonumber(oldest[1]:match('^%d+')), tonumber(oldest[2][4]) or 0, length - 1
    end
    history.lost = string.format('%.0f %.0f', offset, number)
    redis.call('HSET', history.position, 'lost', history.lost, 'floor', history.floor)
    redis.call('PEXPIRE', history.texts, history.ttl)
end

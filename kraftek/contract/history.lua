-- The history of a topic, 'room:<room>': docs/services.rst, "Rooms with history". All scripts that touch it begin with this.
local OWN = 'gateways:history:'

-- run_id(): that of this server's process. A Function keeps it: another process loads its library anew.
local run
local function run_id()
    run = run or redis.call('INFO', 'server'):match('run_id:(%x+)')
    return run
end

-- covers(rule, topic): {head, tail or false, count, ttl in ms, bytes, patterns of messages or nothing}. Without a tail the
-- topic has that name, otherwise it begins and ends so.
local function covers(rule, topic)
    local head, tail = rule[1], rule[2]
    if not tail then return topic == head end
    return #topic >= #head + #tail and topic:sub(1, #head) == head and topic:sub(#topic - #tail + 1) == tail
end

-- rules_of(prefix): the rules that stand, and where the one order is that all has that is told to topics: its epoch, offset
-- and ancestors, as of a topic; or nil where none stand.
local text, rules
local function rules_of(prefix)
    local own = prefix .. OWN
    local key = own .. 'rules'
    local known = redis.call('HMGET', key, 'rules', 'generation', 'epoch', 'told', 'life', 'ancestors')
    if not known[1] then return nil end
    if known[1] ~= text then text, rules = known[1], cjson.decode(known[1]) end
    return {
        prefix = prefix,
        own = own,
        key = key,
        rules = rules,
        generation = known[2],
        epoch = known[3],
        offset = tonumber(known[4] or 0),
        life = known[5],
        ancestors = known[6] or ''
    }
end

-- history_of(stand, topic): its rule, of those that stand, and its keys, or nil where no history is kept.
local function history_of(stand, topic)
    for _, rule in ipairs(stand.rules) do
        if covers(rule, topic) then
            if rule[3] == 0 then return nil end
            return {
                stand = stand,
                topic = topic,
                count = rule[3],
                ttl = rule[4],
                most = rule[5],
                patterns = rule[6],
                position = stand.own .. 'position:' .. topic,
                log = stand.own .. 'log:' .. topic,
                ids = stand.own .. 'ids:' .. topic,
                texts = stand.own .. 'texts:' .. topic,
                channel = stand.own .. topic
            }
        end
    end
end

local function text_of(offset)
    return string.format('%.0f', offset)
end

local function new_epoch(life, name)
    local time = redis.call('TIME')
    return redis.sha1hex(life .. ' ' .. time[1] .. ' ' .. time[2] .. ' ' .. name):sub(1, 12)
end

local function with_ancestor(epoch, last, ancestors)
    local kept = {}
    for each, its_last in (epoch .. ' ' .. last .. ' ' .. ancestors):gmatch('(%S+) (%S+)') do
        if #kept < 8 then kept[#kept + 1] = each .. ' ' .. its_last end
    end
    return table.concat(kept, ' ')
end

-- order_of(stand): the order, in this life of the server. With other rules it begins anew, and so do all topics. It is a new
-- epoch when the server's process is another one, as after a fail-over: its data may be older than what was told.
local function order_of(stand)
    local life = stand.generation .. ':' .. run_id()
    if stand.epoch and stand.life == life then return stand end
    local before, last = stand.epoch, stand.offset
    stand.epoch = new_epoch(life, '')
    if before and (stand.life or ''):match('^[^:]*') == stand.generation then
        stand.ancestors = with_ancestor(before, text_of(last), stand.ancestors)
    else
        stand.offset, stand.ancestors = 0, ''
    end
    stand.life = life
    redis.call('HSET', stand.key, 'epoch', stand.epoch, 'told', stand.offset, 'life', life, 'ancestors', stand.ancestors)
    return stand
end

-- in_order(order): as clients have it.
local function in_order(order)
    return order.epoch .. '.' .. text_of(order.offset)
end

-- position_of(history): adds where the topic is: epoch, offset and ancestors, the bytes of all messages so far, by how many of
-- these the oldest one that is kept was preceded, or an older one, where the last one is in the order, and, if it was told
-- texts, what is lost (texts.lua). It is a new epoch when the order has one: after a fail-over and back, too, though no other
-- process touched the topic. Offsets go on then. With other rules, or without a position, as after a loss of data, they begin
-- anew.
local function position_of(history)
    local known = redis.pcall('HMGET', history.position, 'epoch', 'offset', 'life', 'ancestors', 'bytes', 'floor', 'told', 'lost')
    if known.err then
        redis.call('DEL', history.position)
        known = {}
    end
    local generation = history.stand.generation
    local life = generation .. ':' .. order_of(history.stand).epoch
    history.epoch, history.offset, history.ancestors = known[1], tonumber(known[2] or 0), known[4] or ''
    history.bytes, history.floor, history.told = tonumber(known[5] or 0), tonumber(known[6] or 0), tonumber(known[7])
    history.lost = known[8]
    if known[1] and known[3] == life then return end
    history.epoch = new_epoch(life, history.topic)
    if known[1] and (known[3] or ''):match('^[^:]*') == generation then
        history.ancestors = with_ancestor(known[1], known[2], history.ancestors)
        redis.call('HSET', history.position, 'epoch', history.epoch, 'life', life, 'ancestors', history.ancestors)
    else
        history.offset, history.ancestors, history.bytes, history.floor, history.told, history.lost = 0, '', 0, 0, nil, nil
        redis.call('DEL', history.position, history.log, history.ids, history.texts)
        redis.call('HSET', history.position, 'epoch', history.epoch, 'life', life, 'offset', 0)
    end
end

-- outlive(history): the position is known for longer than the messages are kept.
local function outlive(history)
    redis.call('PEXPIRE', history.position, history.ttl + 120000)
end

-- last_of(history, epoch): the last offset of that epoch, or nil if it is none of this history. Of the order likewise.
local function last_of(history, epoch)
    if epoch == history.epoch then return history.offset end
    for ancestor, last in history.ancestors:gmatch('(%S+) (%S+)') do
        if epoch == ancestor then return tonumber(last) end
    end
end

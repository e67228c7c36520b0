-- KEYS: the rules, and the positions of some rooms. ARGV: an epoch and a number of the order, and the most bytes to return;
-- then for each room where the client has entered it: an epoch and an offset.
-- Returns where the order is; and false with where each room is and all that was told to them later than that number, as
-- {the room, from 0; its offset; its number; the message}; or why that cannot be had.
local prefix = KEYS[1]:sub(1, -1 - #(OWN .. 'rules'))
local stand = rules_of(prefix)
if not stand then return {'', 'epoch'} end
local order = order_of(stand)
local since, most = tonumber(ARGV[2]), tonumber(ARGV[3])

-- Adds what one room was told, the newest first. Returns why that cannot be had.
local function collect(found, room, history, entered)
    local next_offset, newest = history.offset, '+'
    local lost, lost_number = lost_at(history)
    if next_offset <= entered or (history.told and history.told <= since) then return nil end
    while true do
        local entries = redis.pcall('XREVRANGE', history.log, newest, '-', 'COUNT', 100)
        if entries.err then return 'expired' end
        if not entries[1] then
            if newest == '+' then return 'expired' end
            return not (lost and (lost <= entered or lost_number <= since)) and 'too_many' or nil
        end
        for _, entry in ipairs(entries) do
            local offset, number = tonumber(entry[1]:match('^%d+')), tonumber(entry[2][4])
            if not number or not lost and offset ~= next_offset then return 'expired' end
            if number <= since or offset <= entered then return nil end
            most = most - size_of(entry[2])
            if most < 0 then return 'too_many' end
            local message = message_of(history, entry[2])
            if not message then return 'expired' end
            found[#found + 1] = {room, offset, number, message}
            next_offset = offset - 1
            if next_offset <= entered then return nil end
            newest = '(' .. entry[1]
        end
    end
end

local last = last_of(order, ARGV[1])
if not last or since > last then return {in_order(order), 'epoch'} end
local answer, found = {in_order(order), false}, {}
for i = 2, #KEYS do
    local history = history_of(stand, KEYS[i]:sub(1 + #(prefix .. OWN .. 'position:')))
    if not history then return {in_order(order), 'epoch'} end
    position_of(history)
    outlive(history)
    local entered = tonumber(ARGV[2 * i + 1])
    last = last_of(history, ARGV[2 * i])
    if not last or entered > last then return {in_order(order), 'epoch'} end
    local reason = collect(found, i - 2, history, entered)
    if reason then return {in_order(order), reason} end
    answer[#answer + 1] = {history.epoch, history.offset}
end
answer[#answer + 1] = found
return answer

-- KEYS: the rules, and the position of the topic. ARGV: an epoch and an offset, and the most bytes to return.
-- Returns the topic's epoch and offset, and what was told after the given ones: false, and offsets and messages in turn, or why
-- they cannot be had. Nil where no history is kept.
local prefix = KEYS[1]:sub(1, -1 - #(OWN .. 'rules'))
local stand = rules_of(prefix)
local history = stand and history_of(stand, KEYS[2]:sub(1 + #(prefix .. OWN .. 'position:')))
if not history then return nil end
position_of(history)
outlive(history)
local epoch, since, most = ARGV[1], tonumber(ARGV[2]), tonumber(ARGV[3])

local function not_had(why)
    return {history.epoch, history.offset, why}
end

local last = last_of(history, epoch)
if not last or since > last then return not_had('epoch') end
local found = {history.epoch, history.offset, false}
if since == history.offset then return found end
local after = string.format('%.0f', since + 1)
local oldest = redis.pcall('XRANGE', history.log, after, '+', 'COUNT', 1)
if oldest.err or not oldest[1] then return not_had('expired') end
local offset, before = oldest[1][1]:match('^(%d+)-(%d+)$')
local lost = lost_at(history)
if lost and lost > since or not lost and (offset ~= after or history.bytes - before > most) then
    return not_had('too_many')
end
local entries = redis.call('XRANGE', history.log, after, '+')
if not lost and #entries ~= history.offset - since then return not_had('expired') end
for _, entry in ipairs(entries) do
    most = most - size_of(entry[2])
    if most < 0 then return not_had('too_many') end
    local message = message_of(history, entry[2])
    if not message then return not_had('expired') end
    found[#found + 1] = entry[1]:match('^%d+')
    found[#found + 1] = message
end
return found

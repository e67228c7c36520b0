-- KEYS: the rules, and the position of the room. ARGV: an epoch and an offset, or '' and 0 for the end of what was told; how
-- many messages to return at most, and of how many bytes, or one larger message.
-- Returns the room's epoch, the offset of the first message of the page, 1 if there are older ones, and the messages: those
-- before that offset. The epoch alone, if the given one is none of this history. Nil where no history is kept.
local prefix = KEYS[1]:sub(1, -1 - #(OWN .. 'rules'))
local stand = rules_of(prefix)
local history = stand and history_of(stand, KEYS[2]:sub(1 + #(prefix .. OWN .. 'position:')))
if not history then return nil end
position_of(history)
outlive(history)
local epoch, first, limit, most = ARGV[1], tonumber(ARGV[2]), tonumber(ARGV[3]), tonumber(ARGV[4])
if epoch == '' then
    first = history.offset + 1
else
    local last = last_of(history, epoch)
    if not last or first > last + 1 then return {history.epoch} end
end

-- One at a time: how large they are is not known before. None is left out between two, so the first that is missing is
-- older than what is kept.
local function told_at(offset)
    local id = string.format('%.0f', offset)
    local found = redis.pcall('XRANGE', history.log, id, id)
    return not found.err and found[1] and found[1][2][2]
end

local page, size, older = {}, 0, told_at(first - 1)
while older and #page < limit and (#page == 0 or size + #older <= most) do
    page[#page + 1], size, first = older, size + #older, first - 1
    older = told_at(first - 1)
end
local answer = {history.epoch, first, older and 1 or 0}
for i = #page, 1, -1 do answer[#answer + 1] = page[i] end
return answer

-- KEYS: the rules, and the position of the room. ARGV: an epoch and an offset, or '' and 0 for the end of what was told; how
-- many messages to return at most, and of how many bytes, or one larger message.
-- Returns the room's epoch, the offset of the first message of the page, 1 if there are older ones, and the messages before
-- the given offset, each after its own. The epoch alone, if the given one is none of this history. Nil where no history is kept.
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

-- One at a time: how large they are is not known before.
local function told_before(id)
    local found = redis.pcall('XREVRANGE', history.log, '(' .. id, '-', 'COUNT', 1)
    return not found.err and found[1] or nil
end

local page, size, older = {}, 0, told_before(string.format('%.0f-0', first))
while older and #page < limit and (#page == 0 or size + size_of(older[2]) <= most) do
    local message = message_of(history, older[2])
    if not message then
        older = nil
        break
    end
    page[#page + 1], size = {older[1]:match('^%d+'), message}, size + size_of(older[2])
    older = told_before(older[1])
end
if #page > 0 then first = tonumber(page[#page][1]) end
local answer = {history.epoch, first, older and 1 or 0}
for i = #page, 1, -1 do
    answer[#answer + 1] = page[i][1]
    answer[#answer + 1] = page[i][2]
end
return answer

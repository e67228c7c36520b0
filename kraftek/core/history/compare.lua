-- KEYS: the rules, and the positions of some topics. ARGV: for each topic an epoch and an offset.
-- Returns which of them, from 0, are elsewhere by now, or have no history any more. Positions of topics that are compared
-- outlive their messages.
local prefix = KEYS[1]:sub(1, -1 - #(OWN .. 'rules'))
local stand, elsewhere = rules_of(prefix), {}
for i = 2, #KEYS do
    local history = stand and history_of(stand, KEYS[i]:sub(1 + #(prefix .. OWN .. 'position:')))
    local same
    if history then
        position_of(history)
        outlive(history)
        same = history.epoch == ARGV[2 * i - 3] and history.offset == tonumber(ARGV[2 * i - 2])
    end
    if not same then elsewhere[#elsewhere + 1] = i - 2 end
end
return elsewhere

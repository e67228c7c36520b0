-- KEYS: the stream, or nothing for an event that came over Pub/Sub. ARGV: the group, the entry's id; then for each
-- command when to send it ('always', or 'unheard': if the one before had no receiver; or 'emit': emit.lua), its number of
-- words, and these; after those of 'unheard' the key under which its message is stored if it has no receiver either. The
-- first one may be 'of' and, with one word, the consumer that has the entry.
-- Sends the commands and acknowledges the entry, if it is still pending, for that consumer. Returns 1, or 0 if it is not.
local stream, emit = KEYS[1], nil
if stream then
    local pending = redis.pcall('XPENDING', stream, ARGV[1], ARGV[2], ARGV[2], 1)
    if pending.err or #pending == 0 or ARGV[3] == 'of' and pending[1][2] ~= ARGV[5] then return 0 end
end

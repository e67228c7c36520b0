-- KEYS: the leases of gateways, and what each of them publishes: registrations.py. ARGV: commands.
-- Returns a live gateway that does not know one of them and that command, or nothing.
for _, id in ipairs(redis.call('ZRANGEBYSCORE', KEYS[1], string.format('(%.6f', now / 1000000), '+inf')) do
    local known = {}
    local read, published = pcall(cjson.decode, redis.call('HGET', KEYS[2], id) or '')
    if read and type(published) == 'table' and type(published.commands) == 'table' then
        for _, command in ipairs(published.commands) do known[command] = true end
    end
    for _, command in ipairs(ARGV) do
        if not known[command] then return {id, command} end
    end
end
return {}

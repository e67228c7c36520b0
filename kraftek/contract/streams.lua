-- streams(): functions that append to streams within bounds of entries and bytes, and never remove what waits there. It
-- returns send, level, keep and rest. FULL is what send returns of a stream that takes no more.
-- An event's id is '<ms>-<sum>': Redis's time, when the stream was trimmed last or was empty, and the bytes of all events
-- that were appended so before it. So the sum less that of the first event that is not handled is what waits, and no event
-- is read for that. (MEMORY USAGE reads one node of the stream after the other: 5 ms for 20,000.)
-- What is known of a stream is kept beside it, as doubles. They hold 2^53 bytes: three years of 100 MB a second.
--   ms        of the last id
--   sum       of all events so far
--   handled   the part of the sum that does not wait any more
--   length    entries in the stream when this was written: if there are more now, others append to it
--   measured  0, or when what waits was measured last, because others append: their ids have no sum
--   owed      1 if presence events wait for room: rooms/presence.lua
-- It may be missing or older than the stream. Then there are more entries than are known of, and all of it is measured.
-- An event that finds room, as nearly all do, takes four commands. Each further one costs it half a microsecond or more,
-- and each function that is made a tenth: what is needed seldom is made by rest().
local function streams()
    local FORMAT, ENTRY, all, others, rest = '<dddddd', 50, {}, nil, nil

    -- level(stream): what is known of it. Of a table that changes, 'changed' is set, and keep() writes it.
    local function level(stream)
        local known = all[stream]
        if known then return known end
        local key = stream .. ':level'
        local kept, length = redis.pcall('GET', key), redis.call('XLEN', stream)
        if type(kept) == 'string' and #kept == 48 then
            local ms, sum, handled, before, measured, owed = struct.unpack(FORMAT, kept)
            known = {key = key, ms = ms, sum = sum, handled = handled, length = length, measured = measured, owed = owed}
            if length == 0 or length > before then rest().compare(known) end
        else
            known = {key = key, ms = 0, sum = 0, handled = 0, length = length, measured = 0}
            known.owed = redis.call('EXISTS', stream .. ':presence')
            rest().compare(known)
        end
        all[stream] = known
        return known
    end

    local function keep()
        for _, known in pairs(all) do
            if known.changed then
                redis.call('SET', known.key, struct.pack(
                    FORMAT, known.ms, known.sum, known.handled, known.length, known.measured, known.owed))
                known.changed = nil
            end
        end
    end

    -- Returns nothing, or why the entry was not added.
    local function add(stream, known, body)
        local added = redis.pcall('XADD', stream, string.format('%d-%d', known.ms, known.sum), 'event', body)
        if type(added) == 'table' then return added end
        -- The least bytes that Redis takes. For large events its allocator takes a quarter more.
        known.sum, known.length, known.changed = known.sum + #body + ENTRY, known.length + 1, true
    end

    -- send(stream, body, most, bytes): appends the event and returns 1, or returns FULL when `most` events or `bytes` wait
    -- already, or presence events that come first.
    local function send(stream, body, most, bytes)
        local known = level(stream)
        if known.owed == 1 then return FULL end
        local room = known.length < most and known.sum - known.handled + #body + ENTRY <= bytes
        if not room and not rest().takes(stream, #body, most, bytes) then return FULL end
        if known.measured > 0 or add(stream, known, body) then rest().append(stream, body) end
        return 1
    end

    -- rest(): the functions below.
    function rest()
        if others then return others end
        local clock

        local function milliseconds()
            if not clock then
                local time = redis.call('TIME')
                clock = time[1] * 1000 + math.floor(time[2] / 1000)
            end
            return clock
        end

        -- A stream that is empty, or has more entries than were known of.
        local function compare(known)
            if known.length == 0 then
                known.ms, known.changed = math.max(known.ms, milliseconds()), known.handled ~= known.sum
                known.handled, known.measured = known.sum, 0
            elseif known.measured == 0 then
                known.measured, known.changed = 1, true
            end
        end

        -- Whether one id is smaller than another. They have up to 20 digits, and a number of Lua holds 15.
        local function smaller(one, other)
            local ms, sequence = one:match('(%d+)-(%d+)')
            local other_ms, other_sequence = other:match('(%d+)-(%d+)')
            if ms == other_ms then ms, other_ms = sequence, other_sequence end
            return #ms < #other_ms or #ms == #other_ms and ms < other_ms
        end

        local function following(id)
            local ms, sequence = id:match('(%d+)-(%d+)')
            if tonumber(sequence) >= 2^53 then return id end
            return string.format('%s-%.0f', ms, sequence + 1)
        end

        -- trim(stream): removes the entries that every group has handled; once in a script, which nobody interrupts.
        local function trim(stream)
            local known, unhandled = level(stream), nil
            if known.trimmed or known.length == 0 then return end
            known.trimmed = true
            for _, reply in ipairs(redis.call('XINFO', 'GROUPS', stream)) do
                local group = fields(reply)
                local first = following(group['last-delivered-id'])
                if group.pending > 0 then first = redis.call('XPENDING', stream, group.name)[2] end
                if not unhandled or smaller(first, unhandled) then unhandled = first end
            end
            if not unhandled then return end
            local before, handled, ms = known.length, known.handled, known.ms
            known.ms = math.max(ms, milliseconds())
            known.length = before - redis.call('XTRIM', stream, 'MINID', unhandled)
            local sum = tonumber(unhandled:match('-(%d+)'))
            if known.length == 0 then
                known.handled, known.measured = known.sum, 0
            elseif known.measured > 0 then
                known.handled = known.sum - (known.sum - handled) * known.length / before
            elseif sum > handled and sum <= known.sum then
                known.handled = sum
            end
            known.changed = known.changed or known.ms ~= ms or known.length ~= before or known.handled ~= handled
        end

        -- measure(stream): if others append to it, measures what waits; it takes half a microsecond for each entry, and so
        -- a two hundredth of Redis's time at most.
        local function measure(stream)
            local known = level(stream)
            if known.measured > 0 and milliseconds() - known.measured >= math.max(900, known.length / 10) then
                known.handled = known.sum - redis.call('MEMORY', 'USAGE', stream, 'SAMPLES', 0)
                known.measured, known.changed = milliseconds(), true
            end
        end

        -- takes(stream, size, most, bytes): whether there is room for an event of so many bytes. One may always wait.
        local function takes(stream, size, most, bytes)
            local known = level(stream)
            for _ = 1, 2 do
                local waiting = known.sum - known.handled
                if known.length == 0 or known.length < most and waiting + size + ENTRY <= bytes then return true end
                trim(stream)
            end
            return false
        end

        -- append(stream, body): without a look at how full it is.
        local function append(stream, body)
            local known = level(stream)
            if known.measured > 0 then known.ms = math.max(known.ms, milliseconds()) end
            local failed = add(stream, known, body)
            if not failed then return end
            -- Others have given larger ids: the clock was set back, or they have times of their own.
            if not failed.err:find('equal or smaller', 1, true) then error(failed, 0) end
            local last = fields(redis.call('XINFO', 'STREAM', stream))['last-generated-id']
            known.ms = last:match('%d+') + 1
            failed = add(stream, known, body)
            if failed then error(failed, 0) end
        end

        others = {append = append, compare = compare, measure = measure, takes = takes, trim = trim}
        return others
    end

    return send, level, keep, rest
end

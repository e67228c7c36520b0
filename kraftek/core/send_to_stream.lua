-- send(stream, body, most): 1, or FULL when as many as may be wait.
-- Not MAXLEN, which throws away what nobody has handled: what every group has handled goes, and then nothing more fits.
local function send(stream, body, most)
    if redis.call('XLEN', stream) >= most and trim(stream) >= most then return FULL end
    redis.call('XADD', stream, '*', 'event', body)
    return 1
end

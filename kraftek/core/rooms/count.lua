-- KEYS: the gateway's entries. Returns how many there are, and Redis's time.
return {redis.call('SCARD', KEYS[1]), now}

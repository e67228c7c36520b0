"""``python ban.py bob`` takes bob's access back, and ``python ban.py bob --lift`` gives it again."""

import json
import sys

from redis import Redis

redis = Redis.from_url("redis://127.0.0.1:6379/0")
_, name, *lift = sys.argv
if lift:
    redis.srem("banned", name)
else:
    redis.sadd("banned", name)  # first: whoever asks from now on is told no
    redis.publish("auth:invalidate", json.dumps({"userId": name}))  # then: gateways ask again

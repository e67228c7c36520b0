"""Looks at both gateways every second, and says which alarms begin and which end."""

import time
from urllib.request import urlopen

from prometheus_client.parser import text_string_to_metric_families

GATEWAYS = ["http://127.0.0.1:9101/metrics", "http://127.0.0.1:9102/metrics"]
# What each looks at, and for how many seconds that has to last.
ALARMS = {
    "the gateway does not answer": (lambda now, before: not now, 5),
    "Redis is unavailable": (lambda now, before: now.get("kraftek_redis_up") == 0, 1),
    "events wait for a service": (lambda now, before: now.get("kraftek_waiting", 0) > 0, 3),
    "requests get no answer": (lambda now, before: grew("kraftek_requests_timed_out_total", now, before), 0),
    "the auth service does not answer": (lambda now, before: grew("kraftek_access_failed_total", now, before), 0),
}


def grew(name, now, before):
    return now.get(name, 0) > before.get(name, 0)


def read(url):
    """All numbers of a gateway, by name. Those with a label are added up."""
    numbers = {}
    try:
        with urlopen(url, timeout=2) as answer:
            text = answer.read().decode()
    except OSError:
        return numbers
    for family in text_string_to_metric_families(text):
        for sample in family.samples:
            numbers[sample.name] = numbers.get(sample.name, 0) + sample.value
    return numbers


before, since, ringing = {}, {}, set()
while True:
    for gateway in GATEWAYS:
        now = read(gateway)
        for alarm, (wrong, seconds) in ALARMS.items():
            key = (gateway, alarm)
            if not wrong(now, before.get(gateway, now)):
                since.pop(key, None)
                if key in ringing:
                    ringing.remove(key)
                    print(f"over:  {gateway}: {alarm}", flush=True)
            elif time.monotonic() - since.setdefault(key, time.monotonic()) >= seconds and key not in ringing:
                ringing.add(key)
                print(f"ALARM: {gateway}: {alarm}", flush=True)
        before[gateway] = now
    time.sleep(1)

"""The chat's own web server: it serves the page, gives out tokens that live for seconds, and takes access back.

Here everybody is believed their name. A real one would look at the session that a password has begun.
"""

import json
import os
import re
import time
from contextlib import suppress
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import jwt
from redis import Redis

import kraftek

PORT = int(os.environ.get("PAGE_PORT", "8000"))
GATEWAY = os.environ.get("GATEWAY_URL", "ws://localhost:3001/")
LIFE = float(os.environ.get("TOKEN_SECONDS", "30"))
SECRET = Path("secret").read_text()  # the gateway has it, too: see gateway.toml
ADMIN, BANNED = "admin", "chat:banned"
MAY = ["chat:*:*", "helper:*:*", "gateway:room:*"]  # the last: who is there, and what was said
KRAFTEK_JS = Path(kraftek.__file__).with_name("client") / "js/kraftek.js"
FILES = {"/": Path(__file__).with_name("page.html"), "/kraftek.js": KRAFTEK_JS}
redis = Redis.from_url(os.environ.get("REDIS_URL", "redis://127.0.0.1:6379/0"), decode_responses=True)


def give_token(name: str, _: str) -> dict[str, Any]:
    if redis.sismember(BANNED, name):
        raise PermissionError(f"{name} is banned")
    # Not in whole seconds: what is issued right after a ban was lifted has to be newer than the ban.
    claims = {"iss": "chat-auth", "aud": "chat", "sub": name, "iat": time.time(), "exp": time.time() + LIFE}
    token = jwt.encode({**claims, "rooms": ["kitchen"], "permissions": MAY}, SECRET, "HS256")
    return {"token": token, "seconds": LIFE} | (banned() if name == ADMIN else {})


def ban(name: str, token: str) -> dict[str, Any]:
    check_admin(name, token)
    redis.sadd(BANNED, name)  # the own data first: there is no other token from now on
    # Then the tokens that are out: the gateways take none of this user that was issued until now. Where no gateway has
    # heard it, say it again, until they have all expired.
    until = time.monotonic() + LIFE
    while not redis.publish("auth:invalidate", json.dumps({"userId": name})) and time.monotonic() < until:
        time.sleep(0.2)
    return banned()


def unban(name: str, token: str) -> dict[str, Any]:
    check_admin(name, token)
    redis.srem(BANNED, name)
    return banned()


def check_admin(name: str, token: str) -> None:
    with suppress(jwt.InvalidTokenError):
        claims = jwt.decode(token, SECRET, ["HS256"], issuer="chat-auth", audience="chat", leeway=5)
        if claims["sub"] == ADMIN != name:
            return
    raise PermissionError("that is for the admin to do, and to others")


def banned() -> dict[str, Any]:
    return {"banned": sorted(redis.smembers(BANNED))}


class Requests(BaseHTTPRequestHandler):
    def do_GET(self) -> None:
        file = FILES.get(self.path)
        kind = "text/javascript" if self.path.endswith(".js") else "text/html"
        text = file.read_text("utf-8").replace("ws://localhost:3001/", GATEWAY) if file else "There is no such page."
        self.answer(200 if file else 404, kind, text)

    def do_POST(self) -> None:
        name = self.rfile.read(min(int(self.headers["Content-Length"] or 0), 100)).decode("utf-8", "replace")
        action = {"/token": give_token, "/ban": ban, "/unban": unban}.get(self.path)
        try:
            if action is None or not re.fullmatch(r"\w([\w -]{0,18}\w)?", name):
                raise PermissionError("a name is 1 to 20 letters and digits")
            said = action(name, self.headers.get("Authorization", "").removeprefix("Bearer "))
            self.answer(200, "application/json", json.dumps(said))
        except PermissionError as no:
            self.answer(403, "application/json", json.dumps({"message": str(no)}))

    def answer(self, status: int, kind: str, text: str) -> None:
        self.send_response(status)
        self.send_header("Content-Type", f"{kind}; charset=utf-8")
        self.end_headers()
        self.wfile.write(text.encode())


if __name__ == "__main__":
    server = ThreadingHTTPServer(("127.0.0.1", PORT), Requests)
    print(f"The page is at http://localhost:{PORT}/", flush=True)
    with suppress(KeyboardInterrupt):
        server.serve_forever()

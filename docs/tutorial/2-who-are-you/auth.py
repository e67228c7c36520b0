"""The auth service: pages get a token here, and the gateway asks here what a token allows.

Everybody is believed their name. A real one would ask for a password.
"""

import json
import secrets
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import jwt
from redis import Redis

PAGE = "http://localhost:8000"
KEY = Path("key")  # it signs the tokens
redis = Redis.from_url("redis://127.0.0.1:6379/0", decode_responses=True)


def give_token(name):
    """A page asks. The token is good for ten minutes."""
    if not name.isalnum():
        return 400, "a name is letters and digits"
    if redis.sismember("banned", name):
        return 403, f"{name} is banned"
    return 200, jwt.encode({"sub": name, "exp": time.time() + 600}, KEY.read_text(), "HS256")


def check(question):
    """The gateway asks: whose token is this, and may they be in that room?"""
    asked = json.loads(question)
    try:
        claims = jwt.decode(asked["token"], KEY.read_text(), ["HS256"])
    except jwt.InvalidTokenError as error:
        return 200, json.dumps({"success": False, "message": str(error)})
    name = claims["sub"]
    if asked["roomId"] != "hall" or redis.sismember("banned", name):
        return 200, json.dumps({"success": False, "message": f"{name} may not be there"})
    return 200, json.dumps({"success": True, "userId": name, "expiresAt": claims["exp"]})


class Requests(BaseHTTPRequestHandler):
    def do_POST(self):
        body = self.rfile.read(int(self.headers["Content-Length"])).decode()
        answer = {"/token": give_token, "/auth/check": check}.get(self.path)
        status, text = answer(body) if answer else (404, "expected /token or /auth/check")
        self.send_response(status)
        self.send_header("Access-Control-Allow-Origin", PAGE)  # this page may read the answer
        self.send_header("Content-Length", str(len(text.encode())))
        self.end_headers()
        self.wfile.write(text.encode())


if not KEY.exists():
    KEY.touch(0o600)
    KEY.write_text(secrets.token_hex(32))
ThreadingHTTPServer(("127.0.0.1", 8001), Requests).serve_forever()

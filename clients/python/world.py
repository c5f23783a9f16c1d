"""What the clients of this folder know of the world, and the SDK as they use it."""

import json
import subprocess
import sys
import urllib.request

from wechatpy.client import WeChatClient
from wechatpy.oauth import WeChatOAuth


class World:
    def __init__(self, path):
        with open(path, encoding="utf-8") as file:
            self.__dict__.update(json.load(file))

    def control(self, path, body=None):
        """Asks the control port of the simulator."""
        data = None if body is None else json.dumps(body).encode()
        request = urllib.request.Request(self.sim_control + path, data=data)
        with urllib.request.urlopen(request, timeout=10) as answer:
            return json.load(answer)

    def xinfu(self, *arguments):
        """Runs a command of xinfu."""
        subprocess.run(self.command + list(arguments), check=True, capture_output=True)

    def calls(self, path, appid):
        """How often the simulator was called at a path for an app."""
        totals = self.control("/sim/calls")["totals"]
        return sum(it["count"] for it in totals if it["path"] == path and it["appid"] == appid)


def client(base, appid, secret):
    """wechatpy at another base URL: two lines and the method that has the address built in."""

    class Client(WeChatClient):
        API_BASE_URL = base + "/cgi-bin/"

        def fetch_access_token(self):
            return self._fetch_access_token(
                url=base + "/cgi-bin/token",
                params={"grant_type": "client_credential", "appid": self.appid, "secret": self.secret},
            )

    return Client(appid, secret, timeout=20)


def oauth(base, appid, secret):
    class OAuth(WeChatOAuth):
        API_BASE_URL = base + "/"

    return OAuth(appid, secret, "https://shop.example/back", scope="snsapi_userinfo")


def check(condition, what):
    if not condition:
        sys.exit(f"FAILED: {what}")

"""wechatpy as it is, in a network of its own where xinfu stands in WeChat's place.

Only the AppSecret in its settings becomes a client key; the hosts file and the authority are those that
`xinfu intercept init` writes. To be run in a mount and a network namespace that nobody else is in.
"""

import fcntl
import json
import os
import socket
import struct
import subprocess
import sys
from pathlib import Path

from wechatpy.client import WeChatClient
from wechatpy.oauth import WeChatOAuth

from walk import log_in, revoke, steps
from world import World, check

APP = "wx00000000000000cc"
SECRET = "0123456789abcdef0123456789abcdef"
OPENID = "oABCDEFGHIJKLMNOPQRSTUVWXYZ0"
NICKNAME = "小明 🌏"
SIM, CONTROL, API = "127.0.0.1:7090", "127.0.0.1:7091", "127.0.0.1:7080"


def raise_loopback():
    """Switches the loopback interface on, which a new network begins without."""
    set_flags, up = 0x8914, 1
    with socket.socket() as any_socket:
        fcntl.ioctl(any_socket, set_flags, struct.pack("16sh22x", b"lo", up))


def lines(path):
    """The lines of a file that `intercept init` wrote, without its comments."""
    text = path.read_text(encoding="utf-8")
    return [line for line in text.splitlines() if line and not line.startswith("#")]


def start(command, ready, environment):
    """Starts a process, and waits until it says that it is ready."""
    process = subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, text=True)
    for line in process.stdout:
        if ready in line:
            return process
    sys.exit(f"FAILED: {command} ended before it was ready")


def lead_here(folder):
    """Takes over the hosts lines, and the line for Python of those for the environment."""
    hosts = folder / "hosts"
    hosts.write_text("\n".join(lines(folder / "intercept/hosts.txt")) + "\n127.0.0.1 localhost\n")
    subprocess.run(["mount", "--bind", str(hosts), "/etc/hosts"], check=True)
    told = [line.partition("=") for line in lines(folder / "intercept/environment.txt")]
    trust = [value.strip("'") for name, _, value in told if name == "REQUESTS_CA_BUNDLE"]
    check(len(trust) == 1, "the line for Python is there")
    os.environ["REQUESTS_CA_BUNDLE"] = trust[0]


def main(xinfu, folder):
    raise_loopback()
    config = str(folder / "xinfu.toml")
    environment = os.environ | {
        "XINFU_LISTEN_API": API,
        "XINFU_LISTEN_ADMIN": "off",
        "XINFU_LISTEN_INTERCEPT": "127.0.0.1:443",
        "XINFU_LISTEN_INTERCEPT_CA": str(folder / "intercept"),
        "XINFU_UPSTREAM_BASE_URLS": f"http://{SIM}",
        "XINFU_LOG": "warn",
    }

    def run(*arguments):
        command = [xinfu, "--config", config, *arguments]
        done = subprocess.run(command, env=environment, capture_output=True, text=True)
        check(done.returncode == 0, f"{command}: {done.stderr}")
        return done.stdout.strip()

    run("init")
    run("intercept", "init", "--dir", str(folder / "intercept"))
    lead_here(folder)
    sim = [xinfu, "sim", "--listen", SIM, "--control", CONTROL, "--app", f"{APP}:{SECRET}"]
    processes = [start(sim, "simulated WeChat on ", environment)]
    try:
        (folder / "secret").write_text(SECRET)
        run("app", "add", APP, "--secret-file", str(folder / "secret"))
        known = {
            "sim_control": f"http://{CONTROL}",
            "appid": APP,
            "openid": OPENID,
            "nickname": NICKNAME,
            "key": run("key", "add", "shop", "--everything"),
            "key_name": "shop",
            "command": [xinfu, "--config", config],
        }
        (folder / "world.json").write_text(json.dumps(known))
        world = World(folder / "world.json")
        world.control("/sim/users", {"appid": APP, "openid": OPENID, "nickname": NICKNAME})
        processes.append(start([xinfu, "--config", config, "serve"], " serves ", environment))

        sdk = WeChatClient(APP, world.key, timeout=20)
        steps(world, sdk, APP)
        log_in(world, WeChatOAuth(APP, world.key, "https://shop.example/back", "snsapi_userinfo"))
        for _ in range(3):
            world.control(f"/sim/apps/{APP}/foreign-refresh", {"issuer": "stable", "kill": True})
            steps(world, sdk, APP)
        revoke(world, sdk)
        print("wechatpy, untouched: all calls, three foreign refreshes, a revocation")
    finally:
        for process in processes:
            process.kill()
            process.wait()


if __name__ == "__main__":
    main(sys.argv[1], Path(sys.argv[2]))

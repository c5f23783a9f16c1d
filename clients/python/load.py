"""wechatpy in 8 processes that call at the same time, while the app's token is ended again and again."""

import json
import multiprocessing
import sys
import threading
import time

from world import World, client

PROCESSES = 8
CALLS = 200


def work(base, appid, secret, openid, pause, failures):
    sdk = client(base, appid, secret)
    failed = 0
    for _ in range(CALLS):
        try:
            sdk.user.get(openid)
        # Whatever goes wrong is a call that failed.
        except Exception:
            failed += 1
        time.sleep(pause)
    failures.put(failed)


def run(world, base, appid, secret, issuer, every, pause):
    """All processes once; how many calls failed and how many tokens were fetched."""
    paths = ["/cgi-bin/token", "/cgi-bin/stable_token"]
    before = sum(world.calls(path, appid) for path in paths)
    over = threading.Event()
    refreshes = 0

    def refresh():
        nonlocal refreshes
        while not over.wait(every):
            world.control(f"/sim/apps/{appid}/foreign-refresh", {"issuer": issuer, "kill": True})
            refreshes += 1

    thread = threading.Thread(target=refresh)
    thread.start()
    failures = multiprocessing.Queue()
    processes = [
        multiprocessing.Process(target=work, args=(base, appid, secret, world.openid, pause, failures))
        for _ in range(PROCESSES)
    ]
    for process in processes:
        process.start()
    failed = sum(failures.get(timeout=300) for _ in processes)
    for process in processes:
        process.join()
    over.set()
    thread.join()
    fetched = sum(world.calls(path, appid) for path in paths) - before
    return {"calls": PROCESSES * CALLS, "failed": failed, "fetched": fetched, "refreshes": refreshes}


def main(world):
    figures = []
    for name, appid, issuer, every, pause in [
        ("stable, ended every 250 ms", world.appid, "stable", 0.25, 0),
        ("classic, ended every 10 s", world.classic_appid, "classic", 10, 0.15),
    ]:
        through = run(world, world.api, appid, world.key, issuer, every, pause)
        # Straight at WeChat the SDK fetches classic tokens, whatever the app is set to here.
        alone = world.straight_appids.pop()
        straight = run(world, world.sim, alone, world.secret, "classic", every, pause)
        figures.append({"client": "wechatpy", "case": name, "xinfu": through, "straight": straight})
    print(json.dumps(figures))


if __name__ == "__main__":
    main(World(sys.argv[1]))

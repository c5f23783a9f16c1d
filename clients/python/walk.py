"""wechatpy, all that it does with a token: before and after its token ends, and when its key is revoked."""

import io
import sys
import time

from wechatpy.exceptions import WeChatClientException

from world import World, check, client, oauth

TEXT = "你好，世界 🌏"


def steps(world, sdk, appid):
    """Every kind of call once."""
    openid = world.openid
    check(sdk.access_token.startswith("xt_"), "the SDK holds a pass")
    check(sdk.user.get(openid)["openid"] == openid, "user info")
    check(sdk.user.get_batch([openid])[0]["openid"] == openid, "batch")
    check(openid in sdk.user.get_followers()["data"]["openid"], "followers")
    check(sdk.jsapi.get_ticket()["ticket"], "ticket")
    picture = bytes(range(256)) * 700
    media = sdk.media.upload("image", ("picture.png", io.BytesIO(picture), "image/png"))["media_id"]
    check(sdk.media.download(media).content == picture, "media comes back as it went")
    menu = {"button": [{"type": "click", "name": "菜单一", "key": "V1"}]}
    check(sdk.menu.create(menu)["errcode"] == 0, "menu")
    check(sdk.menu.get()["menu"]["button"][0]["name"] == "菜单一", "Chinese text of the menu")
    sdk.message.send_text(openid, TEXT)
    sent = world.control(f"/sim/messages?appid={appid}")["messages"][-1]
    check(sent["text"]["content"] == TEXT, f"Chinese text of the message: {sent}")


def log_in(world, sdk):
    code = world.control(
        f"/sim/apps/{world.appid}/codes", {"openid": world.openid, "scope": "snsapi_userinfo"}
    )["code"]
    granted = sdk.fetch_access_token(code)
    check(granted["openid"] == world.openid and granted["access_token"].startswith("xw_"), "login")
    check(sdk.get_user_info()["nickname"] == world.nickname, "profile")
    check(sdk.check_access_token(), "the web token is good")
    sdk.refresh_access_token(granted["refresh_token"])
    check(sdk.get_user_info()["nickname"] == world.nickname, "profile after a renewal")


def main(world):
    sdk = client(world.api, world.appid, world.key)
    steps(world, sdk, world.appid)
    log_in(world, oauth(world.api, world.appid, world.key))
    first = sdk.access_token
    for _ in range(3):
        world.control(f"/sim/apps/{world.appid}/foreign-refresh", {"issuer": "stable", "kill": True})
        steps(world, sdk, world.appid)
    check(sdk.access_token == first, "the SDK has not noticed that its app's token ended")

    classic = client(world.api, world.classic_appid, world.key)
    steps(world, classic, world.classic_appid)
    world.xinfu("token", "refresh", world.classic_appid)
    steps(world, classic, world.classic_appid)

    revoke(world, sdk)
    print("wechatpy: all calls, three foreign refreshes, a rotation, a revocation")


def revoke(world, sdk):
    """Two seconds after its key is revoked, the SDK hears so."""
    world.xinfu("key", "revoke", world.key_name)
    time.sleep(2)
    began = time.monotonic()
    try:
        sdk.user.get(world.openid)
        check(False, "a revoked key goes on working")
    except WeChatClientException as error:
        check(error.errcode == 40125, f"a revoked key hears 40125, not {error.errcode}")
    check(time.monotonic() - began < 10, "the SDK gives up")


if __name__ == "__main__":
    main(World(sys.argv[1]))

'use strict';
// co-wechat-api and wechat-api, all that they do with a token: before and after the app's token ends, and when
// their key is revoked.

const fs = require('fs');
const os = require('os');
const path = require('path');

const { world, coApi, api, check } = require('./world');

const TEXT = '你好，世界 🌏';
const PICTURE = Buffer.from(Array.from({ length: 180000 }, (_, at) => at % 251));

/** Every kind of call once. */
async function steps(known, sdk, appid, picture) {
  const { openid } = known;
  check((await sdk.getUser(openid)).openid === openid, 'user info');
  const batch = await sdk.batchGetUsers([openid]);
  check(batch.user_info_list[0].openid === openid, 'batch');
  check((await sdk.getFollowers()).data.openid.includes(openid), 'followers');
  check((await sdk.getTicket()).ticket, 'ticket');
  const media = await sdk.uploadMedia(picture, 'image');
  check(Buffer.compare(await sdk.getMedia(media.media_id), PICTURE) === 0, 'media comes back as it went');
  const menu = { button: [{ type: 'click', name: '菜单一', key: 'V1' }] };
  check((await sdk.createMenu(menu)).errcode === 0, 'menu');
  check((await sdk.getMenu()).menu.button[0].name === '菜单一', 'Chinese text of the menu');
  await sdk.sendText(openid, TEXT);
  const { messages } = await known.control(`/sim/messages?appid=${appid}`);
  check(messages[messages.length - 1].text.content === TEXT, 'Chinese text of the message');
}

async function main(known) {
  const picture = path.join(os.tmpdir(), `xinfu-picture-${process.pid}.png`);
  fs.writeFileSync(picture, PICTURE);
  try {
    const sdks = [['co-wechat-api', coApi], ['wechat-api', api]];
    for (const [name, make] of sdks) {
      const sdk = make(known.api, known.appid, known.key);
      await steps(known, sdk, known.appid, picture);
      for (let round = 0; round < 3; round += 1) {
        const refresh = { issuer: 'stable', kill: true };
        await known.control(`/sim/apps/${known.appid}/foreign-refresh`, refresh);
        await steps(known, sdk, known.appid, picture);
      }
      const classic = make(known.api, known.classic_appid, known.key);
      await steps(known, classic, known.classic_appid, picture);
      known.xinfu('token', 'refresh', known.classic_appid);
      await steps(known, classic, known.classic_appid, picture);
      console.log(`${name}: all calls, three foreign refreshes, a rotation`);
    }
    const users = sdks.map(([name, make]) => [name, make(known.api, known.appid, known.key)]);
    for (const [, sdk] of users) await sdk.getUser(known.openid);
    known.xinfu('key', 'revoke', known.key_name);
    await new Promise((resolve) => { setTimeout(resolve, 2000); });
    for (const [name, sdk] of users) {
      const began = Date.now();
      const error = await sdk.getUser(known.openid).then(() => null, (refused) => refused);
      check(error, `${name}: a revoked key goes on working`);
      check([40001, 40125].includes(error.code), `${name}: a revocation is heard as ${error.message}`);
      check(Date.now() - began < 10000, `${name}: the SDK gives up`);
      console.log(`${name}: a revocation, heard as ${error.code}`);
    }
  } finally {
    fs.unlinkSync(picture);
  }
}

main(world(process.argv[2])).catch((error) => {
  console.error(error);
  process.exit(1);
});

'use strict';
// The SDKs of Node in 8 processes that call at the same time, while the app's token is ended again and again.

const { fork } = require('child_process');

const { world, coApi, api } = require('./world');

const PROCESSES = 8;
const CALLS = 200;
const SDKS = { 'co-wechat-api': coApi, 'wechat-api': api };

async function work([name, base, appid, secret, openid, pause]) {
  const sdk = SDKS[name](base, appid, secret);
  let failed = 0;
  for (let call = 0; call < CALLS; call += 1) {
    try {
      await sdk.getUser(openid);
    } catch (error) {
      failed += 1;
    }
    await new Promise((resolve) => { setTimeout(resolve, Number(pause)); });
  }
  process.send(failed);
  process.disconnect();
}

/** All processes once; how many calls failed and how many tokens were fetched. */
async function run(known, name, { base, appid, secret }, { issuer, every, pause }) {
  const fetches = async () => (await known.calls('/cgi-bin/token', appid))
    + (await known.calls('/cgi-bin/stable_token', appid));
  const before = await fetches();
  let refreshes = 0;
  const timer = setInterval(() => {
    refreshes += 1;
    known.control(`/sim/apps/${appid}/foreign-refresh`, { issuer, kill: true });
  }, every);
  const workers = Array.from({ length: PROCESSES }, () => new Promise((resolve, reject) => {
    const child = fork(__filename, ['--work', name, base, appid, secret, known.openid, pause]);
    let failed;
    child.on('message', (count) => { failed = count; });
    child.on('exit', () => (failed === undefined ? reject(new Error('a worker died')) : resolve(failed)));
  }));
  const failed = (await Promise.all(workers)).reduce((sum, count) => sum + count, 0);
  clearInterval(timer);
  return { calls: PROCESSES * CALLS, failed, fetched: (await fetches()) - before, refreshes };
}

async function main(known) {
  const figures = [];
  for (const name of Object.keys(SDKS)) {
    for (const [label, appid, issuer, every, pause] of [
      ['stable, ended every 250 ms', known.appid, 'stable', 250, 0],
      ['classic, ended every 10 s', known.classic_appid, 'classic', 10000, 150],
    ]) {
      const through = { base: known.api, appid, secret: known.key };
      const xinfu = await run(known, name, through, { issuer, every, pause });
      const alone = { base: known.sim, appid: known.straight_appids.pop(), secret: known.secret };
      const straight = await run(known, name, alone, { issuer: 'classic', every, pause });
      figures.push({ client: name, case: label, xinfu, straight });
    }
  }
  console.log(JSON.stringify(figures));
}

const job = process.argv[2] === '--work' ? work(process.argv.slice(3)) : main(world(process.argv[2]));
job.catch((error) => {
  console.error(error);
  process.exit(1);
});

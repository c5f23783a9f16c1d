'use strict';
// What the clients of this folder know of the world, and the SDKs as they use it.

const { execFileSync } = require('child_process');
const fs = require('fs');

const CoApi = require('co-wechat-api');
const Api = require('wechat-api');

/** The file that describes the world, with the means to change it. */
function world(path) {
  const known = JSON.parse(fs.readFileSync(path, 'utf8'));
  known.control = async (at, body) => {
    const options = body === undefined ? {} : { method: 'POST', body: JSON.stringify(body) };
    const answer = await fetch(known.sim_control + at, options);
    check(answer.ok, `control port: ${at}`);
    return answer.json();
  };
  known.xinfu = (...args) => {
    execFileSync(known.command[0], [...known.command.slice(1), ...args], { stdio: 'pipe' });
  };
  known.calls = async (at, appid) => {
    const { totals } = await known.control('/sim/calls');
    const fits = totals.filter((it) => it.path === at && it.appid === appid);
    return fits.reduce((sum, it) => sum + it.count, 0);
  };
  return known;
}

/** co-wechat-api, by its prefix fields. */
function coApi(base, appid, secret) {
  const api = new CoApi(appid, secret);
  api.prefix = `${base}/cgi-bin/`;
  api.mpPrefix = `${base}/cgi-bin/`;
  api.fileServerPrefix = `${base}/cgi-bin/`;
  api.snsPrefix = `${base}/sns/`;
  api.wxaPrefix = `${base}/wxa/`;
  api.setOpts({ timeout: 20000 });
  return api;
}

/** wechat-api, by settings only; its calls as promises. */
function api(base, appid, secret) {
  const sdk = new Api(appid, secret);
  sdk.endpoint = base;
  sdk.fileServerPrefix = `${base}/cgi-bin/`;
  sdk.setOpts({ timeout: 20000 });
  return new Proxy(sdk, {
    get: (target, name) => (typeof target[name] !== 'function' ? target[name] : (...args) =>
      new Promise((resolve, reject) => {
        target[name](...args, (error, data) => (error ? reject(error) : resolve(data)));
      })),
  });
}

function check(condition, what) {
  if (!condition) {
    console.error(`FAILED: ${what}`);
    process.exit(1);
  }
}

module.exports = { world, coApi, api, check };

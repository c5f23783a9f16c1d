//! Followers.

use bytes::Bytes;
use serde::{Deserialize, Serialize};
use wechat::{Follower, Lang, OpenId, UnionId};

use super::{
    App,
    answer::json_answer,
    call::{Answer, Caller},
    input::{Query, json, openid, word},
    problem::{Problem, call_failed},
};

/// A follower as told; the fields are WeChat's.
#[derive(Serialize)]
struct UserBody<'a> {
    subscribe: bool,
    openid: &'a str,
    unionid: Option<&'a str>,
    language: &'a str,
    subscribe_time: i64,
    subscribe_scene: &'a str,
    remark: &'a str,
    groupid: i64,
    tagid_list: &'a [i64],
    qr_scene: i64,
    qr_scene_str: &'a str,
    nickname: &'a str,
    sex: i64,
    city: &'a str,
    province: &'a str,
    country: &'a str,
    headimgurl: &'a str,
}

/// Many followers.
#[derive(Serialize)]
struct UsersBody<'a> {
    users: Vec<UserBody<'a>>,
}

/// A part of the list of followers.
#[derive(Serialize)]
struct PageBody<'a> {
    total: u64,
    count: u64,
    openids: Vec<&'a str>,
    next_openid: Option<&'a str>,
}

/// Whose records are wanted.
#[derive(Deserialize)]
#[serde(deny_unknown_fields, expecting = "an object")]
struct Batch {
    openids: Vec<String>,
    #[serde(default)]
    lang: Option<String>,
}

/// The record of one follower.
pub(super) async fn read(app: &App, caller: &Caller, id: &str, query: &Query<'_>) -> Answer {
    let id = openid("openid", id)?;
    let lang: Option<Lang> = query.word("lang")?;
    let user = app.broker.user(&caller.entry, &id, lang).await;
    let user = user.map_err(|err| call_failed(err, "openid"))?;
    Ok(json_answer(&UserBody::from(&user)))
}

/// The records of many users, in the order asked.
pub(super) async fn read_batch(app: &App, caller: &Caller, body: &Bytes) -> Answer {
    let Batch { openids, lang } = json(body)?;
    let most = app.limits.batch;
    if openids.is_empty() || openids.len() > most {
        let detail = format!("`openids` holds 1 to {most} openids.");
        return Err(Problem::invalid("openids", detail));
    }
    let ids: Vec<OpenId> = openids
        .iter()
        .enumerate()
        .map(|(at, id)| openid(format!("openids[{at}]"), id))
        .collect::<Result<_, _>>()?;
    let lang = lang.map(|lang| word::<Lang>("lang", &lang)).transpose()?;
    let users = app.broker.users(&caller.entry, &ids, lang).await;
    let users = users.map_err(|err| call_failed(err, "openids"))?;
    Ok(json_answer(&UsersBody { users: users.iter().map(UserBody::from).collect() }))
}

/// A part of the list of followers.
pub(super) async fn list(app: &App, caller: &Caller, query: &Query<'_>) -> Answer {
    let next = query.text("next_openid").map(|id| openid("next_openid", id)).transpose()?;
    let page = app.broker.user_page(&caller.entry, next.as_ref()).await;
    let page = page.map_err(|err| call_failed(err, "next_openid"))?;
    Ok(json_answer(&PageBody {
        total: page.total,
        count: page.count,
        openids: page.openids.iter().map(OpenId::as_str).collect(),
        next_openid: page.next_openid.as_ref().map(OpenId::as_str),
    }))
}

impl<'a> From<&'a Follower> for UserBody<'a> {
    fn from(user: &'a Follower) -> Self {
        Self {
            subscribe: user.subscribe,
            openid: user.openid.as_str(),
            unionid: user.unionid.as_ref().map(UnionId::as_str),
            language: &user.language,
            subscribe_time: user.subscribe_time,
            subscribe_scene: &user.subscribe_scene,
            remark: &user.remark,
            groupid: user.groupid,
            tagid_list: &user.tagid_list,
            qr_scene: user.qr_scene,
            qr_scene_str: &user.qr_scene_str,
            nickname: &user.nickname,
            sex: user.sex,
            city: &user.city,
            province: &user.province,
            country: &user.country,
            headimgurl: &user.headimgurl,
        }
    }
}

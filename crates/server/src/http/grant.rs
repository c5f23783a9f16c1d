//! What is held of users who authorised, and their profiles.

use broker::{GrantView, PROFILE_LIFE, Profile, ProfileQuery, audit::Actor};
use serde::Serialize;
use wechat::{OpenId, UnionId};

use super::{
    App,
    answer::{json_answer, nothing},
    call::{Answer, Caller},
    input::{Query, parse_held_openid},
    problem::{Problem, ProblemType},
};

/// What is held of a user.
#[derive(Serialize)]
struct GrantsBody<'a> {
    openid: &'a str,
    unionid: Option<&'a str>,
    grants: Vec<GrantBody>,
}

/// One grant.
#[derive(Serialize)]
struct GrantBody {
    scope: &'static str,
    state: &'static str,
    authorised_at: i64,
    token_expires_at: i64,
    renewable_until: i64,
    ended: Option<EndedBody>,
}

/// Why a grant ended before its time.
#[derive(Serialize)]
struct EndedBody {
    at: i64,
    errcode: i64,
}

/// A profile; the fields of the user are WeChat's.
#[derive(Serialize)]
struct ProfileBody<'a> {
    openid: &'a str,
    nickname: &'a str,
    sex: i64,
    province: &'a str,
    city: &'a str,
    country: &'a str,
    headimgurl: &'a str,
    privilege: &'a [String],
    unionid: Option<&'a str>,
    scope: &'static str,
    fetched_at: i64,
    fresh_until: i64,
}

/// What is held of a user.
pub(super) async fn read(app: &App, caller: &Caller, openid: &str) -> Answer {
    let openid = held(openid)?;
    let Some(user) = app.broker.grants(&caller.entry, &openid).await? else {
        let detail = "Nothing is held of a user with this openid in this app.";
        return Err(Problem::new(ProblemType::NoGrant, detail));
    };
    Ok(json_answer(&GrantsBody {
        openid: user.openid.as_str(),
        unionid: user.unionid.as_ref().map(UnionId::as_str),
        grants: user.grants.iter().map(GrantBody::from).collect(),
    }))
}

/// Forgets a user.
pub(super) async fn forget(app: &App, caller: &Caller, openid: &str) -> Answer {
    let openid = held(openid)?;
    let actor = Actor::Key(caller.key.id.clone());
    app.broker.forget_user(&caller.entry, &openid, &actor).await?;
    Ok(nothing())
}

/// The profile of a user.
pub(super) async fn profile(app: &App, caller: &Caller, openid: &str, query: &Query<'_>) -> Answer {
    let openid = held(openid)?;
    let wanted = ProfileQuery {
        lang: query.word("lang")?,
        fresh: query.flag("fresh")?,
        redirect_uri: query.word("redirect_uri")?,
    };
    let profile = app.broker.profile(&caller.entry, &caller.key, &openid, &wanted).await?;
    Ok(json_answer(&ProfileBody::from(&profile)))
}

fn held(openid: &str) -> Result<OpenId, Problem> {
    parse_held_openid(openid).map_err(|detail| Problem::invalid("openid", detail))
}

impl From<&GrantView> for GrantBody {
    fn from(grant: &GrantView) -> Self {
        Self {
            scope: grant.scope.as_str(),
            state: if grant.is_live { "live" } else { "ended" },
            authorised_at: grant.authorised_at.as_secs(),
            token_expires_at: grant.token_expires_at.as_secs(),
            renewable_until: grant.renewable_until.as_secs(),
            ended: grant
                .ended
                .as_ref()
                .map(|end| EndedBody { at: end.at.as_secs(), errcode: end.errcode }),
        }
    }
}

impl<'a> From<&'a Profile> for ProfileBody<'a> {
    fn from(profile: &'a Profile) -> Self {
        let user = &profile.user;
        Self {
            openid: user.openid.as_str(),
            nickname: &user.nickname,
            sex: user.sex,
            province: &user.province,
            city: &user.city,
            country: &user.country,
            headimgurl: &user.headimgurl,
            privilege: &user.privilege,
            unionid: user.unionid.as_ref().map(UnionId::as_str),
            scope: profile.scope.as_str(),
            fetched_at: profile.fetched_at.as_secs(),
            fresh_until: (profile.fetched_at + PROFILE_LIFE).as_secs(),
        }
    }
}

//! The calls that WeChat answers, in the order of its documents.

use std::time::Duration;

use clock::Timestamp;
use http::Method;
use serde_json::{Value, json};

use crate::{
    answer::Failure,
    app::{AppKind, UserSpec},
    content::{self, File},
    exchange::Call,
    quota::{self, limit},
    state::{App, IssuedTicket, State, TICKET_LIFE},
    switches::{Check, ListEnd, NonFollower, RefusedForce, Switches},
    token::{Issuer, Overlap, TokenState},
};

const TOKEN: &str = "/cgi-bin/token";
const STABLE_TOKEN: &str = "/cgi-bin/stable_token";
const USER_INFO: &str = "/cgi-bin/user/info";
const BATCH_GET: &str = "/cgi-bin/user/info/batchget";
const USER_GET: &str = "/cgi-bin/user/get";
const TICKET: &str = "/cgi-bin/ticket/getticket";
const API_DOMAIN_IP: &str = "/cgi-bin/get_api_domain_ip";
const CALLBACK_IP: &str = "/cgi-bin/getcallbackip";
const QUOTA_GET: &str = "/cgi-bin/openapi/quota/get";
const CLEAR_QUOTA_V2: &str = "/cgi-bin/clear_quota/v2";
pub(crate) const MEDIA_UPLOAD: &str = "/cgi-bin/media/upload";
const MEDIA_GET: &str = "/cgi-bin/media/get";
const CUSTOM_SEND: &str = "/cgi-bin/message/custom/send";
const MENU_CREATE: &str = "/cgi-bin/menu/create";
const MENU_GET: &str = "/cgi-bin/menu/get";
const TAGS_CREATE: &str = "/cgi-bin/tags/create";
const TAGS_GET: &str = "/cgi-bin/tags/get";
const UPDATE_REMARK: &str = "/cgi-bin/user/info/updateremark";
const WXA_CODE: &str = "/wxa/getwxacodeunlimit";

/// A call that exists.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Endpoint {
    Token,
    StableToken,
    UserInfo,
    BatchGet,
    UserGet,
    Ticket,
    ApiDomainIp,
    CallbackIp,
    QuotaGet,
    ClearQuota,
    ClearQuotaV2,
    MediaUpload,
    MediaGet,
    CustomSend,
    MenuCreate,
    MenuGet,
    TagsCreate,
    TagsGet,
    UpdateRemark,
    WxaCode,
}

impl Endpoint {
    pub(crate) fn of(path: &str) -> Option<Self> {
        Some(match path {
            TOKEN => Self::Token,
            STABLE_TOKEN => Self::StableToken,
            USER_INFO => Self::UserInfo,
            BATCH_GET => Self::BatchGet,
            USER_GET => Self::UserGet,
            TICKET => Self::Ticket,
            API_DOMAIN_IP => Self::ApiDomainIp,
            CALLBACK_IP => Self::CallbackIp,
            QUOTA_GET => Self::QuotaGet,
            quota::CLEAR => Self::ClearQuota,
            CLEAR_QUOTA_V2 => Self::ClearQuotaV2,
            MEDIA_UPLOAD => Self::MediaUpload,
            MEDIA_GET => Self::MediaGet,
            CUSTOM_SEND => Self::CustomSend,
            MENU_CREATE => Self::MenuCreate,
            MENU_GET => Self::MenuGet,
            TAGS_CREATE => Self::TagsCreate,
            TAGS_GET => Self::TagsGet,
            UPDATE_REMARK => Self::UpdateRemark,
            WXA_CODE => Self::WxaCode,
            _ => return None,
        })
    }

    const fn path(self) -> &'static str {
        match self {
            Self::Token => TOKEN,
            Self::StableToken => STABLE_TOKEN,
            Self::UserInfo => USER_INFO,
            Self::BatchGet => BATCH_GET,
            Self::UserGet => USER_GET,
            Self::Ticket => TICKET,
            Self::ApiDomainIp => API_DOMAIN_IP,
            Self::CallbackIp => CALLBACK_IP,
            Self::QuotaGet => QUOTA_GET,
            Self::ClearQuota => quota::CLEAR,
            Self::ClearQuotaV2 => CLEAR_QUOTA_V2,
            Self::MediaUpload => MEDIA_UPLOAD,
            Self::MediaGet => MEDIA_GET,
            Self::CustomSend => CUSTOM_SEND,
            Self::MenuCreate => MENU_CREATE,
            Self::MenuGet => MENU_GET,
            Self::TagsCreate => TAGS_CREATE,
            Self::TagsGet => TAGS_GET,
            Self::UpdateRemark => UPDATE_REMARK,
            Self::WxaCode => WXA_CODE,
        }
    }

    const fn needs_post(self) -> bool {
        matches!(
            self,
            Self::StableToken
                | Self::BatchGet
                | Self::QuotaGet
                | Self::ClearQuota
                | Self::ClearQuotaV2
                | Self::MediaUpload
                | Self::CustomSend
                | Self::MenuCreate
                | Self::TagsCreate
                | Self::UpdateRemark
                | Self::WxaCode
        )
    }

    /// For official accounts only.
    const fn needs_followers(self) -> bool {
        matches!(self, Self::UserInfo | Self::BatchGet | Self::UserGet | Self::Ticket)
    }
}

/// What a call is answered with.
#[derive(Clone, Debug)]
pub(crate) enum Answered {
    /// JSON, as nearly always.
    Json(Value),
    /// A file.
    File(File),
}

impl From<Value> for Answered {
    fn from(value: Value) -> Self {
        Self::Json(value)
    }
}

/// What a token call proves itself with.
struct Claim<'a> {
    appid: Option<&'a str>,
    secret: Option<&'a str>,
    grant_type: Option<&'a str>,
}

impl State {
    /// Answers a call. Tokens that it supersedes live on for `survival` seconds, if given, instead
    /// of as the switches say.
    pub(crate) fn handle(
        &mut self,
        call: &Call,
        survival: Option<u64>,
        now: Timestamp,
    ) -> Result<Answered, Failure> {
        let Some(endpoint) = Endpoint::of(&call.path) else { return Err(Failure::new(40066)) };
        if endpoint.needs_post() && call.method != Method::POST {
            return Err(Failure::new(43002));
        }
        if !matches!(call.method, Method::GET | Method::POST | Method::HEAD) {
            return Err(Failure::new(43001));
        }
        match endpoint {
            Endpoint::Token => self.classic_token(call, survival, now).map(Answered::Json),
            Endpoint::StableToken => self.stable_token(call, survival, now).map(Answered::Json),
            Endpoint::ClearQuotaV2 => self.clear_quota_v2(call, now).map(Answered::Json),
            business => self.business(business, call, now),
        }
    }

    fn classic_token(
        &mut self,
        call: &Call,
        survival: Option<u64>,
        now: Timestamp,
    ) -> Result<Value, Failure> {
        let claim = Claim {
            appid: call.query("appid"),
            secret: call.query("secret"),
            grant_type: call.query("grant_type"),
        };
        let appid = self.check_claim(&claim, call, TOKEN, now)?;
        let overlap = self.overlap(Issuer::Classic, false, survival);
        let token = self.mint(appid, Issuer::Classic, now, overlap);
        Ok(json!({ "access_token": token, "expires_in": self.switches.token_lifetime_secs }))
    }

    fn stable_token(
        &mut self,
        call: &Call,
        survival: Option<u64>,
        now: Timestamp,
    ) -> Result<Value, Failure> {
        let claim = Claim {
            appid: call.text("appid"),
            secret: call.text("secret"),
            grant_type: call.text("grant_type"),
        };
        let appid = self.check_claim(&claim, call, STABLE_TOKEN, now)?;
        let asked = call.json.as_ref().is_some_and(|json| json["force_refresh"] == true);
        let forced = asked && self.may_force(appid, now)?;
        if !forced && let Some(answer) = self.current_stable(appid, now) {
            return Ok(answer);
        }
        let overlap = self.overlap(Issuer::Stable, forced, survival);
        let token = self.mint(appid, Issuer::Stable, now, overlap);
        if forced && let Some(app) = self.apps.get_mut(appid) {
            app.last_force = Some(now);
            app.used.count(quota::FORCE);
        }
        Ok(json!({ "access_token": token, "expires_in": self.switches.token_lifetime_secs }))
    }

    /// The stable token that is handed out again, unless it is about to run out.
    fn current_stable(&self, appid: &str, now: Timestamp) -> Option<Value> {
        let token = self.apps.get(appid)?.stable.current()?;
        let left = self.tokens.find(token)?.expires.since(now);
        let rolls = left < Duration::from_secs(self.switches.stable_roll_secs);
        (!rolls && !left.is_zero())
            .then(|| json!({ "access_token": token, "expires_in": left.as_secs() }))
    }

    /// Whether a forced refresh is granted.
    fn may_force(&self, appid: &str, now: Timestamp) -> Result<bool, Failure> {
        let Some(app) = self.apps.get(appid) else { return Ok(false) };
        let switches = &self.switches;
        let interval = Duration::from_secs(switches.force_interval_secs);
        let refused = if app.used.of(quota::FORCE) >= limit(&app.spec, quota::FORCE) {
            switches.force_over_limit
        } else if app.last_force.is_some_and(|last| now < last + interval) {
            switches.force_too_soon
        } else {
            return Ok(true);
        };
        match refused {
            RefusedForce::Unchanged => Ok(false),
            RefusedForce::DailyQuota => Err(Failure::new(45009)),
            RefusedForce::MinuteQuota => Err(Failure::new(45011)),
        }
    }

    fn overlap(&self, issuer: Issuer, forced: bool, survival: Option<u64>) -> Overlap {
        match survival {
            Some(secs) => Overlap::all(Duration::from_secs(secs)),
            None => Overlap::of(issuer, forced, &self.switches),
        }
    }

    /// Checks a token call in WeChat's order, and counts it.
    fn check_claim<'a>(
        &mut self,
        claim: &Claim<'a>,
        call: &Call,
        key: &'static str,
        now: Timestamp,
    ) -> Result<&'a str, Failure> {
        let appid = claim.appid.ok_or_else(|| Failure::new(41002))?;
        let switches = &self.switches;
        let app = self.apps.get_mut(appid).ok_or_else(|| Failure::new(40013))?;
        app.used.turn(now, switches.quota_day_offset_secs);
        let result = checked_claim(app, claim, call, key, switches);
        if result.is_ok() || switches.failed_calls_count {
            app.used.count(key);
            if key == STABLE_TOKEN {
                app.used.count(quota::STABLE_MINUTE);
            }
        }
        result.map(|()| appid)
    }

    /// A call with a global token.
    fn business(
        &mut self,
        endpoint: Endpoint,
        call: &Call,
        now: Timestamp,
    ) -> Result<Answered, Failure> {
        let token = call.query("access_token").ok_or_else(|| Failure::new(41001))?;
        let minted = self.tokens.find(token).ok_or_else(|| Failure::new(40001))?;
        let state = minted.state(now);
        let switches = &self.switches;
        let app = self.apps.get_mut(&minted.appid).ok_or_else(|| Failure::new(40001))?;
        app.used.turn(now, switches.quota_day_offset_secs);
        let key = endpoint.path();
        let checked = checked_token(app, endpoint, state, call, switches);
        let result = checked.and_then(|()| match endpoint {
            Endpoint::UserInfo => user_info(app, call, switches).map(Answered::Json),
            Endpoint::BatchGet => batch_get(app, call, switches).map(Answered::Json),
            Endpoint::UserGet => user_get(app, call, switches).map(Answered::Json),
            Endpoint::Ticket => {
                let letters = &mut self.secrets;
                let write = |length| letters.text(TICKET_LETTERS, length);
                ticket(app, call, now, write).map(Answered::Json)
            }
            // Addresses that are reserved for documents, and lead nowhere.
            Endpoint::ApiDomainIp => {
                Ok(json!({ "ip_list": ["203.0.113.7", "203.0.113.8"] }).into())
            }
            Endpoint::CallbackIp => {
                Ok(json!({ "ip_list": ["203.0.113.16", "203.0.113.32/28"] }).into())
            }
            Endpoint::QuotaGet => quota_get(app, call).map(Answered::Json),
            Endpoint::ClearQuota => clear_quota(app, call).map(Answered::Json),
            Endpoint::Token | Endpoint::StableToken | Endpoint::ClearQuotaV2 => {
                Err(Failure::new(40066))
            }
            of_content => content::answer(app, of_content, call, now, &mut self.secrets),
        });
        if result.is_ok() || switches.failed_calls_count {
            app.used.count(key);
        }
        result
    }

    fn clear_quota_v2(&mut self, call: &Call, now: Timestamp) -> Result<Value, Failure> {
        let appid = call.text("appid").ok_or_else(|| Failure::new(41002))?;
        let app = self.apps.get_mut(appid).ok_or_else(|| Failure::new(40013))?;
        let switches = &self.switches;
        app.used.turn(now, switches.quota_day_offset_secs);
        let result = match call.text("appsecret") {
            None => Err(Failure::new(41004)),
            Some(secret) if secret != app.spec.secret => {
                Err(Failure::wrong_secret(switches.wrong_secret_code))
            }
            Some(_) => clear_quota(app, call),
        };
        if result.is_ok() || switches.failed_calls_count {
            app.used.count(quota::CLEAR);
        }
        result
    }
}

fn checked_claim(
    app: &App,
    claim: &Claim<'_>,
    call: &Call,
    key: &'static str,
    switches: &Switches,
) -> Result<(), Failure> {
    let spec = &app.spec;
    let secret = claim.secret.ok_or_else(|| Failure::new(41004))?;
    if claim.grant_type != Some("client_credential") {
        return Err(Failure::new(40002));
    }
    for check in switches.token_check_order {
        match check {
            Check::Secret if secret != spec.secret => {
                return Err(Failure::wrong_secret(switches.wrong_secret_code));
            }
            Check::Account if spec.frozen => return Err(Failure::new(40243)),
            Check::Account if spec.banned => return Err(Failure::new(50007)),
            Check::Account if spec.no_token_api => return Err(Failure::new(50004)),
            // A guess: no answer of WeChat's to a website app is known.
            Check::Account if spec.kind == AppKind::Website => return Err(Failure::new(48001)),
            Check::Ip if !app.allows(call.ip) => return Err(Failure::refused_ip(40164, call.ip)),
            Check::Quota => {
                let minute = quota::STABLE_MINUTE;
                if key == STABLE_TOKEN && app.used.of(minute) >= limit(spec, minute) {
                    return Err(Failure::new(45011));
                }
                if app.used.of(key) >= limit(spec, key) {
                    return Err(Failure::new(45009));
                }
            }
            Check::Secret | Check::Account | Check::Ip => {}
        }
    }
    Ok(())
}

/// Checks a call with a token of the app: the token, the caller, the permission, the quota.
fn checked_token(
    app: &App,
    endpoint: Endpoint,
    state: TokenState,
    call: &Call,
    switches: &Switches,
) -> Result<(), Failure> {
    match state {
        TokenState::Live => {}
        TokenState::Expired => return Err(Failure::new(42001)),
        TokenState::Superseded => return Err(Failure::new(switches.superseded_code)),
        TokenState::Unknown => return Err(Failure::new(40001)),
    }
    if let Some(code) = switches.business_ip_code
        && !app.allows(call.ip)
    {
        return Err(Failure::refused_ip(code, call.ip));
    }
    let official = matches!(app.spec.kind, AppKind::Official | AppKind::Test);
    if endpoint.needs_followers() && !official {
        // A guess where a mini program asks for a ticket.
        return Err(Failure::new(48001));
    }
    let key = endpoint.path();
    let used_up = endpoint != Endpoint::ClearQuota && app.used.of(key) >= limit(&app.spec, key);
    if used_up { Err(Failure::new(45009)) } else { Ok(()) }
}

fn user_info(app: &App, call: &Call, switches: &Switches) -> Result<Value, Failure> {
    let openid = call.query("openid").ok_or_else(|| Failure::new(41009))?;
    let user = app.users.get(openid).ok_or_else(|| Failure::new(40003))?;
    Ok(record(app, user, switches))
}

fn batch_get(app: &App, call: &Call, switches: &Switches) -> Result<Value, Failure> {
    if call.body.is_empty() {
        return Err(Failure::new(44002));
    }
    let json = call.json.as_ref().ok_or_else(|| Failure::new(47001))?;
    let list = match json.get("user_list") {
        None => &[],
        Some(Value::Array(list)) => list.as_slice(),
        Some(_) => return Err(Failure::new(47001)),
    };
    if list.is_empty() || list.len() > 100 {
        return Err(Failure::new(40032));
    }
    let record_of = |entry: &Value| {
        let user = entry["openid"].as_str().and_then(|openid| app.users.get(openid));
        user.map(|user| record(app, user, switches)).ok_or_else(|| Failure::new(40003))
    };
    let records: Vec<Value> = list.iter().map(record_of).collect::<Result<_, _>>()?;
    Ok(json!({ "user_info_list": records }))
}

/// The record of a user as `user/info` writes it.
fn record(app: &App, user: &UserSpec, switches: &Switches) -> Value {
    let openid = &user.openid;
    if !user.subscribed {
        return match switches.non_follower {
            NonFollower::Emptied => json!({
                "subscribe": 0, "openid": openid, "nickname": "", "sex": 0, "language": "zh_CN",
                "city": "", "province": "", "country": "", "headimgurl": "", "tagid_list": [],
            }),
            NonFollower::Short => json!({ "subscribe": 0, "openid": openid, "tagid_list": [] }),
        };
    }
    let mut record = if switches.emptied_keys {
        json!({
            "subscribe": 1, "openid": openid, "nickname": "", "sex": 0, "language": user.language,
            "city": "", "province": "", "country": "", "headimgurl": "",
        })
    } else {
        json!({ "subscribe": 1, "openid": openid, "language": user.language })
    };
    record["subscribe_time"] = user.subscribe_time.unwrap_or(0).into();
    if let (true, Some(unionid)) = (app.spec.bound, &user.unionid) {
        record["unionid"] = unionid.as_str().into();
    }
    record["remark"] = user.remark.as_str().into();
    record["groupid"] = user.groupid.into();
    record["tagid_list"] = user.tagid_list.as_slice().into();
    record["subscribe_scene"] = user.subscribe_scene.as_str().into();
    record["qr_scene"] = user.qr_scene.into();
    record["qr_scene_str"] = user.qr_scene_str.as_str().into();
    record
}

fn user_get(app: &App, call: &Call, switches: &Switches) -> Result<Value, Failure> {
    let after = call.query("next_openid");
    if after.is_some_and(|after| !app.users.contains_key(after)) {
        return Err(Failure::new(40003));
    }
    let followers = || app.users.values().filter(|user| user.subscribed);
    let total = followers().count();
    let start = after.unwrap_or_default();
    let page: Vec<&str> = followers()
        .map(|user| user.openid.as_str())
        .skip_while(|openid| !start.is_empty() && *openid <= start)
        .take(switches.page_size.clamp(1, 10_000))
        .collect();
    let Some(last) = page.last() else {
        return Ok(json!({ "total": total, "count": 0, "next_openid": "" }));
    };
    let ended = followers().next_back().is_some_and(|user| user.openid == *last);
    let next = if ended && switches.list_end == ListEnd::EmptyNext { "" } else { *last };
    Ok(json!({
        "total": total, "count": page.len(), "data": { "openid": page }, "next_openid": next,
    }))
}

const TICKET_LETTERS: &[u8] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-_";

fn ticket(
    app: &mut App,
    call: &Call,
    now: Timestamp,
    write: impl FnOnce(usize) -> String,
) -> Result<Value, Failure> {
    let kind = match call.query("type") {
        Some("jsapi") => "jsapi",
        Some("wx_card") => "wx_card",
        // A guess: nobody has published what WeChat answers here.
        _ => return Err(Failure::new(40097)),
    };
    let issued = app.tickets.entry(kind).or_default();
    if issued.first().is_none_or(|newest| now >= newest.issued + TICKET_LIFE) {
        issued.insert(0, IssuedTicket { ticket: write(86), issued: now });
        // Older ones worked for an hour or so more; a handful outlasts any such time.
        issued.truncate(16);
    }
    let current = issued.first().map(|newest| newest.ticket.as_str());
    Ok(json!({
        "errcode": 0, "errmsg": "ok", "ticket": current, "expires_in": TICKET_LIFE.as_secs(),
    }))
}

fn quota_get(app: &App, call: &Call) -> Result<Value, Failure> {
    if call.body.is_empty() {
        return Err(Failure::new(44002));
    }
    let path = call.text("cgi_path").ok_or_else(|| Failure::new(47001))?;
    if path.starts_with("/sns/") {
        return Err(Failure::new(76022));
    }
    let endpoint = Endpoint::of(path).ok_or_else(|| Failure::new(76021))?;
    if matches!(endpoint, Endpoint::ClearQuota | Endpoint::ClearQuotaV2) {
        return Err(Failure::new(76022));
    }
    let (limit, used) = (limit(&app.spec, path), app.used.of(path));
    let mut answer = json!({
        "errcode": 0, "errmsg": "ok",
        "quota": { "daily_limit": limit, "used": used, "remain": limit.saturating_sub(used) },
    });
    if endpoint == Endpoint::StableToken {
        let calls = quota::limit(&app.spec, quota::STABLE_MINUTE);
        answer["rate_limit"] = json!({ "call_count": calls, "refresh_second": 60 });
    }
    Ok(answer)
}

/// Both versions, once the caller has proved itself. Who calls it counts the call.
fn clear_quota(app: &mut App, call: &Call) -> Result<Value, Failure> {
    let named = call.text("appid").ok_or_else(|| Failure::new(41002))?;
    if named != app.spec.appid {
        return Err(Failure::new(40013));
    }
    if app.used.of(quota::CLEAR) >= limit(&app.spec, quota::CLEAR) {
        return Err(Failure::new(48006));
    }
    app.used.clear_daily();
    Ok(json!({ "errcode": 0, "errmsg": "ok" }))
}

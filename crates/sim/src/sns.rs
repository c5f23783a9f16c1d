//! The calls of `/sns/*`: what a web login makes of a code, and a mini program of a `js_code`.

use clock::Timestamp;
use http::Method;
use serde_json::{Value, json};

use crate::{
    answer::Failure,
    app::{AppKind, UserSpec},
    exchange::Call,
    oauth::{Given, Purpose, Scope, Subject},
    state::State,
    token::TokenState,
};

const ACCESS_TOKEN: &str = "/sns/oauth2/access_token";
const REFRESH_TOKEN: &str = "/sns/oauth2/refresh_token";
const AUTH: &str = "/sns/auth";
const USERINFO: &str = "/sns/userinfo";
const JSCODE2SESSION: &str = "/sns/jscode2session";

/// Whether a path is one of these calls or looks like one.
pub(crate) fn is_sns(path: &str) -> bool {
    path.starts_with("/sns/")
}

/// A call that exists.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum SnsCall {
    AccessToken,
    RefreshToken,
    Auth,
    Userinfo,
    JsCode2Session,
}

impl SnsCall {
    pub(crate) fn of(path: &str) -> Option<Self> {
        Some(match path {
            ACCESS_TOKEN => Self::AccessToken,
            REFRESH_TOKEN => Self::RefreshToken,
            AUTH => Self::Auth,
            USERINFO => Self::Userinfo,
            JSCODE2SESSION => Self::JsCode2Session,
            _ => return None,
        })
    }

    /// The code that a call carries.
    pub(crate) fn code(self, call: &Call) -> Option<&str> {
        match self {
            Self::AccessToken => call.query("code"),
            Self::JsCode2Session => call.query("js_code"),
            Self::RefreshToken | Self::Auth | Self::Userinfo => None,
        }
    }
}

impl State {
    /// Answers a call of `/sns/*`.
    pub(crate) fn handle_sns(&mut self, call: &Call, now: Timestamp) -> Result<Value, Failure> {
        let Some(kind) = SnsCall::of(&call.path) else { return Err(Failure::new(40066)) };
        if !matches!(call.method, Method::GET | Method::POST | Method::HEAD) {
            return Err(Failure::new(43001));
        }
        match kind {
            SnsCall::AccessToken => self.access_token(call, now),
            SnsCall::RefreshToken => self.refresh_token(call, now),
            SnsCall::Auth => self.auth(call, now),
            SnsCall::Userinfo => self.userinfo(call, now),
            SnsCall::JsCode2Session => self.jscode2session(call, now),
        }
    }

    fn access_token(&mut self, call: &Call, now: Timestamp) -> Result<Value, Failure> {
        let (appid, code) = self.check_code_claim(call, "code")?;
        let given = self.grants.exchange(code, appid, now, &self.switches)?;
        let mut answer = self.five_fields(&given);
        let flagged = match given.subject.virtual_unionid {
            Some(_) => !self.switches.snapshot_flag_missing,
            None => given.scope == Scope::UserInfo && self.switches.snapshot_flag_on_real_users,
        };
        if flagged {
            answer["is_snapshotuser"] = 1.into();
        }
        if given.scope != Scope::Base
            && let Some(unionid) = self.unionid(&given.subject)
        {
            answer["unionid"] = unionid.into();
        }
        Ok(answer)
    }

    fn refresh_token(&mut self, call: &Call, now: Timestamp) -> Result<Value, Failure> {
        let appid = call.query("appid").ok_or_else(|| Failure::new(41002))?;
        let app = self.apps.get(appid).ok_or_else(|| Failure::new(40013))?;
        if app.spec.banned {
            return Err(Failure::new(50007));
        }
        if call.query("grant_type") != Some("refresh_token") {
            return Err(Failure::new(40002));
        }
        let token = call.query("refresh_token").ok_or_else(|| Failure::new(41003))?;
        let given = self.grants.refresh(token, appid, now, &self.switches)?;
        Ok(self.five_fields(&given))
    }

    fn auth(&self, call: &Call, now: Timestamp) -> Result<Value, Failure> {
        let subject = &self.check_web_token(call, now)?.0;
        check_openid(call, subject)?;
        Ok(json!({ "errcode": 0, "errmsg": "ok" }))
    }

    fn userinfo(&self, call: &Call, now: Timestamp) -> Result<Value, Failure> {
        let (subject, scope) = self.check_web_token(call, now)?;
        let virtual_account = subject.virtual_unionid.is_some();
        if scope == Scope::Base || virtual_account && self.switches.snapshot_userinfo_refused {
            return Err(Failure::new(48001));
        }
        check_openid(call, &subject)?;
        let user = self.user(&subject);
        let (nickname, headimgurl) = match user {
            Some(user) => (user.nickname.as_str(), user.headimgurl.as_str()),
            None => (VIRTUAL_NICKNAME, VIRTUAL_AVATAR),
        };
        let mut answer = json!({
            "openid": subject.openid, "nickname": nickname, "sex": 0, "province": "", "city": "",
            "country": "", "headimgurl": headimgurl,
            "privilege": user.map(|user| user.privilege.as_slice()).unwrap_or_default(),
        });
        if let Some(unionid) = self.unionid(&subject) {
            answer["unionid"] = unionid.into();
        }
        Ok(answer)
    }

    /// Checks a call that trades a code, in WeChat's order; answers app and code.
    pub(crate) fn check_code_claim<'a>(
        &self,
        call: &'a Call,
        parameter: &str,
    ) -> Result<(&'a str, &'a str), Failure> {
        let appid = call.query("appid").ok_or_else(|| Failure::new(41002))?;
        let app = self.apps.get(appid).ok_or_else(|| Failure::new(40013))?;
        let secret = call.query("secret").ok_or_else(|| Failure::new(41004))?;
        let spec = &app.spec;
        if secret != spec.secret {
            return Err(Failure::wrong_secret(self.switches.wrong_secret_code));
        }
        if spec.frozen {
            return Err(Failure::new(40243));
        }
        if spec.banned {
            return Err(Failure::new(50007));
        }
        if self.switches.sns_ip_whitelist && !app.allows(call.ip) {
            return Err(Failure::refused_ip(40164, call.ip));
        }
        let code = call.query(parameter).ok_or_else(|| Failure::new(41008))?;
        if call.query("grant_type") != Some("authorization_code") {
            return Err(Failure::new(40002));
        }
        Ok((appid, code))
    }

    fn check_web_token(&self, call: &Call, now: Timestamp) -> Result<(Subject, Scope), Failure> {
        let token = call.query("access_token").ok_or_else(|| Failure::new(41001))?;
        let token = self.grants.web_token(token).ok_or_else(|| Failure::new(40001))?;
        match token.state(now) {
            TokenState::Live => Ok((token.subject.clone(), token.scope)),
            TokenState::Expired => Err(Failure::new(42001)),
            TokenState::Superseded if token.ended_with_grant() => {
                Err(Failure::new(self.switches.ended_web_token_code))
            }
            TokenState::Superseded | TokenState::Unknown => Err(Failure::new(40001)),
        }
    }

    fn five_fields(&self, given: &Given) -> Value {
        json!({
            "access_token": given.web_token, "expires_in": self.switches.web_token_lifetime_secs,
            "refresh_token": given.refresh_token, "openid": given.subject.openid,
            "scope": given.scope.name(),
        })
    }

    /// The record of a user; none of a virtual account.
    fn user(&self, subject: &Subject) -> Option<&UserSpec> {
        match subject.virtual_unionid {
            Some(_) => None,
            None => self.apps.get(&subject.appid)?.users.get(&subject.openid),
        }
    }

    /// The unionid, where the app is bound.
    pub(crate) fn unionid<'a>(&'a self, subject: &'a Subject) -> Option<&'a str> {
        let bound = self.apps.get(&subject.appid).is_some_and(|app| app.spec.bound);
        let unionid = match &subject.virtual_unionid {
            Some(made_up) => Some(made_up.as_str()),
            None => self.user(subject)?.unionid.as_deref(),
        };
        unionid.filter(|_| bound)
    }

    /// Issues a code of a user as the pages do.
    pub(crate) fn issue_web_code(
        &mut self,
        (appid, openid): (&str, &str),
        scope: Scope,
        snapshot: bool,
        now: Timestamp,
        answer_delay: u64,
    ) -> String {
        let subject = self.grants.subject(appid, openid, snapshot);
        let life = self.switches.code_life(scope);
        self.grants.issue_code(subject, Purpose::Web(scope), (now, life), answer_delay)
    }
}

fn check_openid(call: &Call, subject: &Subject) -> Result<(), Failure> {
    let openid = call.query("openid").ok_or_else(|| Failure::new(41009))?;
    if openid == subject.openid { Ok(()) } else { Err(Failure::new(40003)) }
}

/// Whether apps of a kind may ask for a scope.
pub(crate) const fn may_ask(kind: AppKind, scope: Scope) -> bool {
    match scope {
        Scope::Base | Scope::UserInfo => matches!(kind, AppKind::Official | AppKind::Test),
        Scope::Login => matches!(kind, AppKind::Website),
    }
}

const VIRTUAL_NICKNAME: &str = "微信用户";
const VIRTUAL_AVATAR: &str = "https://thirdwx.qlogo.cn/mmopen/vi_32/virtual/132";

//! Web authorisation: codes, the web tokens and refresh tokens that they are traded for, and what
//! ends them.

use std::time::Duration;

use clock::Timestamp;
use serde::{Deserialize, Serialize};

use crate::{answer::Failure, rng::Rng, shelf::Shelf, switches::Switches, token::TokenState};

/// What a user lets an app know.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub enum Scope {
    /// The openid, without being asked.
    #[serde(rename = "snsapi_base")]
    Base,
    /// The profile, after consent.
    #[serde(rename = "snsapi_userinfo")]
    UserInfo,
    /// The profile, at a website whose QR code was scanned.
    #[serde(rename = "snsapi_login")]
    Login,
}

impl Scope {
    /// WeChat's name of it.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Base => "snsapi_base",
            Self::UserInfo => "snsapi_userinfo",
            Self::Login => "snsapi_login",
        }
    }
}

/// Why an authorisation is over before its time.
///
/// Both do the same: WeChat documents 42007 for either, and no difference is known. The reason is
/// kept for whoever asks what was done.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Revocation {
    /// The user took it back.
    #[default]
    Revoked,
    /// The user changed the password of WeChat.
    PasswordChanged,
}

/// What is left of one code exchange.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct WebGrant {
    /// The web token that was answered last.
    pub web_token: String,
    /// What `/sns/userinfo` would say to it: for [`TokenState::Superseded`] 40001, or what
    /// [`Switches::ended_web_token_code`] says.
    pub web_state: TokenState,
    /// When the web token runs out.
    pub web_expires: Timestamp,
    /// The refresh token that was answered last.
    pub refresh_token: String,
    /// When the refresh token runs out, counted from the code exchange.
    pub refresh_expires: Timestamp,
    /// What was authorised.
    pub scope: Scope,
    /// It is that of a virtual account.
    pub snapshot: bool,
    /// It is over before its time: the refresh token answers 42007.
    pub ended: Option<Revocation>,
}

/// The user, or virtual account, that a code or a token speaks for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Subject {
    pub(crate) appid: String,
    pub(crate) openid: String,
    /// The made-up unionid of a virtual account.
    pub(crate) virtual_unionid: Option<String>,
}

impl Subject {
    fn is(&self, appid: &str, openid: &str) -> bool {
        self.appid == appid && self.openid == openid
    }
}

/// What a code may be traded for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Purpose {
    Web(Scope),
    /// A session of a mini program.
    Mini,
}

#[derive(Debug)]
struct Code {
    subject: Subject,
    purpose: Purpose,
    expires: Timestamp,
    used: bool,
    /// The user took back what it stands for before it was used.
    revoked: bool,
    /// How long the answer to its exchange waits, in milliseconds.
    answer_delay: u64,
}

/// A web token.
#[derive(Clone, Debug)]
pub(crate) struct WebToken {
    pub(crate) subject: Subject,
    pub(crate) scope: Scope,
    expires: Timestamp,
    /// It works no more, although its life is not over.
    ended: Option<End>,
}

/// What ended a web token before its time.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum End {
    /// Something that its refresh token survived.
    Alone,
    /// The end of the authorisation.
    WithGrant,
}

impl WebToken {
    pub(crate) fn state(&self, now: Timestamp) -> TokenState {
        if self.ended.is_some() {
            TokenState::Superseded
        } else if now < self.expires {
            TokenState::Live
        } else {
            TokenState::Expired
        }
    }

    /// Whether it ended before its time because the authorisation did.
    pub(crate) fn ended_with_grant(&self) -> bool {
        self.ended == Some(End::WithGrant)
    }

    fn end(&mut self, how: End, now: Timestamp) {
        if now < self.expires && self.ended != Some(End::WithGrant) {
            self.ended = Some(how);
        }
    }
}

/// A refresh token.
#[derive(Clone, Debug)]
struct Refresh {
    subject: Subject,
    scope: Scope,
    web_token: String,
    expires: Timestamp,
    ended: Option<Revocation>,
    /// Another one was answered in its place.
    replaced: bool,
}

impl Refresh {
    fn lives(&self, now: Timestamp) -> bool {
        now < self.expires && self.ended.is_none() && !self.replaced
    }
}

/// What a code exchange or a refresh answers.
#[derive(Debug)]
pub(crate) struct Given {
    pub(crate) subject: Subject,
    pub(crate) scope: Scope,
    pub(crate) web_token: String,
    pub(crate) refresh_token: String,
}

/// Every code, web token and refresh token.
#[derive(Debug)]
pub(crate) struct GrantBook {
    codes: Shelf<String, Code>,
    web_tokens: Shelf<String, WebToken>,
    refreshes: Shelf<String, Refresh>,
    rng: Rng,
}

impl GrantBook {
    /// The most dead codes, web tokens and refresh tokens that are remembered, of each.
    const KEPT: usize = 100_000;

    pub(crate) fn new(rng: Rng) -> Self {
        Self::keeping(Self::KEPT, rng)
    }

    fn keeping(kept: usize, rng: Rng) -> Self {
        Self {
            codes: Shelf::new(kept),
            web_tokens: Shelf::new(kept),
            refreshes: Shelf::new(kept),
            rng,
        }
    }

    /// Forgets everything. The generator goes on, so that nothing is issued twice.
    pub(crate) fn clear(&mut self) {
        self.codes.clear();
        self.web_tokens.clear();
        self.refreshes.clear();
    }

    /// A user as they are, or a virtual account that stands for them once.
    pub(crate) fn subject(&mut self, appid: &str, openid: &str, snapshot: bool) -> Subject {
        let appid = appid.to_owned();
        if !snapshot {
            return Subject { appid, openid: openid.to_owned(), virtual_unionid: None };
        }
        let mut made_up = || format!("o{}", self.rng.text(BASE64URL, 27));
        Subject { appid, openid: made_up(), virtual_unionid: Some(made_up()) }
    }

    /// Issues a code for one use within `life`.
    pub(crate) fn issue_code(
        &mut self,
        subject: Subject,
        purpose: Purpose,
        (now, life): (Timestamp, Duration),
        answer_delay: u64,
    ) -> String {
        // As seen: 32 characters that begin with a digit.
        let digit = self.rng.below(10);
        let code = format!("{digit}{}", self.rng.text(ALPHANUMERIC, 31));
        let expires = now + life;
        let record = Code { subject, purpose, expires, used: false, revoked: false, answer_delay };
        self.codes.put(code.clone(), record, |one| now < one.expires);
        code
    }

    /// Whose code it is.
    pub(crate) fn subject_of_code(&self, code: &str) -> Option<&Subject> {
        self.codes.find(code).map(|code| &code.subject)
    }

    /// How long the answer to the exchange of a code waits, in milliseconds.
    pub(crate) fn answer_delay(&self, code: &str) -> u64 {
        self.codes.find(code).map_or(0, |code| code.answer_delay)
    }

    /// Uses a code of an app up. `wanted` says whether it is of the right kind.
    pub(crate) fn redeem<T>(
        &mut self,
        code: &str,
        appid: &str,
        wanted: impl FnOnce(Purpose) -> Option<T>,
        (now, switches): (Timestamp, &Switches),
    ) -> Result<(Subject, T), Failure> {
        let found = self.codes.find_mut(code).filter(|code| code.subject.appid == appid);
        let code = found.ok_or_else(|| Failure::new(40029))?;
        let wanted = wanted(code.purpose).ok_or_else(|| Failure::new(40029))?;
        if code.revoked {
            return Err(Failure::new(40029));
        }
        if now >= code.expires {
            return Err(Failure::new(switches.expired_code));
        }
        if std::mem::replace(&mut code.used, true) {
            return Err(Failure::new(40163));
        }
        Ok((code.subject.clone(), wanted))
    }

    /// Trades a code of an app for a web token and a refresh token.
    pub(crate) fn exchange(
        &mut self,
        code: &str,
        appid: &str,
        now: Timestamp,
        switches: &Switches,
    ) -> Result<Given, Failure> {
        let wanted = |purpose| match purpose {
            Purpose::Web(scope) => Some(scope),
            Purpose::Mini => None,
        };
        let (subject, scope) = self.redeem(code, appid, wanted, (now, switches))?;
        if switches.new_grant_ends_web_tokens {
            self.end_web_tokens(appid, &subject.openid, End::Alone, now);
        }
        let web_token = self.mint(subject.clone(), scope, now, switches);
        let refresh = Refresh {
            subject: subject.clone(),
            scope,
            web_token: web_token.clone(),
            expires: now + Duration::from_secs(switches.refresh_lifetime_secs),
            ended: None,
            replaced: false,
        };
        let refresh_token = self.shelve(refresh, now);
        Ok(Given { subject, scope, web_token, refresh_token })
    }

    /// Renews a web token: the life of a live one begins again, a dead one is replaced.
    pub(crate) fn refresh(
        &mut self,
        token: &str,
        appid: &str,
        now: Timestamp,
        switches: &Switches,
    ) -> Result<Given, Failure> {
        let found = self
            .refreshes
            .find(token)
            .filter(|one| one.subject.appid == appid && !one.replaced)
            .cloned();
        let mut refresh = found.ok_or_else(|| Failure::new(switches.bad_refresh_token_code))?;
        if now >= refresh.expires {
            return Err(Failure::new(42002));
        }
        if refresh.ended.is_some() {
            return Err(Failure::new(42007));
        }
        let live = self.web_tokens.find_mut(&refresh.web_token);
        match live.filter(|one| one.state(now) == TokenState::Live) {
            Some(live) => {
                live.expires = now + Duration::from_secs(switches.web_token_lifetime_secs);
            }
            None => {
                let (subject, scope) = (refresh.subject.clone(), refresh.scope);
                refresh.web_token = self.mint(subject, scope, now, switches);
            }
        }
        let given = |refresh: &Refresh, refresh_token| Given {
            subject: refresh.subject.clone(),
            scope: refresh.scope,
            web_token: refresh.web_token.clone(),
            refresh_token,
        };
        let rotates = switches.refresh_rotates;
        if let Some(old) = self.refreshes.find_mut(token) {
            old.web_token.clone_from(&refresh.web_token);
            old.replaced = rotates;
        }
        if rotates {
            let given = given(&refresh, String::new());
            return Ok(Given { refresh_token: self.shelve(refresh, now), ..given });
        }
        Ok(given(&refresh, token.to_owned()))
    }

    pub(crate) fn web_token(&self, token: &str) -> Option<&WebToken> {
        self.web_tokens.find(token)
    }

    /// Whose refresh token it is.
    pub(crate) fn subject_of_refresh(&self, token: &str) -> Option<&Subject> {
        self.refreshes.find(token).map(|refresh| &refresh.subject)
    }

    /// Ends what a user authorised: codes that were not used yet, refresh tokens and web tokens. A
    /// `js_code` is no authorisation.
    pub(crate) fn revoke(&mut self, appid: &str, openid: &str, why: Revocation, now: Timestamp) {
        for refresh in self.refreshes.values_mut() {
            if refresh.subject.is(appid, openid) && refresh.lives(now) {
                refresh.ended = Some(why);
            }
        }
        for code in self.codes.values_mut() {
            let web = matches!(code.purpose, Purpose::Web(_));
            code.revoked |= web && !code.used && code.subject.is(appid, openid);
        }
        self.end_web_tokens(appid, openid, End::WithGrant, now);
    }

    /// Ends a user's web tokens before their time; the refresh tokens are left as they are.
    pub(crate) fn end_web_tokens(&mut self, appid: &str, openid: &str, how: End, now: Timestamp) {
        for token in self.web_tokens.values_mut() {
            if token.subject.is(appid, openid) {
                token.end(how, now);
            }
        }
    }

    /// What is left of a user's exchanges, oldest first.
    pub(crate) fn of_user(&self, appid: &str, openid: &str, now: Timestamp) -> Vec<WebGrant> {
        let grant = |(token, refresh): (&String, &Refresh)| {
            let web = self.web_tokens.find(&refresh.web_token);
            WebGrant {
                web_token: refresh.web_token.clone(),
                web_state: web.map_or(TokenState::Unknown, |web| web.state(now)),
                web_expires: web.map_or(Timestamp::default(), |web| web.expires),
                refresh_token: token.clone(),
                refresh_expires: refresh.expires,
                scope: refresh.scope,
                snapshot: refresh.subject.virtual_unionid.is_some(),
                ended: refresh.ended,
            }
        };
        let all = self.refreshes.iter();
        all.filter(|(_, one)| one.subject.is(appid, openid) && !one.replaced).map(grant).collect()
    }

    fn mint(
        &mut self,
        subject: Subject,
        scope: Scope,
        now: Timestamp,
        switches: &Switches,
    ) -> String {
        let token = self.write_token();
        let expires = now + Duration::from_secs(switches.web_token_lifetime_secs);
        let record = WebToken { subject, scope, expires, ended: None };
        let lives = |one: &WebToken| one.state(now) == TokenState::Live;
        self.web_tokens.put(token.clone(), record, lives);
        token
    }

    fn shelve(&mut self, refresh: Refresh, now: Timestamp) -> String {
        let token = self.write_token();
        self.refreshes.put(token.clone(), refresh, |one| one.lives(now));
        token
    }

    /// The look of a web token: a counter of generations, base64url text, no tail of capitals.
    fn write_token(&mut self) -> String {
        let length = 102 + self.rng.below(4) as usize;
        let body = self.rng.text(BASE64URL, length);
        let last = self.rng.text(b"abcdefghijklmnopqrstuvwxyz0123456789", 1);
        format!("95_{body}{last}")
    }
}

const ALPHANUMERIC: &[u8] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789";
const BASE64URL: &[u8] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-_";

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_living_outlast_the_dead() {
        let now = Timestamp::from_secs(1_000_000);
        let switches = Switches::default();
        let mut book = GrantBook::keeping(4, Rng::new(7, 4));
        let issue = |book: &mut GrantBook, openid: &str| {
            let subject = book.subject("wx", openid, false);
            let life = Duration::from_secs(300);
            book.issue_code(subject, Purpose::Web(Scope::Base), (now, life), 0)
        };
        let code = issue(&mut book, "living");
        let given = book.exchange(&code, "wx", now, &switches).unwrap();
        let unused = issue(&mut book, "living");
        for _ in 0..10 {
            let code = issue(&mut book, "dead");
            book.exchange(&code, "wx", now, &switches).unwrap();
            book.revoke("wx", "dead", Revocation::Revoked, now);
        }
        let web = book.web_token(&given.web_token).unwrap();
        assert_eq!(web.state(now), TokenState::Live);
        let refreshed = book.refresh(&given.refresh_token, "wx", now, &switches).unwrap();
        assert_eq!(refreshed.web_token, given.web_token);
        assert!(book.exchange(&unused, "wx", now, &switches).is_ok());
        assert!(book.of_user("wx", "dead", now).len() < 5, "the dead are forgotten");
    }
}

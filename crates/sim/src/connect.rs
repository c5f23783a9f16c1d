//! Browsers at `open.weixin.qq.com`: what an authorise page asks for, whom it asks, what a scanned
//! QR code comes to, and where the browser is sent in the end.

use std::time::Duration;

use clock::Timestamp;
use http::Uri;

use crate::{
    app::{AppKind, UserSpec},
    oauth::Scope,
    rng::Rng,
    shelf::Shelf,
    sns::may_ask,
    state::{App, State},
};

/// How the browser in WeChat comes back twice from one authorisation.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum CallbackMode {
    /// Twice at the same address, with the same code.
    SameCode,
    /// The second time with another code and the same state.
    NewCode,
    /// Twice with the same code, and the first exchange of it is answered late.
    SlowFirst,
}

/// That, and how often, browsers come back twice.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct DuplicateCallbacks {
    /// In which way.
    pub mode: CallbackMode,
    /// For how many authorisations; until changed without.
    pub count: Option<u64>,
    /// How late an exchange is answered with [`CallbackMode::SlowFirst`], in milliseconds.
    pub delay_ms: u64,
}

impl DuplicateCallbacks {
    /// How late the first exchange is answered when nothing else is said, in milliseconds.
    pub const DELAY_MS: u64 = 15_000;

    /// Every browser comes back twice.
    pub const fn new(mode: CallbackMode) -> Self {
        Self { mode, count: None, delay_ms: Self::DELAY_MS }
    }
}

/// A page that asks for an authorisation.
///
/// WeChat wants `#wechat_redirect` behind its address. Browsers keep that to themselves, so that no
/// server can see whether it is there.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Door {
    /// `/connect/oauth2/authorize`, in WeChat's own browser.
    Authorize,
    /// `/connect/qrconnect`, for a phone to scan.
    QrConnect,
}

/// An authorisation that is asked for rightly.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Wanted {
    pub(crate) appid: String,
    pub(crate) scope: Scope,
    redirect_uri: String,
    state: String,
    /// It will be that of a virtual account.
    pub(crate) snapshot: bool,
}

/// Where a browser is sent after consent.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Callback {
    pub(crate) first: String,
    pub(crate) second: Option<Second>,
}

/// Where, and how much later, a browser goes once more.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Second {
    pub(crate) address: String,
    pub(crate) after_ms: u64,
}

/// Why a page shows an error: WeChat's number and two texts.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct PageError {
    pub(crate) code: u32,
    pub(crate) chinese: &'static str,
    pub(crate) english: &'static str,
}

/// A question that was put to a user, and waits.
#[derive(Debug)]
struct Question {
    wanted: Wanted,
    /// The scan that it is about.
    scan: Option<String>,
    expires: Timestamp,
    answered: bool,
}

/// A QR code that was shown.
#[derive(Debug)]
struct Scan {
    wanted: Wanted,
    expires: Timestamp,
    stage: Stage,
}

/// How far a QR login has come.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Stage {
    Waiting,
    Scanned,
    Denied,
    Confirmed(Callback),
    /// Nobody confirmed in time, or there never was such a code.
    Over,
}

impl Stage {
    /// The word for it in the answers that a page polls.
    pub(crate) const fn name(&self) -> &'static str {
        match self {
            Self::Waiting => "waiting",
            Self::Scanned => "scanned",
            Self::Denied => "denied",
            Self::Confirmed(_) => "confirmed",
            Self::Over => "over",
        }
    }
}

/// What browsers are in the middle of.
#[derive(Debug)]
pub(crate) struct Visits {
    questions: Shelf<String, Question>,
    scans: Shelf<String, Scan>,
    names: Rng,
}

impl Visits {
    /// The most that are over and still remembered, of each.
    const KEPT: usize = 10_000;

    pub(crate) fn new(names: Rng) -> Self {
        Self { questions: Shelf::new(Self::KEPT), scans: Shelf::new(Self::KEPT), names }
    }

    /// Forgets them all. The generator goes on, so that no name comes twice.
    pub(crate) fn clear(&mut self) {
        self.questions.clear();
        self.scans.clear();
    }

    /// A name that was never given before.
    pub(crate) fn write_name(&mut self) -> String {
        self.names.text(b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789", 24)
    }

    /// Puts a question, about a scan or not, and answers the ticket that its form carries.
    pub(crate) fn ask(&mut self, wanted: Wanted, scan: Option<String>, now: Timestamp) -> String {
        let ticket = self.write_name();
        let question = Question { wanted, scan, expires: now + QUESTION_LIFE, answered: false };
        self.questions.put(ticket.clone(), question, |one| now < one.expires && !one.answered);
        ticket
    }

    /// Takes the question of a ticket, once, with the scan that it is about.
    pub(crate) fn take(
        &mut self,
        ticket: &str,
        now: Timestamp,
    ) -> Option<(Wanted, Option<String>)> {
        let waits = |one: &&mut Question| now < one.expires && !one.answered;
        let question = self.questions.find_mut(ticket).filter(waits)?;
        question.answered = true;
        Some((question.wanted.clone(), question.scan.clone()))
    }

    /// Shows a QR code, and answers its name.
    pub(crate) fn start_scan(&mut self, wanted: Wanted, now: Timestamp) -> String {
        let uuid = self.write_name();
        let scan = Scan { wanted, expires: now + SCAN_LIFE, stage: Stage::Waiting };
        self.scans.put(uuid.clone(), scan, |one| now < one.expires);
        uuid
    }

    /// How far a QR login has come.
    pub(crate) fn stage(&self, uuid: &str, now: Timestamp) -> Stage {
        match self.scans.find(uuid) {
            None => Stage::Over,
            Some(scan) => match &scan.stage {
                Stage::Waiting | Stage::Scanned if now >= scan.expires => Stage::Over,
                stage => stage.clone(),
            },
        }
    }

    /// Notes how far a QR login has come.
    pub(crate) fn set_stage(&mut self, uuid: &str, stage: Stage) {
        if let Some(scan) = self.scans.find_mut(uuid) {
            scan.stage = stage;
        }
    }

    /// What a QR login is about.
    pub(crate) fn wanted(&self, uuid: &str) -> Option<&Wanted> {
        self.scans.find(uuid).map(|scan| &scan.wanted)
    }
}

/// How long a consent page can be answered.
const QUESTION_LIFE: Duration = Duration::from_secs(600);
/// How long a QR code can be scanned and confirmed.
const SCAN_LIFE: Duration = Duration::from_secs(300);

impl State {
    /// Checks what a page was asked for, by its query.
    pub(crate) fn check_door(
        &self,
        door: Door,
        query: &[(String, String)],
    ) -> Result<Wanted, PageError> {
        let find = |name: &str| {
            let found = query.iter().find(|(key, value)| key == name && !value.is_empty());
            found.map(|(_, value)| value.as_str())
        };
        let appid = find("appid").ok_or(NO_APPID)?;
        let redirect_uri = find("redirect_uri").ok_or(NO_REDIRECT)?;
        let scope = find("scope").ok_or(NO_SCOPE)?;
        // A website may leave it out.
        let needs_state = door == Door::Authorize && self.switches.state_required;
        let state = find("state").or((!needs_state).then_some("")).ok_or(NO_STATE)?;
        if !is_state(state) && !state.is_empty() {
            return Err(BAD_STATE);
        }
        let strict = door == Door::Authorize && self.switches.strict_parameter_order;
        if find("response_type") != Some("code") || strict && !in_order(query) {
            return Err(BAD_ORDER);
        }
        let spec = &self.apps.get(appid).ok_or(UNKNOWN_APP)?.spec;
        if spec.banned {
            return Err(BANNED);
        }
        if door == Door::Authorize && self.switches.authorize_too_frequent {
            return Err(TOO_FREQUENT);
        }
        if door == Door::Authorize && spec.kind == AppKind::Website {
            return Err(OPEN_PLATFORM);
        }
        let scopes: &[Scope] = match door {
            Door::Authorize => &[Scope::Base, Scope::UserInfo],
            Door::QrConnect => &[Scope::Login],
        };
        let known = scopes.iter().copied().find(|one| one.name() == scope);
        let scope = known.filter(|scope| may_ask(spec.kind, *scope)).ok_or(FORBIDDEN_SCOPE)?;
        if redirect_uri.len() > LONGEST_REDIRECT {
            return Err(LONG_REDIRECT);
        }
        if !host_is_registered(redirect_uri, &spec.redirect_hosts) {
            return Err(FOREIGN_HOST);
        }
        Ok(Wanted {
            appid: appid.to_owned(),
            scope,
            redirect_uri: redirect_uri.to_owned(),
            state: state.to_owned(),
            snapshot: scope == Scope::UserInfo && find("forceSnapShot") == Some("true"),
        })
    }

    /// The users of an app, in the order of their openids.
    pub(crate) fn users_of(&self, appid: &str) -> impl Iterator<Item = &UserSpec> {
        self.apps.get(appid).into_iter().flat_map(|app| app.users.values())
    }

    /// The user who holds the phone: the one that is `named`, or else the one who was there before,
    /// or else the first.
    pub(crate) fn person(
        &self,
        appid: &str,
        named: Option<&str>,
        before: Option<&str>,
    ) -> Result<String, PageError> {
        let find =
            |openid: Option<&str>| self.users_of(appid).find(|user| Some(&*user.openid) == openid);
        let person = match named {
            Some(_) => find(named).ok_or(UNKNOWN_USER)?,
            None => find(before).or(self.users_of(appid).next()).ok_or(NO_USERS)?,
        };
        Ok(person.openid.clone())
    }

    /// A user consented: issues the code, and says where the browser goes. A test account is for
    /// its followers only.
    pub(crate) fn call_back(
        &mut self,
        wanted: &Wanted,
        openid: &str,
        now: Timestamp,
    ) -> Result<Callback, PageError> {
        let app = self.apps.get_mut(&wanted.appid);
        let follows = |app: &App| app.users.get(openid).is_some_and(|user| user.subscribed);
        if app.as_ref().is_some_and(|app| app.spec.kind == AppKind::Test && !follows(app)) {
            return Err(NOT_FOLLOWING);
        }
        let twice = app.and_then(|app| {
            let twice = app.duplicate_callbacks.as_mut().filter(|one| one.count != Some(0))?;
            twice.count = twice.count.map(|left| left - 1);
            Some(*twice)
        });
        let mut issue = |delay| {
            let user = (wanted.appid.as_str(), openid);
            let code = self.issue_web_code(user, wanted.scope, wanted.snapshot, now, delay);
            wanted.address(&code)
        };
        let Some(twice) = twice else { return Ok(Callback { first: issue(0), second: None }) };
        let (first, second, after_ms) = match twice.mode {
            CallbackMode::SameCode => (issue(0), None, AT_ONCE_MS),
            CallbackMode::NewCode => (issue(0), Some(issue(0)), AT_ONCE_MS),
            CallbackMode::SlowFirst => (issue(twice.delay_ms), None, IMPATIENCE_MS),
        };
        let address = second.unwrap_or_else(|| first.clone());
        Ok(Callback { first, second: Some(Second { address, after_ms }) })
    }
}

/// How much later a browser asks twice for no reason. Any later, and a quick app has answered.
const AT_ONCE_MS: u64 = 0;
/// How long a browser waits for an answer before it asks again.
const IMPATIENCE_MS: u64 = 1_500;

impl Wanted {
    /// The address of the app with a code, ahead of its fragment. As seen, a parameter of the
    /// address that is called `openId` disappears.
    fn address(&self, code: &str) -> String {
        let (page, fragment) = match self.redirect_uri.split_once('#') {
            Some((page, fragment)) => (page, format!("#{fragment}")),
            None => (self.redirect_uri.as_str(), String::new()),
        };
        let (page, query) = page.split_once('?').unwrap_or((page, ""));
        let is_kept = |pair: &&str| pair.split('=').next() != Some("openId");
        let kept: Vec<&str> = query.split('&').filter(is_kept).collect();
        let query = kept.join("&");
        let joint = if query.is_empty() { "" } else { "&" };
        format!("{page}?{query}{joint}code={code}&state={}{fragment}", self.state)
    }
}

/// The longest address to come back to, in bytes. A guess: about a thousand are known to work.
const LONGEST_REDIRECT: usize = 2_048;

fn is_state(text: &str) -> bool {
    (1..=128).contains(&text.len()) && text.bytes().all(|byte| byte.is_ascii_alphanumeric())
}

/// Whether parameters come in WeChat's order. `lang` is the simulator's own, and may stand anywhere.
fn in_order(query: &[(String, String)]) -> bool {
    let mut rest = [
        "appid",
        "redirect_uri",
        "response_type",
        "scope",
        "state",
        "forcePopup",
        "forceSnapShot",
        "connect_redirect",
    ]
    .iter();
    let mut named = query.iter().map(|(key, _)| key).filter(|key| *key != "lang");
    named.all(|key| rest.any(|next| next == key))
}

/// Whether an address leads to a host on the list, whatever its port.
fn host_is_registered(address: &str, hosts: &[String]) -> bool {
    let Ok(uri) = address.parse::<Uri>() else { return false };
    let Some(authority) = uri.authority() else { return false };
    // `http` does not look at what stands for the port before somebody asks for it.
    let port = authority.as_str().strip_prefix(authority.host());
    let port_exists = |port: &str| authority.port_u16().is_some() && !port.contains('+');
    matches!(uri.scheme_str(), Some("http" | "https"))
        && !authority.as_str().contains('@')
        && port.is_some_and(|port| port.is_empty() || port_exists(port))
        && hosts.iter().any(|host| host.eq_ignore_ascii_case(authority.host()))
}

const fn page_error(code: u32, chinese: &'static str, english: &'static str) -> PageError {
    PageError { code, chinese, english }
}

const FOREIGN_HOST: PageError = page_error(
    10003,
    "redirect_uri 域名与后台配置不一致",
    "The host of redirect_uri is not one that is registered for this account",
);
const BANNED: PageError = page_error(10004, "此公众号被封禁", "This account is banned");
const FORBIDDEN_SCOPE: PageError =
    page_error(10005, "此公众号没有这些 scope 的权限", "This account has no right to this scope");
const BAD_ORDER: PageError = page_error(
    10005,
    "授权链接的参数缺失、重复或顺序不对",
    "A parameter of this address is missing, foreign, there twice, or not in WeChat's order",
);
const NOT_FOLLOWING: PageError = page_error(
    10006,
    "你还没有关注这个测试号，请先关注",
    "You do not follow this test account: follow it first",
);
const TOO_FREQUENT: PageError =
    page_error(10009, "操作太频繁，请稍后再试", "Too frequent: try again later");
const NO_SCOPE: PageError = page_error(10010, "scope 不能为空", "scope is empty");
const NO_REDIRECT: PageError = page_error(10011, "redirect_uri 不能为空", "redirect_uri is empty");
// A guess: no number is known for it.
const LONG_REDIRECT: PageError = page_error(
    10011,
    "redirect_uri 过长，最多 2048 字节",
    "redirect_uri is too long: 2048 bytes at most",
);
const NO_APPID: PageError = page_error(10012, "appid 不能为空", "appid is empty");
// A guess: no number is known for it.
const UNKNOWN_APP: PageError = page_error(10012, "appid 不存在", "No account has this appid");
const NO_STATE: PageError = page_error(10013, "state 不能为空", "state is empty");
// A guess: no number is known for it.
const BAD_STATE: PageError = page_error(
    10013,
    "state 只能是 a-zA-Z0-9，最多 128 字节",
    "state may hold a-z, A-Z and 0-9 only, at most 128 bytes",
);
const OPEN_PLATFORM: PageError = page_error(
    10016,
    "不支持开放平台的 appid，请使用公众号的 appid",
    "This appid is one of the Open Platform; use that of an official account",
);
/// The app has no users that could be asked.
const NO_USERS: PageError = page_error(
    0,
    "模拟器里这个应用没有用户，请先 POST /sim/users 添加",
    "The simulator knows no users of this app: add one by POST /sim/users",
);
const UNKNOWN_USER: PageError = page_error(
    0,
    "模拟器里这个应用没有该 openid 的用户",
    "The simulator knows no user of this app with that openid",
);

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn hosts_are_equal_or_foreign() {
        let hosts = ["login.example.com".to_owned(), "[::1]".to_owned()];
        for (address, registered) in [
            ("https://login.example.com/cb?x=1", true),
            ("http://LOGIN.example.com:8080", true),
            ("http://[::1]:8080/cb#frag", true),
            ("http://[::1]", true),
            ("http://[::1]:65535", true),
            ("http://[::1]:65536", false),
            ("http://[::1]:", false),
            ("http://[::1]:+80", false),
            ("http://[::1]80", false),
            ("https://login.example.com:99999/", false),
            ("https://login.example.com:8000x.evil.example/", false),
            ("https://login.example.com:80:80/", false),
            ("https://login.example.com\\.evil.example/", false),
            ("https://login.example.com@login.example.com/", false),
            ("https://example.com/", false),
            ("https://x.login.example.com/", false),
            ("https://login.example.com.evil.example/", false),
            ("https://login.example.com@evil.example/", false),
            ("https://evil.example@login.example.com/", false),
            ("javascript://login.example.com/", false),
            ("//login.example.com/", false),
            ("/cb", false),
            ("https://login.example.com/\r\nx", false),
            ("", false),
        ] {
            assert_eq!(host_is_registered(address, &hosts), registered, "{address}");
        }
    }

    #[test]
    fn a_code_stands_where_the_app_looks_for_it() {
        let address = |redirect_uri: &str| {
            let wanted = Wanted {
                appid: String::new(),
                scope: Scope::Base,
                redirect_uri: redirect_uri.to_owned(),
                state: "S".to_owned(),
                snapshot: false,
            };
            wanted.address("C")
        };
        assert_eq!(address("http://a/cb"), "http://a/cb?code=C&state=S");
        assert_eq!(address("http://a/cb?x=1"), "http://a/cb?x=1&code=C&state=S");
        assert_eq!(address("http://a/#/cb"), "http://a/?code=C&state=S#/cb");
        assert_eq!(address("http://a/cb?"), "http://a/cb?code=C&state=S");
        assert_eq!(address("http://a/cb?x=?&&y#?"), "http://a/cb?x=?&&y&code=C&state=S#?");
        assert_eq!(address("http://a/cb?openId=1"), "http://a/cb?code=C&state=S");
        assert_eq!(
            address("http://a/cb?openid=1&openId&x=1&openId=2&openIdx=3#openId=4"),
            "http://a/cb?openid=1&x=1&openIdx=3&code=C&state=S#openId=4"
        );
    }
}

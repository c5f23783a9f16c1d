//! Apps and users, as a test or the control port describes them.

use std::{collections::BTreeMap, fmt, net::IpAddr};

use serde::{Deserialize, Deserializer, Serialize, de::Error};

use crate::quota;

/// An app that the simulated WeChat knows.
#[derive(Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct AppSpec {
    /// Its appid.
    pub appid: String,
    /// Its AppSecret. Never written out again: [`Debug`](fmt::Debug) and JSON leave it out.
    #[serde(skip_serializing)]
    pub secret: String,
    /// What it is.
    #[serde(default)]
    pub kind: AppKind,
    /// The addresses that may ask for tokens; all may without a list.
    #[serde(default)]
    pub ip_whitelist: Option<Vec<IpAddr>>,
    /// Its AppSecret is frozen: token calls and trades of codes answer 40243.
    #[serde(default)]
    pub frozen: bool,
    /// The account is frozen: token calls, trades of codes and refreshes answer 50007.
    #[serde(default)]
    pub banned: bool,
    /// The account may not use tokens, as a punishment: token calls answer 50004.
    #[serde(default)]
    pub no_token_api: bool,
    /// Bound to an Open Platform account, so that its users have unionids.
    #[serde(default = "yes")]
    pub bound: bool,
    /// Quotas that differ from WeChat's, by path (`/cgi-bin/token`), and for the stable issuer
    /// `/cgi-bin/stable_token#force` and `/cgi-bin/stable_token#minute`.
    #[serde(default, deserialize_with = "known_quotas")]
    pub quotas: BTreeMap<String, u64>,
    /// The hosts, without port, that a login may come back to (网页授权域名).
    #[serde(default)]
    pub redirect_hosts: Vec<String>,
}

impl AppSpec {
    /// An official account in good standing, without a whitelist.
    pub fn new(appid: impl Into<String>, secret: impl Into<String>) -> Self {
        Self {
            appid: appid.into(),
            secret: secret.into(),
            kind: AppKind::Official,
            ip_whitelist: None,
            frozen: false,
            banned: false,
            no_token_api: false,
            bound: true,
            quotas: BTreeMap::new(),
            redirect_hosts: Vec::new(),
        }
    }

    /// The same app, whose logins may come back to this machine too.
    #[must_use]
    pub fn with_loopback_redirects(mut self) -> Self {
        self.redirect_hosts.extend(["localhost", "127.0.0.1", "[::1]"].map(str::to_owned));
        self
    }
}

impl fmt::Debug for AppSpec {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("AppSpec")
            .field("appid", &self.appid)
            .field("kind", &self.kind)
            .field("ip_whitelist", &self.ip_whitelist)
            .field("frozen", &self.frozen)
            .field("banned", &self.banned)
            .field("no_token_api", &self.no_token_api)
            .field("bound", &self.bound)
            .field("quotas", &self.quotas)
            .field("redirect_hosts", &self.redirect_hosts)
            .finish_non_exhaustive()
    }
}

/// What an app is.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum AppKind {
    /// A verified service account.
    #[default]
    Official,
    /// A mini program: no followers, no tickets.
    MiniProgram,
    /// A website app: no global token.
    Website,
    /// A test account: an official account with lower quotas.
    Test,
}

/// A user as one app knows them.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct UserSpec {
    /// The openid at this app.
    pub openid: String,
    /// The app.
    pub appid: String,
    /// Whether the user follows the app.
    #[serde(default = "yes")]
    pub subscribed: bool,
    /// The unionid, shown while the app is bound; among followers while the user follows.
    #[serde(default)]
    pub unionid: Option<String>,
    /// When the user last followed, in Unix seconds; the time of adding when left out.
    #[serde(default)]
    pub subscribe_time: Option<i64>,
    /// The language of the user's WeChat.
    #[serde(default = "chinese")]
    pub language: String,
    /// The remark that the account wrote about the user.
    #[serde(default)]
    pub remark: String,
    /// The old group of the user.
    #[serde(default)]
    pub groupid: i64,
    /// The tags of the user.
    #[serde(default)]
    pub tagid_list: Vec<i64>,
    /// How the user came to follow.
    #[serde(default = "search")]
    pub subscribe_scene: String,
    /// The number of the QR code that the user scanned; 0 without.
    #[serde(default)]
    pub qr_scene: i64,
    /// The text of the QR code that the user scanned.
    #[serde(default)]
    pub qr_scene_str: String,
    /// The name that the user shows, of any characters.
    #[serde(default)]
    pub nickname: String,
    /// Where the user's picture is; empty without one.
    #[serde(default)]
    pub headimgurl: String,
    /// What the user may do at carriers, such as `chinaunicom`.
    #[serde(default)]
    pub privilege: Vec<String>,
}

impl UserSpec {
    /// A follower without unionid.
    pub fn new(appid: impl Into<String>, openid: impl Into<String>) -> Self {
        Self {
            openid: openid.into(),
            appid: appid.into(),
            subscribed: true,
            unionid: None,
            subscribe_time: None,
            language: chinese(),
            remark: String::new(),
            groupid: 0,
            tagid_list: Vec::new(),
            subscribe_scene: search(),
            qr_scene: 0,
            qr_scene_str: String::new(),
            nickname: String::new(),
            headimgurl: String::new(),
            privilege: Vec::new(),
        }
    }

    /// The same user with a nickname.
    #[must_use]
    pub fn with_nickname(mut self, nickname: impl Into<String>) -> Self {
        self.nickname = nickname.into();
        self
    }

    /// The same user, not following.
    #[must_use]
    pub fn not_following(mut self) -> Self {
        self.subscribed = false;
        self
    }

    /// The same user with a unionid.
    #[must_use]
    pub fn with_unionid(mut self, unionid: impl Into<String>) -> Self {
        self.unionid = Some(unionid.into());
        self
    }
}

/// Quotas that exist: one with a typing error would limit nothing.
fn known_quotas<'de, D: Deserializer<'de>>(from: D) -> Result<BTreeMap<String, u64>, D::Error> {
    let quotas = BTreeMap::<String, u64>::deserialize(from)?;
    match quotas.keys().find(|key| !quota::exists(key)) {
        Some(unknown) => Err(D::Error::custom(format!("`{unknown}` has no quota"))),
        None => Ok(quotas),
    }
}

const fn yes() -> bool {
    true
}

fn chinese() -> String {
    "zh_CN".to_owned()
}

fn search() -> String {
    "ADD_SCENE_SEARCH".to_owned()
}

//! Switches: what is not known of WeChat, and a few sizes that tests change.

use std::time::Duration;

use serde::{Deserialize, Deserializer, Serialize, de::Error};

use crate::Scope;

/// How the simulated WeChat behaves where the real one is unknown or may change.
///
/// The defaults are what is believed of it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Switches {
    /// How long a token lives, in seconds. WeChat says that it may change.
    pub token_lifetime_secs: u64,
    /// How long the previous classic token works on, in seconds. Documented as 300.
    pub classic_overlap_secs: u64,
    /// How long the previous stable token works on, in seconds. Documented as 300.
    pub stable_overlap_secs: u64,
    /// The remaining life below which the stable issuer rolls to a new token, in seconds.
    pub stable_roll_secs: u64,
    /// Unknown: one forced refresh ends the token before it at once, or leaves it the overlap.
    pub force_kills_at_once: bool,
    /// The least time between two forced refreshes, in seconds. Documented as 30.
    pub force_interval_secs: u64,
    /// Unknown: the answer to a forced refresh that comes too soon after the last one.
    pub force_too_soon: RefusedForce,
    /// Unknown: the answer to a forced refresh beyond those of a day.
    pub force_over_limit: RefusedForce,
    /// Unknown: the order in which a token call is checked, once appid, presence of the secret
    /// and grant type are known to be fine. Each check stands in it once.
    #[serde(deserialize_with = "each_once")]
    pub token_check_order: [Check; 4],
    /// Unknown: whether failed calls count against quotas.
    pub failed_calls_count: bool,
    /// Unknown: how long a classic token that is older than the previous one works on, in seconds
    /// from the mint that made it so.
    pub older_survive_secs: u64,
    /// Unknown: 40001 or 42001 for a token that was superseded before its time.
    pub superseded_code: i64,
    /// Unknown: 40125 or, as the documents also say, 40001 for a wrong secret.
    pub wrong_secret_code: i64,
    /// Unknown: the refusal of a business call from an address outside the whitelist: 61004, 40164
    /// or 45035. `None` when only token calls are held to the whitelist, as is believed.
    pub business_ip_code: Option<i64>,
    /// Unknown: when a quota day begins, as seconds ahead of UTC. Believed to be Beijing midnight.
    pub quota_day_offset_secs: i64,
    /// Contradictory: the two shapes in which a user who does not follow is answered.
    pub non_follower: NonFollower,
    /// Whether a follower's record still holds the keys that were emptied in 2021.
    pub emptied_keys: bool,
    /// The most openids on one page of the follower list. Documented as 10 000.
    pub page_size: usize,
    /// Contradictory: how the follower list says that it has ended.
    pub list_end: ListEnd,
    /// How long an older ticket works after its 7200 seconds, in seconds.
    pub ticket_grace_secs: u64,
    /// How long a web token lives, in seconds. Documented as 7200.
    pub web_token_lifetime_secs: u64,
    /// Contradictory: how long a refresh token lives from the code exchange on, in seconds: 30 days
    /// or, for mobile apps, 180.
    pub refresh_lifetime_secs: u64,
    /// How long a code lives, in seconds. Documented as 300.
    pub code_lifetime_secs: u64,
    /// Contradictory: how long a code of a QR login lives, in seconds: 600 or 300.
    pub qr_code_lifetime_secs: u64,
    /// Unknown: 40029 or, as the documents also say, 42003 for an expired code.
    pub expired_code: i64,
    /// Unknown: 40030 or, as the documents say, 40029 for a bad refresh token.
    pub bad_refresh_token_code: i64,
    /// Unknown: what `/sns/userinfo` and `/sns/auth` say to a web token that ended because the user
    /// took the authorisation back or changed the password: 40001, 42001 or 42007.
    pub ended_web_token_code: i64,
    /// Unknown: whether a refresh answers another refresh token and ends the one before.
    pub refresh_rotates: bool,
    /// Unknown: whether a code exchange ends the web tokens that the user's earlier ones gave.
    pub new_grant_ends_web_tokens: bool,
    /// Unknown: whether calls of `/sns/*` with a secret are held to the whitelist.
    pub sns_ip_whitelist: bool,
    /// Seen: the code exchange of a virtual account lacks `is_snapshotuser`.
    pub snapshot_flag_missing: bool,
    /// Seen: the code exchange of a real user has `is_snapshotuser` too, with `snsapi_userinfo`.
    pub snapshot_flag_on_real_users: bool,
    /// Seen: `/sns/userinfo` refuses virtual accounts with 48001.
    pub snapshot_userinfo_refused: bool,
    /// Unknown: whether each login in a mini program replaces the session key.
    pub login_replaces_session_key: bool,
    /// Contradictory: whether an authorise page checks the order of its parameters, as documented.
    pub strict_parameter_order: bool,
    /// Contradictory: whether `/connect/oauth2/authorize` shows 10013 where `state` is missing. The
    /// documents let an app leave it out, and have an error for it.
    pub state_required: bool,
    /// `/connect/oauth2/authorize` shows 10009, too frequent. When WeChat does so is unknown.
    pub authorize_too_frequent: bool,
    /// For clients without a browser: every authorise page sends the caller back at once, whatever
    /// it is, with a code of the user that the header `x-sim-openid` names, or of the first.
    pub auto_consent: bool,
}

impl Switches {
    /// How long a code lives that is not of a QR login.
    pub(crate) const fn short_code_life(&self) -> Duration {
        Duration::from_secs(self.code_lifetime_secs)
    }

    /// How long a code of a web login lives.
    pub(crate) const fn code_life(&self, scope: Scope) -> Duration {
        match scope {
            Scope::Base | Scope::UserInfo => self.short_code_life(),
            Scope::Login => Duration::from_secs(self.qr_code_lifetime_secs),
        }
    }
}

impl Default for Switches {
    fn default() -> Self {
        Self {
            token_lifetime_secs: 7200,
            classic_overlap_secs: 300,
            stable_overlap_secs: 300,
            stable_roll_secs: 300,
            force_kills_at_once: false,
            force_interval_secs: 30,
            force_too_soon: RefusedForce::Unchanged,
            force_over_limit: RefusedForce::DailyQuota,
            token_check_order: [Check::Secret, Check::Account, Check::Ip, Check::Quota],
            failed_calls_count: false,
            older_survive_secs: 0,
            superseded_code: 40001,
            wrong_secret_code: 40125,
            business_ip_code: None,
            quota_day_offset_secs: 8 * 3600,
            non_follower: NonFollower::Emptied,
            emptied_keys: true,
            page_size: 10_000,
            list_end: ListEnd::EmptyPage,
            ticket_grace_secs: 3600,
            web_token_lifetime_secs: 7200,
            refresh_lifetime_secs: 30 * 86_400,
            code_lifetime_secs: 300,
            qr_code_lifetime_secs: 600,
            expired_code: 40029,
            bad_refresh_token_code: 40030,
            ended_web_token_code: 40001,
            refresh_rotates: false,
            new_grant_ends_web_tokens: false,
            sns_ip_whitelist: false,
            snapshot_flag_missing: false,
            snapshot_flag_on_real_users: false,
            snapshot_userinfo_refused: false,
            login_replaces_session_key: true,
            strict_parameter_order: true,
            state_required: true,
            authorize_too_frequent: false,
            auto_consent: false,
        }
    }
}

/// What a forced refresh that is not granted is answered.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum RefusedForce {
    /// As a normal call: the current token with what is left of its life.
    Unchanged,
    /// 45009, the daily quota.
    DailyQuota,
    /// 45011, the quota of a minute.
    MinuteQuota,
}

/// A check of a token call.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Check {
    /// 40125: the secret is right.
    Secret,
    /// 40243, 50007, 50004: neither secret nor account is frozen or banned.
    Account,
    /// 40164: the caller is on the whitelist.
    Ip,
    /// 45009, 45011: the quotas.
    Quota,
}

/// An order of checks that leaves none out.
fn each_once<'de, D: Deserializer<'de>>(from: D) -> Result<[Check; 4], D::Error> {
    let order = <[Check; 4]>::deserialize(from)?;
    let twice = order.iter().enumerate().any(|(at, check)| order[..at].contains(check));
    if twice { Err(D::Error::custom("each check is expected once")) } else { Ok(order) }
}

/// The record of a user who does not follow.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum NonFollower {
    /// With emptied keys, as seen in 2025.
    Emptied,
    /// Three keys, as seen before.
    Short,
}

/// The end of the follower list.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum ListEnd {
    /// The last page with openids names its last one; the page after it has count 0, no data and
    /// an empty `next_openid`.
    EmptyPage,
    /// The last page with openids has an empty `next_openid` already.
    EmptyNext,
}

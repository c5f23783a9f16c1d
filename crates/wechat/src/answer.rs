//! What each endpoint answers.
//!
//! Of a record that WeChat fills unevenly every field may be missing, `null`, `""`, `0` or a number
//! written as text; what cannot be read is empty.

use std::{fmt, time::Duration};

use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};

use crate::{
    GlobalToken, OpenId, RefreshToken, Scope, SessionKey, Ticket, UnionId, WebToken,
    lenient::{self, integer, list, openid, text, texts, unionid},
};

/// A token and the life that WeChat stated for it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct IssuedToken {
    /// The token.
    pub token: GlobalToken,
    /// Seconds until it ends, counted from before the request: 300 where WeChat states nothing,
    /// nothing readable, nothing positive or more than a day. That is the least that the rules of
    /// `stable_token` leave to any token they answer.
    pub expires_in: Duration,
}

/// A ticket and the life that WeChat stated for it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct IssuedTicket {
    /// The ticket.
    pub ticket: Ticket,
    /// Seconds as stated: always the full life, even of a ticket that is old already. 3600 where
    /// the statement is missing or absurd.
    pub expires_in: Duration,
}

/// What the exchange of a code, or the renewal of a web token, leaves in our hands.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct IssuedGrant {
    /// The web token.
    pub token: WebToken,
    /// Seconds until the web token ends, counted from before the request; 300 where WeChat states
    /// nothing usable.
    pub expires_in: Duration,
    /// What renews the web token, until 30 days after the code was exchanged.
    pub refresh_token: RefreshToken,
    /// The user's id in this app.
    pub openid: OpenId,
    /// The widest scope that the user consented to.
    pub scope: Scope,
    /// The user's id in the owner's Open Platform account. Only the exchange of a code tells it,
    /// and only beyond `snsapi_base`, if the app belongs to such an account.
    pub unionid: Option<UnionId>,
    /// The user looks at a snapshot of the page: every id here is made up, and none comes again.
    pub is_snapshot_user: bool,
}

/// A user's profile as `sns/userinfo` tells it.
///
/// Texts are kept as they came, control characters and emoji included. `Debug` shows who it is and
/// nothing personal.
#[derive(Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct WebUser {
    /// The user's id in this app.
    #[serde(deserialize_with = "openid")]
    pub openid: OpenId,
    /// The nickname.
    #[serde(deserialize_with = "text")]
    pub nickname: String,
    /// 1 male, 2 female, 0 unknown; 0 since October 2021.
    #[serde(deserialize_with = "integer")]
    pub sex: i64,
    /// The province; empty since October 2021.
    #[serde(deserialize_with = "text")]
    pub province: String,
    /// The city; empty since October 2021.
    #[serde(deserialize_with = "text")]
    pub city: String,
    /// The country; empty since October 2021.
    #[serde(deserialize_with = "text")]
    pub country: String,
    /// The address of the avatar, empty without one. It dies when the user changes the avatar.
    #[serde(deserialize_with = "text")]
    pub headimgurl: String,
    /// Privileges such as `chinaunicom`; nearly always none.
    #[serde(deserialize_with = "texts")]
    pub privilege: Vec<String>,
    /// The user's id in the owner's Open Platform account, if the app belongs to one.
    #[serde(deserialize_with = "unionid")]
    pub unionid: Option<UnionId>,
}

impl fmt::Debug for WebUser {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("WebUser").field("openid", &self.openid).finish_non_exhaustive()
    }
}

/// A login to a mini program.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct MiniSession {
    /// Signs and encrypts what the mini program reads of the user. It must not leave the server.
    pub session_key: SessionKey,
    /// The user's id in this app.
    pub openid: OpenId,
    /// The user's id in the owner's Open Platform account, if the app belongs to one.
    pub unionid: Option<UnionId>,
}

/// A user as `user/info` describes them to the app.
///
/// Texts are kept as they came, control characters and emoji included. `Debug` shows who it is and
/// whether they follow, and nothing personal.
#[derive(Clone, Default, PartialEq, Eq, Deserialize)]
#[serde(default)]
pub struct Follower {
    /// Whether the user follows the app. If not, hardly any other field is filled.
    #[serde(deserialize_with = "lenient::flag")]
    pub subscribe: bool,
    /// The user's id in this app.
    #[serde(deserialize_with = "openid")]
    pub openid: OpenId,
    /// The user's id in the owner's Open Platform account, if the app belongs to one.
    #[serde(deserialize_with = "unionid")]
    pub unionid: Option<UnionId>,
    /// The language of the user's WeChat, such as `zh_CN`.
    #[serde(deserialize_with = "text")]
    pub language: String,
    /// When the user last followed the app, in seconds since the Unix epoch.
    #[serde(deserialize_with = "integer")]
    pub subscribe_time: i64,
    /// How the user came to follow, such as `ADD_SCENE_QR_CODE`.
    #[serde(deserialize_with = "text")]
    pub subscribe_scene: String,
    /// What the app's operators noted about the user.
    #[serde(deserialize_with = "text")]
    pub remark: String,
    /// The group that the operators put the user in.
    #[serde(deserialize_with = "integer")]
    pub groupid: i64,
    /// The tags that the operators gave the user.
    #[serde(deserialize_with = "list")]
    pub tagid_list: Vec<i64>,
    /// The number of the QR code that the user came by.
    #[serde(deserialize_with = "integer")]
    pub qr_scene: i64,
    /// The text of the QR code that the user came by.
    #[serde(deserialize_with = "text")]
    pub qr_scene_str: String,
    /// The nickname; empty since the end of 2021.
    #[serde(deserialize_with = "text")]
    pub nickname: String,
    /// 1 male, 2 female, 0 unknown; 0 since the end of 2021.
    #[serde(deserialize_with = "integer")]
    pub sex: i64,
    /// The city; empty since the end of 2021.
    #[serde(deserialize_with = "text")]
    pub city: String,
    /// The province; empty since the end of 2021.
    #[serde(deserialize_with = "text")]
    pub province: String,
    /// The country; empty since the end of 2021.
    #[serde(deserialize_with = "text")]
    pub country: String,
    /// The address of the avatar; empty since the end of 2021.
    #[serde(deserialize_with = "text")]
    pub headimgurl: String,
}

impl fmt::Debug for Follower {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Follower")
            .field("subscribe", &self.subscribe)
            .field("openid", &self.openid)
            .finish_non_exhaustive()
    }
}

/// A part of the list of followers: at most 10,000.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct FollowerPage {
    /// How many follow the app.
    pub total: u64,
    /// How many are in this part.
    pub count: u64,
    /// The followers of this part.
    pub openids: Vec<OpenId>,
    /// What to ask with for the next part; none at the end.
    pub next_openid: Option<OpenId>,
}

/// How much of an endpoint's daily quota is used.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(default)]
pub struct Quota {
    /// Calls allowed a day.
    #[serde(deserialize_with = "integer")]
    pub daily_limit: u64,
    /// Calls made today.
    #[serde(deserialize_with = "integer")]
    pub used: u64,
    /// Calls left today.
    #[serde(deserialize_with = "integer")]
    pub remain: u64,
    /// The limit on the pace of the app, where there is one.
    #[serde(skip)]
    pub rate_limit: Option<RateLimit>,
    /// The limit on the pace of the third-party platform, where there is one.
    #[serde(skip)]
    pub component_rate_limit: Option<RateLimit>,
}

/// So many calls in so many seconds.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(default)]
pub struct RateLimit {
    /// Calls allowed in the period.
    #[serde(deserialize_with = "integer")]
    pub call_count: u64,
    /// Seconds of the period.
    #[serde(deserialize_with = "integer")]
    pub refresh_second: u64,
}

/// A successful answer's fields.
pub(crate) type Fields = Map<String, Value>;

/// What an answer lacks or holds that makes it none. Shown to people; quotes nothing of the answer.
pub(crate) type Flaw = &'static str;

pub(crate) fn token(fields: &mut Fields) -> Result<IssuedToken, Flaw> {
    let token = filled(fields, "access_token").ok_or("it holds no access_token")?;
    if !is_credential(&token) {
        return Err("its access_token is none");
    }
    let expires_in = expires_in(fields).unwrap_or(Duration::from_secs(300));
    Ok(IssuedToken { token: GlobalToken::new(token), expires_in })
}

pub(crate) fn ticket(fields: &mut Fields) -> Result<IssuedTicket, Flaw> {
    let ticket = filled(fields, "ticket").ok_or("it holds no ticket")?;
    if !is_credential(&ticket) {
        return Err("its ticket is none");
    }
    let expires_in = expires_in(fields).unwrap_or(Duration::from_secs(3600));
    Ok(IssuedTicket { ticket: Ticket::new(ticket), expires_in })
}

pub(crate) fn grant(fields: &mut Fields) -> Result<IssuedGrant, Flaw> {
    let token = filled(fields, "access_token").ok_or("it holds no access_token")?;
    let refresh_token = filled(fields, "refresh_token").ok_or("it holds no refresh_token")?;
    let openid = filled(fields, "openid").ok_or("it holds no openid")?;
    for (flaw, text) in [
        ("its access_token is none", &token),
        ("its refresh_token is none", &refresh_token),
        ("its openid is none", &openid),
    ] {
        if !is_credential(text) {
            return Err(flaw);
        }
    }
    let number = fields.get("is_snapshotuser").and_then(lenient::to_integer);
    let flag = fields.get("is_snapshotuser").and_then(Value::as_bool);
    Ok(IssuedGrant {
        token: WebToken::new(token),
        expires_in: expires_in(fields).unwrap_or(Duration::from_secs(300)),
        refresh_token: RefreshToken::new(refresh_token),
        openid: OpenId::new(openid),
        scope: Scope::widest(&filled(fields, "scope").unwrap_or_default()),
        unionid: filled(fields, "unionid").map(UnionId::new),
        is_snapshot_user: flag.unwrap_or_else(|| number.is_some_and(|number| number != 0)),
    })
}

pub(crate) fn web_user(fields: &mut Fields) -> Result<WebUser, Flaw> {
    if filled(fields, "openid").is_none() {
        return Err("it describes no user");
    }
    lenient::object(Value::Object(std::mem::take(fields))).ok_or("it describes no user")
}

pub(crate) fn mini_session(fields: &mut Fields) -> Result<MiniSession, Flaw> {
    let session_key = filled(fields, "session_key").ok_or("it holds no session_key")?;
    let openid = filled(fields, "openid").ok_or("it holds no openid")?;
    if !is_credential(&session_key) {
        return Err("its session_key is none");
    }
    if !is_credential(&openid) {
        return Err("its openid is none");
    }
    Ok(MiniSession {
        session_key: SessionKey::new(session_key),
        openid: OpenId::new(openid),
        unionid: filled(fields, "unionid").map(UnionId::new),
    })
}

pub(crate) fn follower(fields: &mut Fields) -> Result<Follower, Flaw> {
    if !fields.contains_key("subscribe") && !fields.contains_key("openid") {
        return Err("it describes no user");
    }
    lenient::object(Value::Object(std::mem::take(fields))).ok_or("it describes no user")
}

pub(crate) fn followers(fields: &mut Fields) -> Result<Vec<Follower>, Flaw> {
    let Some(Value::Array(users)) = fields.remove("user_info_list") else {
        return Err("it holds no user_info_list");
    };
    users.into_iter().map(lenient::object).collect::<Option<_>>().ok_or("a user in it is no object")
}

pub(crate) fn follower_page(fields: &mut Fields) -> Result<FollowerPage, Flaw> {
    if !["total", "count", "data"].iter().any(|key| fields.contains_key(*key)) {
        return Err("it holds no part of a list of users");
    }
    let openids = match fields.remove("data") {
        Some(Value::Object(mut data)) => data.remove("openid").map(strings).unwrap_or_default(),
        _ => Vec::new(),
    };
    Ok(FollowerPage {
        total: count(fields, "total"),
        count: count(fields, "count"),
        openids: openids.into_iter().map(OpenId::new).collect(),
        next_openid: filled(fields, "next_openid").map(OpenId::new),
    })
}

pub(crate) fn ip_list(fields: &mut Fields) -> Result<Vec<String>, Flaw> {
    fields.remove("ip_list").map(strings).ok_or("it holds no ip_list")
}

pub(crate) fn quota(fields: &mut Fields) -> Result<Quota, Flaw> {
    let quota = fields.remove("quota").and_then(lenient::object).ok_or("it holds no quota")?;
    // The rate limits stand beside the quota, not in it.
    let mut limit = |key| fields.remove(key).and_then(lenient::object);
    Ok(Quota {
        rate_limit: limit("rate_limit"),
        component_rate_limit: limit("component_rate_limit"),
        ..quota
    })
}

pub(crate) fn done(fields: &mut Fields) -> Result<(), Flaw> {
    let errcode = fields.get("errcode").and_then(lenient::to_integer);
    errcode.map(|_| ()).ok_or("it holds no errcode")
}

/// The stated life, if it is above zero and at most a day.
fn expires_in(fields: &Fields) -> Option<Duration> {
    let secs = fields.get("expires_in").and_then(lenient::to_integer)?;
    let stated = Duration::from_secs(u64::try_from(secs).ok()?);
    (!stated.is_zero() && stated <= Duration::from_secs(86_400)).then_some(stated)
}

fn filled(fields: &Fields, key: &str) -> Option<String> {
    fields.get(key).and_then(Value::as_str).filter(|text| !text.is_empty()).map(str::to_owned)
}

/// Whether a text can be a token or a ticket: what it says goes on to others, in URLs and headers.
fn is_credential(text: &str) -> bool {
    /// WeChat advises to have room for 512 characters.
    const LONGEST: usize = 1024;
    text.len() <= LONGEST && text.bytes().all(|byte| byte.is_ascii_graphic())
}

fn count(fields: &Fields, key: &str) -> u64 {
    let number = fields.get(key).and_then(lenient::to_integer).unwrap_or_default();
    u64::try_from(number).unwrap_or_default()
}

fn strings(value: Value) -> Vec<String> {
    let Value::Array(items) = value else { return Vec::new() };
    let texts = items.into_iter().filter_map(|item| match item {
        Value::String(text) if !text.is_empty() => Some(text),
        _ => None,
    });
    texts.collect()
}

/// Bodies as WeChat's documents and published captures show them.
#[cfg(test)]
mod tests {
    use super::*;
    use crate::Error;

    #[track_caller]
    fn check<T>(pick: fn(&mut Fields) -> Result<T, Flaw>, body: &str) -> T {
        lenient::read(200, body.as_bytes(), &[], pick).unwrap()
    }

    #[track_caller]
    fn check_flaw<T: fmt::Debug>(pick: fn(&mut Fields) -> Result<T, Flaw>, body: &str, flaw: &str) {
        let Err(Error::Protocol(error)) = lenient::read(200, body.as_bytes(), &[], pick) else {
            panic!("{body} is no protocol error");
        };
        assert_eq!((error.reason.as_str(), error.status), (flaw, 200), "{body}");
    }

    #[test]
    fn tokens() {
        let issued = check(token, r#"{"access_token":"ACCESS_TOKEN","expires_in":7200}"#);
        assert_eq!(issued.token.expose(), "ACCESS_TOKEN");
        assert_eq!(issued.expires_in.as_secs(), 7200);
        let issued = check(token, r#"{"access_token":"ACCESS_TOKEN","expires_in":345}"#);
        assert_eq!(issued.expires_in.as_secs(), 345);
        for body in [r#"{"expires_in":7200}"#, r#"{"access_token":""}"#, r#"{"access_token":7}"#] {
            check_flaw(token, body, "it holds no access_token");
        }
    }

    #[test]
    fn tokens_and_tickets_are_visible_ascii_of_bounded_length() {
        let body = |value: &str| format!(r#"{{"access_token":"{value}","ticket":"{value}"}}"#);
        for fine in ["~!#$%&'()*+,-./:;<=>?@[]^_`{|}", &"t".repeat(1024)] {
            assert_eq!(check(token, &body(fine)).token.expose(), fine);
            assert_eq!(check(ticket, &body(fine)).ticket.expose(), fine);
        }
        for odd in ["t\u{fffd}t", "t\\u0000t", "t\nt", "t t", "t\u{7f}", "微", &"t".repeat(1025)] {
            check_flaw(token, &body(odd), "its access_token is none");
            check_flaw(ticket, &body(odd), "its ticket is none");
        }
        let broken = lenient::read(200, b"{\"access_token\":\"t\xff\"}", &[], token);
        assert!(matches!(broken, Err(Error::Protocol(_))), "{broken:?}");
    }

    #[test]
    fn a_life_is_read_as_written_or_taken_as_short() {
        for (stated, token_life, ticket_life) in [
            ("7200", 7200, 7200),
            ("\"7200\"", 7200, 7200),
            ("\" 7200 \"", 7200, 7200),
            ("7200.9", 7200, 7200),
            ("7.2e3", 7200, 7200),
            ("\"7200.0\"", 7200, 7200),
            ("1", 1, 1),
            ("86400", 86_400, 86_400),
            ("86401", 300, 3600),
            ("18446744073709551615", 300, 3600),
            ("1e300", 300, 3600),
            ("0", 300, 3600),
            ("0.5", 300, 3600),
            ("-7200", 300, 3600),
            ("\"\"", 300, 3600),
            ("\"NaN\"", 300, 3600),
            ("\"soon\"", 300, 3600),
            ("null", 300, 3600),
            ("true", 300, 3600),
            ("[7200]", 300, 3600),
        ] {
            let body = format!(r#"{{"access_token":"T","ticket":"T","expires_in":{stated}}}"#);
            assert_eq!(check(token, &body).expires_in.as_secs(), token_life, "{stated}");
            assert_eq!(check(ticket, &body).expires_in.as_secs(), ticket_life, "{stated}");
        }
        assert_eq!(check(token, r#"{"access_token":"T"}"#).expires_in.as_secs(), 300);
        assert_eq!(check(ticket, r#"{"ticket":"T"}"#).expires_in.as_secs(), 3600);
    }

    #[test]
    fn tickets() {
        let body = r#"{"errcode":0,"errmsg":"ok","ticket":"bxLdikRXVbTPdHSM05e5u5sUoXNKd8-41ZO3MhKoyN5OfkWITDGgnr2fwJ0m9E8NYzWKVZvdVtaUgWvsdshFKA","expires_in":7200}"#;
        let issued = check(ticket, body);
        assert!(issued.ticket.expose().starts_with("bxLdikRXVbTPdHSM05e5u5sUoXNKd8-"));
        assert_eq!(issued.expires_in.as_secs(), 7200);
        check_flaw(ticket, r#"{"errcode":0,"errmsg":"ok"}"#, "it holds no ticket");
    }

    #[test]
    fn a_grant_as_documented() {
        let issued = check(
            grant,
            r#"{"access_token":"ACCESS_TOKEN","expires_in":7200,"refresh_token":"REFRESH_TOKEN",
                "openid":"OPENID","scope":"snsapi_userinfo","is_snapshotuser":1,
                "unionid":"UNIONID"}"#,
        );
        let expected = IssuedGrant {
            token: WebToken::new("ACCESS_TOKEN"),
            expires_in: Duration::from_secs(7200),
            refresh_token: RefreshToken::new("REFRESH_TOKEN"),
            openid: OpenId::new("OPENID"),
            scope: Scope::UserInfo,
            unionid: Some(UnionId::new("UNIONID")),
            is_snapshot_user: true,
        };
        assert_eq!(issued, expected);
        let five = r#"{"access_token":"A","expires_in":7200,"refresh_token":"R","openid":"O","scope":"snsapi_base"}"#;
        let issued = check(grant, five);
        assert_eq!((issued.unionid, issued.is_snapshot_user), (None, false));
        assert_eq!(issued.scope, Scope::Base);
    }

    #[test]
    fn a_grant_lacks_nothing() {
        for (body, flaw) in [
            (r#"{"refresh_token":"R","openid":"O"}"#, "it holds no access_token"),
            (r#"{"access_token":"A","openid":"O"}"#, "it holds no refresh_token"),
            (r#"{"access_token":"A","refresh_token":"R"}"#, "it holds no openid"),
            (
                r#"{"access_token":"a b","refresh_token":"R","openid":"O"}"#,
                "its access_token is none",
            ),
            (
                r#"{"access_token":"A","refresh_token":"r\n","openid":"O"}"#,
                "its refresh_token is none",
            ),
            (r#"{"access_token":"A","refresh_token":"R","openid":"微"}"#, "its openid is none"),
        ] {
            check_flaw(grant, body, flaw);
        }
        for (stated, is) in [
            ("1", true),
            ("\"1\"", true),
            ("true", true),
            ("0", false),
            ("null", false),
            ("false", false),
        ] {
            let body = format!(
                r#"{{"access_token":"A","refresh_token":"R","openid":"O","is_snapshotuser":{stated}}}"#
            );
            assert_eq!(check(grant, &body).is_snapshot_user, is, "{stated}");
        }
    }

    #[test]
    fn a_profile_is_kept_byte_for_byte() {
        let body = "{\"openid\":\"O\",\"nickname\":\"a\u{8}b\nc\u{14}\u{0}d 👨‍👩‍👧\\ud83d\\ude00 \",\"sex\":\"1\",\
                    \"province\":null,\"headimgurl\":\"https:\\/\\/thirdwx.qlogo.cn\\/0\",\
                    \"privilege\":[\"chinaunicom\",7]}";
        let user = check(web_user, body);
        assert_eq!(user.nickname, "a\u{8}b\nc\u{14}\u{0}d 👨‍👩‍👧😀 ");
        assert_eq!((user.sex, user.province.as_str()), (1, ""));
        assert_eq!(user.headimgurl, "https://thirdwx.qlogo.cn/0");
        assert_eq!(
            (user.privilege.as_slice(), &user.unionid),
            (["chinaunicom".to_owned()].as_slice(), &None)
        );
        assert_eq!(format!("{user:?}"), "WebUser { openid: OpenId(O…), .. }");

        let again: WebUser = serde_json::from_str(&serde_json::to_string(&user).unwrap()).unwrap();
        assert_eq!(again, user);
        check_flaw(web_user, r#"{"nickname":"N"}"#, "it describes no user");
    }

    #[test]
    fn a_login_to_a_mini_program() {
        let session = check(
            mini_session,
            r#"{"openid":"O","session_key":"tiihtNczf5v6AKRyjwEUhQ==","expires_in":7200}"#,
        );
        assert_eq!(session.session_key.expose(), "tiihtNczf5v6AKRyjwEUhQ==");
        assert_eq!((session.openid.as_str(), session.unionid), ("O", None));
        check_flaw(mini_session, r#"{"openid":"O"}"#, "it holds no session_key");
        check_flaw(mini_session, r#"{"session_key":"K"}"#, "it holds no openid");
        check_flaw(
            mini_session,
            r#"{"session_key":"k k","openid":"O"}"#,
            "its session_key is none",
        );
    }

    #[test]
    fn a_follower_as_documented() {
        let user = check(
            follower,
            r#"{
                "subscribe": 1,
                "openid": "o6_bmjrPTlm6_2sgVt7hMZOPfL2M",
                "language": "zh_CN",
                "subscribe_time": 1382694957,
                "unionid": " o6_bmasdasdsad6_2sgVt7hMZOPfL",
                "remark": "",
                "groupid": 0,
                "tagid_list":[128,2],
                "subscribe_scene": "ADD_SCENE_QR_CODE",
                "qr_scene": 98765,
                "qr_scene_str": ""
            }"#,
        );
        let expected = Follower {
            subscribe: true,
            openid: OpenId::new("o6_bmjrPTlm6_2sgVt7hMZOPfL2M"),
            unionid: Some(UnionId::new(" o6_bmasdasdsad6_2sgVt7hMZOPfL")),
            language: "zh_CN".to_owned(),
            subscribe_time: 1_382_694_957,
            subscribe_scene: "ADD_SCENE_QR_CODE".to_owned(),
            tagid_list: vec![128, 2],
            qr_scene: 98_765,
            ..Follower::default()
        };
        assert_eq!(user, expected);
    }

    #[test]
    fn both_shapes_of_a_user_who_does_not_follow() {
        let today = r#"{"subscribe":0,"openid":"o6_bmjrPTlm6_2sgVt7hMZOPfL2M","nickname":"","sex":0,"language":"zh_CN","city":"","province":"","country":"","headimgurl":"","tagid_list":[]}"#;
        let older = r#"{"subscribe":0,"openid":"o6_bmjrPTlm6_2sgVt7hMZOPfL2M","tagid_list":[]}"#;
        let openid = OpenId::new("o6_bmjrPTlm6_2sgVt7hMZOPfL2M");
        let expected = Follower { openid, ..Follower::default() };
        assert_eq!(check(follower, older), expected);
        assert_eq!(check(follower, today), Follower { language: "zh_CN".to_owned(), ..expected });
    }

    #[test]
    fn the_four_ways_to_say_empty() {
        let empty = check(follower, r#"{"openid":""}"#);
        assert_eq!(empty, Follower::default());
        for value in ["\"\"", "0", "[]", "null", "{}", "false", "\"0\""] {
            let numbers = format!(
                r#"{{"openid":null,"subscribe":{value},"subscribe_time":{value},"groupid":{value},
                    "tagid_list":{value},"qr_scene":{value},"sex":{value}}}"#
            );
            assert_eq!(check(follower, &numbers), empty, "{value}");
        }
        for value in ["\"\"", "[]", "null", "{}", "false"] {
            let texts = format!(
                r#"{{"openid":{value},"unionid":{value},"language":{value},"remark":{value},
                    "nickname":{value},"city":{value},"province":{value},"country":{value},
                    "headimgurl":{value},"qr_scene_str":{value},"subscribe_scene":{value}}}"#
            );
            assert_eq!(check(follower, &texts), empty, "{value}");
        }
    }

    #[test]
    fn numbers_as_text_and_text_as_numbers() {
        let user = check(
            follower,
            r#"{"subscribe":"1","openid":12,"subscribe_time":"1382694957","groupid":"2",
                "tagid_list":["128",2,null,"x"],"qr_scene_str":98765,"sex":1.0}"#,
        );
        assert!(user.subscribe);
        assert_eq!(user.openid.as_str(), "12");
        assert_eq!((user.subscribe_time, user.groupid, user.sex), (1_382_694_957, 2, 1));
        assert_eq!((user.tagid_list, user.qr_scene_str.as_str()), (vec![128, 2], "98765"));
    }

    #[test]
    fn texts_are_kept_byte_for_byte() {
        let body = "{\"subscribe\":1,\"openid\":\"o1\",\"nickname\":\"a\u{8}b\nc\u{14}\u{0}d\\u0008 👨‍👩‍👧\\ud83d\\ude00 \",\
                    \"remark\":\"\\\"q\\\" \\\\ C:\\dir\",\"headimgurl\":\"http:\\/\\/thirdwx.qlogo.cn\\/mmopen\\/0\"}";
        let user = check(follower, body);
        assert_eq!(user.nickname, "a\u{8}b\nc\u{14}\u{0}d\u{8} 👨‍👩‍👧😀 ");
        assert_eq!(user.remark, "\"q\" \\ C:\\dir");
        assert_eq!(user.headimgurl, "http://thirdwx.qlogo.cn/mmopen/0");
    }

    #[test]
    fn debug_shows_nothing_personal() {
        let user = check(
            follower,
            r#"{"subscribe":1,"openid":"oABCDEFGHIJKLMNOPQRSTUVWXYZ0","unionid":"uABCDEFG",
                "nickname":"N1ck","remark":"R3mark","headimgurl":"http://h3ad","sex":1,
                "city":"C1ty","province":"Pr0vince","country":"C0untry","qr_scene_str":"Sc3ne"}"#,
        );
        let shown = r#"Follower { subscribe: true, openid: OpenId(oABC…), .. }"#;
        assert_eq!(format!("{user:?}"), shown);
    }

    #[test]
    fn an_escape_that_is_no_character_spoils_one_character_only() {
        let name = |text: &str| {
            check(follower, &format!(r#"{{"openid":"o1","nickname":"{text}"}}"#)).nickname
        };
        for (text, read) in [
            (r"a\ud83db", "a\u{fffd}b"),
            (r"a\ude00b", "a\u{fffd}b"),
            (r"a\ude00\ud83db", "a\u{fffd}\u{fffd}b"),
            (r"\ud83d\ud83d\ude00", "\u{fffd}😀"),
            (r"\ud83d", "\u{fffd}"),
            (r"\ud83d\u0041\n", "\u{fffd}A\n"),
            (r"a\u12", "a\u{fffd}"),
            (r"a\u12x\u", "a\u{fffd}x\u{fffd}"),
            (r"\u+123", "\u{fffd}+123"),
            (r"\u微", "\u{fffd}微"),
            // The rest stays as it is while something else is mended.
            (r"\ud83d\ude00\u", "😀\u{fffd}"),
            (r"\\ud83d\u", "\\ud83d\u{fffd}"),
            (r"\\\ud83d\u", "\\\u{fffd}\u{fffd}"),
            (r#"\"\u00e9\u"#, "\"é\u{fffd}"),
        ] {
            assert_eq!(name(text), read, "{text}");
        }
    }

    #[test]
    fn broken_utf8_spoils_one_character_only() {
        let body = b"{\"subscribe\":1,\"openid\":\"o1\",\"nickname\":\"a\xf0\x9f\x98b\xff\"}";
        let user = lenient::read(200, body, &[], follower).unwrap();
        assert_eq!(user.nickname, "a\u{fffd}b\u{fffd}");
    }

    #[test]
    fn batches_of_followers() {
        let users = check(
            followers,
            r#"{"user_info_list":[
                {"subscribe":1,"openid":"otvxTs4dckWG7imySrJd6jSi0CWE","language":"zh_CN",
                 "subscribe_time":1434093047,"unionid":"oR5GjjgEhCMJFyzaVZdrxZ2zRRF4","remark":"",
                 "groupid":0,"tagid_list":[128,2],"subscribe_scene":"ADD_SCENE_QR_CODE",
                 "qr_scene":98765,"qr_scene_str":""},
                {"subscribe":0,"openid":"otvxTs_JZ6SEiP0imdhpi50fuSZg"}]}"#,
        );
        assert_eq!(users.len(), 2);
        assert!(users[0].subscribe && !users[1].subscribe);
        assert_eq!(users[1].openid.as_str(), "otvxTs_JZ6SEiP0imdhpi50fuSZg");
        assert!(check(followers, r#"{"user_info_list":[]}"#).is_empty());
        check_flaw(followers, "{}", "it holds no user_info_list");
        check_flaw(followers, r#"{"user_info_list":{}}"#, "it holds no user_info_list");
        check_flaw(followers, r#"{"user_info_list":[7]}"#, "a user in it is no object");
        check_flaw(follower, "{}", "it describes no user");
    }

    #[test]
    fn parts_of_the_list_of_followers() {
        let page = check(
            follower_page,
            r#"{"total":23000,"count":2,"data":{"openid":["OPENID1","OPENID2"]},"next_openid":"OPENID2"}"#,
        );
        assert_eq!((page.total, page.count), (23_000, 2));
        assert_eq!(page.openids, [OpenId::new("OPENID1"), OpenId::new("OPENID2")]);
        assert_eq!(page.next_openid, Some(OpenId::new("OPENID2")));
        let end = check(follower_page, r#"{"total":23000,"count":0,"next_openid":""}"#);
        assert_eq!(end, FollowerPage { total: 23_000, ..FollowerPage::default() });
        let end = check(follower_page, r#"{"total":"0","count":-1,"data":null}"#);
        assert_eq!(end, FollowerPage::default());
        check_flaw(follower_page, r#"{"errcode":0}"#, "it holds no part of a list of users");
    }

    #[test]
    fn addresses() {
        let ips = check(ip_list, r#"{"ip_list":["127.0.0.1","101.226.103.0/25",null]}"#);
        assert_eq!(ips, ["127.0.0.1", "101.226.103.0/25"]);
        check_flaw(ip_list, "{}", "it holds no ip_list");
    }

    #[test]
    fn quotas() {
        let body = r#"{"errcode":0,"errmsg":"ok","quota":{"daily_limit":500000,"used":7,"remain":499993},
                       "rate_limit":{"call_count":10000,"refresh_second":60}}"#;
        let expected = Quota {
            daily_limit: 500_000,
            used: 7,
            remain: 499_993,
            rate_limit: Some(RateLimit { call_count: 10_000, refresh_second: 60 }),
            component_rate_limit: None,
        };
        assert_eq!(check(quota, body), expected);
        check_flaw(quota, r#"{"errcode":0,"errmsg":"ok"}"#, "it holds no quota");
        assert_eq!(check(done, r#"{"errcode":0,"errmsg":"ok"}"#), ());
        assert_eq!(check(done, r#"{"errcode":"0"}"#), ());
        for body in ["{}", r#"{"errcode":null}"#, r#"{"errcode":""}"#] {
            check_flaw(done, body, "it holds no errcode");
        }
    }
}

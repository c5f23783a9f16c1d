//! The course of one call: it arrives, faults are asked, it is decided at one instant, and its
//! answer is damaged as the faults demand.

use std::net::IpAddr;

use bytes::Bytes;
use clock::Timestamp;
use http::{HeaderName, Method, StatusCode, header};
use serde_json::Value;

use crate::{
    answer::{CGI_BIN_TYPE, Failure, SNS_TYPE, Suffix, http_date},
    api::{Answered, Endpoint},
    calls::CallEntry,
    content::{File, Part, part},
    faults::{BadNumber, Dirt, FaultKind},
    oauth::{End, Revocation, Subject},
    rng::short_hash,
    sns::{SnsCall, is_sns},
    state::State,
};

/// A request, read whole.
#[derive(Clone, Debug)]
pub(crate) struct Call {
    pub(crate) method: Method,
    pub(crate) path: String,
    pub(crate) query: Vec<(String, String)>,
    pub(crate) body: Bytes,
    /// The body as JSON, when it is.
    pub(crate) json: Option<Value>,
    /// The file that it brings.
    pub(crate) file: Option<File>,
    /// The part of a file that it asks for.
    pub(crate) range: Option<String>,
    pub(crate) ip: IpAddr,
    pub(crate) sent: Timestamp,
}

impl Call {
    /// The first value of a query parameter that is not empty.
    pub(crate) fn query(&self, name: &str) -> Option<&str> {
        let found = self.query.iter().find(|(key, value)| key == name && !value.is_empty());
        found.map(|(_, value)| value.as_str())
    }

    /// A string in the JSON body that is not empty.
    pub(crate) fn text(&self, name: &str) -> Option<&str> {
        self.json.as_ref()?.get(name)?.as_str().filter(|text| !text.is_empty())
    }

    /// The token, web token or refresh token that it carries.
    fn token(&self) -> Option<&str> {
        let name = match SnsCall::of(&self.path) {
            Some(SnsCall::RefreshToken) => "refresh_token",
            _ => "access_token",
        };
        self.query(name)
    }

    /// The code or `js_code` that it carries.
    fn code(&self) -> Option<&str> {
        SnsCall::of(&self.path)?.code(self)
    }
}

/// A call that arrived, and what will go wrong with it.
#[derive(Clone, Debug)]
pub(crate) struct Arrival {
    path: String,
    appid: String,
    faults: Vec<FaultKind>,
}

impl Arrival {
    pub(crate) fn latency_before(&self) -> u64 {
        let waits = self.faults.iter().map(|fault| match fault {
            FaultKind::LatencyBefore { millis } => *millis,
            _ => 0,
        });
        waits.fold(0, u64::saturating_add)
    }

    pub(crate) fn latency_after(&self) -> u64 {
        let waits = self.faults.iter().map(|fault| match fault {
            FaultKind::LatencyAfter { millis } => *millis,
            _ => 0,
        });
        waits.fold(0, u64::saturating_add)
    }

    pub(crate) fn is_reset(&self) -> bool {
        let resets = |fault: &FaultKind| {
            matches!(fault, FaultKind::ResetBefore {} | FaultKind::ResetAfter {})
        };
        self.faults.iter().any(resets)
    }

    fn find<T>(&self, find: impl Fn(&FaultKind) -> Option<T>) -> Option<T> {
        self.faults.iter().find_map(find)
    }
}

/// The answer of a call, as bytes.
#[derive(Clone, Debug)]
pub(crate) struct Reply {
    pub(crate) status: StatusCode,
    pub(crate) content_type: String,
    pub(crate) date: String,
    pub(crate) body: Bytes,
    /// Further headers.
    pub(crate) headers: Vec<(HeaderName, String)>,
    /// Only the first half of the body is sent before the connection closes.
    pub(crate) truncated: bool,
}

impl Reply {
    fn empty(path: &str, date: String) -> Self {
        Self {
            status: StatusCode::OK,
            content_type: if is_sns(path) { SNS_TYPE } else { CGI_BIN_TYPE }.to_owned(),
            date,
            body: Bytes::new(),
            headers: Vec::new(),
            truncated: false,
        }
    }

    /// Answers a file, or the part of it that is asked for.
    fn send(&mut self, file: &File, range: Option<&str>) {
        let length = file.bytes.len();
        self.headers.push((header::ACCEPT_RANGES, "bytes".to_owned()));
        let Some(Part { first, bytes, whole }) = part(&file.bytes, range) else {
            self.status = StatusCode::RANGE_NOT_SATISFIABLE;
            self.headers.push((header::CONTENT_RANGE, format!("bytes */{length}")));
            return;
        };
        if !whole {
            self.status = StatusCode::PARTIAL_CONTENT;
            let last = first + bytes.len() - 1;
            self.headers.push((header::CONTENT_RANGE, format!("bytes {first}-{last}/{length}")));
        }
        let name: String =
            file.name.chars().filter(|c| c.is_ascii_graphic() && *c != '"').collect();
        let disposition = format!("attachment; filename=\"{name}\"");
        self.headers.push((header::CONTENT_DISPOSITION, disposition));
        self.content_type.clone_from(&file.content_type);
        self.body = bytes;
    }
}

/// What was decided, and its number in the log.
#[derive(Clone, Debug)]
pub(crate) struct Decided {
    pub(crate) seq: u64,
    /// How long the answer waits on top of what the faults say, in milliseconds.
    pub(crate) delay: u64,
    pub(crate) reply: Reply,
}

impl State {
    /// Takes a call in: whose it is, and what will go wrong with it.
    pub(crate) fn arrive(&mut self, call: &Call) -> Arrival {
        let appid = self.claimed_app(call);
        let path = cut(&call.path, 128);
        let nth = self.calls.arrive(&path, &appid);
        let faults = self.faults.ask(&call.path, &appid, nth);
        Arrival { path, appid, faults }
    }

    /// Decides a call at `now`, and writes it down.
    pub(crate) fn decide(&mut self, call: &Call, arrival: &Arrival, now: Timestamp) -> Decided {
        self.prepare(call, arrival, now);
        let unprocessed = arrival.find(|fault| match fault {
            FaultKind::ResetBefore {} | FaultKind::BadGateway { processed: false } => Some(()),
            _ => None,
        });
        let survival = arrival.find(|fault| match fault {
            FaultKind::OldTokenSurvives { seconds } => Some(*seconds),
            _ => None,
        });
        let refused = arrival.find(|fault| refusal(fault, call));
        let mut delay = 0;
        let result = match (unprocessed, refused) {
            (Some(()), _) => None,
            (None, Some(failure)) => Some(Err(failure)),
            (None, None) if is_sns(&call.path) => {
                let result = self.handle_sns(call, now);
                if let (Ok(_), Some(code)) = (&result, call.code()) {
                    delay = self.grants.answer_delay(code);
                }
                Some(result.map(Answered::Json))
            }
            (None, None) => Some(self.handle(call, survival, now)),
        };

        let shown = now.offset_millis(arrival.skew_millis());
        let mut rid = None;
        let mut errcode = None;
        let mut answered = None;
        let mut body = Value::Null;
        let mut file = None;
        match result {
            None => {}
            Some(Ok(Answered::File(answered))) => {
                errcode = Some(0);
                file = Some(answered);
            }
            Some(Ok(Answered::Json(value))) => {
                errcode = Some(0);
                let secret = value.get("access_token").or_else(|| value.get("ticket"));
                answered = secret.and_then(Value::as_str).map(short_hash);
                body = value;
            }
            Some(Err(failure)) => {
                errcode = Some(failure.code);
                let failure = if is_sns(&call.path) { failure.of_sns() } else { failure };
                let failure = match arrival.find(suffix) {
                    Some(suffix) => failure.ending(suffix),
                    None => failure,
                };
                (body, rid) = failure.body(shown, call.ip, &mut self.rids);
            }
        }
        let seq = self.calls.push(CallEntry {
            seq: 0,
            sent_at: call.sent.as_millis(),
            decided_at: now.as_millis(),
            answered_at: None,
            method: cut(call.method.as_str(), 16),
            path: arrival.path.clone(),
            appid: arrival.appid.clone(),
            errcode,
            rid,
            client_ip: Some(call.ip),
            token: call.token().map(short_hash),
            code: call.code().map(short_hash),
            answered,
            force: call.json.as_ref().is_some_and(|json| json["force_refresh"] == true),
            faults: arrival.faults.iter().map(FaultKind::name).collect(),
        });
        let mut reply = Reply::empty(&arrival.path, http_date(shown));
        match file {
            Some(file) => reply.send(&file, call.range.as_deref()),
            None => arrival.write(&mut reply, body),
        }
        arrival.damage(&mut reply);
        Decided { seq, delay, reply }
    }

    /// Whose call it is: the app that it names, or the one that its token belongs to.
    fn claimed_app(&self, call: &Call) -> String {
        let named = match Endpoint::of(&call.path) {
            Some(Endpoint::Token) => call.query("appid"),
            Some(Endpoint::StableToken | Endpoint::ClearQuotaV2) => call.text("appid"),
            None if is_sns(&call.path) => call.query("appid"),
            _ => None,
        };
        let named = named.or_else(|| {
            let token = call.token()?;
            let minted = self.tokens.find(token).map(|minted| minted.appid.as_str());
            minted.or_else(|| self.user_of(call).map(|subject| subject.appid.as_str()))
        });
        cut(named.unwrap_or_default(), 64)
    }

    /// Whose web token or refresh token the call carries.
    fn user_of(&self, call: &Call) -> Option<&Subject> {
        let token = call.token()?;
        match SnsCall::of(&call.path) {
            Some(SnsCall::RefreshToken) => self.grants.subject_of_refresh(token),
            _ => self.grants.web_token(token).map(|found| &found.subject),
        }
    }

    /// What happens just before the call is processed.
    fn prepare(&mut self, call: &Call, arrival: &Arrival, now: Timestamp) {
        let appid = &arrival.appid;
        for fault in &arrival.faults {
            match fault {
                FaultKind::ForeignMint { issuer, kill } => {
                    self.foreign_mint(appid, *issuer, *kill, now);
                }
                FaultKind::EarlyInvalidation { issuer, sticky } => {
                    self.invalidate(appid, *issuer, *sticky, now);
                }
                FaultKind::GrantRevoked {} => self.revoke(call, Revocation::Revoked, now),
                FaultKind::PasswordChanged {} => {
                    self.revoke(call, Revocation::PasswordChanged, now);
                }
                FaultKind::WebTokenEnds {} => {
                    if let Some(Subject { appid, openid, .. }) = self.user_of(call).cloned() {
                        self.grants.end_web_tokens(&appid, &openid, End::Alone, now);
                    }
                }
                FaultKind::SecretReset {} => {
                    let secret = self.write_secret();
                    if let Some(app) = self.apps.get_mut(appid) {
                        app.spec.secret = secret;
                    }
                }
                _ => {}
            }
        }
    }

    fn revoke(&mut self, call: &Call, why: Revocation, now: Timestamp) {
        if let Some(Subject { appid, openid, .. }) = self.user_of(call).cloned() {
            self.grants.revoke(&appid, &openid, why, now);
        }
    }
}

impl Arrival {
    fn skew_millis(&self) -> i64 {
        let skews = self.faults.iter().map(|fault| match fault {
            FaultKind::ClockSkew { seconds } => seconds.saturating_mul(1000),
            _ => 0,
        });
        skews.fold(0, i64::saturating_add)
    }

    /// Writes a body.
    fn write(&self, reply: &mut Reply, mut body: Value) {
        if let Some(bad) = self.find(bad_number) {
            spoil_expires_in(&mut body, bad);
        }
        if !body.is_null() {
            reply.body = body.to_string().into();
        }
    }

    /// Does all damage to an answer.
    fn damage(&self, reply: &mut Reply) {
        for fault in &self.faults {
            match fault {
                FaultKind::BadGateway { .. } => {
                    reply.status = StatusCode::BAD_GATEWAY;
                    reply.content_type = "text/html".to_owned();
                    reply.headers.clear();
                    reply.body = Bytes::from_static(BAD_GATEWAY_PAGE.as_bytes());
                }
                FaultKind::DirtyStrings { r#as } => reply.body = dirty(&reply.body, *r#as).into(),
                FaultKind::ContentType { value } => reply.content_type.clone_from(value),
                FaultKind::EmptyBody {} => reply.body = Bytes::new(),
                FaultKind::TruncatedBody {} => reply.truncated = true,
                _ => {}
            }
        }
        reply.truncated &= reply.body.len() > 1;
    }
}

fn refusal(fault: &FaultKind, call: &Call) -> Option<Failure> {
    let FaultKind::Errcode { code, ip, message } = fault else { return None };
    let mints = matches!(Endpoint::of(&call.path), Some(Endpoint::Token | Endpoint::StableToken));
    let failure = match code {
        40001 if mints => Failure::wrong_secret(*code),
        _ => Failure::refused_ip(*code, ip.unwrap_or(call.ip)),
    };
    Some(match message {
        Some(message) => failure.with_text(message.clone()),
        None => failure,
    })
}

fn suffix(fault: &FaultKind) -> Option<Suffix> {
    match fault {
        FaultKind::OldSuffix { suffix } => Some(*suffix),
        _ => None,
    }
}

fn bad_number(fault: &FaultKind) -> Option<BadNumber> {
    match fault {
        FaultKind::ExpiresIn { r#as } => Some(*r#as),
        _ => None,
    }
}

fn spoil_expires_in(body: &mut Value, bad: BadNumber) {
    let Some(fields) = body.as_object_mut() else { return };
    let Some(right) = fields.get("expires_in") else { return };
    let wrong = match bad {
        BadNumber::Missing => {
            fields.shift_remove("expires_in");
            return;
        }
        BadNumber::String => Value::from(right.to_string()),
        BadNumber::Zero => Value::from(0),
        BadNumber::Negative => Value::from(-7200),
        BadNumber::TooLarge => Value::from(right.as_u64().unwrap_or_default().saturating_mul(10)),
        BadNumber::Huge => Value::from(i64::MAX),
    };
    fields.insert("expires_in".to_owned(), wrong);
}

/// Puts bytes that JSON forbids at the front of each nickname and remark.
fn dirty(body: &[u8], dirt: Dirt) -> Vec<u8> {
    const KEYS: [&[u8]; 2] = [b"\"nickname\":\"", b"\"remark\":\""];
    let bytes: &[u8] = match dirt {
        Dirt::Control => b"\x08\n\x14",
        Dirt::BrokenUtf8 => b"\xff\xe5\xb0",
        Dirt::Both => b"\x08\n\x14\xff\xe5\xb0",
    };
    let mut out = Vec::with_capacity(body.len());
    let mut rest = body;
    while let Some((first, tail)) = rest.split_first() {
        match KEYS.iter().find(|key| rest.starts_with(key)) {
            Some(key) => {
                out.extend_from_slice(key);
                out.extend_from_slice(bytes);
                rest = &rest[key.len()..];
            }
            None => {
                out.push(*first);
                rest = tail;
            }
        }
    }
    out
}

/// The text, or as much of it as fits, on a border of characters.
fn cut(text: &str, most: usize) -> String {
    let end = (0..=most.min(text.len())).rev().find(|end| text.is_char_boundary(*end));
    text[..end.unwrap_or(0)].to_owned()
}

const BAD_GATEWAY_PAGE: &str = "<html>\r\n<head><title>502 Bad Gateway</title></head>\r\n<body>\r\n\
                                <center><h1>502 Bad Gateway</h1></center>\r\n<hr><center>nginx\
                                </center>\r\n</body>\r\n</html>\r\n";
